"""Routing by sequence, the fast path: every sequence has one label, and foreign work is skipped.

N sequences of the micro-batch, sorted into row groups; T positions, P = N * T, H heads, E experts,
I input features.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gr_sweep.errors import PlanError
from gr_sweep.routing.autograd import (
    GatedMlp,
    LinearCovers,
    MlpCovers,
    Scaled,
    SlicedLinear,
    apply,
    compute_dtype,
)
from gr_sweep.routing.cover import Axis, Cover, cover, runs
from gr_sweep.routing.edges import GroupFactors, RouteWeights, Table
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.rows import RowGroup, lines_of

Units = tuple[slice, ...]
"""The features of each block, in the plan's order of blocks."""

Covers = LinearCovers | MlpCovers

Columns = tuple[slice, float | Tensor]
"""Columns of a weight, and the factor on their gradient."""


class OutputRun(NamedTuple):
    """How an unembedding and its adapters learn from neighbouring sequences."""

    num_rows: int
    factor: float | Tensor
    """On the gradient of the unembedding; a tensor [N, T] of all tokens."""
    columns: list[list[Columns]]
    """For each adapter, the units that are on, and the factor on the gradient of their columns; a
    tensor [N, T, U] of all tokens."""


class ExpertRun(NamedTuple):
    """How neighbouring row groups use a block of experts that is on; a factor is a number, or a
    tensor [P] of all positions."""

    groups: slice
    weight: float | Tensor
    """On the gradient of gate and up."""
    outputs: float | Tensor
    """On the gradient of down."""
    act: float | Tensor
    """On the gradient of what the expert reads."""


class ExpertRouting(NamedTuple):
    """How the positions of a micro-batch use a layer's experts."""

    num_groups: int
    groups_P: Tensor
    """Int64, each position's row group."""
    on: Tensor | None
    """1 if the expert is on, else 0, of a shape that broadcasts to [N, T, E]; None if all are."""
    runs: Sequence[Sequence[ExpertRun]]
    """Of each block."""


class RowRouting:
    """How the sequences of one micro-batch are routed: static slices, one group after the other."""

    def __init__(
        self,
        plan: RoutePlan,
        weights: RouteWeights,
        rows: Sequence[slice],
        domains: Sequence[str],
        off: Sequence[Sequence[int]],
        trains_core: Sequence[bool] | None = None,
    ) -> None:
        """One group per slice of `rows`; the rest as in `GroupFactors`."""
        self._factors = GroupFactors(plan, weights, domains, off, trains_core)
        self._rows = tuple(rows)
        self.num_rows: int | None = rows[-1].stop if rows else 0
        """None if any number of rows is allowed."""
        self._needed: Table = [
            [float(w != 0.0 or a != 0.0) for w, a in zip(*edges, strict=True)]
            for edges in zip(self._factors.weight, self._factors.act, strict=True)
        ]
        self._counts = [0 if part.stop is None else part.stop - part.start for part in rows]
        self._cache: dict[tuple[Any, ...], Any] = {}

    @classmethod
    def of_groups(
        cls, plan: RoutePlan, weights: RouteWeights, groups: Sequence[RowGroup]
    ) -> "RowRouting":
        """Routing of a training micro-batch."""
        stops = list(itertools.accumulate(group.count for group in groups))
        rows = [slice(stop - group.count, stop) for group, stop in zip(groups, stops, strict=True)]
        return cls(plan, weights, rows, *lines_of(plan, groups))

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
        factors = self._factors.outside_units(role)
        if all(factor == 1.0 for factor in factors):
            return None
        runs = itertools.groupby(zip(factors, self._counts, strict=True), key=lambda pair: pair[0])
        return [(sum(count for _, count in run), factor) for factor, run in runs]

    def head_factor(self, like: Tensor, heads: Units) -> Tensor | None:
        """Factor on the gradients that the rest gets through the heads of `like` [N, T, H, ...];
        None if all are 1."""

        found = self._per_row("through_heads", [heads], like)
        return None if found is None else found[..., None]

    def scaled(self, x: Tensor, role: str, parts: Sequence[Units]) -> Tensor:
        """`x` [N, T, U], 0 where a unit is off, with the gradients that the role lets through.

        Args:
            role: "lookup" if x are rows of a table, which learns as a weight does; "column" if they
                are outputs, "row" if they are inputs of a map.
            parts: units of each of the maps that x holds one after the other.
        """
        table = {"lookup": "weight", "column": "act", "row": "on"}[role]
        on, factor = self._per_row("on", parts, x), self._per_row(table, parts, x)
        if on is None and factor is None:
            return x
        one = x.new_ones(())
        found: Tensor = Scaled.apply(  # type: ignore[no-untyped-call]
            x, one if on is None else on, one if factor is None else factor
        )
        return found

    def output_runs(self, like: Tensor, parts: Sequence[Units]) -> list[OutputRun]:
        """How an unembedding, and adapters with these units, learn from `like` [N, T, D]."""

        factors = self._factors
        of_groups = [
            (factor, [_columns_on(on, outputs, units) for units in parts])
            for factor, on, outputs in zip(
                factors.outside_units("embedding"), factors.on, factors.outputs, strict=True
            )
        ]
        counts = [len(range(*part.indices(like.shape[0]))) for part in self._rows]
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
            num_rows, length = like.shape[:2]
            counts = [len(range(*part.indices(num_rows))) * length for part in self._rows]
            groups_G = torch.arange(len(counts), device=like.device)
            repeats_G = torch.tensor(counts, device=like.device)
            return groups_G.repeat_interleave(repeats_G, output_size=sum(counts))

        groups_P: Tensor = self._cached(("groups", *like.shape[:2], like.device), make)
        on = self._per_row("on", [units], like) if units else None
        return ExpertRouting(len(rest), groups_P, on, of_blocks)

    def _per_row(self, table: str, parts: Sequence[Units], like: Tensor) -> Tensor | None:
        """[N, 1, U]: each sequence's factors from a table of `GroupFactors`; None if all are 1."""

        def make() -> Tensor | None:
            widths = [part.stop - part.start for units in parts for part in units]
            lines = [line * len(parts) for line in getattr(self._factors, table)]
            if all(
                f == 1.0 or width == 0
                for line in lines
                for f, width in zip(line, widths, strict=True)
            ):
                return None
            counts = [len(range(*part.indices(like.shape[0]))) for part in self._rows]
            # Two small tables: a compiler traces every number of a list.
            found = torch.tensor(lines, dtype=like.dtype, device=like.device)[:, None]
            for dim, repeats in ((0, counts), (2, widths)):
                repeats_1 = torch.tensor(repeats, device=like.device)
                found = found.repeat_interleave(repeats_1, dim, output_size=sum(repeats))
            return found

        key = (table, like.shape[0], like.device, like.dtype, *map(bounds, parts))
        found: Tensor | None = self._cached(key, make)
        return found

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
        rest = [[factor] for factor in factors.outside_units(role)]
        bias = cover(rest, self._rows, (slice(0, 1),), "units")
        if role == "mlp":
            return MlpCovers(
                hidden=of(factors.on, None, products=2, calls=4),
                out=of(factors.on, "rows", products=1, calls=1),
                needed=of(self._needed, None, products=1, calls=4),
                # Dense together: three products, and the hidden activation that is computed again.
                weight=of(factors.weight, "units", products=3, calls=4),
                down=of(factors.outputs, "units", products=3, calls=4),
                input=of(factors.act, "rows", products=2, calls=2),
                bias=bias,
            )
        whole = [[1.0]] * len(self._rows)
        forward, weight, input = {
            "column": (factors.on, factors.weight, factors.act),
            "row": (factors.on, factors.outputs, self._needed),
            "rest": (whole, rest, whole),
            "embedding": (whole, rest, whole),
        }[role]
        axes: tuple[Axis | None, Axis | None] = ("rows", None) if role == "row" else (None, "rows")
        return LinearCovers(of(forward, axes[0]), of(weight, "units"), of(input, axes[1]), bias)

    def _cached(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if torch.compiler.is_compiling():  # what is traced must not depend on an earlier call
            return make()
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


def _columns_on(on: Sequence[float], outputs: Sequence[float], units: Units) -> list[Columns]:
    """The features of blocks that are on, and the factor on the gradient of their columns."""
    found: list[Columns] = []
    factors = [factor if is_on else None for is_on, factor in zip(on, outputs, strict=True)]
    for run, factor in runs(factors):
        features = slice(units[run.start].start, units[run.stop - 1].stop)
        if factor is not None and features.stop > features.start:
            found.append((features, factor))
    return found


def bounds(units: Units) -> tuple[tuple[int, int], ...]:
    """Units as something that can be a key."""
    return tuple((part.start, part.stop) for part in units)
