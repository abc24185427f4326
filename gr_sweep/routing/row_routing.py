"""Routing by sequence, the fast path: every sequence has one label, and foreign work is skipped.

N sequences of the micro-batch, sorted into row groups; T positions, P = N * T, H heads, I input
features.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import PlanError
from gr_sweep.routing.autograd import (
    ColumnLinear,
    GatedMlp,
    LinearCovers,
    MlpCovers,
    RowLinear,
    apply,
)
from gr_sweep.routing.cover import Cover, Output, cover
from gr_sweep.routing.edges import GroupFactors, RouteWeights, Table, by_feature
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.rows import RowGroup

Units = tuple[slice, ...]
"""The features of each block, in the plan's order of blocks."""

Covers = LinearCovers | MlpCovers

_Key = tuple[Any, ...]
_Value = TypeVar("_Value")


class RowRouting:
    """How the sequences of one micro-batch are routed: static slices, one group after the other."""

    def __init__(
        self,
        plan: RoutePlan,
        weights: RouteWeights,
        rows: Sequence[slice],
        domains: Sequence[str],
        off: Sequence[Sequence[int]],
    ) -> None:
        """One group per slice of `rows`, with its domain and the indices of its blocks that are
        off."""
        self._factors = GroupFactors(plan, weights, domains, off)
        self._rows = tuple(rows)
        self._num_rows = rows[-1].stop if rows else 0
        """None if any number of rows is allowed."""
        self._needed: Table = [
            [float(w != 0.0 or a != 0.0) for w, a in zip(*edges, strict=True)]
            for edges in zip(self._factors.weight, self._factors.act, strict=True)
        ]
        counts = [0 if part.stop is None else part.stop - part.start for part in rows]
        runs = itertools.groupby(
            zip(self._factors.rest, counts, strict=True), key=lambda pair: pair[0]
        )
        self._rest_runs = tuple((sum(count for _, count in run), factor) for factor, run in runs)
        self._counts = dict.fromkeys(domains, 0)
        for domain, count in zip(domains, counts, strict=True):
            self._counts[domain] += count
        self._covers: dict[_Key, Covers] = {}
        self._covers_of_positions: dict[_Key, Covers] = {}
        self._head_factors: dict[_Key, Tensor | None] = {}

    @classmethod
    def of_groups(
        cls, plan: RoutePlan, weights: RouteWeights, groups: Sequence[RowGroup]
    ) -> "RowRouting":
        """Routing of a training micro-batch."""
        stops = list(itertools.accumulate(group.count for group in groups))
        rows = [slice(stop - group.count, stop) for group, stop in zip(groups, stops, strict=True)]
        off = [plan.off_blocks(group.off) for group in groups]
        return cls(plan, weights, rows, [group.domain for group in groups], off)

    @classmethod
    def of_blocks_off(
        cls, plan: RoutePlan, weights: RouteWeights, off: Sequence[int]
    ) -> "RowRouting":
        """Any number of rows with the given blocks off and nothing cut."""
        return cls(plan, weights, [slice(None)], [UNLABELLED], [off])

    def is_plain(self, x: Tensor) -> bool:
        """Whether nothing is cut or off, so that a module with input `x` is the plain module."""
        self._check_rows(x)
        return self._factors.cuts_nothing

    def prepare(self, roles: Iterable[tuple[str, Units]]) -> None:
        """Computes in advance what maps with these roles and units will ask for."""
        for role, units in roles:
            self._in_sequences(role, units)

    def linear(
        self, role: str, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units
    ) -> Tensor:
        """`torch.nn.functional.linear`, routed.

        Args:
            role: "column" if units are outputs, "row" if they are inputs (the bias then belongs to
                the rest), "rest" if no parameter belongs to a unit.
        """
        function = RowLinear if role == "row" else ColumnLinear
        return apply(function, x, (weight, bias), self._covers_of(role, x, units))

    def gated_mlp(
        self, x: Tensor, gate: nn.Linear, up: nn.Linear, down: nn.Linear, units: Units
    ) -> Tensor:
        """`down(silu(gate(x)) * up(x))`, routed; the bias of `down` belongs to the rest."""
        weights = (gate.weight, up.weight, down.weight, gate.bias, up.bias, down.bias)
        return apply(GatedMlp, x, weights, self._covers_of("mlp", x, units))

    def rest_factor(self, like: Tensor) -> Sequence[tuple[int, float]] | None:
        """Factor on the rest's gradients for `like` [N, T, ...]: runs of (number of sequences,
        factor), one after the other; None if all are 1."""
        self._check_rows(like)
        return None if all(factor == 1.0 for _, factor in self._rest_runs) else self._rest_runs

    def head_factor(self, like: Tensor, heads: Units) -> Tensor | None:
        """Factor on the gradients that the rest gets through the heads of `like` [N, T, H, ...];
        None if all are 1."""
        self._check_rows(like)
        key = ("heads", like.device, like.dtype, *_bounds(heads))
        make = functools.partial(self._make_head_factor, like, heads)
        factor: Tensor | None = _cached(self._head_factors, key, make)
        return factor

    def _make_head_factor(self, like: Tensor, heads: Units) -> Tensor | None:
        lines = by_feature(self._factors.through_heads, heads)
        if all(factor == 1.0 for line in lines for factor in line):
            return None
        rows = [
            line
            for line, part in zip(lines, self._rows, strict=True)
            for _ in range(*part.indices(like.shape[0]))
        ]
        return torch.tensor(rows, dtype=like.dtype, device=like.device)[:, None, :, None]

    def _check_rows(self, x: Tensor) -> None:
        if self._num_rows is not None and x.shape[0] != self._num_rows:
            raise PlanError(
                f"batch({self._counts}) has {self._num_rows} sequences, but the model was given "
                f"{x.shape[0]}"
            )

    def _covers_of(self, role: str, x: Tensor, units: Units) -> Covers:
        """The covers of a map with this role for an input `x` [N, ..., I]."""
        self._check_rows(x)
        positions = x[0, ..., 0].numel() if x.dim() > 2 else 1
        width, device = x.shape[-1], x.device.type
        covers = self._in_sequences(role, units)
        key = (role, positions, width, device, *_bounds(units))
        make = functools.partial(covers.in_positions, positions, width=width, device=device)
        found: Covers = _cached(self._covers_of_positions, key, make)
        return found

    def _in_sequences(self, role: str, units: Units) -> Covers:
        key = (role, *_bounds(units))
        if key not in self._covers:
            self._covers[key] = self._make_covers(role, units)
        return self._covers[key]

    def _make_covers(self, role: str, units: Units) -> Covers:
        def of(table: Sequence[Sequence[float]], output: Output) -> Cover:
            return cover(table, self._rows, units, output)

        factors = self._factors
        rest = [[factor] for factor in factors.rest]
        bias = cover(rest, self._rows, (slice(0, 1),), Output.units)
        if role == "mlp":
            return MlpCovers(
                hidden=of(factors.on, Output.cells),
                out=of(factors.on, Output.rows),
                needed=of(self._needed, Output.cells),
                weight=of(factors.weight, Output.units),
                down=of(factors.outputs, Output.units),
                input=of(factors.act, Output.rows),
                bias=bias,
                is_input_wider=all(
                    act != 0.0 or weight == 0.0
                    for lines in zip(factors.act, factors.weight, strict=True)
                    for act, weight in zip(*lines, strict=True)
                ),
            )
        whole = [[1.0]] * len(self._rows)
        forward, weight, input = {
            "column": (factors.on, factors.weight, factors.act),
            "row": (factors.on, factors.outputs, self._needed),
            "rest": (whole, rest, whole),
        }[role]
        is_row = role == "row"
        return LinearCovers(
            forward=of(forward, Output.rows if is_row else Output.cells),
            weight=of(weight, Output.units),
            input=of(input, Output.cells if is_row else Output.rows),
            bias=bias,
        )


def _bounds(units: Units) -> tuple[tuple[int, int], ...]:
    """Units as something that can be a key."""
    return tuple((part.start, part.stop) for part in units)


def _cached(
    cache: dict[tuple[Any, ...], Any], key: tuple[Any, ...], make: Callable[[], Any]
) -> Any:
    if torch.compiler.is_compiling():  # what is traced must not depend on an earlier call
        return make()
    if key not in cache:
        cache[key] = make()
    return cache[key]
