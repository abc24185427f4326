"""What routed modules ask of a routing, which says how one micro-batch is routed.

N sequences of the micro-batch, T positions, P = N * T, E experts, H heads, U features of units.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gr_sweep.routing.autograd import Scaled
from gr_sweep.routing.edges import GroupFactors

Units = tuple[slice, ...]
"""The features of each block, in the plan's order of blocks."""

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
    """How neighbouring row groups use a block of experts that is on: factors on the gradients of
    gate and up, of down, and of what the expert reads; a number, or a tensor [P] of all
    positions."""

    groups: slice
    weight: float | Tensor
    outputs: float | Tensor
    act: float | Tensor


class ExpertRouting(NamedTuple):
    """How the positions of a micro-batch use a layer's experts."""

    num_groups: int
    groups_P: Tensor
    """Int64, each position's row group."""
    on: Tensor | None
    """1 if the expert is on, else 0, of a shape that broadcasts to [N, T, E]; None if all are."""
    runs: Sequence[Sequence[ExpertRun]]
    """Of each block."""


class BaseRouting:
    """What routing by sequence and by token share."""

    def __init__(self, factors: GroupFactors) -> None:
        self._factors = factors
        self._cache: dict[tuple[Any, ...], Any] = {}

    def head_factor(self, like: Tensor, heads: Units) -> Tensor | None:
        """Factor on the gradients that the rest gets through the heads of `like` [N, T, H, ...];
        None if all are 1."""
        found = self._per_feature("through_heads", [heads], like)
        return None if found is None else found[..., None]

    def scaled(self, x: Tensor, role: str, parts: Sequence[Units]) -> Tensor:
        """`x` [N, T, U], 0 where a unit is off, with the gradients that the role lets through.

        Args:
            role: "lookup" if x are rows of a table, which learns as a weight does; "column" if they
                are outputs, "row" if they are inputs of a map.
            parts: units of each of the maps that x holds one after the other.
        """
        table = {"lookup": "weight", "column": "act", "row": "on"}[role]
        on, factor = self._per_feature("on", parts, x), self._per_feature(table, parts, x)
        if on is None and factor is None:
            return x
        one = x.new_ones(())
        found: Tensor = Scaled.apply(  # type: ignore[no-untyped-call]
            x, one if on is None else on, one if factor is None else factor
        )
        return found

    def _per_feature(self, table: str, parts: Sequence[Units], like: Tensor) -> Tensor | None:
        """[N, T or 1, U]: factors from a table of `GroupFactors`; None if all are 1."""

        def make() -> Tensor | None:
            widths = [part.stop - part.start for units in parts for part in units]
            lines = [line * len(parts) for line in getattr(self._factors, table)]
            factors = (
                factor
                for line in lines
                for factor, width in zip(line, widths, strict=True)
                if width
            )
            if all(factor == 1.0 for factor in factors):
                return None
            found = torch.cat([self._per_position(table, like)] * len(parts), -1)
            repeats = torch.tensor(widths, device=like.device)
            return found.repeat_interleave(repeats, -1, output_size=sum(widths))

        key = (table, like.shape[0], like.device, like.dtype, *map(bounds, parts))
        found: Tensor | None = self._cached(key, make)
        return found

    def _per_position(self, table: str, like: Tensor) -> Tensor:
        """[N, T or 1, ...]: the line of a table of `GroupFactors` of each position."""
        raise NotImplementedError

    def _cached(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if torch.compiler.is_compiling():  # what is traced must not depend on an earlier call
            return make()
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


def bounds(units: Units) -> tuple[tuple[int, int], ...]:
    """Units as something that can be a key."""
    return tuple((part.start, part.stop) for part in units)
