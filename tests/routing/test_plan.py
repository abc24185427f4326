"""Plans: owners, sizes, errors, plan.json, and the plans of later rounds."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_sweep.errors import GrSweepError, PlanError
from gr_sweep.routing.divide import origins, split_further
from gr_sweep.routing.plan import RoutePlan

SHAPE = SimpleNamespace(
    num_hidden_layers=3,
    intermediate_size=24,
    num_attention_heads=16,
    num_key_value_heads=8,
    hidden_size=10,
)
DOMAINS = ["code", "biology", "creative"]
TREE = ["code", "biology/virology", "biology/cells", "biology"]
BIOLOGY = {"biology", "biology/virology", "biology/cells"}


def make(kind, domains=DOMAINS, **settings):
    return RoutePlan.make(kind, SHAPE, domains=domains, **settings)


@pytest.mark.parametrize(
    ("plan", "owners"),
    [
        (make("none"), [set(DOMAINS)]),
        (make("tree", ["code"]), [{"code"}]),
        (
            make("peers", dict.fromkeys(DOMAINS).keys()),
            [set(DOMAINS), {"code"}, {"biology"}, {"creative"}],
        ),
        (make("forget", forget=["biology", "code"]), [{"creative"}, {"biology"}, {"code"}]),
        (make("forget", TREE, forget=["biology"]), [{"code"}, BIOLOGY]),
        (make("forget", forget=DOMAINS), [set(), {"code"}, {"biology"}, {"creative"}]),
        # A label on an inner node owns a leaf of its own.
        (
            make("tree", TREE),
            [
                *(set(TREE), {"code"}, BIOLOGY, {"biology"}),
                *({"biology/virology"}, {"biology/cells"}),
            ],
        ),
        # Nodes with equal owners are one block.
        (
            make("tree", ["code", "biology/virology"]),
            [{"code", "biology/virology"}, {"code"}, {"biology/virology"}],
        ),
        (
            make("lattice"),
            [
                *(set(DOMAINS), {"code"}, {"biology"}, {"creative"}),
                *({"code", "biology"}, {"code", "creative"}, {"biology", "creative"}),
            ],
        ),
    ],
)
def test_owners_of_every_shape_of_plan(plan, owners):
    assert plan.core == plan.blocks[0] and plan.core.owners == owners[0]
    assert [block.is_core for block in plan.blocks] == [True] + [False] * (len(owners) - 1)
    assert sorted(sorted(b.owners) for b in plan.blocks) == sorted(map(sorted, owners))
    assert plan.owners_of(plan.core) == [d for d in plan.domains if d in owners[0]]


def test_the_core_takes_its_share_and_the_other_blocks_are_equal():
    plan = make("peers", mlp_shared=0.5, attn_shared=0.25)
    assert set(plan.splits) == {(layer, kind) for layer in range(3) for kind in ("mlp", "attn")}
    assert plan.splits[0, "mlp"].sizes == (12, 4, 4, 4)
    assert plan.splits[2, "attn"].sizes == (2, 2, 2, 2)
    assert make("peers", mlp_shared=0.0).splits[0, "mlp"].sizes == (0, 8, 8, 8)
    assert {kind for _, kind in make("peers").splits} == {"mlp"}, "attention is whole by default"
    heads = SimpleNamespace(num_hidden_layers=1, intermediate_size=24, num_attention_heads=4)
    without_groups = RoutePlan.peers(heads, domains=DOMAINS, attn_shared=0.25)
    assert without_groups.splits[0, "attn"].sizes == (1, 1, 1, 1)


@pytest.mark.parametrize(("layer_share", "layers"), [(0.67, [0, 1]), (0.01, [0])])
def test_a_share_of_the_layers_is_counted_from_the_first_and_at_least_one(layer_share, layers):
    plan = make("peers", layer_share=layer_share, attn_shared=0.25)
    assert plan == make("peers", layers=layers[::-1], attn_shared=0.25)
    assert sorted({layer for layer, _ in plan.splits}) == layers


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        ("peers", {"mlp_shared": 1.5}, "1.5"),
        ("lattice", {"mlp_shared": float("nan")}, "nan"),
        ("peers", {"layers": [0, 3]}, "3"),
        ("peers", {"layers": [1, 1]}, "layers"),
        ("peers", {"layers": [0.5]}, "layers"),
        ("peers", {"layers": [0], "layer_share": 0.5}, "both choose the layers"),
        ("peers", {"layer_share": 5.0}, "got 5.0"),
        ("peers", {"layer_share": 0.0}, "got 0.0"),
        ("peers", {"mlp_shared": 0.99}, "hidden units"),
        ("lattice", {"attn_shared": 0.5}, "head groups"),  # 7 blocks, 4 groups beside the core
        ("peers", {"mlp_shared": 1.0}, "mlp_shared"),
        ("forget", {"forget": ["chemistry"]}, "chemistry"),
        ("forget", {"forget": []}, "forget"),
        ("peers", {"domains": ["code", "code"]}, "code"),
        ("peers", {"orders": {(0, "mlp"): range(1, 25)}}, "permutation"),
        ("peers", {"adapters": {"embed": "ful"}}, r"plan.adapters.embed.*full.*'ful'"),
        ("peers", {"adapters": {"mlp": "full"}}, r"plan.adapters.mlp to be a number of units, got"),
        ("peers", {"adapters": {"norm": 1}}, "norm.*expected one of embed"),
    ],
)
def test_an_invalid_plan_is_refused_in_one_line(kind, wrong, said):
    with pytest.raises(GrSweepError, match=said) as refusal:
        RoutePlan.make(kind, SHAPE, **({"domains": DOMAINS} | wrong))
    assert "\n" not in str(refusal.value)


def test_off_blocks_are_those_that_no_other_node_owns():
    plan = make("lattice")
    off = [set(plan.blocks[index].owners) for index in plan.off_blocks(["code", "biology"])]
    assert sorted(map(sorted, off)) == [["biology"], ["biology", "code"], ["code"]]
    assert plan.off_blocks(DOMAINS) == tuple(range(1, 7))
    assert not plan.off_blocks([])
    leaf = make("tree", ["code", "biology", "biology/virology"])
    names = {
        nodes: {leaf.blocks[index].name for index in leaf.off_blocks(nodes)}
        for nodes in (("biology/virology",), ("biology",), ("biology", "biology/virology"))
    }
    assert list(names.values()) == [
        {"biology/virology"},
        {"biology/."},
        {"biology", "biology/.", "biology/virology"},
    ]


def test_a_node_is_removable_only_if_each_of_its_labels_owns_a_block_inside_it():
    labels = ["code", "biology/virology", "biology", "creative"]
    assert make("forget", labels, forget=["biology/virology"]).removable() == ("biology/virology",)
    assert make("forget", labels, forget=["biology"]).removable() == ("biology",)
    for kind in ("tree", "peers"):
        assert set(make(kind, labels).removable()) == set(labels)


LABELS = st.lists(
    st.sampled_from(["a", "b", "a/x", "a/y", "a/x/1", "c/x", "c"]),
    min_size=2,
    max_size=4,
    unique=True,
)
WIDE = SimpleNamespace(num_hidden_layers=2, intermediate_size=97, num_attention_heads=40)


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(["peers", "tree", "lattice", "forget"]),
    domains=LABELS,
    mlp_shared=st.floats(0.0, 0.8),
    attn_shared=st.floats(0.0, 0.6),
    seed=st.randoms(use_true_random=False),
)
def test_every_plan_divides_all_units_and_survives_json(
    kind, domains, mlp_shared, attn_shared, seed
):
    order = list(range(97))
    seed.shuffle(order)
    # A leaf is forgotten, so that the core keeps an owner whatever the labels are.
    forget = {"forget": [max(domains, key=len)]} if kind == "forget" else {}
    shares = {"mlp_shared": mlp_shared, "attn_shared": attn_shared}
    plan = RoutePlan.make(
        kind, WIDE, domains=domains, orders={(1, "mlp"): order}, **shares, **forget
    )
    assert len({block.owners for block in plan.blocks}) == len(plan.blocks)
    assert set().union(*(block.owners for block in plan.blocks)) == set(domains)
    for (layer, split_kind), split in plan.splits.items():
        units, shared = (97, mlp_shared) if split_kind == "mlp" else (40, attn_shared)
        assert sum(split.sizes) == units and len(split.sizes) == len(plan.blocks)
        assert abs(split.sizes[0] - shared * units) <= 0.5 + 1e-9
        assert min(split.sizes[1:]) >= 1 and max(split.sizes[1:]) - min(split.sizes[1:]) <= 1
        assert split.order == (tuple(order) if (layer, split_kind) == (1, "mlp") else None)
    assert RoutePlan.from_json(plan.to_json()) == plan
    assert plan.in_place() == RoutePlan.make(kind, WIDE, domains=domains, **shares, **forget)


def test_adapters_give_each_block_units_and_the_core_none():
    adapters = {"embed": "full", "unembed": 4, "bias": True, "attn": 0, "mlp": 2}
    plan = make("forget", forget=["biology"], mlp_shared=1.0, layers=[1, 2], adapters=adapters)
    assert {place: split.sizes for place, split in plan.splits.items()} == {
        (0, "embed"): (0, 10),
        (0, "unembed"): (0, 4),
        (0, "bias"): (0, 1),
        (1, "mlp_adapter"): (0, 2),
        (2, "mlp_adapter"): (0, 2),
    }
    assert plan.full_rank == {"embed"}
    assert RoutePlan.from_json(plan.to_json()) == plan


# Later rounds


def test_split_further_divides_each_experts_units_and_moves_no_others():
    # 24 units: core 12, four per domain, and two of adapters
    before = make("peers", adapters={"mlp": 2})
    labels = ["code/0", "code/1", "biology", "creative/0", "creative/1"]
    plan = split_further(before, labels, mlp_shared=0.5)
    assert plan.domains == tuple(labels)
    assert [(b.name, set(b.owners)) for b in plan.blocks] == [
        ("core", set(labels)),
        ("code", {"code/0", "code/1"}),
        ("code/0", {"code/0"}),
        ("code/1", {"code/1"}),
        ("biology", {"biology"}),
        ("creative", {"creative/0", "creative/1"}),
        ("creative/0", {"creative/0"}),
        ("creative/1", {"creative/1"}),
    ]
    assert plan.splits[0, "mlp"].sizes == (12, 2, 1, 1, 4, 2, 1, 1)
    assert plan.splits[0, "mlp_adapter"].sizes == (0, 0, 1, 1, 2, 0, 1, 1)
    assert origins(plan, before) == (0, 1, 1, 1, 2, 3, 3, 3)
    with pytest.raises(PlanError, match="code/0/b gets no"):
        split_further(
            plan,
            ["code/0/a", "code/0/b", "code/1", "biology", "creative/0", "creative/1"],
            mlp_shared=0.0,
        )
