"""Scores to plans: blocks get the units that their owners use."""

from types import SimpleNamespace

import pytest
import torch

from gr_sweep.assign.attribution import UnitScores
from gr_sweep.assign.units import (
    assign_units,
    modularity_by_chance,
    modularity_of,
    wanted_sizes,
)
from gr_sweep.routing.divide import split_further
from gr_sweep.routing.plan import Block, RoutePlan, Split

SHAPE = SimpleNamespace(
    num_hidden_layers=2, intermediate_size=12, num_attention_heads=4, num_key_value_heads=4
)
DOMAINS = ("code", "biology", "creative")
NONE = RoutePlan.none(domains=DOMAINS)


def scores(owners_of_layers, domains=DOMAINS, kind="mlp") -> UnitScores:
    """Each unit matters to its owners alone, to all of them alike."""
    halves = {}
    for layer, owners in enumerate(owners_of_layers):
        table = torch.tensor(
            [[1.0 if d in of_unit else 0.01 for of_unit in owners] for d in domains]
        )
        halves[layer, kind] = torch.stack([table, table]).double()
    return UnitScores(tuple(domains), halves)


def owners_by_block(plan, owners, layer):
    """What the units of each block are used by, after the order."""
    split = plan.splits[layer, "mlp"]
    moved = [owners[index] for index in split.order]
    return {
        block.name: sorted("+".join(o) for o in moved[part])
        for block, part in zip(plan.blocks, split.slices(), strict=True)
    }


def test_each_block_gets_the_units_of_its_owner_and_the_core_what_is_shared():
    c, b, p, all_ = ("code",), ("biology",), ("creative",), DOMAINS
    layers = [[b, c, all_, p] * 3, [all_, all_, p, c, b, all_] * 2]
    plan = RoutePlan.peers(SHAPE, domains=DOMAINS, mlp_shared=0.25)  # 3, 3 each
    assigned = assign_units(plan, NONE, {0: scores(layers)})
    assert owners_by_block(assigned, layers[0], 0) == {
        "core": ["code+biology+creative"] * 3,
        "code": ["code"] * 3,
        "biology": ["biology"] * 3,
        "creative": ["creative"] * 3,
    }
    # The second layer has too many shared units and too few of each domain: capacities hold.
    assert assigned.splits[1, "mlp"].sizes == (3, 3, 3, 3)
    of_second = owners_by_block(assigned, layers[1], 1)
    assert of_second["core"] == ["code+biology+creative"] * 3
    for domain in DOMAINS:
        assert of_second[domain].count(domain) == 2
    assert modularity_of(assigned, reordered(scores(layers), assigned)) > 0.75
    in_place = plan  # units as they lie: no better than chance
    assert modularity_of(in_place, scores(layers)) < 0.6


def test_a_later_round_moves_units_within_the_expert_that_it_divides():
    before = RoutePlan.peers(SHAPE, domains=DOMAINS, mlp_shared=0.25)
    labels = ("code/0", "code/1", "biology", "creative")
    plan = split_further(before, labels, mlp_shared=0.34)  # code: 1 shared, 1 each
    zero, one, both = ("code/0",), ("code/1",), ("code/0", "code/1")
    owners = [both] * 3 + [one, both, zero] + [both] * 6  # core, code, biology, creative
    found = assign_units(plan, before, {1: scores([owners] * 2, ("code/0", "code/1"))})
    order = found.splits[0, "mlp"].order
    assert order == (0, 1, 2, 4, 5, 3, 6, 7, 8, 9, 10, 11)
    assert found.splits[0, "mlp"].sizes == plan.splits[0, "mlp"].sizes


def test_a_lattice_gives_units_of_two_domains_to_the_block_of_these_two():
    c, b, pair, all_ = ("code",), ("biology",), ("code", "biology"), DOMAINS
    layers = [[pair, pair, c, b, all_, all_, c, b, ("creative",), ("creative",), all_, all_]] * 2
    plan = RoutePlan.lattice(SHAPE, domains=DOMAINS, mlp_shared=0.5)  # core 6, one a set
    assigned = assign_units(plan, NONE, {0: scores(layers)})
    by_block = owners_by_block(assigned, layers[0], 0)
    assert by_block["code+biology"] == ["code+biology"]
    assert by_block["creative"] == ["creative"]
    wanted = wanted_sizes(plan, scores(layers))["mlp"]
    assert wanted == {
        "core": 8, "code": 4, "biology": 4, "creative": 4,
        "code+biology": 4, "code+creative": 0, "biology+creative": 0,
    }  # fmt: skip


def reordered(of_units: UnitScores, plan: RoutePlan) -> UnitScores:
    halves = {
        place: table[:, :, list(plan.splits[place].order)]
        for place, table in of_units.halves.items()
    }
    return UnitScores(of_units.domains, halves)


def test_modularity_of_a_hand_made_network():
    """Core, code + creative, biology: 1, 1 and 2 units; the second domain loses a tenth."""
    blocks = (
        Block("core", frozenset(DOMAINS), is_core=True),
        Block("code+creative", frozenset(["code", "creative"])),
        Block("biology", frozenset(["biology"])),
    )
    plan = RoutePlan(DOMAINS, blocks, {(0, "mlp"): Split((1, 1, 2))})
    table = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.0, 0.1, 0.3, 0.6], [1.0, 0.0, 0.0, 0.0]])
    found = UnitScores(DOMAINS, {(0, "mlp"): torch.stack([table, table]).double()})
    # Code 0.25 of 0.5, biology 0.9 of 1; creative uses the core alone and does not count.
    assert modularity_of(plan, found) == pytest.approx((0.5 + 0.9) / 2)
    assert modularity_by_chance(plan) == pytest.approx((1 / 3 + 2 / 3 + 1 / 3) / 3)
