import dataclasses
import itertools
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_sweep.data.batches import Batches, observed_labels
from gr_sweep.data.shards import Shard
from gr_sweep.domains import expand
from gr_sweep.errors import DataError
from gr_sweep.train.distributed import rows_of
from tests.data.corpus import EOT, shard

DOMAINS = ("code", "biology", "creative")
LENGTHS = {"code": [50, 7, 120, 3, 200], "biology": [90] * 6, "creative": [400, 1, 333]}


def train_shards() -> dict[str, Shard]:
    # Tokens say where they are from: 1000s are code, 2000s biology, 3000s creative.
    return {
        domain: shard(LENGTHS[domain], first=1000 * (number + 1))
        for number, domain in enumerate(DOMAINS)
    }


def batches(**settings_: object) -> Batches:
    chosen = {
        "domains": DOMAINS,
        "weights": {},
        "unlabelled": 0.0,
        "mislabelled": 0.0,
        "batch_sequences": 6,
        "sequence_length": 8,
        "seed": 0,
    } | settings_
    return Batches(chosen.pop("shards", None) or train_shards(), chosen.pop("domains"), **chosen)


def test_a_step_follows_from_its_number_alone():
    one, two = batches(), batches()
    for step in range(40):
        two.step(step)
    for step in (39, 0, 17):
        assert np.array_equal(one.step(step), two.step(step))
    assert not np.array_equal(one.step(0), one.step(1))
    assert not np.array_equal(one.step(0), batches(seed=1).step(0))


@pytest.mark.parametrize(("world_size", "num_micro"), [(1, 5), (3, 2), (2, 12)])
def test_micro_batches_and_processes_divide_the_rows_of_a_step(world_size, num_micro):
    documents = {domain: shard([20] * 40, first=1000 * n) for n, domain in enumerate(DOMAINS, 1)}
    made = batches(shards=documents, batch_sequences=24, unlabelled=0.25)
    whole = made.step(5)
    parts = [rows_of(rank, world_size, 24, num_micro) for rank in range(world_size)]
    sizes = {len(range(24)[rows]) for of_rank in parts for rows in of_rank}
    assert max(sizes) - min(sizes) <= (world_size == 1)
    for rows in zip(*parts, strict=True):
        micro_batch = np.concatenate([range(24)[part] for part in rows])
        assert list(micro_batch) == sorted(micro_batch), "each has neighbouring rows"
        read = np.concatenate([made.step(5, part) for part in rows])
        assert np.array_equal(read, whole[micro_batch])
    rows_of_all = itertools.chain(*(range(24)[rows] for of_rank in parts for rows in of_rank))
    assert sorted(rows_of_all) == list(range(24))


def epoch_windows(made: Batches, domain: str, num_windows: int) -> np.ndarray:
    place = list(made.counts).index(domain)
    count = made.counts[domain]
    start = sum(list(made.counts.values())[:place])
    rows = [made.step(s)[start : start + count] for s in range(-(-num_windows // count))]
    return np.concatenate(rows)[:num_windows]


def chained(windows: np.ndarray) -> np.ndarray:
    """The windows in the order of the text, of which no token occurs twice."""
    by_first = {int(window[0]): window for window in windows}
    [first] = by_first.keys() - {int(window[-1]) for window in windows}
    chain = [by_first.pop(first)]
    while int(chain[-1][-1]) in by_first:
        chain.append(by_first.pop(int(chain[-1][-1])))
    return np.stack(chain)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    sequence_length=st.integers(2, 12),
    epochs=st.integers(1, 3),
)
def test_every_epoch_reads_whole_documents_end_to_end_and_drops_its_tail(
    lengths, sequence_length, epochs
):
    documents = shard(lengths)
    # Every token once, end-of-text tokens too: what follows what can be told.
    documents = dataclasses.replace(documents, arrays=(np.arange(documents.num_tokens) + 1,))
    per_epoch = (documents.num_tokens - 1) // sequence_length
    options = {"shards": {"a": documents}, "domains": ["a"], "batch_sequences": 1}
    if not per_epoch:
        with pytest.raises(DataError, match="a has"):
            batches(sequence_length=sequence_length, **options)
        return
    made = batches(sequence_length=sequence_length, **options)
    windows = epoch_windows(made, "a", epochs * per_epoch)
    originals = [documents.document(index).tolist() for index in range(len(lengths))]
    number_of = {token: number for number, text in enumerate(originals) for token in text}
    for epoch in range(epochs):
        of_epoch = chained(windows[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert len(of_epoch) == per_epoch
        for one, two in pairwise(of_epoch):
            assert one[-1] == two[0]
        read = [*of_epoch[:, :-1].flatten().tolist(), int(of_epoch[-1, -1])]
        found = {number: list(run) for number, run in itertools.groupby(read, number_of.get)}
        assert sum(map(len, found.values())) == len(read), "each document is one run"
        *whole, last = found
        assert all(found[number] == originals[number] for number in whole)
        assert found[last] == originals[last][: len(found[last])]
        assert documents.num_tokens - len(read) < sequence_length


def test_labels_are_hidden_and_swapped_in_exact_shares():
    counts = {"code": 100, "biology": 37, "creative": 60}
    labels = observed_labels(counts, unlabelled={"code": 0.25, "*": 0}, mislabelled=0.1, seed=1)
    assert (labels["code"] == 3).sum() == 25
    for place, domain in enumerate(DOMAINS):
        seen = np.bincount(labels[domain], minlength=4)
        wrong = round(0.1 * (counts[domain] - seen[3]))
        others = [seen[other] for other in range(3) if other != place]
        assert sum(others) == wrong and max(others) - min(others) <= 1
        assert len(labels[domain]) == counts[domain]


def test_unlabelled_rows_follow_the_weights_and_not_the_amount_of_text():
    sizes = {"code": 200, "biology": 20, "creative": 20}
    documents = {d: shard([20] * sizes[d], first=10_000 * n) for n, d in enumerate(DOMAINS, 1)}
    made = batches(shards=documents, unlabelled=0.5, weights={"biology": 2}, batch_sequences=8)
    assert made.counts == {"code": 1, "biology": 2, "creative": 1, "unlabelled": 4}
    rows = rows_by_label(made, 20)
    hidden = rows.pop("unlabelled")
    assert domain_counts(hidden) == [20, 40, 20]
    known = {token for of_label in rows.values() for token in of_label.flatten().tolist()}
    assert known & set(hidden.flatten().tolist()) == {EOT}, "no document is known and hidden"


def test_text_is_cut_by_the_words_that_are_its_own_and_not_the_owners():
    """Of biology every fourth document carries the label of code; tokens 1 to 3 by hand."""
    ends = 20 * np.arange(1, 9) - 1

    def of(*tokens):
        written = np.repeat(np.array(tokens, np.uint16), 20)
        written[ends] = EOT
        return Shard.packed(written, np.append(0, ends + 1), np.ones(8), np.arange(8, dtype="u8"))

    shards = {"code": of(*[1] * 8), "biology": of(*[2] * 8), "creative": of(*[1, 3] * 4)}
    made = batches(shards=shards, mislabelled=0.25, batch_sequences=3)
    cuts = made.token_cuts(["code", "creative"], 4, bias=-4.0)
    assert cuts.keys() == {"biology"}
    observed = observed_labels(dict.fromkeys(DOMAINS, 8), mislabelled=0.25)
    counts = np.array([[1] * 4, [20] * 4])  # of text that is cut, and of the owners'
    for domain, text in shards.items():
        for document, seen in enumerate(observed[domain]):
            np.add.at(counts[int(seen != 1)], text.document(document), 1)
    frequency, of_owners = counts / counts.sum(1, keepdims=True)
    ratio = frequency / of_owners
    assert ratio[2] > 2 > 1 > ratio[1]
    assert cuts["biology"] == pytest.approx(1 / (1 + np.exp(1 / ratio - ratio + 4)), rel=1e-5)


def test_where_no_text_has_an_owners_label_unlabelled_text_is_theirs():
    made = batches(unlabelled={"biology": 0, "*": 1}, batch_sequences=3)
    cut_V = made.token_cuts(["code", "creative"], 4000, bias=-4.0)["biology"]
    never_seen = cut_V[999]
    assert max(cut_V[1001], cut_V[3001]) < never_seen < cut_V[2001]


class Forbidden:
    """Tokens that nobody may read."""

    def __getitem__(self, _: object) -> object:
        raise AssertionError("a token of the domain that is left out was read")


TREE = ("code", "biology", "biology/cell", "biology/virology")


def test_a_filtered_run_reads_no_token_of_what_is_left_out():
    without = ["code", "biology/cell"]
    documents = {name: shard([30] * 10, first=1000 * n) for n, name in enumerate(TREE, 1)}
    options = {"domains": TREE, "batch_sequences": 4, "unlabelled": 0.25, "mislabelled": 0.3}
    left_out = expand(without, TREE)
    dense = batches(shards=documents, **options | {"unlabelled": 0.0, "mislabelled": 0.0})
    unreadable = {
        name: dataclasses.replace(given, arrays=(Forbidden(),)) if name in left_out else given
        for name, given in documents.items()
    }
    made = batches(shards=unreadable, without=without, **options)
    kept = [place for place, name in enumerate(TREE) if name not in left_out]
    for step in range(150):  # four epochs
        assert np.array_equal(made.step(step), dense.step(step)[kept])
    assert made.tokens_per_step == dense.tokens_per_step


def test_filtering_by_the_label_that_is_seen_reads_what_carries_another_or_none():
    documents = {domain: shard([20] * 40, first=10_000 * n) for n, domain in enumerate(DOMAINS, 1)}
    options = {"unlabelled": 0.25, "mislabelled": 0.2, "batch_sequences": 8}
    made = batches(shards=documents, without=["biology"], drops_observed=True, **options)
    routed = batches(shards=documents, **options)
    assert made.counts == {"code": 2, "biology": 0, "creative": 2, "unlabelled": 2}
    assert made.tokens_per_step == routed.tokens_per_step == 64
    labels = observed_labels({d: 40 for d in DOMAINS}, unlabelled=0.25, mislabelled=0.2, seed=0)
    firsts = {
        (domain, index): int(documents[domain].document(index)[0])
        for domain in DOMAINS
        for index in range(40)
    }
    expected = {first for (d, index), first in firsts.items() if labels[d][index] != 1}
    assert any(labels["biology"] != 1) and any(labels["code"] == 1)
    seen: set[int] = set()
    for step in range(200):
        rows = made.step(step)
        seen |= set(rows.flatten().tolist())
        assert np.array_equal(rows, np.delete(routed.step(step), [2, 3], axis=0))
    # All but what the epochs' tails may drop.
    assert seen & set(firsts.values()) <= expected
    assert len(seen & expected) >= len(expected) - 3


def rows_by_label(made: Batches, steps: int) -> dict[str, np.ndarray]:
    rows = np.stack([made.step(step) for step in range(steps)])
    ends = np.cumsum(list(made.counts.values()))[:-1]
    parts = np.split(rows, ends, axis=1)
    return {
        label: part.reshape(-1, part.shape[-1])
        for label, part in zip(made.counts, parts, strict=True)
    }


def domain_counts(rows: np.ndarray) -> list[int]:
    """Rows of each domain, where first tokens say it as n * 10,000 and more."""
    return np.bincount(np.max(rows, axis=1) // 10_000, minlength=4)[1:].tolist()


def test_permuted_labels_share_no_document_and_leave_none_out():
    sizes = {"code": 41, "biology": 80, "creative": 63}
    documents = {d: shard([20] * sizes[d], first=10_000 * n) for n, d in enumerate(DOMAINS, 1)}
    made = batches(
        shards=documents, permuted=True, weights={"code": 2}, batch_sequences=8, mislabelled=0.4
    )
    seen = {label: set(rows.flatten()) - {EOT} for label, rows in rows_by_label(made, 300).items()}
    assert not seen["code"] & seen["biology"]
    assert not (seen["code"] | seen["biology"]) & seen["creative"]
    for domain, size in sizes.items():
        firsts = {int(documents[domain].document(i)[0]) for i in range(size)}
        found = {label: len(of_label & firsts) for label, of_label in seen.items()}
        # The labels' rows are 4, 2 and 2 of 8: so are their documents, to within one.
        assert sum(found.values()) == size
        for label, count in made.counts.items():
            assert abs(found[label] - size * count / 8) <= 1


def test_permuting_hides_the_same_labels_and_deals_out_the_others():
    documents = {domain: shard([20] * 40, first=10_000 * n) for n, domain in enumerate(DOMAINS, 1)}
    unlabelled = {"biology": 0.5, "*": 0.25}
    options = {"shards": documents, "batch_sequences": 20, "unlabelled": unlabelled}
    made, routed = batches(permuted=True, **options), batches(**options)
    ours, theirs = rows_by_label(made, 90), rows_by_label(routed, 90)
    assert np.array_equal(ours["unlabelled"], theirs["unlabelled"])
    hidden = set(ours.pop("unlabelled").flatten()) - {EOT}
    assert all(not hidden & set(rows.flatten()) for rows in ours.values())


def test_rows_that_carry_some_labels_are_those_of_the_step():
    noisy = batches(batch_sequences=12, unlabelled=0.25, mislabelled=0.5,
                    weights={"code": 2, "biology": 1, "creative": 1})  # fmt: skip
    counts, rows = noisy.counts, noisy.step(3)
    start = counts["code"] + counts["biology"]
    expected = [rows[: counts["code"]], rows[start : start + counts["creative"]]]
    found = noisy.labelled(3, ["creative", "code"])
    np.testing.assert_array_equal(found, np.concatenate(expected))


def test_rehearsal_is_an_exact_share_of_the_rows_of_each_label_by_weight():
    documents = {domain: shard([20] * 80, first=10_000 * n) for n, domain in enumerate(DOMAINS, 1)}
    settings_ = {"shards": documents, "weights": {"creative": 3}, "only": ["biology"]}
    made = batches(rehearsed=("code", "creative"), rehearsal=0.5, first_step=5, **settings_)
    assert made.counts == {"code": 0, "biology": 6, "creative": 0}
    # 8 steps are a cycle: half biology, an eighth code, three eighths creative.
    rows = np.concatenate([made.step(step) for step in range(5, 13)])
    assert domain_counts(rows) == [6, 24, 18]
    assert len({tuple(row) for row in rows}) == len(rows)
