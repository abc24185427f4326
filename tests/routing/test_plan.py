"""Plans: owners, sizes, merges, errors and plan.json."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_sweep.errors import PlanError
from gr_sweep.routing.plan import Block, RoutePlan

SHAPE = SimpleNamespace(
    num_hidden_layers=3, intermediate_size=24, num_attention_heads=16, num_key_value_heads=8
)
DOMAINS = ["code", "biology", "creative"]
TREE = ["code", "biology/virology", "biology/cells", "biology"]


def owners_of(plan):
    return [set(block.owners) for block in plan.blocks]


def make(kind, domains, **settings):
    forget = {"forget": [domains[-1]]} if kind == "forget" else {}
    return getattr(RoutePlan, kind)(SHAPE, domains=domains, **forget, **settings)


def test_peers_have_a_core_owned_by_all_and_a_block_a_domain():
    plan = RoutePlan.peers(SHAPE, domains=DOMAINS)
    assert plan.domains == ("code", "biology", "creative")
    assert owners_of(plan) == [set(DOMAINS), {"code"}, {"biology"}, {"creative"}]
    assert [block.is_core for block in plan.blocks] == [True, False, False, False]
    assert [block.name for block in plan.blocks[1:]] == DOMAINS


def test_forget_has_a_core_owned_by_the_others_and_a_block_for_each_forgotten_domain():
    plan = RoutePlan.forget(SHAPE, domains=DOMAINS, forget=["biology", "code"])
    assert owners_of(plan)[0] == {"creative"}
    assert sorted(map(sorted, owners_of(plan)[1:])) == [["biology"], ["code"]]


def test_forgetting_a_node_forgets_every_label_under_it():
    plan = RoutePlan.forget(SHAPE, domains=TREE, forget=["biology"])
    assert owners_of(plan)[0] == {"code"}
    assert set().union(*owners_of(plan)[1:]) == set(TREE) - {"code"}


def test_tree_has_a_block_for_every_node_owned_by_every_label_at_or_below_it():
    plan = RoutePlan.tree(SHAPE, domains=TREE)
    biology = {"biology", "biology/virology", "biology/cells"}
    expected = [set(TREE), {"code"}, biology, {"biology"}, {"biology/virology"}, {"biology/cells"}]
    assert owners_of(plan)[0] == set(TREE)
    assert sorted(map(sorted, owners_of(plan))) == sorted(map(sorted, expected))


def test_a_label_on_an_inner_node_is_a_leaf_of_its_own():
    plan = RoutePlan.tree(SHAPE, domains=["code", "biology", "biology/virology"])
    leaf = next(block for block in plan.blocks if block.owners == {"biology"})
    node = next(block for block in plan.blocks if block.owners == {"biology", "biology/virology"})
    assert leaf.name != node.name
    # Removing virology leaves what biology shares with it; removing the leaf leaves the node.
    assert leaf not in [plan.blocks[index] for index in plan.off_blocks(["biology/virology"])]
    assert node not in [plan.blocks[index] for index in plan.off_blocks(["biology"])]
    assert node in [
        plan.blocks[index] for index in plan.off_blocks(["biology", "biology/virology"])
    ]


@pytest.mark.parametrize(
    ("domains", "expected"),
    [
        (
            ["code", "biology/virology"],
            [{"code"}, {"biology/virology"}],
        ),  # node biology has one label
        (
            ["biology/virology", "biology/cells"],
            [{"biology/virology"}, {"biology/cells"}],
        ),  # and here all
    ],
)
def test_nodes_with_equal_owners_are_one_block(domains, expected):
    assert owners_of(RoutePlan.tree(SHAPE, domains=domains)) == [set(domains), *expected]


def test_lattice_has_a_block_for_every_set_of_domains_and_all_of_them_is_the_core():
    plan = RoutePlan.lattice(SHAPE, domains=DOMAINS)
    assert len(plan.blocks) == 7
    assert len({block.owners for block in plan.blocks}) == 7
    assert plan.blocks[0].owners == set(DOMAINS) and plan.blocks[0].is_core


@pytest.mark.parametrize("kind", ["peers", "tree", "lattice"])
def test_one_domain_alone_owns_the_core_and_nothing_is_split(kind):
    plan = getattr(RoutePlan, kind)(SHAPE, domains=["code"])
    assert plan.blocks == (Block(plan.blocks[0].name, frozenset({"code"}), is_core=True),)
    assert not plan.splits


def test_none_is_the_core_alone():
    plan = RoutePlan.none(SHAPE, domains=DOMAINS)
    assert owners_of(plan) == [set(DOMAINS)]
    assert not plan.splits


def test_the_core_takes_its_share_and_the_other_blocks_are_equal():
    plan = RoutePlan.peers(SHAPE, domains=DOMAINS, mlp_shared=0.5, attn_shared=0.25)
    assert set(plan.splits) == {(layer, kind) for layer in range(3) for kind in ("mlp", "attn")}
    assert plan.splits[0, "mlp"].sizes == (12, 4, 4, 4)
    assert plan.splits[2, "attn"].sizes == (2, 2, 2, 2)


def test_attention_is_whole_unless_its_share_is_below_one():
    assert {kind for _, kind in RoutePlan.peers(SHAPE, domains=DOMAINS).splits} == {"mlp"}


def test_units_of_attention_are_key_value_groups_or_heads_where_there_are_no_groups():
    heads = SimpleNamespace(num_hidden_layers=1, intermediate_size=24, num_attention_heads=4)
    plan = RoutePlan.peers(heads, domains=DOMAINS, attn_shared=0.25)
    assert plan.splits[0, "attn"].sizes == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("layer_share", "layers"), [(1.0, [0, 1, 2]), (0.67, [0, 1]), (0.34, [0]), (0.01, [0])]
)
def test_a_share_of_the_layers_is_counted_from_the_first_and_at_least_one(layer_share, layers):
    plan = RoutePlan.peers(SHAPE, domains=DOMAINS, layer_share=layer_share, attn_shared=0.25)
    assert plan == RoutePlan.peers(SHAPE, domains=DOMAINS, layers=layers, attn_shared=0.25)
    assert sorted({layer for layer, _ in plan.splits}) == layers


def test_five_of_eight_layers_are_the_published_share():
    shape = SimpleNamespace(num_hidden_layers=8, intermediate_size=24, num_attention_heads=8)
    plan = RoutePlan.make("forget", shape, domains=DOMAINS, forget=["biology"], layer_share=0.625)
    assert sorted(plan.splits) == [(layer, "mlp") for layer in range(5)]


def test_only_the_layers_given_are_split():
    plan = RoutePlan.peers(SHAPE, domains=DOMAINS, layers=[2, 0])
    assert sorted(plan.splits) == [(0, "mlp"), (2, "mlp")]


def test_the_core_may_have_no_units():
    assert RoutePlan.peers(SHAPE, domains=DOMAINS, mlp_shared=0.0).splits[0, "mlp"].sizes == (
        0,
        8,
        8,
        8,
    )


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        ("peers", {"mlp_shared": 1.5}, "1.5"),
        ("peers", {"mlp_shared": -0.1}, "-0.1"),
        ("tree", {"attn_shared": 2.0}, "2.0"),
        ("lattice", {"mlp_shared": float("nan")}, "nan"),
        ("peers", {"layers": [0, 3]}, "3"),
        ("peers", {"layers": [-1]}, "-1"),
        ("peers", {"layers": []}, "layers"),
        ("peers", {"layer_share": 0.0}, "layer_share=0.0"),
        ("peers", {"layer_share": 1.5}, "layer_share=1.5"),
        ("peers", {"layer_share": float("nan")}, "layer_share=nan"),
        ("peers", {"layer_share": 0.5, "layers": [0]}, "both"),
        ("peers", {"layers": [1, 1]}, "layers"),
        ("peers", {"mlp_shared": 0.99}, "units"),
        ("lattice", {"attn_shared": 0.5}, "head groups"),
        ("peers", {"mlp_shared": 1.0}, "mlp_shared"),
        ("forget", {"forget": ["chemistry"]}, "chemistry"),
        ("forget", {"forget": []}, "forget"),
        ("forget", {"forget": DOMAINS}, "forget"),
        ("peers", {"domains": []}, "domain"),
        ("peers", {"domains": ["code", "code"]}, "code"),
        ("peers", {"domains": ["unlabelled", "code"]}, "unlabelled"),
        ("peers", {"domains": ["a b"]}, "a b"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_in_one_line_that_names_what_is_wrong(
    kind, wrong, said
):
    with pytest.raises(PlanError, match=said) as refusal:
        getattr(RoutePlan, kind)(SHAPE, **({"domains": DOMAINS} | wrong))
    assert "\n" not in str(refusal.value)


def test_more_blocks_than_head_groups_is_refused():
    """With 7 blocks and 8 groups of which the core takes 4."""
    with pytest.raises(PlanError, match="head groups"):
        RoutePlan.lattice(SHAPE, domains=DOMAINS, attn_shared=0.5)
    assert (
        RoutePlan.lattice(SHAPE, domains=DOMAINS, attn_shared=0.25).splits[0, "attn"].sizes[0] == 2
    )


@pytest.mark.parametrize("order", [(0,) * 24, tuple(range(23)), tuple(range(1, 25))])
def test_an_order_that_is_no_permutation_is_refused(order):
    with pytest.raises(PlanError, match="permutation"):
        RoutePlan.peers(SHAPE, domains=DOMAINS, orders={(0, "mlp"): order})


def test_off_are_the_blocks_that_nobody_else_owns_and_never_the_core():
    plan = RoutePlan.lattice(SHAPE, domains=DOMAINS)
    off = [set(plan.blocks[index].owners) for index in plan.off_blocks(["code", "biology"])]
    assert sorted(map(sorted, off)) == [["biology"], ["biology", "code"], ["code"]]
    assert 0 not in plan.off_blocks(DOMAINS)
    assert len(plan.off_blocks(DOMAINS)) == 6
    assert not plan.off_blocks([])


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "null", '{"domains": ["a"], "blocks": [], "splits": []}']
)
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(PlanError):
        RoutePlan.from_json(text)


def test_a_plan_whose_sizes_do_not_fit_its_blocks_is_refused():
    text = RoutePlan.peers(SHAPE, domains=DOMAINS).to_json()
    whole = RoutePlan.from_json(text)
    short = RoutePlan(whole.domains, whole.blocks[:-1], whole.splits).to_json()
    with pytest.raises(PlanError):
        RoutePlan.from_json(short)


LABELS = st.lists(
    st.sampled_from(["a", "b", "a/x", "a/y", "a/x/1", "c/x", "c"]),
    min_size=2,
    max_size=4,
    unique=True,
)
WIDE = SimpleNamespace(num_hidden_layers=2, intermediate_size=97, num_attention_heads=40)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["peers", "tree", "lattice", "forget"]),
    domains=LABELS,
    mlp_shared=st.floats(0.0, 0.8),
    attn_shared=st.floats(0.0, 0.6),
    seed=st.randoms(use_true_random=False),
)
def test_every_plan_shares_out_all_units_and_survives_json(
    kind, domains, mlp_shared, attn_shared, seed
):
    order = list(range(97))
    seed.shuffle(order)
    arguments = dict(mlp_shared=mlp_shared, attn_shared=attn_shared, orders={(1, "mlp"): order})
    if kind == "forget":
        # A leaf, so that the core keeps an owner whatever the labels are.
        arguments["forget"] = [max(domains, key=len)]
    plan = getattr(RoutePlan, kind)(WIDE, domains=domains, **arguments)
    assert plan.blocks[0].is_core and not any(block.is_core for block in plan.blocks[1:])
    assert len({block.owners for block in plan.blocks}) == len(plan.blocks)
    assert len({block.name for block in plan.blocks}) == len(plan.blocks)
    assert set().union(*owners_of(plan)) == set(domains)
    for (layer, split_kind), split in plan.splits.items():
        units, shared = (97, mlp_shared) if split_kind == "mlp" else (40, attn_shared)
        assert sum(split.sizes) == units
        assert abs(split.sizes[0] - shared * units) <= 0.5 + 1e-9
        assert len(split.sizes) == len(plan.blocks)
        assert min(split.sizes[1:]) >= 1 and max(split.sizes[1:]) - min(split.sizes[1:]) <= 1
        assert split.order == (tuple(order) if (layer, split_kind) == (1, "mlp") else None)
    assert RoutePlan.from_json(plan.to_json()) == plan


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(["peers", "tree", "lattice", "forget"]), domains=LABELS, data=st.data())
def test_switching_off_more_labels_never_switches_a_block_on(kind, domains, data):
    arguments = {"forget": [max(domains, key=len)]} if kind == "forget" else {}
    plan = getattr(RoutePlan, kind)(WIDE, domains=domains, **arguments)
    more = set(data.draw(st.lists(st.sampled_from(domains), unique=True)))
    fewer = set(data.draw(st.lists(st.sampled_from(sorted(more)), unique=True))) if more else set()
    assert set(plan.off_blocks(fewer)) <= set(plan.off_blocks(more))
    assert set(plan.off_blocks(more)) == {
        index
        for index, block in enumerate(plan.blocks)
        if not block.is_core and block.owners <= more
    }


def test_what_owns_a_part_of_what_is_forgotten_below_it_cannot_be_removed():
    labels = ["code", "biology/virology", "biology", "creative"]
    forget = RoutePlan.make("forget", SHAPE, domains=labels, forget=["biology/virology"])
    assert forget.removable() == ("biology/virology",)
    whole = RoutePlan.make("forget", SHAPE, domains=labels, forget=["biology"])
    assert whole.removable() == ("biology",)
    for kind in ("tree", "peers"):
        plan = RoutePlan.make(kind, SHAPE, domains=labels)
        assert set(plan.removable()) == {"code", "biology", "biology/virology", "creative"}


def test_a_split_further_divides_each_experts_units_and_moves_nobody_elses():
    before = RoutePlan.peers(SHAPE, domains=DOMAINS)  # 24 units: core 12, four a domain
    labels = ["code/0", "code/1", "biology", "creative/0", "creative/1"]
    plan = before.split_further(labels, mlp_shared=0.5)
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
    assert plan.origins(before) == (0, 1, 1, 1, 2, 3, 3, 3)
    weights = dict.fromkeys(labels, 1.0) | {"code/0": 3.0}
    assert before.split_further(labels, mlp_shared=0.0, weights=weights).splits[0, "mlp"].sizes == (
        12, 0, 3, 1, 4, 0, 2, 2,
    )  # fmt: skip
    with pytest.raises(PlanError, match="code/0 has too few hidden units to be divided"):
        plan.split_further(
            ["code/0/a", "code/0/b", "code/1", "biology", "creative/0", "creative/1"],
            mlp_shared=0.0,
        )


def test_what_is_apart_stays_apart_when_it_is_split_further():
    apart = tuple(frozenset([domain]) for domain in DOMAINS)
    plan = replace(RoutePlan.peers(SHAPE, domains=DOMAINS), apart=apart)
    labels = ["code/0", "code/1", "biology", "creative"]
    finer = plan.split_further(labels, mlp_shared=0.5)
    assert finer.apart == (
        frozenset(["code/0", "code/1"]),
        frozenset(["biology"]),
        frozenset(["creative"]),
    )
    assert finer.strangers("code/0") == {"biology", "creative"}
    assert plan.strangers("biology") == {"code", "creative"}
    assert replace(plan, apart=()).strangers("biology") == frozenset()
    assert RoutePlan.from_json(finer.to_json()) == finer


def test_a_plan_that_keeps_an_unknown_domain_apart_is_refused():
    plan = replace(RoutePlan.peers(SHAPE, domains=DOMAINS), apart=(frozenset(["code"]),))
    with pytest.raises(PlanError, match="apart must name every domain once"):
        RoutePlan.from_json(plan.to_json())


def test_in_place_forgets_the_order_alone():
    orders = {(layer, "mlp"): list(reversed(range(24))) for layer in range(3)}
    plan = RoutePlan.peers(SHAPE, domains=DOMAINS, orders=orders)
    assert plan.in_place() == RoutePlan.peers(SHAPE, domains=DOMAINS)


def test_blocks_may_have_sizes_in_the_ratio_of_weights():
    weights = {"code": 1.0, "biology": 2.0, "creative": 3.0}
    plan = RoutePlan.peers(SHAPE, domains=DOMAINS, weights=weights)
    assert plan.splits[0, "mlp"].sizes == (12, 2, 4, 6)
    with pytest.raises(PlanError, match="each needs one"):
        RoutePlan.peers(SHAPE, domains=DOMAINS, weights=weights | {"code": 0.01})
