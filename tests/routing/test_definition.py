"""The fast paths against the definition: outputs and all gradients, in float64, to 1e-10.

edges x plan x foreign dropout x units x route weights x micro-batches, over uneven steps with empty
domains, unlabelled sequences and nested domains; then the same for labels that change inside a
sequence. The default run crosses these pairwise, the whole product is slow.
"""

from dataclasses import replace

import pytest
import torch

from gr_sweep.model.route import route_model
from gr_sweep.routing.cover import CALL_MULTIPLY_ADDS
from gr_sweep.routing.plan import RoutePlan
from tests.model.compare import FLAT, PLANS, assert_follows_the_definition, gradients, route
from tests.model.tiny import KV_HEADS, MLP, tiny_ids, tiny_model
from tests.pairwise import crossed
from tests.reference import Cut, assert_same, loss_sum

pytestmark = pytest.mark.usefixtures("exact_norms", "one_thread")

EDGES = ["none", "weight", "act", "both"]
DROPOUTS = [0.0, 0.5, 0.75, 1.0]


def shuffled(num_units: int) -> list[int]:
    return torch.randperm(num_units, generator=torch.Generator().manual_seed(num_units)).tolist()


UNITS = {
    "mlp": {},
    "mlp and attention": {"mlp_shared": 0.3, "attn_shared": 0.25},
    "one layer, reordered": {
        "layers": [1],
        "attn_shared": 0.25,
        "orders": {(1, "mlp"): shuffled(MLP), (1, "attn"): shuffled(KV_HEADS)},
    },
    "adapters": {
        "attn_shared": 0.25,
        "adapters": {"embed": 3, "unembed": 2, "bias": True, "mlp": 2, "attn": 1},
    },
    "full vocabulary": {
        "mlp_shared": 1.0,
        "adapters": {"embed": "full", "unembed": "full"},
    },
}
WEIGHTS = {
    "cut": {},
    "odd": {"foreign_weight": 0.3, "foreign_core_weight": -0.5, "foreign_core_rest": 0.25},
    # Of the original gradient routing, whose mask on the hidden activation leaves output columns.
    "outputs in full": {
        "foreign_weight": 1.0,
        "foreign_core_weight": -0.75,
        "foreign_core_rest": 1.0,
        "foreign_outputs": 1.0,
    },
    "odd outputs": {"foreign_core_weight": -0.5, "foreign_outputs": 0.3},
    "embeddings in full": {"foreign_core_embeddings": 1.0},
    "embeddings alone": {"foreign_core_rest": 1.0, "foreign_core_embeddings": 0.3},
    "core frozen": {"core_frozen": True},
    "core frozen, odd": {
        "foreign_weight": 0.3,
        "foreign_core_weight": -0.5,
        "foreign_core_rest": 0.25,
        "foreign_core_embeddings": 0.5,
        "foreign_outputs": -0.4,
        "core_frozen": True,
    },
    "outputs alone": {
        "foreign_weight": 1.0,
        "foreign_core_weight": 1.0,
        "foreign_core_rest": 1.0,
        "foreign_outputs": 0.3,
    },
}
PRODUCTS = {"sliced": 0.0, "dense": float("inf")}
"""The cost of a call: nothing, so that every product is sliced; or more than slicing can save."""


def models(units: str):
    """A model to route and the same plain one.

    MLPs have biases in one of the cases: those of gate and up belong to units, that of down to the
    rest. In another one the embeddings are tied.
    """
    changes = {
        "mlp_bias": units == "mlp and attention",
        "tie_word_embeddings": units in ("one layer, reordered", "full vocabulary"),
    }
    return tiny_model(**changes), tiny_model(**changes)


@pytest.mark.parametrize(
    ("edges", "weights", "plan", "foreign_dropout", "units", "product", "num_micro"),
    crossed(EDGES, list(WEIGHTS), list(PLANS), DROPOUTS, list(UNITS), list(PRODUCTS), [1, 3]),
)
def test_row_groups_follow_the_definition(
    edges, weights, plan, foreign_dropout, units, product, num_micro, monkeypatch
):
    monkeypatch.setitem(CALL_MULTIPLY_ADDS, "cpu", PRODUCTS[product])
    model, plain = models(units)
    route_plan = PLANS[plan](model.config, **UNITS[units])
    cut = Cut(edges, **WEIGHTS[weights])
    first, second, third = route_plan.domains
    steps = [
        {first: 4, second: 1, "unlabelled": 2},
        {third: 3, first: 0, second: 1},
    ]
    routed = route(model, route_plan, cut, foreign_dropout)
    assert_follows_the_definition(routed, plain, cut, steps, num_micro)


@pytest.mark.parametrize("plan", PLANS)
def test_a_frozen_core_with_cut_activations_follows_the_definition(plan, monkeypatch):
    """The weights of some units learn nothing, the input learns nothing through others."""
    case = ("act", "core frozen", plan, 0.5, "mlp and attention", "dense", 1)
    test_row_groups_follow_the_definition(*case, monkeypatch)


@pytest.mark.parametrize(
    ("edges", "weights", "plan", "foreign_dropout", "units"),
    crossed(EDGES, list(WEIGHTS), list(PLANS), [0.0, 1.0], list(UNITS)[1:]),
)
def test_labels_that_change_inside_a_sequence_follow_the_definition(
    edges, weights, plan, foreign_dropout, units
):
    model, plain = models(units)
    route_plan = PLANS[plan](model.config, **UNITS[units])
    cut = Cut(edges, **WEIGHTS[weights])
    generator = torch.Generator().manual_seed(0)
    micro_batches = [
        torch.randint(-1, 3, (3, 5), generator=generator),
        torch.tensor([[1, 1, 2, 2, 0]]),
    ]
    routed = route(model, route_plan, cut, foreign_dropout)
    assert_follows_the_definition(routed, plain, cut, micro_batches)


@pytest.mark.parametrize(
    ("edges", "weights", "plan", "foreign_dropout", "units"),
    crossed(EDGES, list(WEIGHTS), list(PLANS), [0.0, 0.5], list(UNITS)),
)
def test_tokens_that_are_cut_less_follow_the_definition(
    edges, weights, plan, foreign_dropout, units
):
    model, plain = models(units)
    route_plan = PLANS[plan](model.config, **UNITS[units])
    cut = Cut(edges, **WEIGHTS[weights])
    routed = route(model, route_plan, cut, foreign_dropout)
    first, second, third = route_plan.domains
    generator = torch.Generator().manual_seed(0)
    routed.token_cuts = {
        domain: torch.rand(model.config.vocab_size, generator=generator, dtype=torch.float64)
        for domain in (second, third)
    }
    steps = [{first: 1, second: 2, "unlabelled": 1}, {second: 2, third: 2}]
    assert_follows_the_definition(routed, plain, cut, steps, 2)


@pytest.mark.parametrize(
    ("edges", "weights", "forget", "one_block", "foreign_dropout"),
    crossed(
        EDGES, ["cut", *list(WEIGHTS)[2:]], [("biology",), ("biology", "code")], [False, True],
        [0.5, 1.0],
    ),
)  # fmt: skip
def test_rows_that_train_a_foreign_core_follow_the_definition(
    edges, weights, forget, one_block, foreign_dropout
):
    model, plain = models("mlp and attention")
    plan = RoutePlan.forget(model.config, domains=FLAT, forget=forget, attn_shared=0.25)
    cut = Cut(edges, **WEIGHTS[weights])
    rows = {"foreign_core_share": 0.25, "one_block": one_block}
    routed = route(model, plan, cut, foreign_dropout, **rows)
    steps = [{"code": 1, "biology": 4, "creative": 3}, {"biology": 2, "unlabelled": 1}]
    assert_follows_the_definition(routed, plain, cut, steps, 2)


@pytest.mark.parametrize(("edges", "foreign_dropout"), crossed(EDGES, DROPOUTS))
def test_isolated_experts_are_always_off_for_each_other(edges, foreign_dropout):
    model, plain = tiny_model(), tiny_model()
    labels = ["code", "biology/cells", "biology/virology"]
    isolated = (frozenset(labels[:1]), frozenset(labels[1:]))
    plan = RoutePlan.tree(model.config, domains=labels, attn_shared=0.25)
    routed = route(model, replace(plan, isolated_domains=isolated), Cut(edges), foreign_dropout)
    micro_batch = {"code": 3, "biology/cells": 4, "unlabelled": 1}
    offs = {}
    for group in routed.row_groups(micro_batch):
        offs.setdefault(group.domain, []).append((group.off, group.count))
    assert offs["code"] == [(frozenset(labels[1:]), 3)]
    assert all("code" in off for off, _ in offs["biology/cells"])
    sibling_off = sum(n for off, n in offs["biology/cells"] if "biology/virology" in off)
    assert sibling_off == round(4 * foreign_dropout)
    assert offs["unlabelled"] == [(frozenset(), 1)]
    assert_follows_the_definition(routed, plain, Cut(edges), [micro_batch])


def step(model, routed, counts, *, after=False, seed=0):
    """One forward and backward pass; the backward pass inside the batch, or after it."""
    ids = tiny_ids(sum(counts.values()), seed=seed)
    with routed.batch(counts):
        loss = loss_sum(model(input_ids=ids, use_cache=False).logits, ids)
        if not after:
            loss.backward()
    if after:
        loss.backward()
    return gradients(model)


EQUAL = {"code": 2, "biology": 2, "creative": 2}


def forget(edges="both"):
    model = tiny_model()
    return model, route(model, PLANS["forget"](model.config, attn_shared=0.5), Cut(edges, 0.3), 0.5)


@pytest.mark.parametrize("product", PRODUCTS)
def test_backward_may_run_after_the_batch_has_been_left(product, monkeypatch):
    monkeypatch.setitem(CALL_MULTIPLY_ADDS, "cpu", PRODUCTS[product])
    inside, outside = step(*forget(), EQUAL), step(*forget(), EQUAL, after=True)
    for name, gradient in inside.items():
        assert torch.equal(gradient, outside[name]), name


@pytest.mark.parametrize("product", PRODUCTS)
def test_parameters_that_do_not_require_gradients_get_none_and_change_no_other(
    product, monkeypatch
):
    monkeypatch.setitem(CALL_MULTIPLY_ADDS, "cpu", PRODUCTS[product])
    wanted, (model, routed) = step(*forget("weight"), EQUAL), forget("weight")
    mlp = model.model.layers[1].mlp
    frozen = (mlp.down_proj.weight, mlp.gate_proj.weight, model.model.embed_tokens.weight)
    for parameter in frozen:
        parameter.requires_grad_(False)
    step(model, routed, EQUAL)
    given = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert wanted.keys() - given.keys() == {
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.mlp.gate_proj.weight",
        "model.embed_tokens.weight",
    }
    assert_same(given, {name: wanted[name] for name in given})


def test_bfloat16_autocast_stays_close_to_float64():
    """Not the definition's precision, but the same gradients up to bfloat16's 3 digits."""
    found = []
    for dtype in (torch.float64, torch.float32):
        model = tiny_model().to(dtype)
        routed = route_model(
            model, PLANS["forget"](model.config, attn_shared=0.5), "both", foreign_dropout=0.5
        )
        ids = tiny_ids(6)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32),
            routed.batch({"code": 3, "biology": 3}, step=0),
        ):
            logits = model(input_ids=ids).logits
        loss_sum(logits.to(dtype), ids).backward()
        found.append({name: gradient.double() for name, gradient in gradients(model).items()})
    for name, gradient in found[0].items():
        assert found[1][name].isfinite().all()
        error = float((found[1][name] - gradient).norm() / gradient.norm().clamp_min(1e-3))
        assert error < 0.1, f"{name}: {error:.3f}"
