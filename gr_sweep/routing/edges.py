"""From edges and owners to the factors on gradients, by domain and block.

Source: Cloud et al. 2024, arXiv 2410.04332, section 3; the table is in docs/routing.md.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

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
    that of the block's other parameters. 1 as in `m * h + (1 - m) * h.detach()` (Cloud et al.)."""
    core_frozen: bool = False
    """Whether only units of blocks learn: all other parameters learn from no token."""

    def __post_init__(self) -> None:
        if self.edges not in EDGE_CHOICES:
            raise PlanError(
                f"invalid value for edges: {self.edges!r}; expected one of "
                f"{', '.join(EDGE_CHOICES)}"
            )
        for name, weight in asdict(self).items():
            is_number = isinstance(weight, (int, float)) and math.isfinite(weight)
            if name != "edges" and weight is not None and not is_number:
                raise PlanError(f"expected {name} to be a finite number, got {weight!r}")

    @property
    def cuts_weights(self) -> bool:
        """Whether the weight edge is cut."""
        return self.edges in ("weight", "both")


class Line(NamedTuple):
    """What the factors of a group of rows or tokens depend on."""

    domain: str
    """A label, or "unlabelled"."""
    off: Collection[int] = ()
    """Indices of the blocks that are off."""
    trains_core: bool = False
    """Whether a core that the domain does not own counts as its own."""


Table = list[list[float]]
"""A line per group of rows or tokens, a factor per block."""


class GroupFactors:
    """Factors on the gradients of groups of rows or tokens: 0 for blocks that are off. Unlabelled
    groups are not cut, except where the core is frozen."""

    def __init__(self, plan: RoutePlan, weights: RouteWeights, groups: Sequence[Line]) -> None:
        is_own = [
            [
                domain == UNLABELLED or plan.owns(domain, block) or (block.is_core and trains_core)
                for block in plan.blocks
            ]
            for domain, _, trains_core in groups
        ]

        def factors(is_cut: bool, core: float, other: float) -> Table:
            """1, or if the edge is cut and the block foreign, its route weight."""
            cut = [float(core if block.is_core else other) for block in plan.blocks]
            return [
                [
                    weight if is_cut and not own else 1.0
                    for weight, own in zip(cut, line, strict=True)
                ]
                for line in is_own
            ]

        def of_core(weight: float) -> list[float]:
            return [0.0 if weights.core_frozen else line[0] for line in factors(cuts, weight, 1.0)]

        cuts, of_units = weights.cuts_weights, (weights.foreign_core_weight, weights.foreign_weight)
        columns, embedding = weights.foreign_outputs, weights.foreign_core_embeddings
        learns = [float(not (block.is_core and weights.core_frozen)) for block in plan.blocks]
        act = factors(weights.edges in ("act", "both"), *of_units)
        self.on: Table = [
            [float(index not in blocks_off) for index in range(len(plan.blocks))]
            for _, blocks_off, _ in groups
        ]
        """1 if the block is on, else 0."""
        learned = _product(self.on, [learns] * len(groups))
        self.weight = _product(learned, factors(cuts, *of_units))
        """On the gradient of the block's parameters, except the columns of output matrices."""
        self.outputs = self.weight
        """On the gradient of the block's columns of down and o."""
        if columns is not None:
            self.outputs = _product(learned, factors(cuts, columns, columns))
        self.act = _product(self.on, act)
        """On the gradient through the block's units to their inputs."""
        self.rest = of_core(weights.foreign_core_rest)
        """On the gradient of all parameters that belong to no unit, except embeddings."""
        self.embedding = self.rest if embedding is None else of_core(embedding)
        """On the gradient of embeddings and unembedding."""
        self.through_heads: Table = [
            [rest * factor for factor in line] for rest, line in zip(self.rest, act, strict=True)
        ]
        """On the gradient of parameters of the rest upstream of the block's head groups."""
        tables = (self.weight, self.outputs, self.act, [self.rest, self.embedding])
        self.cuts_nothing = all(f == 1.0 for table in tables for line in table for f in line)

    def of_role(self, role: str) -> list[float]:
        """On the gradient of parameters of modules with this role, where they belong to no
        unit."""
        return self.embedding if role == "embedding" else self.rest


def _product(a: Table, b: Table) -> Table:
    return [[x * y for x, y in zip(*lines, strict=True)] for lines in zip(a, b, strict=True)]
