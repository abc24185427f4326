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
from tests.model.tiny import HIDDEN, LAYERS, MLP, tiny_ids, tiny_model
from tests.reference import assert_same, loss_sum

pytestmark = pytest.mark.usefixtures("exact_norms", "one_thread")

DOMAINS = ["code", "biology", "creative"]
COUNTS = {"code": 2, "biology": 3, "creative": 1}


class Expert(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, width, bias=False, dtype=torch.float64)
        self.up = nn.Linear(HIDDEN, width, bias=False, dtype=torch.float64)
        self.down = nn.Linear(width, HIDDEN, bias=False, dtype=torch.float64)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class MixtureOfExperts(nn.Module):
    """Each sequence goes to the expert of its domain: a router that is a table."""

    def __init__(self, widths: list[int], expert_of_sequence: list[int]) -> None:
        super().__init__()
        self.experts = nn.ModuleList([Expert(width) for width in widths])
        self.expert_of_sequence = expert_of_sequence

    def forward(self, x):
        parts = zip(x, self.expert_of_sequence, strict=True)
        return torch.stack([self.experts[expert](sequence) for sequence, expert in parts])


def mixture_of(pieces):
    """The tiny model with an expert for each slice of its MLPs."""
    mixture = tiny_model(intermediate_size=pieces[-1].stop)
    sequences = [DOMAINS.index(domain) for domain, count in COUNTS.items() for _ in range(count)]
    widths = [piece.stop - piece.start for piece in pieces]
    for layer in mixture.model.layers:
        dense, layer.mlp = layer.mlp, MixtureOfExperts(widths, sequences)
        with torch.no_grad():
            for expert, piece in zip(layer.mlp.experts, pieces, strict=True):
                expert.gate.weight.copy_(dense.gate_proj.weight[piece])
                expert.up.weight.copy_(dense.up_proj.weight[piece])
                expert.down.weight.copy_(dense.down_proj.weight[:, piece])
    return mixture


def joined(tensors):
    """What belongs to single experts, side by side under the names of the routed model."""
    tensors = dict(tensors)
    for layer in range(LAYERS):
        path = f"model.layers.{layer}.mlp"
        for name, old in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
            parts = [
                tensors.pop(f"{path}.experts.{expert}.{name}.weight")
                for expert in range(len(DOMAINS))
            ]
            tensors[f"{path}.{old}.weight"] = torch.cat(parts, 1 if name == "down" else 0)
    return tensors


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
    model, mixture = tiny_model(intermediate_size=shape.intermediate_size), mixture_of(pieces)
    plan = RoutePlan.peers(model.config, domains=DOMAINS, mlp_shared=0.0)
    routed = route_model(model, plan, edges, foreign_dropout=1.0)
    assert_same(values(model), joined(values(mixture)))
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
        assert_same(gradients(model), joined(gradients(mixture)))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert_same(values(model), joined(values(mixture)), 1e-9)  # of which Adam's root is part
