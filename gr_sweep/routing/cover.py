"""Covers: which rectangles of rows and units a routed matrix product is computed on.

Foreign work is skipped by slicing. A routed product is a few dense products, each over neighbouring
rows and neighbouring units that have the same factor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

Value = TypeVar("Value")

CALL_MULTIPLY_ADDS = {"cpu": 3e6, "cpu bfloat16": 12e6, "cuda": 1e9}
"""Multiply-adds that fit into the time of one more call of an operation, by type of device.

For a CPU measured on slices of `nano`, eager: 40 to 50 microseconds per call in float32 and with
bfloat16 on AMX, whose products are four times as fast. For CUDA computed from 5 microseconds per
launch at 400 TFLOP/s.
"""

Axis = Literal["rows", "units"]


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

    def in_positions(self, positions: int) -> "Tile":
        """The same with rows that count positions."""
        rows = self.rows
        if rows.stop is not None:
            rows = slice(rows.start * positions, rows.stop * positions)
        return Tile(rows, self.units, self.factor, self.adds)


@dataclass(frozen=True)
class Cover:
    """Tiles that cover every (group, block) with a factor other than 0 exactly once."""

    tiles: tuple[Tile, ...]
    """In the order in which they are to be computed."""
    has_gaps: bool
    """Whether there are parts of the output that no tile reaches; they are 0."""
    whole: Tile | None = None
    """All rows and units, if one product over them may replace the tiles: factors are 0 and 1."""
    clears: tuple[Tile, ...] = ()
    """Cells with factor 0, which must be 0 in the summed matrix before the product over `whole`."""
    products: int = 0
    """Matrix products over these tiles, which become dense together; 0 if they never do."""
    calls: int = 1
    """Operations per tile, for each of its matrix products."""

    def in_positions(self, positions: int, width: int, device: str) -> "Cover":
        """The same with rows that count positions, `positions` per sequence. Where more calls take
        longer than the work that slicing saves, the only tile is `whole`, and `clears` holds what
        must be 0 first; otherwise there are no `clears`.

        Args:
            width: third size of the products.
            device: key of `CALL_MULTIPLY_ADDS`.
        """
        if self.whole is not None:
            dense = Cover(
                (self.whole.in_positions(positions),),
                has_gaps=False,
                clears=tuple(tile.in_positions(positions) for tile in self.clears),
            )
            saved = self.products * width * dense.num_cleared
            calls = self.calls * (len(self.tiles) - 1)
            if saved < calls * CALL_MULTIPLY_ADDS.get(device, 0.0):
                return dense
        return Cover(tuple(tile.in_positions(positions) for tile in self.tiles), self.has_gaps)

    @property
    def num_cleared(self) -> int:
        """Number of cells that a dense product clears first."""
        return sum(_size(tile.rows) * _size(tile.units) for tile in self.clears)


def cover(
    factors: Sequence[Sequence[float]],
    rows: Sequence[slice],
    units: Sequence[slice],
    axis: Axis | None,
    *,
    products: int = 0,
    calls: int = 1,
) -> Cover:
    """Covers a table of factors block by block or group by group: by the fewer products, then by
    those that add less to what is already written.

    Args:
        factors: a factor for each group and block.
        rows: each group's sequences, one slice after the other.
        units: each block's units, one slice after the other; empty slices are skipped.
        axis: the axis of the output; the products sum over the other one. None: the output has
            both. The first tile that reaches a part of the output writes it, later ones add to it.
        products: as in `Cover`.
        calls: as in `Cover`.
    """
    blocks = [index for index, part in enumerate(units) if part.stop > part.start]
    parts = [units[block] for block in blocks]
    table = [[line[block] for block in blocks] for line in factors]
    columns = [[line[block] for line in factors] for block in blocks]

    def found(tiles: Sequence[Tile]) -> tuple[Tile, ...]:
        return tuple(
            replace(tile, rows=_joined(rows, tile.rows), units=_joined(parts, tile.units))
            for tile in tiles
        )

    ordered = [_ordered(tiles, axis) for tiles in _both_cuts(table)]
    best = min(ordered, key=lambda tiles: (len(tiles), sum(tile.adds for tile in tiles)))
    cells = [[factor] for line in table for factor in line]
    lines = {"rows": table, "units": columns, None: cells}[axis]
    has_gaps = not all(any(line) for line in lines)
    whole: Tile | None = None
    clears: tuple[Tile, ...] = ()
    is_plain = all(factor in (0.0, 1.0) for [factor] in cells)
    if products and is_plain and cells and rows[-1].stop is not None:
        [whole] = found([Tile(slice(0, len(rows)), slice(0, len(parts)), 1.0)])
        zeros = [[1.0 - factor for factor in line] for line in table]
        clears = found(min(_both_cuts(zeros), key=len))
    return Cover(found(best), has_gaps, whole, clears, products, calls)


# Below, the rows and units of a tile are numbers of groups and blocks.


def _both_cuts(table: Sequence[Sequence[float]]) -> tuple[list[Tile], list[Tile]]:
    """Tiles of neighbouring groups that are equal, cut into runs of blocks; and the other way."""
    columns = [list(column) for column in zip(*table, strict=True)]
    return (
        [Tile(groups, blocks, factor) for groups, blocks, factor in _cut(table)],
        [Tile(groups, blocks, factor) for blocks, groups, factor in _cut(columns)],
    )


def _cut(lines: Sequence[Sequence[float]]) -> list[tuple[slice, slice, float]]:
    """Runs of equal lines, each cut into runs of equal factors other than 0."""
    return [
        (outer, inner, factor)
        for outer, line in runs(lines)
        for inner, factor in runs(line)
        if factor != 0.0
    ]


def _ordered(tiles: list[Tile], axis: Axis | None) -> list[Tile]:
    """The tiles in an order in which the output of each is either all written or not written yet;
    the longest go first, so that few have to be cut in two."""
    if axis is None:
        return tiles
    ordered: list[Tile] = []
    written: set[int] = set()
    for tile in sorted(tiles, key=lambda tile: -_size(getattr(tile, axis))):
        part: slice = getattr(tile, axis)
        line = range(part.start, part.stop)
        for run, adds in runs([index in written for index in line]):
            cut = slice(part.start + run.start, part.start + run.stop)
            found = replace(tile, adds=adds)
            ordered.append(
                replace(found, rows=cut) if axis == "rows" else replace(found, units=cut)
            )
        written.update(line)
    return ordered


def runs(values: Sequence[Value]) -> list[tuple[slice, Value]]:
    """Neighbours with equal values, joined."""
    found: list[tuple[slice, Value]] = []
    for index, value in enumerate(values):
        if found and found[-1][1] == value:
            found[-1] = (slice(found[-1][0].start, index + 1), value)
        else:
            found.append((slice(index, index + 1), value))
    return found


def _joined(parts: Sequence[slice], run: slice) -> slice:
    """The slice that neighbouring slices form."""
    return slice(parts[run.start].start, parts[run.stop - 1].stop)


def _size(part: slice) -> int:
    return int(part.stop - part.start)
