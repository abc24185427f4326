"""The fast paths against the definition: outputs and all gradients, in float64, to 1e-10.

edges x plan x foreign dropout x units x route weights, over uneven micro-batches with empty
domains, unlabelled sequences and nested domains; then the same for labels that change inside a
sequence.
"""

import functools
from dataclasses import replace

import pytest
import torch

from gr_sweep.model.route import route_model
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.rows import CALL_MULTIPLY_ADDS
from tests.model.compare import assert_follows_the_definition, gradients, route
from tests.model.tiny import KV_HEADS, MLP, tiny_ids, tiny_model
from tests.reference import Cut, assert_same, loss_sum

pytestmark = pytest.mark.usefixtures("exact_norms", "one_thread")

FLAT = ["code", "biology", "creative"]
NESTED = ["code", "biology", "biology/virology"]
EDGES = ["none", "weight", "act", "both"]
PLANS = {
    "peers": functools.partial(RoutePlan.peers, domains=FLAT),
    "forget": functools.partial(RoutePlan.forget, domains=FLAT, forget=["biology"]),
    "tree": functools.partial(RoutePlan.tree, domains=NESTED),
    "lattice": functools.partial(RoutePlan.lattice, domains=FLAT),
}


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
}


# Where nothing is cut, route weights multiply nothing; where weights are not, outputs are not.
CUTS = [
    (edges, weights)
    for edges in EDGES
    for weights, settings in WEIGHTS.items()
    if weights == "cut"
    or edges in ("weight", "both")
    or (edges == "act" and "foreign_outputs" not in settings)
]


PRODUCTS = {"sliced": 0.0, "dense": float("inf")}
"""What a call costs: nothing, so that every product is sliced; or all that slicing could save."""


@pytest.fixture(params=PRODUCTS)
def products(request, monkeypatch):
    """Both ways of computing the products of an MLP, whatever pays at this size."""
    monkeypatch.setitem(CALL_MULTIPLY_ADDS, "cpu", PRODUCTS[request.param])
    return request.param


def models(units: str):
    """A model to route and the same plain one; tied in one of the three cases."""
    is_tied = units == "one layer, reordered"
    return tiny_model(tie_word_embeddings=is_tied), tiny_model(tie_word_embeddings=is_tied)


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("foreign_dropout", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("edges", "weights"), CUTS)
def test_row_groups_follow_the_definition(edges, plan, foreign_dropout, weights, units, products):
    model, plain = models(units)
    route_plan = PLANS[plan](model.config, **UNITS[units])
    cut = Cut(edges, **WEIGHTS[weights])
    first, second, third = route_plan.domains
    micro_batches = [
        {first: 4, second: 1, "unlabelled": 2},
        {third: 3, first: 0, second: 1},
    ]
    routed = route(model, route_plan, cut, foreign_dropout)
    assert_follows_the_definition(routed, plain, cut, micro_batches)


@pytest.mark.parametrize("units", ["mlp and attention", "one layer, reordered"])
@pytest.mark.parametrize("foreign_dropout", [0.0, 1.0])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("edges", "weights"), CUTS)
def test_labels_that_change_inside_a_sequence_follow_the_definition(
    edges, plan, foreign_dropout, weights, units
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


@pytest.mark.parametrize("foreign_dropout", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("edges", EDGES)
def test_experts_that_are_apart_are_always_off_for_each_other(edges, foreign_dropout, products):
    model, plain = tiny_model(), tiny_model()
    labels = ["code", "biology/cells", "biology/virology"]
    apart = (frozenset(labels[:1]), frozenset(labels[1:]))
    route_plan = RoutePlan.tree(model.config, domains=labels, attn_shared=0.25)
    routed = route(model, replace(route_plan, isolated_domains=apart), Cut(edges), foreign_dropout)
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


@pytest.mark.parametrize("foreign_dropout", [0.0, 1.0])
@pytest.mark.parametrize("apart", [(), (("code",), ("biology", "creative"))])
@pytest.mark.parametrize("plan", ["peers", "forget", "lattice"])
def test_one_label_a_sequence_gives_the_gradients_of_row_groups(plan, apart, foreign_dropout):
    """The two fast paths against each other."""
    found = []
    for by_token in (False, True):
        model = tiny_model()
        route_plan = PLANS[plan](model.config, attn_shared=0.25)
        route_plan = replace(route_plan, isolated_domains=tuple(map(frozenset, apart)))
        routed = route(model, route_plan, Cut("both", 0.3, -0.5, 0.25), foreign_dropout)
        first, _, third = route_plan.domains
        counts, labels_N = {third: 2, first: 1, "unlabelled": 1}, torch.tensor([2, 2, 0, -1])
        ids = tiny_ids(4)
        with (
            routed.batch(labels_NT=labels_N[:, None].expand(4, 5))
            if by_token
            else routed.batch(counts)
        ):
            loss_sum(model(input_ids=ids).logits, ids).backward()
        found.append(gradients(model))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("edges", ["none", "act"])
@pytest.mark.parametrize("by_token", [False, True])
def test_outputs_have_no_weight_of_their_own_where_weights_are_not_cut(edges, by_token):
    model, plain = tiny_model(), tiny_model()
    plan = PLANS["forget"](model.config, attn_shared=0.25)
    cut = Cut(edges, foreign_core_weight=-0.5, foreign_outputs=0.3)
    routed = route(model, plan, cut)
    labels_NT = torch.tensor([[1, 1, 2, 2, 0], [-1, 0, 1, 1, 1]])
    micro_batch = labels_NT if by_token else {"code": 2, "biology": 2}
    assert_follows_the_definition(
        routed, plain, Cut(edges, foreign_core_weight=-0.5), [micro_batch]
    )


@pytest.mark.parametrize("by_token", [False, True])
def test_outputs_may_be_all_that_is_cut(by_token):
    model, plain = tiny_model(), tiny_model()
    plan = PLANS["peers"](model.config, attn_shared=0.25)
    cut = Cut("weight", foreign_weight=1.0, foreign_outputs=0.3)
    micro_batch = torch.tensor([[1, 1, 2, 2, 0]]) if by_token else {"code": 2, "biology": 2}
    assert_follows_the_definition(route(model, plan, cut), plain, cut, [micro_batch])


def test_outputs_in_full_are_a_mask_on_the_hidden_activation(products):
    """As published: `mask * h + (1 - mask) * h.detach()`, and the rest learns from everybody."""
    model, plain, ids = tiny_model(), tiny_model(), tiny_ids(5)
    plan = PLANS["forget"](model.config, layer_share=0.5, mlp_shared=0.75)
    core = plan.splits[0, "mlp"].sizes[0]
    routed = route(model, plan, Cut("both", 1.0, -0.75, 1.0, foreign_outputs=1.0))
    mask_N1F = torch.ones(5, 1, MLP, dtype=torch.float64)
    mask_N1F[2:4, :, :core] = -0.75  # the two sequences of biology, which does not own the core

    def mask_hidden(module, args):
        (h,) = args
        return (mask_N1F * h + (1 - mask_N1F) * h.detach(),)

    plain.model.layers[0].mlp.down_proj.register_forward_pre_hook(mask_hidden)
    loss_sum(plain(input_ids=ids).logits, ids).backward()
    with routed.batch({"code": 2, "biology": 2, "creative": 1}):
        loss_sum(model(input_ids=ids).logits, ids).backward()
    assert_same(gradients(model), gradients(plain))


@pytest.mark.parametrize("foreign_outputs", [None, 0.3])
@pytest.mark.parametrize("edges", EDGES)
def test_mlps_with_biases_follow_the_definition(edges, foreign_outputs, products):
    """Those of gate and up belong to units, that of down to the rest."""
    model, plain = tiny_model(mlp_bias=True), tiny_model(mlp_bias=True)
    assert model.model.layers[0].mlp.down_proj.bias is not None
    plan, cut = PLANS["forget"](model.config), Cut(edges, foreign_outputs=foreign_outputs)
    routed = route(model, plan, cut, 0.5)
    assert_follows_the_definition(routed, plain, cut, [{"code": 3, "biology": 2, "unlabelled": 1}])


def test_two_forgotten_domains_follow_the_definition():
    model, plain = tiny_model(), tiny_model()
    plan = RoutePlan.forget(model.config, domains=FLAT, forget=["biology", "code"], attn_shared=0.5)
    cut = Cut("both", foreign_weight=1.0, foreign_core_weight=-0.2, foreign_core_rest=1.0)
    routed = route(model, plan, cut, 0.5)
    assert_follows_the_definition(routed, plain, cut, [{"code": 3, "biology": 2, "creative": 2}])


def test_core_blocks_without_units_follow_the_definition():
    model, plain = tiny_model(), tiny_model()
    plan = RoutePlan.peers(model.config, domains=FLAT, mlp_shared=0.0, attn_shared=0.0)
    routed = route(model, plan, Cut("both"), 1.0)
    assert_follows_the_definition(routed, plain, Cut("both"), [{"creative": 1, "code": 2}])


def test_backward_may_run_after_the_batch_has_been_left(products):
    found = []
    for inside in (True, False):
        model = tiny_model()
        routed = route(model, PLANS["forget"](model.config, attn_shared=0.5), Cut("both", 0.3), 0.5)
        ids = tiny_ids(6)
        with routed.batch({"code": 2, "biology": 2, "creative": 2}):
            loss = loss_sum(model(input_ids=ids).logits, ids)
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_micro_batches_add_to_the_gradients_that_are_there(products):
    """No gradient is allocated anew: what another micro-batch brings is added in place."""
    model = tiny_model()
    routed = route(model, PLANS["peers"](model.config, attn_shared=0.25), Cut("both"), 0.5)
    places = []
    for seed in range(3):
        ids = tiny_ids(6, seed=seed)
        with routed.batch({"code": 2, "biology": 2, "creative": 2}):
            loss_sum(model(input_ids=ids).logits, ids).backward()
        places.append({name: p.grad.data_ptr() for name, p in model.named_parameters()})
    assert places[0] == places[1] == places[2]


def test_activation_checkpointing_changes_no_gradient(products):
    found = []
    for checkpointed in (False, True):
        model = tiny_model().train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        routed = route(model, PLANS["forget"](model.config, attn_shared=0.5), Cut("both", 0.3), 0.5)
        ids = tiny_ids(6)
        with routed.batch({"code": 2, "biology": 2, "creative": 2}):
            loss_sum(model(input_ids=ids, use_cache=False).logits, ids).backward()
        found.append(gradients(model))
    assert_same(found[1], found[0])


def test_parameters_that_do_not_require_gradients_get_none_and_change_no_other(products):
    found = []
    for frozen in (False, True):
        model = tiny_model()
        routed = route(model, PLANS["forget"](model.config, attn_shared=0.5), Cut("weight"), 0.5)
        mlp = model.model.layers[1].mlp
        if frozen:
            for parameter in (
                mlp.down_proj.weight,
                mlp.gate_proj.weight,
                model.model.embed_tokens.weight,
            ):
                parameter.requires_grad_(False)
        ids = tiny_ids(5)
        with routed.batch({"code": 2, "biology": 3}):
            loss_sum(model(input_ids=ids).logits, ids).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    missing = found[0].keys() - found[1].keys()
    assert missing == {
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.1.mlp.gate_proj.weight",
        "model.embed_tokens.weight",
    }
    assert_same(found[1], {name: found[0][name] for name in found[1]})


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
            routed.batch({"code": 3, "biology": 3}),
        ):
            logits = model(input_ids=ids).logits
        loss_sum(logits.to(dtype), ids).backward()
        found.append({name: gradient.double() for name, gradient in gradients(model).items()})
    for name, gradient in found[0].items():
        assert found[1][name].isfinite().all()
        error = float((found[1][name] - gradient).norm() / gradient.norm().clamp_min(1e-3))
        assert error < 0.1, f"{name}: {error:.3f}"
