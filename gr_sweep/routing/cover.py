"""Covers: which rectangles of rows and units a routed matrix product is computed on.

Foreign work is skipped by slicing. A routed product is a few dense products, each over neighbouring
rows and neighbouring units that have the same factor.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

Value = TypeVar("Value")

CALL_MULTIPLY_ADDS = {"cpu": 3e6, "cuda": 1e9}
"""Multiply-adds that fit into the time of one more call of an operation, by type of device.

`Cover.in_positions` compares them with the work that slicing saves. For a CPU: measured on slices
of `nano`, eager and float32, about 40 microseconds per call. For CUDA: computed, not measured, from
5 microseconds per launch at 400 TFLOP/s, two operations per multiply-add.
"""


@dataclass(frozen=True)
class Tile:
    """A rectangle of rows and units that one matrix product covers."""

    rows: slice
    """Sequences of the micro-batch, or positions; `slice(None)` for all."""
    units: slice
    """Rows or columns of the weight matrix."""
    factor: float
    """What the product is multiplied by."""
    adds: bool = False
    """Whether the product is added to what earlier tiles have written."""


class Output(enum.Enum):
    """The axes that a matrix product keeps; it sums over the other one."""

    cells = "cells"
    """Rows and units: nothing is summed."""
    rows = "rows"
    """Rows, summed over units: the output of `down`, or the gradient of an input."""
    units = "units"
    """Units, summed over rows: the gradient of a weight."""


@dataclass(frozen=True)
class Cover:
    """Tiles that cover every (group, block) with a factor other than 0 exactly once."""

    output: Output
    tiles: tuple[Tile, ...]
    """In the order in which they are to be computed."""
    gaps: tuple[slice, ...] = ()
    """Rows or units of the output that no tile reaches; they are 0."""
    whole: Tile | None = None
    """All rows and units, if one product over them can replace the tiles: factors are 0 and 1."""
    clears: tuple[Tile, ...] = ()
    """Cells with factor 0, which must be 0 in the summed matrix before the product over `whole`."""

    def in_positions(
        self, positions: int, *, width: int = 0, calls: float = 1.0, device: str = "cpu"
    ) -> "Cover":
        """The same with rows that count positions, `positions` per sequence; dense where slicing
        does not pay.

        Slices do less work in more calls. If the additional calls take longer than the work they
        save, the only tile is `whole` and `clears` holds what must be 0 first. Otherwise there are
        no `clears`.

        Args:
            width: third size of the products; 0 keeps the tiles.
            calls: operations per tile, for each of its matrix products.
            device: type of the device.
        """
        tiles = tuple(_times(tile, positions) for tile in self.tiles)
        if self.whole is not None and width:
            clears = tuple(_times(tile, positions) for tile in self.clears)
            saved = width * sum(_size(tile.rows) * _size(tile.units) for tile in clears)
            if saved < calls * CALL_MULTIPLY_ADDS.get(device, 0.0) * (len(tiles) - 1):
                return Cover(self.output, (_times(self.whole, positions),), clears=clears)
        gaps = self.gaps
        if self.output is Output.rows:
            gaps = tuple(_rows_times(gap, positions) for gap in gaps)
        return Cover(self.output, tiles, gaps)


def _rows_times(rows: slice, positions: int) -> slice:
    return rows if rows.stop is None else slice(rows.start * positions, rows.stop * positions)


def _times(tile: Tile, positions: int) -> Tile:
    return Tile(_rows_times(tile.rows, positions), tile.units, tile.factor, tile.adds)


def _size(part: slice) -> int:
    return int(part.stop - part.start)


def cover(
    factors: Sequence[Sequence[float]],
    rows: Sequence[slice],
    units: Sequence[slice],
    output: Output,
) -> Cover:
    """The cheaper of two ways to cover a table of factors with rectangles.

    The table is cut block by block or group by group, whichever needs fewer products; if both need
    as many, the one that adds less to what is already written.

    Args:
        factors: a factor for each group and block.
        rows: each group's sequences, one slice after the other.
        units: each block's units, one slice after the other; empty slices are skipped.
        output: the axes that the products keep. The first tile that reaches a part of the output
            writes it, later ones add to it.
    """
    blocks = [index for index, part in enumerate(units) if part.stop > part.start]
    groups = [
        index for index, part in enumerate(rows) if part.stop is None or part.stop > part.start
    ]
    table = [[factors[group][block] for block in blocks] for group in groups]
    row_parts, unit_parts = [rows[group] for group in groups], [units[block] for block in blocks]

    def tiles(boxes: Sequence[_Box]) -> tuple[Tile, ...]:
        return tuple(
            Tile(
                _joined(row_parts, box.groups),
                _joined(unit_parts, box.blocks),
                box.factor,
                box.adds,
            )
            for box in boxes
        )

    ordered = [_ordered(boxes, output) for boxes in _both_cuts(table)]
    best = min(ordered, key=lambda boxes: (len(boxes), sum(box.adds for box in boxes)))
    gaps: tuple[slice, ...] = ()
    if output is not Output.cells:
        parts = unit_parts if output is Output.units else row_parts
        written = {index for box in best for index in box.along(output)}
        runs = _runs([index in written for index in range(len(parts))])
        gaps = tuple(_joined(parts, run) for run, is_written in runs if not is_written)
    whole: Tile | None = None
    clears: tuple[Tile, ...] = ()
    is_plain = all(factor in (0.0, 1.0) for line in table for factor in line)
    if is_plain and blocks and groups and row_parts[-1].stop is not None:
        whole = Tile(
            _joined(row_parts, range(len(groups))), _joined(unit_parts, range(len(blocks))), 1.0
        )
        zeros = [[1.0 - factor for factor in line] for line in table]
        clears = tiles(min(_both_cuts(zeros), key=len))
    return Cover(output, tiles(best), gaps, whole, clears)


@dataclass(frozen=True)
class _Box:
    """A tile in numbers of groups and blocks."""

    groups: range
    blocks: range
    factor: float
    adds: bool = False

    def along(self, output: Output) -> range:
        """Its part of the axis that the product keeps."""
        return self.blocks if output is Output.units else self.groups


def _both_cuts(table: Sequence[Sequence[float]]) -> tuple[list[_Box], list[_Box]]:
    """Boxes of neighbouring groups that are equal, cut into runs of blocks; and the other way."""
    columns = [list(column) for column in zip(*table, strict=True)]
    return (
        [_Box(groups, blocks, factor) for groups, blocks, factor in _cut(table)],
        [_Box(groups, blocks, factor) for blocks, groups, factor in _cut(columns)],
    )


def _cut(lines: Sequence[Sequence[float]]) -> list[tuple[range, range, float]]:
    """Runs of equal lines, each cut into runs of equal factors other than 0."""
    return [
        (outer, inner, factor)
        for outer, line in _runs(lines)
        for inner, factor in _runs(line)
        if factor != 0.0
    ]


def _ordered(boxes: Sequence[_Box], output: Output) -> list[_Box]:
    """The boxes in an order in which the output of each is either all written or not written yet.

    The longest go first, so that few have to be cut in two.
    """
    if output is Output.cells:
        return list(boxes)
    ordered: list[_Box] = []
    written: set[int] = set()
    for box in sorted(boxes, key=lambda box: -len(box.along(output))):
        line = box.along(output)
        for part, adds in _runs([index in written for index in line]):
            cut = line[part.start : part.stop]
            if output is Output.units:
                ordered.append(replace(box, blocks=cut, adds=adds))
            else:
                ordered.append(replace(box, groups=cut, adds=adds))
        written.update(line)
    return ordered


def _runs(values: Sequence[Value]) -> list[tuple[range, Value]]:
    """Neighbours with equal values, joined."""
    runs: list[tuple[range, Value]] = []
    for index, value in enumerate(values):
        if runs and runs[-1][1] == value:
            runs[-1] = (range(runs[-1][0].start, index + 1), value)
        else:
            runs.append((range(index, index + 1), value))
    return runs


def _joined(parts: Sequence[slice], run: range) -> slice:
    """The slice that neighbouring slices form."""
    return slice(parts[run.start].start, parts[run.stop - 1].stop)
