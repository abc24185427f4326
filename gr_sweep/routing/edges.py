"""From edges and owners to the factors on gradients, by domain and block.

Source: Cloud et al. 2024, arXiv 2410.04332, section 3; the table is in docs/routing.md. Two edges
are told apart: the weight edge (from the token to the block's parameters) and the activation edge
(through the block's units to what lies upstream).
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import PlanError
from gr_sweep.routing.plan import RoutePlan

EDGE_CHOICES = ("none", "weight", "act", "both")

OUTSIDE_UNITS = ("rest", "embedding")
"""Roles of modules whose parameters belong to no unit."""


@dataclass(frozen=True)
class RouteWeights:
    """What cuts the gradients of foreign blocks, and what "cut" means. A route weight multiplies a
    gradient; it may be any real number.

    Raises:
        PlanError: `edges` is not one of none, weight, act, both, or a weight is not finite.
    """

    edges: str = "both"
    """The edges that are cut: "none", "weight", "act" or "both"."""
    foreign_weight: float = 0.0
    """Route weight of a foreign block."""
    foreign_core_weight: float = 0.0
    """Route weight of the core's units if the core is foreign."""
    foreign_core_rest: float = 0.0
    """Route weight of all parameters that belong to no unit if the core is foreign."""
    foreign_core_embeddings: float | None = None
    """Route weight of embeddings and unembedding if the core is foreign; None: that of the other
    parameters that belong to no unit."""
    foreign_outputs: float | None = None
    """Route weight of the output columns (down, o) of a foreign block, including the core; None:
    that of the block's other parameters. With 1 these columns learn in full, as they do if the
    hidden activation is masked, `m * h + (1 - m) * h.detach()` (Cloud et al., ERA)."""
    core_frozen: bool = False
    """Whether only units of blocks learn: the weight edge of the core's units and of all parameters
    that belong to no unit has weight 0 for all tokens, labelled or not."""

    def __post_init__(self) -> None:
        if self.edges not in EDGE_CHOICES:
            raise PlanError(
                f"invalid value for edges: {self.edges!r}; expected one of "
                f"{', '.join(EDGE_CHOICES)}"
            )
        for item in fields(self)[1:]:
            weight = getattr(self, item.name)
            is_number = isinstance(weight, (int, float)) and math.isfinite(weight)
            if not is_number and weight is not item.default:
                raise PlanError(f"expected {item.name} to be a finite number, got {weight!r}")

    @property
    def cuts_weights(self) -> bool:
        """Whether the weight edge is cut."""
        return self.edges in ("weight", "both")


Table = list[list[float]]
"""A line per group of rows or tokens, a factor per block."""


class GroupFactors:
    """Factors on the gradients of groups of rows or tokens. Each group has one domain, and one set
    of blocks that are off, whose factor is 0 everywhere. Unlabelled groups are not cut, except
    where the core is frozen."""

    on: Table
    """1 if the block is on, else 0."""
    weight: Table
    """On the gradient of the block's parameters, except the columns of output matrices."""
    outputs: Table
    """On the gradient of the block's columns of down and o."""
    act: Table
    """On the gradient through the block's units to their inputs."""
    through_heads: Table
    """On the gradient of parameters of the rest that are upstream of the block's head groups."""
    rest: list[float]
    """On the gradient of all parameters that belong to no unit, except embeddings."""
    embeddings: list[float]
    """On the gradient of embeddings and unembedding."""

    def __init__(
        self,
        plan: RoutePlan,
        weights: RouteWeights,
        domains: Sequence[str],
        off: Sequence[Collection[int]],
        trains_core: Sequence[bool] | None = None,
    ) -> None:
        """A group per domain, with the indices of its blocks that are off, and whether a core that
        it does not own counts as its own (None: no)."""
        self.on, self.weight, self.outputs, self.act, self.through_heads = [], [], [], [], []
        self.rest, self.embeddings = [], []
        other = weights.foreign_weight
        columns, cuts_weights = weights.foreign_outputs, weights.cuts_weights
        for domain, blocks_off, trains in zip(
            domains, off, trains_core or [False] * len(domains), strict=True
        ):
            core = 1.0 if trains else weights.foreign_core_weight
            on = [float(index not in blocks_off) for index in range(len(plan.blocks))]
            weight = outputs = _factors(plan, domain, cuts_weights, core, other)
            if columns is not None:
                of_core = 1.0 if trains else columns
                outputs = _factors(plan, domain, cuts_weights, of_core, columns)
            act = _factors(plan, domain, weights.edges in ("act", "both"), core, other)
            of_core = 1.0 if trains else weights.foreign_core_rest
            rest = embeddings = _factors(plan, domain, cuts_weights, of_core, other)[0]
            if weights.foreign_core_embeddings is not None:
                of_core = 1.0 if trains else weights.foreign_core_embeddings
                embeddings = _factors(plan, domain, cuts_weights, of_core, other)[0]
            if weights.core_frozen:
                learns = [float(not block.is_core) for block in plan.blocks]
                weight, outputs = _times(learns, weight), _times(learns, outputs)
                rest = embeddings = 0.0
            self.on.append(on)
            self.weight.append(_times(on, weight))
            self.outputs.append(_times(on, outputs))
            self.act.append(_times(on, act))
            self.through_heads.append([rest * factor for factor in act])
            self.rest.append(rest)
            self.embeddings.append(embeddings)
        self.cuts_nothing = all(
            factor == 1.0
            for table in (self.weight, self.outputs, self.act, [self.rest, self.embeddings])
            for line in table
            for factor in line
        )

    def outside_units(self, role: str) -> list[float]:
        """On the gradient of parameters of modules with this role, where they belong to no
        unit."""
        return self.embeddings if role == "embedding" else self.rest


def _factors(plan: RoutePlan, domain: str, is_cut: bool, core: float, other: float) -> list[float]:
    """A factor per block: 1, or if the edge is cut and the block foreign, its route weight."""
    if domain == UNLABELLED or not is_cut:
        return [1.0] * len(plan.blocks)
    return [
        1.0 if plan.owns(domain, block) else float(core if block.is_core else other)
        for block in plan.blocks
    ]


def _times(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x * y for x, y in zip(a, b, strict=True)]
