"""Attribution scores: a literal reference, and the state that scoring leaves."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gr_sweep.assign.attribution import UnitScores, score_units
from gr_sweep.config import Attribution
from gr_sweep.errors import DataError, PlanError
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import route_model
from gr_sweep.routing import experts
from gr_sweep.routing.plan import RoutePlan
from tests.model.compare import route
from tests.model.tiny import EXPERTS, LAYERS, MLP, VOCAB, WHOLE_ATTENTION_ONLY, tiny_model
from tests.reference import Cut, assert_same

pytestmark = pytest.mark.usefixtures("exact_norms", "one_thread")

READING = ("activation", "act_grad", "integrated", "fisher")
GRADIENTS = ("act_grad", "integrated", "fisher")
LENGTHS = (7, 2, 5, 3, 8, 4, 6)
"""Of a domain's documents: unequal, and one more in the even half than in the odd."""


def texts(domains=("code", "biology"), lengths=LENGTHS, low=0, high=VOCAB):
    return {
        domain: [
            np.random.default_rng([k, index]).integers(low, high, length)
            for index, length in enumerate(lengths)
        ]
        for k, domain in enumerate(domains)
    }


def losses_of(model):
    return TokenLosses(route_model(model, RoutePlan.none(domains=["code", "biology"])))


def score(model, method, documents=None, token_losses=None, **options):
    documents = texts() if documents is None else documents
    token_losses = losses_of(model) if token_losses is None else token_losses
    return score_units(model, token_losses, documents, Attribution(method), **options)


def named(unit_scores):
    """Halves by a name, as `assert_same` takes them."""
    return {f"{layer} {kind}": value for (layer, kind), value in unit_scores.halves.items()}


def test_random_scores_read_nothing_and_follow_the_seed():
    model = tiny_model()
    off = random_off(model)

    def refuse(*_):
        raise AssertionError("read")

    found = score(model, "random", {"code": [], "biology": []}, refuse, off=off)
    again, other = (score(model, "random", seed=seed, off=off) for seed in (0, 1))
    for key, halves in found.halves.items():
        assert torch.equal(halves, again.halves[key])
        assert not torch.equal(halves, other.halves[key])
        assert torch.all(halves[..., off[key]] == 0)
        on = halves[..., ~off[key]]
        assert not torch.equal(on[0], on[1]) and on.min() > 0 and on.max() < 1


@pytest.mark.parametrize("method", READING)
def test_experts_are_scored_by_the_weight_of_the_router(method, monkeypatch):
    """For one document: a gate multiplies the weight, and experts that are off are not chosen, as
    in `keep`. OLMoE, since its attention has no units."""
    model = tiny_model("olmoe")
    plan = RoutePlan.peers(model.config, domains=["code", "biology"])
    routed = route_model(model, plan)
    sizes = torch.tensor(plan.splits[0, "expert"].sizes)
    off_U = torch.tensor([False, False, True]).repeat_interleave(sizes)
    [text] = texts()["code"][:1]
    token_losses, off = TokenLosses(routed), dict.fromkeys(plan.splits, off_U)
    found = score(model, method, {"code": [text]}, token_losses, off=off)
    shape, num_tokens = (len(text) - 1, EXPERTS), len(text) - 1
    gates = [torch.ones(shape, dtype=torch.float64, requires_grad=True) for _ in range(LAYERS)]
    scales = [(step + 0.5) / 8 for step in range(8)] if method == "integrated" else [1.0]
    seen, mixture = [], experts.mixture

    def gated(x_PD, weights_Pk, indices_Pk, *others):
        gate, scale = gates[len(seen) % LAYERS], scales[len(seen) // LAYERS]
        seen.append(torch.zeros(shape).double().scatter(1, indices_Pk, weights_Pk.detach()))
        gate_Pk = scale * gate.gather(1, indices_Pk)
        return mixture(x_PD, weights_Pk * gate_Pk, indices_Pk, *others)

    monkeypatch.setattr(experts, "mixture", gated)
    values = []
    for scale in scales:
        with routed.keep(["code"]):
            loss, _ = token_losses(torch.from_numpy(text)[None])
        values.append([gradient / scale for gradient in torch.autograd.grad(loss, gates)])
    for layer in range(LAYERS):
        by_token = torch.stack([value[layer] for value in values]).mean(0)
        mean = seen[layer].sum(1, keepdim=True) / int((~off_U).sum())
        expected = {
            "activation": (seen[layer] > mean).double().mean(0),
            "act_grad": by_token.abs().mean(0),
            "integrated": by_token.sum(0).abs() / num_tokens,
            "fisher": by_token.sum(0).square(),
        }
        assert_same({"": found.halves[layer, "expert"][0, 0]}, {"": expected[method]})


def test_units_of_adapters_are_scored_by_the_gate_that_all_maps_of_a_layer_share():
    """y = B diag(g) A x: the gradient of g is that of B, times B, summed over its outputs."""
    model = tiny_model()
    adapters = {"embed": 3, "unembed": 2, "attn": 1, "mlp": 2}
    plan = RoutePlan.peers(model.config, domains=["code", "biology"], adapters=adapters)
    routed = route(model, plan, Cut("none"))
    document = {"code": texts()["code"][:1]}
    off = {(0, "unembed"): torch.tensor([True, False, False, False])}
    found = score(model, "fisher", document, TokenLosses(routed)).halves
    token_losses, [text] = TokenLosses(routed), document["code"]
    token_losses(torch.from_numpy(text)[None])[0].backward()
    expected: dict = {}
    for linear in routed.unit_linears:
        if linear.is_row and linear.kind not in ("mlp", "attn"):
            layers = [part for part in routed_name(model, linear.module) if part.isdigit()]
            place = int((layers or ["0"])[0]), linear.kind
            weight = linear.module.weight
            expected[place] = expected.get(place, 0) + (weight * weight.grad).sum(0)
    assert len(expected) == 2 + 2 * LAYERS
    for place, gradient_U in expected.items():
        assert_same({"": found[place][0, 0]}, {"": gradient_U.detach().square()})
    without = score(model, "fisher", document, TokenLosses(routed), off=off).halves[0, "unembed"]
    assert without[0, 0, 0] == 0 and without[0, 0, 1] != 0


def routed_name(model, module):
    return next(name for name, other in model.named_modules() if other is module).split(".")


# A literal reference


def literal_linears(model):
    """(layer, kind) to the linear that reads units, and their number."""
    found = {}
    config, decoder = model.config, model.base_model
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    layers = decoder.h if config.model_type == "gpt2" else decoder.layers
    whole = config.model_type == "olmo2"
    rows_of_heads = () if whole else ("self_attn.o_proj", "attention.dense", "attn.c_proj")
    for layer, modules in enumerate(layers):
        for name, module in modules.named_modules():
            if name in ("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.c_proj"):
                found[layer, "mlp"] = module, MLP
            elif name in rows_of_heads:
                found[layer, "attn"] = module, groups
    return found


def features_of(module):
    return module.in_features if isinstance(module, torch.nn.Linear) else module.nx


def literal_document(model, text, gate, all_on):
    """Loss of one document, and by layer and kind the unit features, with a number on each unit."""
    model, seen, gates = copy.deepcopy(model), {}, {}
    for key, (module, units) in literal_linears(model).items():
        gates[key] = torch.full((units,), gate, dtype=torch.float64, requires_grad=True)

        def forward(x, key=key, module=module):
            x.retain_grad()
            seen[key] = x
            repeated = gates[key].repeat_interleave(x.shape[-1] // len(gates[key]))
            # Columns are scaled, not features.
            is_linear = isinstance(module, torch.nn.Linear)
            weight = module.weight if is_linear else module.weight.t()
            return F.linear(x, weight * repeated * all_on[key], module.bias)

        module.forward = forward
    ids = torch.from_numpy(text)
    logits = model(input_ids=ids[None, :-1]).logits[0]
    loss = F.cross_entropy(logits, ids[1:], reduction="sum")
    loss.backward()
    return loss.detach(), seen, {key: gate.grad for key, gate in gates.items()}


def literal_values(model, text, method, steps, on):
    """A document's value for each unit, by layer and kind."""
    points = [(step + 0.5) / steps for step in range(steps)] if method == "integrated" else [1.0]
    passes = [literal_document(model, text, point, on) for point in points]
    found = {}
    for key, (_, units) in literal_linears(model).items():
        of_gates = sum(gates[key] for _, _, gates in passes) / len(points)
        x_TUW, grad_TUW, on_UW = (
            tensor.unflatten(-1, (units, -1))
            for tensor in (passes[0][1][key][0], passes[0][1][key].grad[0], on[key])
        )
        x_TUW = (x_TUW * on_UW).detach()
        sizes_TU = x_TUW.norm(dim=-1)
        found[key] = {
            "integrated": of_gates.abs(),
            "fisher": of_gates**2,
            "act_grad": (x_TUW * grad_TUW).sum(-1).abs().sum(0),
            "activation": (sizes_TU > sizes_TU.sum(-1, keepdim=True) / on_UW[:, 0].sum())
            .double()
            .sum(0),
        }[method]
    return found


def literal_scores(model, documents, method, steps, off=None):
    on, halves = {}, {}
    for key, (module, units) in literal_linears(model).items():
        is_on = torch.ones(units) if off is None else (~off[key]).double()
        on[key] = is_on.repeat_interleave(features_of(module) // units).double()
        halves[key] = torch.zeros(2, len(documents), units, dtype=torch.float64)
    for k, of_domain in enumerate(documents.values()):
        for half in (0, 1):
            own = of_domain[half::2]
            count = len(own) if method == "fisher" else sum(len(text) - 1 for text in own)
            for text in own:
                for key, values in literal_values(model, text, method, steps, on).items():
                    halves[key][half, k] += values / count
    return UnitScores(tuple(documents), halves)


@pytest.mark.parametrize(
    ("family", "method", "is_expert"),
    [
        *(("llama", method, is_expert) for method in READING for is_expert in (False, True)),
        *(("qwen3", method, False) for method in GRADIENTS),
        *((family, "act_grad", False) for family in ("gpt2", "gpt_neox", "olmo2")),
    ],
)
def test_attribution_are_those_of_reading_the_documents_one_by_one(family, method, is_expert):
    model = tiny_model(family)
    off = random_off(model) if is_expert else None
    documents = texts(lengths=(5, 2, 6))
    wanted = literal_scores(model, documents, method, steps=3, off=off)
    found = score(model, method, documents, steps=3, off=off)
    kinds = {kind for _, kind in found.halves}
    assert kinds == ({"mlp"} if family in WHOLE_ATTENTION_ONLY else {"mlp", "attn"})
    assert {layer for layer, _ in found.halves} == set(range(LAYERS))
    assert_same(named(found), named(wanted))
    for key in off or ():
        assert torch.all(found.halves[key][..., off[key]] == 0)


def random_off(model):
    generator = torch.Generator().manual_seed(5)
    return {
        key: torch.rand(units, generator=generator) < 0.4
        for key, (_, units) in literal_linears(model).items()
    }


@pytest.mark.parametrize("method", ["activation", "fisher"])
def test_batches_make_no_difference_and_documents_that_predict_nothing_are_skipped(method):
    found = score(tiny_model(), method, batch_sequences=3)
    documents = texts()
    documents["code"].insert(1, np.array([3]))
    assert_same(named(found), named(score(tiny_model(), method, documents, batch_sequences=16)))


# What is left behind


def state_of_modules(model):
    return (
        [(len(m._forward_pre_hooks), len(m._forward_hooks), m.training) for m in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
    )


@pytest.mark.parametrize("method", ["activation", "act_grad"])
def test_hooks_modes_and_gradients_are_as_they_were(method):
    model = tiny_model("llama", attention_dropout=0.5).train()
    model.model.embed_tokens.weight.requires_grad_(False)
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda module, args: None)
    token_losses = losses_of(model)

    def failing(ids, targets):
        token_losses(ids, targets)
        raise RuntimeError("lost")

    before = state_of_modules(model)
    with torch.no_grad():
        found = score(model, method)
    assert state_of_modules(model) == before
    # There was no dropout.
    assert_same(named(found), named(score(tiny_model(), method)))
    with pytest.raises(RuntimeError, match="lost"):
        score(model, method, None, failing)
    assert state_of_modules(model) == before


@pytest.mark.parametrize("method", ["activation", "act_grad"])
def test_a_routed_model_has_the_scores_of_the_plain_one(method):
    model = tiny_model()
    plan = RoutePlan.peers(model.config, domains=["code", "biology"], attn_shared=0.25)
    routed = route_model(model, plan)
    found = score(model, method, token_losses=TokenLosses(routed))
    assert_same(named(found), named(score(tiny_model(), method)))


# Stability


def test_stability_is_1_of_equal_halves_and_of_equal_order():
    half = torch.rand(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    found = UnitScores(
        ("a", "b"),
        {(0, "mlp"): torch.stack([half, half]), (1, "mlp"): torch.stack([half, half**3])},
    )
    assert found.stability() == {"mlp": pytest.approx(1.0)}
    turned = UnitScores(("a", "b"), {(0, "attn"): torch.stack([half, 1 / half])})
    assert turned.stability() == {"attn": pytest.approx(-1.0)}


def test_stability_ignores_scores_without_an_order():
    ranked = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    halves = torch.stack([ranked, ranked])[:, None].repeat(1, 3, 1)  # three domains
    halves[0, 1] = 5.0  # constant
    halves[1, 2] = torch.nan  # empty
    few = torch.ones(2, 3, 2, dtype=torch.float64).cumsum(2)
    found = UnitScores(("a", "b", "c"), {(0, "mlp"): halves, (0, "attn"): few})
    assert found.stability() == {"mlp": pytest.approx(1.0)}
    # Units that are off are no agreement.
    off = torch.rand(2, 1, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    off[..., 1000:] = 0.0
    assert abs(UnitScores(("a",), {(0, "mlp"): off}).stability()["mlp"]) < 0.1


# What is refused


def test_domains_without_text_and_models_that_are_broken_are_refused():
    model = tiny_model()
    with pytest.raises(DataError, match="'biology' has no document"):
        score(model, "act_grad", {**texts(), "biology": iter([np.array([1])])})
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] = torch.nan
    with pytest.raises(PlanError, match="not finite"):
        score(model, "act_grad")
