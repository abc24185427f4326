"""Edges and owners to route weights: what multiplies a gradient, by domain and block.

Source: Cloud et al. 2024, arXiv 2410.04332, section 3; the table of DESIGN (edges). Two edges are
told apart: the weight edge (token to the block's parameters) and the activation edge (through the
block's units to what lies upstream).
"""

from dataclasses import dataclass

from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import PlanError
from gr_sweep.routing.plan import RoutePlan

EDGE_CHOICES = ("none", "weight", "act", "both")


@dataclass(frozen=True)
class RouteWeights:
    """What multiplies the gradients of each domain's tokens. Unlabelled tokens have 1
    everywhere."""

    weight_edge: dict[str, tuple[float, ...]]
    """Domain to a factor a block, on the gradient of the block's parameters; of columns of output
    matrices see `outputs`."""
    outputs: dict[str, tuple[float, ...]]
    """Domain to a factor a block, on the gradient of the block's columns of down and o."""
    act_edge: dict[str, tuple[float, ...]]
    """Domain to a factor a block, on the gradient through the block's units to their inputs."""
    rest: dict[str, float]
    """Domain to the factor on the gradient of all parameters that are no unit's."""


def route_weights(
    plan: RoutePlan,
    edges: str,
    *,
    foreign_weight: float = 0.0,
    foreign_core_weight: float = 0.0,
    foreign_core_rest: float = 0.0,
    foreign_outputs: float | None = None,
) -> RouteWeights:
    """The factors of every domain and block.

    `foreign_outputs` is the route weight of the output columns (down, o) of a foreign block, the
    core's too; None: as the block's other parameters. At 1 the columns learn in full, as they do
    where the hidden activation is masked, `m * h + (1 - m) * h.detach()` (Cloud et al., ERA).

    Raises:
        PlanError: `edges` that is none of none, weight, act, both.
    """
    if edges not in EDGE_CHOICES:
        raise PlanError(f"edges={edges!r} is unknown; choose one of {', '.join(EDGE_CHOICES)}")
    ones = (1.0,) * len(plan.blocks)
    weight_edge = {UNLABELLED: ones}
    outputs = {UNLABELLED: ones}
    act_edge = {UNLABELLED: ones}
    rest = {UNLABELLED: 1.0}
    for domain in plan.domains:
        factors = tuple(
            1.0
            if plan.owns(domain, block)
            else float(foreign_core_weight if block.is_core else foreign_weight)
            for block in plan.blocks
        )
        columns = factors
        if foreign_outputs is not None:
            columns = tuple(
                1.0 if plan.owns(domain, block) else float(foreign_outputs) for block in plan.blocks
            )
        weight_edge[domain] = factors if edges in ("weight", "both") else ones
        outputs[domain] = columns if edges in ("weight", "both") else ones
        act_edge[domain] = factors if edges in ("act", "both") else ones
        cut_rest = edges in ("weight", "both") and not plan.owns(domain, plan.core)
        rest[domain] = float(foreign_core_rest) if cut_rest else 1.0
    return RouteWeights(weight_edge, outputs, act_edge, rest)
