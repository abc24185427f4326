"""Hypothesis 4: peers without a shared core and with foreign dropout 1 are a mixture of experts."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gr_sweep.model.route import route_model
from gr_sweep.model.sizes import SIZES, full_width
from gr_sweep.routing.plan import RoutePlan
from tests.model.compare import gradients
from tests.model.tiny import MLP, tiny_ids, tiny_model
from tests.reference import assert_same, loss_sum

pytestmark = pytest.mark.usefixtures("exact_norms", "one_thread")

DOMAINS = ["code", "biology", "creative"]
COUNTS = {"code": 2, "biology": 3, "creative": 1}


class MixtureOfExperts(nn.Module):
    """Each sequence goes to the expert of its domain: a router that is a table.

    An expert is a piece of the three matrices, so that parameters have the names of a dense MLP.
    """

    def __init__(self, mlp: nn.Module, pieces: list[slice]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        experts = dict(zip(DOMAINS, pieces, strict=True))
        self.of_sequence = [experts[d] for d, count in COUNTS.items() for _ in range(count)]

    def forward(self, x_NTD):
        found = []
        for x_TD, piece in zip(x_NTD, self.of_sequence, strict=True):
            gated = F.silu(x_TD @ self.gate_proj.weight[piece].t())
            hidden = gated * (x_TD @ self.up_proj.weight[piece].t())
            found.append(hidden @ self.down_proj.weight[:, piece].t())
        return torch.stack(found)


def values(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("edges", "is_full_width"),
    [("weight", True), ("both", False)],
)
def test_peers_with_foreign_dropout_1_and_no_shared_units_are_a_mixture_of_experts(
    edges, is_full_width
):
    """Same losses, gradients and weights over steps; at full width each expert is a dense MLP."""
    shape = replace(SIZES["tiny"], intermediate_size=MLP)
    if is_full_width:
        shape = full_width(shape, "peers", domains=DOMAINS, mlp_shared=0.0)
        pieces = [slice(0, MLP), slice(MLP, 2 * MLP), slice(2 * MLP, 3 * MLP)]
    else:
        pieces = [slice(0, 10), slice(10, 19), slice(19, 28)]  # 28 units over 3 domains
    assert shape.intermediate_size == pieces[-1].stop
    model, mixture = (tiny_model(intermediate_size=shape.intermediate_size) for _ in range(2))
    for layer in mixture.model.layers:
        layer.mlp = MixtureOfExperts(layer.mlp, pieces)
    plan = RoutePlan.peers(model.config, domains=DOMAINS, mlp_shared=0.0)
    routed = route_model(model, plan, edges, foreign_dropout=1.0)
    optimizers = [
        torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
        for network in (model, mixture)
    ]
    for seed in range(3):
        ids = tiny_ids(6, seed=seed)
        expected = loss_sum(mixture(input_ids=ids).logits, ids)
        expected.backward()
        with routed.batch(COUNTS):
            loss = loss_sum(model(input_ids=ids).logits, ids)
            loss.backward()
        assert_same({"loss": loss.detach()}, {"loss": expected.detach()})
        assert_same(gradients(model), gradients(mixture))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert_same(values(model), values(mixture), 1e-9)  # of which Adam's root is part
