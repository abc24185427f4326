"""Mixtures of experts whose units are whole experts: which are chosen, and what is cut.

An expert reads the residual stream, and the weight that the router gives it: the activation edge
cuts both. Its parameters are its three matrices; the router belongs to the rest. Work that is cut
is not computed.

N sequences, T positions, P = N * T, E experts, k experts of a position, S = P * k pairs of a
position and an expert, M pairs of one expert; D residual width, F hidden units of an expert.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from gr_sweep.routing.autograd import Scaled, apply
from gr_sweep.routing.base import ExpertRouting, ExpertRun, Units
from gr_sweep.routing.modules import RoutedModule
from gr_sweep.routing.token_routing import LinearMasks, MaskedLinear


class RoutedMixture(RoutedModule):
    """A mixture of experts whose units are its experts; without units they belong to the rest, as
    the router does. In a batch it computes with the parameters of its children, which are not
    called."""

    gate: Any
    experts: Any

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        if routing is None:
            return super().forward(input)  # type: ignore[no-any-return]
        units = self._parts[0] if self._parts else ()
        gate_up, down = self.experts.gate_up_proj, self.experts.down_proj
        num_experts = len(gate_up)
        if routing.rest_factor(input, "rest") is None:
            logits_NTE = nn.functional.linear(input, self.gate.weight)
        else:
            whole = (slice(0, num_experts),)
            logits_NTE = routing.linear("rest", input, self.gate.weight, None, whole)
        how = routing.experts(input, units)
        weights, indices = (each.flatten(0, 1) for each in choose(logits_NTE, how.on, self.gate))
        units = units or (slice(0, num_experts),)
        found_PD = mixture(
            input.flatten(0, 1), weights, indices, gate_up, down, self.experts.act_fn, units, how
        )
        return found_PD.view_as(input)


def choose(logits: Tensor, on: Tensor | None, router: Any) -> tuple[Tensor, Tensor]:
    """The most likely experts of each position among those that are on, as the routers of
    transformers choose: softmax, top k, and perhaps weights that sum to 1.

    Args:
        logits: [..., E]. Those of experts that are off count as minus infinity.
        on: 0 where an expert is off; None if all are on.

    Returns:
        Weights and int64 indices [..., k]; the weights of those beyond the experts that are on are
        0.
    """
    if on is not None:
        # Finite, so that nothing is chosen, instead of nan, where all are off.
        logits = logits.masked_fill(on == 0, torch.finfo(logits.dtype).min)
    probabilities = nn.functional.softmax(logits, dim=-1, dtype=torch.float32)
    weights, indices = torch.topk(probabilities, router.top_k, dim=-1)
    if getattr(router, "norm_topk_prob", True):  # Mixtral always does
        weights = weights / weights.sum(-1, keepdim=True)
    if on is not None:
        weights = weights * on.expand_as(logits).gather(-1, indices).to(weights.dtype)
    return weights, indices


def mixture(
    x_PD: Tensor,
    weights_Pk: Tensor,
    indices_Pk: Tensor,
    gate_up_EFD: Tensor,
    down_EDF: Tensor,
    activation: Callable[[Tensor], Tensor],
    units: Units,
    routing: ExpertRouting,
) -> Tensor:
    """The sum [P, D] of each position's experts, times their weights, routed.

    Args:
        gate_up_EFD: gate above up.
        units: the experts of each block.
    """
    num_groups, top_k = routing.num_groups, indices_Pk.shape[1]
    # Pairs of a position and an expert, sorted by expert and then by row group.
    cells_S = (indices_Pk * num_groups + routing.groups_P[:, None]).flatten()
    pairs_S = cells_S.argsort(stable=True)
    stops = [0, *itertools.accumulate(_counts(cells_S, units, routing))]
    gate_ups, downs, weights_S = gate_up_EFD.unbind(), down_EDF.unbind(), weights_Pk.flatten()
    # Parameters that learn from no position still get a gradient, of zeros: of processes that share
    # a micro-batch, either all have one or none has.
    y_PD = torch.zeros_like(x_PD) + (gate_up_EFD[:0].sum() + down_EDF[:0].sum()).to(x_PD.dtype)
    for of_block, block_runs in zip(units, routing.runs, strict=True):
        for expert, run in itertools.product(range(of_block.start, of_block.stop), block_runs):
            first = expert * num_groups
            pairs_M = pairs_S[stops[first + run.groups.start] : stops[first + run.groups.stop]]
            if not len(pairs_M):
                continue
            positions_M = pairs_M.div(top_k, rounding_mode="floor")
            weight, outputs, act = (
                factor[positions_M, None] if isinstance(factor, Tensor) else factor
                for factor in run[1:]
            )
            x_MD = _cut(x_PD[positions_M], act)
            gate_MF, up_MF = _linear(x_MD, gate_ups[expert], weight).chunk(2, -1)
            found_MD = _linear(activation(gate_MF) * up_MF, downs[expert], outputs)
            found_MD = found_MD * _cut(weights_S[pairs_M, None], act)
            y_PD.index_add_(0, positions_M, found_MD.to(y_PD.dtype))
    return y_PD


def plain_experts(experts: Any, x_PD: Tensor, indices_Pk: Tensor, weights_Pk: Tensor) -> Tensor:
    """The forward pass of stacked experts without routing, as an implementation that transformers
    can call: unlike its own, it takes fake tensors."""
    groups_P = torch.zeros(len(x_PD), dtype=torch.int64, device=x_PD.device)
    routing = ExpertRouting(1, groups_P, None, [[ExpertRun(slice(0, 1), 1.0, 1.0, 1.0)]])
    units, matrices = (slice(0, experts.num_experts),), (experts.gate_up_proj, experts.down_proj)
    return mixture(x_PD, weights_Pk, indices_Pk, *matrices, experts.act_fn, units, routing)


def _counts(cells_S: Tensor, units: Units, routing: ExpertRouting) -> list[int]:
    """The pairs of each expert and row group; of fake tensors, which choose nothing, as many of all
    that are on."""
    num_cells = units[-1].stop * routing.num_groups
    if not isinstance(cells_S, FakeTensor):
        return torch.bincount(cells_S, minlength=num_cells).tolist()
    on = [
        expert * routing.num_groups + group
        for of_block, block_runs in zip(units, routing.runs, strict=True)
        for expert in range(of_block.start, of_block.stop)
        for run in block_runs
        for group in range(run.groups.start, run.groups.stop)
    ]
    counts = [0] * num_cells
    for index, cell in enumerate(on):
        counts[cell] = (index + 1) * len(cells_S) // len(on) - index * len(cells_S) // len(on)
    return counts


def _cut(x: Tensor, factor: float | Tensor) -> Tensor:
    """`x`, whose gradient is multiplied by the factor."""
    if not isinstance(factor, Tensor) and factor in (0.0, 1.0):
        return x if factor else x.detach()
    of_x = factor.to(x.dtype) if isinstance(factor, Tensor) else x.new_tensor(factor)
    cut: Tensor = Scaled.apply(x, x.new_ones(()), of_x)  # type: ignore[no-untyped-call]
    return cut


def _linear(x_MI: Tensor, weight_OI: Tensor, factor: float | Tensor) -> Tensor:
    """The map without bias, the gradient of whose weight is multiplied by the factor."""
    if not isinstance(factor, Tensor) and factor in (0.0, 1.0):
        return nn.functional.linear(x_MI, weight_OI if factor else weight_OI.detach())
    one = x_MI.new_ones(1, 1)
    factor_M1 = factor if isinstance(factor, Tensor) else factor * one
    masks = LinearMasks(one, factor_M1, one, factor_M1)
    return apply(MaskedLinear, x_MI, (weight_OI, None), masks, False)
