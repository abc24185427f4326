"""Routing by sequence, the fast path: every sequence has one label, and foreign work is skipped.

N sequences of the micro-batch, sorted into row groups; T positions, I input features.
"""

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import PlanError
from gr_sweep.routing.autograd import (
    GatedMlp,
    LinearCovers,
    MlpCovers,
    SlicedLinear,
    apply,
    compute_dtype,
)
from gr_sweep.routing.base import (
    BaseRouting,
    Columns,
    ExpertRouting,
    ExpertRun,
    OutputRun,
    Units,
    bounds,
)
from gr_sweep.routing.cover import Axis, Cover, cover, runs
from gr_sweep.routing.edges import GroupFactors, Line, RouteWeights, Table
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.rows import RowGroup, lines_of

Covers = LinearCovers | MlpCovers


class RowRouting(BaseRouting):
    """How the sequences of one micro-batch are routed: static slices, one group after the other."""

    def __init__(
        self, plan: RoutePlan, weights: RouteWeights, rows: Sequence[slice], groups: Sequence[Line]
    ) -> None:
        """One group per slice of `rows`."""
        super().__init__(GroupFactors(plan, weights, groups))
        self._rows = tuple(rows)
        self.num_rows: int | None = rows[-1].stop if rows else 0
        """None if any number of rows is allowed."""
        self._needed: Table = [
            [float(w != 0.0 or a != 0.0) for w, a in zip(*edges, strict=True)]
            for edges in zip(self._factors.weight, self._factors.act, strict=True)
        ]

    @classmethod
    def of_groups(
        cls, plan: RoutePlan, weights: RouteWeights, groups: Sequence[RowGroup]
    ) -> "RowRouting":
        """Routing of a training micro-batch."""
        stops = list(itertools.accumulate(group.count for group in groups))
        rows = [slice(stop - group.count, stop) for group, stop in zip(groups, stops, strict=True)]
        return cls(plan, weights, rows, lines_of(plan, groups))

    @classmethod
    def without(cls, plan: RoutePlan, blocks: Iterable[int]) -> "RowRouting":
        """Routing of any number of sequences with these blocks off, and nothing cut."""
        return cls(plan, RouteWeights("none"), [slice(None)], [Line(UNLABELLED, tuple(blocks))])

    def is_plain(self, x: Tensor) -> bool:
        """Whether nothing is cut or off, so that a module with input `x` is the plain module."""
        if self.num_rows is not None and x.shape[0] != self.num_rows:
            raise PlanError(
                f"the batch has {self.num_rows} sequences, but the model was given {x.shape[0]}"
            )
        return self._factors.cuts_nothing

    def prepare(self, roles: Iterable[tuple[str, Units]]) -> None:
        """Computes in advance what maps with these roles and units will ask for."""
        for role, units in roles:
            key = (role, *bounds(units))
            if key not in self._cache:
                self._cache[key] = self._covers_in_sequences(role, units)

    def linear(
        self, role: str, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units
    ) -> Tensor:
        """`torch.nn.functional.linear`, routed.

        Args:
            role: "column" if units are outputs, "row" if they are inputs (the bias then belongs to
                the rest), "rest" or "embedding" if no parameter belongs to a unit.
        """
        return apply(SlicedLinear, x, (weight, bias), self._covers(role, x, units), role == "row")

    def gated_mlp(self, x: Tensor, weights: Sequence[Tensor | None], units: Units) -> Tensor:
        """`down(silu(gate(x)) * up(x))`, routed; the bias of `down` belongs to the rest.

        Args:
            weights: of gate, up and down, and their biases.
        """
        return apply(GatedMlp, x, weights, self._covers("mlp", x, units))

    def rest_factor(self, like: Tensor, role: str) -> Sequence[tuple[int, float]] | None:
        """Factor on the gradients of parameters of the role "rest" or "embedding", for `like`
        [N, T, ...]: runs of (number of sequences, factor), one after the other; None if all are
        1."""
        factors = self._factors.of_role(role)
        if all(factor == 1.0 for factor in factors):
            return None
        counts = self._counts(like.shape[0])
        return [(sum(counts[run]), factor) for run, factor in runs(factors)]

    def output_runs(self, like: Tensor, parts: Sequence[Units]) -> list[OutputRun]:
        """How an unembedding, and adapters with these units, learn from `like` [N, T, D]."""
        factors = self._factors
        of_groups = [
            (factor, [_columns_on(on, outputs, units) for units in parts])
            for factor, on, outputs in zip(
                factors.embedding, factors.on, factors.outputs, strict=True
            )
        ]
        counts = self._counts(like.shape[0])
        return [OutputRun(sum(counts[run]), *how) for run, how in runs(of_groups)]

    def experts(self, like: Tensor, units: Units) -> ExpertRouting:
        """How `like` [N, T, D] uses experts; without units they belong to the rest."""
        factors, rest = self._factors, [[factor] for factor in self._factors.rest]
        ones = [[1.0]] * len(rest)
        tables = [ones, rest, rest, ones]
        if units:
            tables = [factors.on, factors.weight, factors.outputs, factors.act]
        of_blocks = []
        for block in range(max(1, len(units))):
            lines = [[line[block] for line in table] for table in tables]
            of_groups = runs(list(zip(*lines, strict=True)))
            of_blocks.append([ExpertRun(run, *line[1:]) for run, line in of_groups if line[0]])

        def make() -> Tensor:
            counts = [count * like.shape[1] for count in self._counts(like.shape[0])]
            groups_G = torch.arange(len(counts), device=like.device)
            repeats_G = torch.tensor(counts, device=like.device)
            return groups_G.repeat_interleave(repeats_G, output_size=sum(counts))

        groups_P: Tensor = self._cached(("groups", *like.shape[:2], like.device), make)
        on = self._per_feature("on", [units], like) if units else None
        return ExpertRouting(len(rest), groups_P, on, of_blocks)

    def _counts(self, num_rows: int) -> list[int]:
        """The sequences of each group."""
        return [len(range(*part.indices(num_rows))) for part in self._rows]

    def _per_position(self, table: str, like: Tensor) -> Tensor:
        # Small tables, since a compiler traces every number of a list.
        lines = torch.tensor(getattr(self._factors, table), dtype=like.dtype, device=like.device)
        counts = self._counts(like.shape[0])
        repeats = torch.tensor(counts, device=like.device)
        return lines[:, None].repeat_interleave(repeats, 0, output_size=sum(counts))

    def _covers(self, role: str, x: Tensor, units: Units) -> Covers:
        """The covers of a map with this role for an input `x` [N, ..., I]."""
        positions = x[0, ..., 0].numel() if x.dim() > 2 else 1
        width, device = x.shape[-1], x.device.type
        if device == "cpu" and compute_dtype(x) == torch.bfloat16:
            device = "cpu bfloat16"
        self.prepare([(role, units)])
        covers: Covers = self._cache[role, *bounds(units)]

        def make() -> Covers:
            return type(covers)(*(c.in_positions(positions, width, device) for c in covers))

        found: Covers = self._cached((role, positions, width, device, *bounds(units)), make)
        return found

    def _covers_in_sequences(self, role: str, units: Units) -> Covers:
        def of(table: Table, axis: Axis | None, products: int = 0, calls: int = 1) -> Cover:
            return cover(table, self._rows, units, axis, products=products, calls=calls)

        factors = self._factors
        rest = [[factor] for factor in factors.of_role(role)]
        bias = cover(rest, self._rows, (slice(0, 1),), "units")
        if role == "mlp":
            # The gradients of weights and input are read from the same cells. Where a dense product
            # of each would have to clear cells that the other one reads, the input's is sliced.
            cut = [
                {(g, b) for g, line in enumerate(table) for b, f in enumerate(line) if f == 0.0}
                for table in (factors.weight, factors.act)
            ]
            is_nested = cut[0] <= cut[1] or cut[1] <= cut[0]
            return MlpCovers(
                hidden=of(factors.on, None, products=2, calls=4),
                out=of(factors.on, "rows", products=1),
                needed=of(self._needed, None, products=1, calls=4),
                # Dense together: three products, and the hidden activation that is computed again.
                weight=of(factors.weight, "units", products=3, calls=4),
                down=of(factors.outputs, "units", products=3, calls=4),
                input=of(factors.act, "rows", products=2 if is_nested else 0, calls=2),
                bias=bias,
            )
        if role == "column":
            forward, weight = of(factors.on, None), of(factors.weight, "units")
            return LinearCovers(forward, weight, of(factors.act, "rows"), bias)
        if role == "row":
            forward, weight = of(factors.on, "rows"), of(factors.outputs, "units")
            return LinearCovers(forward, weight, of(self._needed, None), bias)
        whole = [[1.0]] * len(self._rows)
        return LinearCovers(of(whole, None), of(rest, "units"), of(whole, "rows"), bias)


def _columns_on(on: Sequence[float], outputs: Sequence[float], units: Units) -> list[Columns]:
    """The features of blocks that are on, and the factor on the gradient of their columns."""
    found: list[Columns] = []
    factors = [factor if is_on else None for is_on, factor in zip(on, outputs, strict=True)]
    for run, factor in runs(factors):
        features = slice(units[run.start].start, units[run.stop - 1].stop)
        if factor is not None and features.stop > features.start:
            found.append((features, factor))
    return found
