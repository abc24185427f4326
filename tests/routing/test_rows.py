"""Row groups: who is switched off for which sequence."""

import itertools
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_sweep.errors import PlanError
from gr_sweep.routing.cover import cover
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.rows import Share, cycle_length, dropped_share, row_groups

SHAPE = SimpleNamespace(num_hidden_layers=1, intermediate_size=64, num_attention_heads=8)
DOMAINS = ["code", "biology", "creative"]
PEERS = RoutePlan.peers(SHAPE, domains=DOMAINS)


def rows_of(groups):
    return [(group.domain, group.off) for group in groups for _ in range(group.count)]


def off_sets(plan, domain, count, dropout):
    """By step of a cycle."""
    cycle = row_groups(plan, {domain: count}, dropout)
    return [[off for _, off in rows_of(groups)] for groups in cycle]


def test_foreign_dropout_0_switches_nothing_off_and_1_every_other_label():
    [groups] = row_groups(PEERS, {"code": 4, "biology": 1}, 0.0)
    assert [(g.domain, g.off, g.count) for g in groups] == [
        ("code", frozenset(), 4),
        ("biology", frozenset(), 1),
    ]
    tree = RoutePlan.tree(SHAPE, domains=["code", "biology", "biology/virology"])
    assert off_sets(tree, "biology/virology", 3, 1.0) == [[frozenset({"code", "biology"})] * 3]
    [groups] = row_groups(PEERS, {"unlabelled": 3}, 1.0)
    assert rows_of(groups) == [("unlabelled", frozenset())] * 3
    assert row_groups(PEERS, {"code": 0, "unlabelled": 0}, 0.5) == ((),)


@settings(max_examples=50, deadline=None)
@given(
    num_domains=st.integers(2, 5), counts=st.lists(st.integers(1, 12), min_size=1, max_size=2),
    percent=st.integers(0, 100),
)  # fmt: skip
def test_each_other_domain_is_off_in_its_share_of_the_cases(num_domains, counts, percent):
    """Exactly if 8 steps can, or within 0.01, or refused, naming what can be reached; steps differ
    by one sequence."""
    domains = [f"d{index}" for index in range(num_domains)]
    plan, dropout = RoutePlan.peers(SHAPE, domains=domains), percent / 100
    given = dict(zip(domains, counts, strict=False))
    is_exact = any(all(percent * n * steps % 100 == 0 for n in counts) for steps in range(1, 9))
    try:
        cycle = row_groups(plan, given, dropout)
    except PlanError as error:
        for value in str(error).split("; use ")[1].split(" or "):
            row_groups(plan, given, float(value))
        return
    assert len(cycle) <= 8
    for domain, other in itertools.permutations(domains, 2):
        off = [
            sum(other in off for label, off in rows_of(groups) if label == domain)
            for groups in cycle
        ]
        assert max(off) - min(off) <= 1
        if domain in given:
            share = sum(off) / (given[domain] * len(cycle))
            assert share == pytest.approx(dropout, abs=1e-12 if is_exact else 0.0101)
            assert (0 < share < 1) == (0 < percent < 100)
    assert not any(label in off for groups in cycle for label, off in rows_of(groups))
    assert dropped_share(plan, itertools.chain(*cycle)) == pytest.approx(dropout, abs=0.0101)


@pytest.mark.parametrize(
    ("counts", "dropout", "num_lists"),
    [
        ((4,), 0.75, 1), ((3,), 0.75, 4), ((1,), 0.5, 2), ((2, 3), 0.5, 2), ((2,), 0.9, 5),
        ((3,), 0.9, 7),  # 19 of 21
        ((1,), 0.9, None), ((2, 3), 0.9, None), ((4,), 0.001, None), ((32,), 0.999, None),
        ((1, 37, 986), 0.3, None),
    ],
)  # fmt: skip
def test_steps_repeat_as_soon_as_they_can_or_are_refused_at_once(counts, dropout, num_lists):
    started, wanted = time.process_time(), Share("foreign_dropout", dropout, counts)
    if num_lists is None:
        with pytest.raises(PlanError, match=r"foreign_dropout=.*cannot be reached"):
            cycle_length(wanted)
    else:
        assert cycle_length(wanted) == num_lists
    assert time.process_time() - started < 2


def test_every_pair_of_three_others_is_crossed_evenly():
    """How often two are off together is about one away at most from what chance would give, in each
    step and over the cycle."""
    four = RoutePlan.peers(SHAPE, domains=["a", "b", "c", "d"])
    for count, dropout in itertools.product(range(1, 17), (0.25, 0.5, 0.75, 0.9)):
        if (count, dropout) == (1, 0.9):
            continue
        steps = off_sets(four, "a", count, dropout)
        assert steps == off_sets(four, "a", count, dropout), "the lists are fixed"
        for subsets in [*steps, list(itertools.chain(*steps))]:
            num_off = Counter(label for subset in subsets for label in subset)
            for one, other in itertools.combinations("bcd", 2):
                together = sum({one, other} <= subset for subset in subsets)
                expected = num_off[one] * num_off[other] / len(subsets)
                assert abs(together - expected) <= 1.2, (count, dropout)


FORGET_TWO = RoutePlan.forget(SHAPE, domains=DOMAINS, forget=["code", "biology"])


@pytest.mark.parametrize("one_block", [False, True])
@pytest.mark.parametrize(("count", "share"), [(4, 0.25), (4, 0.3), (1, 0.25), (2, 1.0), (3, 0.0)])
def test_a_foreign_core_is_trained_by_its_share_of_the_sequences(count, share, one_block):
    """Over the cycle exactly, and the same share of those with another domain on and off."""
    counts = {"code": count, "biology": 2 * count, "creative": 4, "unlabelled": 1}
    how = {"foreign_core_share": share, "one_block": one_block}
    cycle = row_groups(FORGET_TWO, counts, 0.5, **how)
    for domain in ("code", "biology"):
        of_domain = [g for groups in cycle for g in groups if g.domain == domain]
        trains = Counter()
        for group in of_domain:
            trains[group.trains_core] += group.count
        assert trains[True] == share * trains.total() == share * counts[domain] * len(cycle)
    assert not any(
        group.trains_core
        for groups in cycle
        for group in groups
        if group.domain in ("creative", "unlabelled")
    )


def test_with_one_block_the_others_take_turns():
    """Own blocks alone; a domain without runs half of its sequences with one of two blocks."""
    cycle = row_groups(FORGET_TWO, {"code": 2, "biology": 1, "creative": 4}, 0.5, one_block=True)
    offs = {domain: Counter() for domain in DOMAINS}
    for domain, off in rows_of(itertools.chain(*cycle)):
        offs[domain][FORGET_TWO.off_blocks(off)] += 1
    code, biology = 1, 2
    num_steps = len(cycle)
    assert offs["code"] == {(biology,): 2 * num_steps}
    assert offs["biology"] == {(code,): num_steps}
    assert offs["creative"] == {
        (code, biology): 2 * num_steps, (code,): num_steps, (biology,): num_steps
    }  # fmt: skip


def test_shares_that_cannot_be_reached_together_are_refused_with_some_that_can():
    counts = {"code": 1, "biology": 1, "creative": 1}
    with pytest.raises(PlanError, match=r"foreign_core_share=0.33.*use 0.25 or 0.375") as caught:
        row_groups(FORGET_TWO, counts, 0.75, foreign_core_share=1 / 3)
    for value in str(caught.value).split("; use ")[1].split(" or "):
        row_groups(FORGET_TWO, counts, 0.75, foreign_core_share=float(value))


@pytest.mark.parametrize(
    ("counts", "said"), [({"chemistry": 1}, "chemistry"), ({"code": -1}, "-1")]
)
def test_invalid_counts_are_refused(counts, said):
    with pytest.raises(PlanError, match=said):
        row_groups(PEERS, counts, 0.5)


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    num_groups=st.integers(1, 5),
    num_blocks=st.integers(1, 5),
    axis=st.sampled_from(["rows", "units", None]),
)
def test_a_cover_is_each_group_and_block_once_with_its_factor(data, num_groups, num_blocks, axis):
    """Painted on a sheet of paper: rows down, units across."""
    row_sizes = data.draw(st.lists(st.integers(1, 3), min_size=num_groups, max_size=num_groups))
    unit_sizes = data.draw(st.lists(st.integers(0, 3), min_size=num_blocks, max_size=num_blocks))
    factor = st.sampled_from([0.0, 1.0, 1.0, 0.3, -0.5])
    factors = [[data.draw(factor) for _ in range(num_blocks)] for _ in range(num_groups)]

    def slices(lengths):
        stops = list(itertools.accumulate(lengths))
        return [slice(stop - length, stop) for length, stop in zip(lengths, stops, strict=True)]

    rows, units = slices(row_sizes), slices(unit_sizes)
    covered = cover(factors, rows, units, axis)
    painted: dict[tuple[int, int], float] = {}
    written: set[int] = set()
    for tile in covered.tiles:
        for cell in itertools.product(range(100)[tile.rows], range(100)[tile.units]):
            assert cell not in painted
            painted[cell] = tile.factor
        line = set(range(100)[tile.units if axis == "units" else tile.rows])
        if axis:
            # What it adds to has been written, and what it writes has not.
            assert line <= written if tile.adds else not line & written
            written |= line
    wanted = {
        cell: factors[group][block]
        for group, block in itertools.product(range(num_groups), range(num_blocks))
        for cell in itertools.product(range(100)[rows[group]], range(100)[units[block]])
        if factors[group][block] != 0.0
    }
    assert painted == wanted
    num_rows, num_units = sum(row_sizes), sum(unit_sizes)
    size = {"rows": num_rows, "units": num_units, None: num_rows * num_units}[axis]
    assert covered.has_gaps == (len(written if axis else painted) < size)
