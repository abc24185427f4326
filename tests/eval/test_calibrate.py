from contextlib import nullcontext

import pytest
import torch

from gr_sweep.eval import calibrate
from gr_sweep.eval.calibrate import PRIOR_TOKENS, calibrated, fitted_bias
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import route_model
from gr_sweep.routing.plan import RoutePlan
from tests.eval.tiny import DOMAINS
from tests.model.tiny import VOCAB, tiny_ids, tiny_model


def exact_routed(family="llama"):
    """A model in float64 that is sure of wrong things."""
    model = tiny_model(family, seed=1)
    return route_model(model, RoutePlan.none(domains=DOMAINS), "both")


def logits_of(routed, ids):
    with torch.no_grad():
        return routed(input_ids=ids[:, :-1]).logits.flatten(0, 1)


def target_of(ids, logits):
    counts = torch.bincount(ids[:, 1:].flatten(), minlength=VOCAB).double()
    prior = PRIOR_TOKENS * VOCAB * logits.softmax(-1).mean(0)
    return (counts + prior) / (counts + prior).sum()


def test_iterative_scaling_ends_where_lbfgs_does(monkeypatch):
    monkeypatch.setattr(calibrate, "chunk_positions", lambda vocab, device: 7)
    routed, ids = exact_routed(), tiny_ids(6, 9, seed=3)
    ids[ids == 5] = 4  # a token that the text does not have
    bias = fitted_bias(
        TokenLosses(routed), ids, batch_sequences=4, tolerance=1e-15, max_iterations=5000
    )
    logits = logits_of(routed, ids)
    target = target_of(ids, logits)
    free = torch.zeros(VOCAB, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [free], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        return torch.logsumexp(logits + free, -1).mean() - target @ free

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    found = free.detach()
    # A constant on all logits changes nothing: compare without it.
    torch.testing.assert_close(bias - bias.mean(), found - found.mean(), rtol=0, atol=1e-5)
    assert abs(float(bias[5])) < 20, "what the text lacks keeps a finite bias"


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])  # plain, bounded, divided
def test_losses_with_a_bias_are_those_of_the_logits_plus_the_bias(family, monkeypatch):
    monkeypatch.setattr(calibrate, "chunk_positions", lambda vocab, device: 3)
    routed, ids = exact_routed(family), tiny_ids(2, 6)
    targets = ids[:, 1:].clone()
    targets[0, 2] = -100
    bias = torch.linspace(-2, 2, VOCAB, dtype=torch.float64)
    total, losses = calibrated(TokenLosses(routed), bias)(ids[:, :-1], targets)
    log_probs = (logits_of(routed, ids) + bias).log_softmax(-1)
    expected = -log_probs.gather(1, targets.flatten().clamp_min(0)[:, None])[:, 0]
    expected[2] = 0
    torch.testing.assert_close(losses.flatten(), expected)
    torch.testing.assert_close(total, expected.sum())


@pytest.mark.parametrize("adapters", [{"unembed": 3}, {"unembed": "full", "bias": 1}])
def test_a_bias_of_zero_gives_the_losses_of_a_model_with_adapters(adapters):
    model, ids = tiny_model("granite"), tiny_ids(2, 6)
    plan = RoutePlan.forget(model.config, domains=DOMAINS, forget=DOMAINS[:1], adapters=adapters)
    token_losses = TokenLosses(routed := route_model(model, plan))
    torch.manual_seed(0)
    for adapter in model.get_output_embeddings().adapter.values():
        torch.nn.init.normal_(adapter.B.weight)
    zero = torch.zeros(VOCAB, dtype=torch.float64)
    for which in (nullcontext(), routed.keep(DOMAINS[1:]), routed.remove(DOMAINS[1:])):
        with which:
            expected = token_losses(ids)[1]
            found = calibrated(token_losses, zero)(ids[:, :-1], ids[:, 1:])[1]
        torch.testing.assert_close(found, expected)
