"""Hypothesis 4: peers without a shared core and with foreign dropout 1 are a mixture of experts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gr_sweep.model.route import route_model
from gr_sweep.routing.plan import RoutePlan
from tests.model.compare import gradients
from tests.model.tiny import HIDDEN, LAYERS, tiny_ids, tiny_model
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


@pytest.mark.parametrize("edges", ["none", "weight", "act", "both"])
def test_peers_with_foreign_dropout_1_and_no_shared_units_are_a_mixture_of_experts(edges):
    model, mixture, ids = tiny_model(), tiny_model(), tiny_ids(6)
    routed = route_model(
        model,
        RoutePlan.peers(model.config, domains=DOMAINS, mlp_shared=0.0),
        edges,
        foreign_dropout=1.0,
    )
    sequences = [DOMAINS.index(domain) for domain, count in COUNTS.items() for _ in range(count)]
    pieces = [slice(0, 10), slice(10, 19), slice(19, 28)]  # 28 units over 3 domains
    widths = [piece.stop - piece.start for piece in pieces]
    for layer in mixture.model.layers:
        dense, layer.mlp = layer.mlp, MixtureOfExperts(widths, sequences)
        with torch.no_grad():
            for expert, piece in zip(layer.mlp.experts, pieces, strict=True):
                expert.gate.weight.copy_(dense.gate_proj.weight[piece])
                expert.up.weight.copy_(dense.up_proj.weight[piece])
                expert.down.weight.copy_(dense.down_proj.weight[:, piece])

    expected = mixture(input_ids=ids).logits
    loss_sum(expected, ids).backward()
    with routed.batch(COUNTS):
        logits = model(input_ids=ids).logits
        loss_sum(logits, ids).backward()
    assert_same({"logits": logits.detach()}, {"logits": expected.detach()})

    found, wanted = gradients(model), gradients(mixture)
    for layer in range(LAYERS):
        path = f"model.layers.{layer}.mlp"
        experts = range(len(DOMAINS))
        for name, old in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
            parts = [wanted.pop(f"{path}.experts.{expert}.{name}.weight") for expert in experts]
            wanted[f"{path}.{old}.weight"] = torch.cat(parts, 1 if name == "down" else 0)
    assert_same(found, wanted)
