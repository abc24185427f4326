"""Rows of a micro-batch: which belong to which domain, and which blocks are on for them.

Row groups are plain integers, the same in every micro-batch, so shapes are static. Tiles are how
foreign work is skipped: a routed matrix product is a handful of dense products over slices of rows
and units.
"""

import enum
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import PlanError
from gr_sweep.routing.plan import RoutePlan

Value = TypeVar("Value")

_MAX_ORDERED = 6
"""Up to so many row groups of a domain every order is tried; beyond, the nearest next one is
taken."""


@dataclass(frozen=True)
class RowGroup:
    """Neighbouring sequences of one domain for which the same domains are switched off."""

    domain: str
    """A label, or "unlabelled"."""
    off: frozenset[str]
    """Labels switched off, as remove() of them would."""
    count: int
    """Sequences."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of rows and units that one matrix product covers."""

    rows: slice
    """Sequences of the micro-batch, or positions; `slice(None)` for all."""
    units: slice
    """Rows or columns of the weight matrix."""
    factor: float
    """What multiplies the product."""
    adds: bool = False
    """Whether the product is added to what tiles before it have written."""


class Output(enum.Enum):
    """What a matrix product leaves: its other axis is summed over."""

    cells = "cells"
    """A number for each row and unit: nothing is summed."""
    rows = "rows"
    """A line for each row, summed over units: what `down` puts out, the gradient of an input."""
    units = "units"
    """A line for each unit, summed over rows: the gradient of a weight."""


CALL_MULTIPLY_ADDS = {"cpu": 3e6, "cuda": 1e9}
"""Multiply-adds that could be done in the time that one more call of an operation takes.

The rule by which slicing gives way to one dense product and zeros (`Cover.in_positions`). On a CPU:
set by what slices of `nano` cost beyond their work, eager and float32, some 40 microseconds a call.
On CUDA: reckoned, not measured, from 5 microseconds a launch at 400 TFLOP/s, two a multiply-add.
"""


@dataclass(frozen=True)
class Cover:
    """Tiles that cover every (group, block) whose factor is not 0, each exactly once."""

    output: Output
    tiles: tuple[Tile, ...]
    """In the order in which they are to be computed."""
    gaps: tuple[slice, ...] = ()
    """Where the output, a row or a unit each, gets nothing and is 0."""
    whole: Tile | None = None
    """All rows and units, where one product over them could stand in for the tiles: factors are 0
    and 1 alone."""
    clears: tuple[Tile, ...] = ()
    """What the summed-up matrix must be 0 in before that product: the cells whose factor is 0."""

    def in_positions(
        self, positions: int, *, width: int = 0, calls: float = 1.0, device: str = "cpu"
    ) -> "Cover":
        """The same with rows that count positions, so many a sequence; dense where slicing loses.

        Slices do less work in more calls. Where the calls that they add take longer than the work
        they save, the tile is the whole and `clears` says what has to be 0 first; otherwise there
        are no `clears`.

        Args:
            width: the products' third size. 0 keeps the tiles.
            calls: operations a tile, for each matrix product of the tile.
            device: type of the device.
        """
        tiles = tuple(_times(tile, positions) for tile in self.tiles)
        if self.whole is not None and width:
            call = calls * CALL_MULTIPLY_ADDS.get(device, 0.0)
            saved = width * sum(_cells(_times(tile, positions)) for tile in self.clears)
            if saved < call * (len(tiles) - 1):
                clears = tuple(_times(tile, positions) for tile in self.clears)
                return Cover(self.output, (_times(self.whole, positions),), clears=clears)
        gaps = self.gaps
        if self.output is Output.rows:
            gaps = tuple(_rows_times(gap, positions) for gap in gaps)
        return Cover(self.output, tiles, gaps)


def _rows_times(rows: slice, positions: int) -> slice:
    return rows if rows.stop is None else slice(rows.start * positions, rows.stop * positions)


def _times(tile: Tile, positions: int) -> Tile:
    return Tile(_rows_times(tile.rows, positions), tile.units, tile.factor, tile.adds)


def _cells(tile: Tile) -> int:
    rows, units = tile.rows, tile.units
    return int((rows.stop - rows.start) * (units.stop - units.start))


def row_groups(
    plan: RoutePlan, counts: Mapping[str, int], foreign_dropout: float
) -> tuple[RowGroup, ...]:
    """The groups of a micro-batch whose sequences are sorted by domain in the order of `counts`.

    Each of the n sequences of a domain has a fixed subset of the other domains switched off
    (`dropout_subsets`); domains that the plan keeps apart from it always are. Groups are ordered so
    that a block's rows form few slices.

    Raises:
        PlanError: an unknown domain, a negative count, a foreign dropout outside 0..1.
    """
    if not 0.0 <= foreign_dropout <= 1.0:
        raise PlanError(f"foreign_dropout={foreign_dropout} is no share; give a number from 0 to 1")
    for domain, count in counts.items():
        if domain != UNLABELLED and domain not in plan.domains:
            raise PlanError(f"unknown domain {domain!r}; the plan has {', '.join(plan.domains)}")
        if count < 0:
            raise PlanError(f"counts must not be negative: {dict(counts)}")
    groups: list[RowGroup] = []
    for domain, count in counts.items():
        if count == 0:
            continue
        if domain == UNLABELLED:
            groups.append(RowGroup(domain, frozenset(), count))
            continue
        always_off = plan.always_off(domain)
        others = [label for label in plan.domains if label != domain and label not in always_off]
        subsets = [
            frozenset(others[index] for index in subset) | always_off
            for subset in dropout_subsets(len(others), count, foreign_dropout)
        ]
        sizes = {subset: subsets.count(subset) for subset in dict.fromkeys(subsets)}
        before = frozenset(plan.off_blocks(groups[-1].off)) if groups else frozenset()
        ordered = _order(plan, list(sizes), before)
        groups.extend(RowGroup(domain, subset, sizes[subset]) for subset in ordered)
    return tuple(groups)


def within(counts: Iterable[int], rows: slice) -> list[int]:
    """How many rows of each run lie in `rows`, the runs of `counts` rows standing one after the
    other: what a process that takes these rows has of each."""
    found, start = [], 0
    for count in counts:
        stop = start + count
        found.append(max(0, min(stop, rows.stop) - max(start, rows.start)))
        start = stop
    return found


@lru_cache(maxsize=4096)
def dropout_subsets(num_others: int, count: int, share: float) -> tuple[frozenset[int], ...]:
    """For `count` sequences, which of the other domains are switched off: a fixed, balanced list.

    Every domain is off in round(share * count) of them. Domains are crossed one after the other:
    the sequences that look alike so far are divided in proportion, then exchanges make the number
    of sequences in which two domains are off together as even as it can be.
    """
    num_off = round(share * count)
    columns: list[list[bool]] = []
    for _ in range(num_others):
        cells: dict[tuple[bool, ...], list[int]] = {}
        for row in range(count):
            cells.setdefault(tuple(column[row] for column in columns), []).append(row)
        quotas = {cell: len(rows) * num_off / count for cell, rows in cells.items()}
        take = {cell: int(quota) for cell, quota in quotas.items()}
        by_remainder = sorted(cells, key=lambda cell: (take[cell] - quotas[cell], cell))
        for cell in by_remainder[: num_off - sum(take.values())]:
            take[cell] += 1
        off = {row for cell, rows in cells.items() for row in rows[: take[cell]]}
        columns.append(_even_pairs(columns, [row in off for row in range(count)]))
    return tuple(
        frozenset(index for index, column in enumerate(columns) if column[row])
        for row in range(count)
    )


def _even_pairs(columns: Sequence[Sequence[bool]], column: list[bool]) -> list[bool]:
    """`column` with on and off exchanged where that evens out how often two domains are off
    together."""
    num_off = sum(column)
    wanted = [sum(other) * num_off / max(len(column), 1) for other in columns]

    def unevenness(candidate: Sequence[bool]) -> float:
        together = (
            sum(a and b for a, b in zip(other, candidate, strict=True)) for other in columns
        )
        return sum((have - want) ** 2 for have, want in zip(together, wanted, strict=True))

    best = unevenness(column)
    improved = True
    while improved:
        improved = False
        # Rows that look alike in the other columns are interchangeable: one of each kind is enough.
        kinds = {
            (column[row], *(other[row] for other in columns)): row for row in range(len(column))
        }
        for i, j in itertools.product(kinds.values(), repeat=2):
            if column[i] and not column[j]:
                candidate = list(column)
                candidate[i], candidate[j] = False, True
                score = unevenness(candidate)
                if score < best - 1e-9:
                    column, best, improved = candidate, score, True
                    break
    return column


def _order(
    plan: RoutePlan, subsets: list[frozenset[str]], before: frozenset[int]
) -> Sequence[frozenset[str]]:
    """The subsets in the order in which fewest blocks go on or off from one to the next."""
    off = {subset: frozenset(plan.off_blocks(subset)) for subset in subsets}

    def changes(order: Sequence[frozenset[str]]) -> int:
        steps = [before, *(off[subset] for subset in order)]
        return sum(len(a ^ b) for a, b in itertools.pairwise(steps))

    if len(subsets) <= _MAX_ORDERED:
        return min(itertools.permutations(subsets), key=changes)
    ordered: list[frozenset[str]] = []
    left, last = list(subsets), before
    while left:
        nearest = min(left, key=lambda subset: len(off[subset] ^ last))
        left.remove(nearest)
        ordered.append(nearest)
        last = off[nearest]
    return ordered


def cover(
    factors: Sequence[Sequence[float]],
    rows: Sequence[slice],
    units: Sequence[slice],
    output: Output,
) -> Cover:
    """The cheapest of the known ways to cover a table of factors with rectangles.

    Of two ways of cutting, block by block and group by group, the one with fewer products; of two
    with as many, the one that adds to less of what is written already.

    Args:
        factors: a factor for each group and block.
        rows: each group's sequences, one slice after the other.
        units: each block's units, one slice after the other; empty ones are skipped.
        output: what the products are summed to. The first tile that reaches a part of the output
            writes it, later ones add.
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

    ordered = [_ordered(boxes, output) for boxes in (_by_group(table), _by_block(table))]
    best = min(ordered, key=lambda boxes: (len(boxes), sum(box.adds for box in boxes)))
    parts = unit_parts if output is Output.units else row_parts
    written = {index for box in best for index in box.along(output)}
    gaps = [
        _joined(parts, part)
        for part, is_written in _runs([index in written for index in range(len(parts))])
        if not is_written
    ]
    whole: Tile | None = None
    clears: tuple[Tile, ...] = ()
    is_plain = all(factor in (0.0, 1.0) for line in table for factor in line)
    if is_plain and blocks and groups and row_parts[-1].stop is not None:
        whole = Tile(
            _joined(row_parts, range(len(groups))), _joined(unit_parts, range(len(blocks))), 1.0
        )
        zeros = [[1.0 - factor for factor in line] for line in table]
        clears = tiles(min(_by_group(zeros), _by_block(zeros), key=len))
    return Cover(output, tiles(best), () if output is Output.cells else tuple(gaps), whole, clears)


@dataclass(frozen=True)
class _Box:
    """A tile, in numbers of groups and blocks."""

    groups: range
    blocks: range
    factor: float
    adds: bool = False

    def along(self, output: Output) -> range:
        """What it reaches of the axis that is left."""
        return self.blocks if output is Output.units else self.groups


def _by_group(table: Sequence[Sequence[float]]) -> list[_Box]:
    """Cut into lines of neighbouring groups that are alike, each into runs of blocks."""
    return [
        _Box(groups, blocks, factor)
        for groups, line in _runs(table)
        for blocks, factor in _runs(line)
        if factor != 0.0
    ]


def _by_block(table: Sequence[Sequence[float]]) -> list[_Box]:
    """Cut into columns of neighbouring blocks that are alike, each into runs of groups."""
    return [
        _Box(groups, blocks, factor)
        for blocks, column in _runs([list(column) for column in zip(*table, strict=True)])
        for groups, factor in _runs(column)
        if factor != 0.0
    ]


def _ordered(boxes: Sequence[_Box], output: Output) -> list[_Box]:
    """The boxes in an order in which each finds its part of the output all written, or not at all.

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
            ordered.append(
                replace(box, blocks=cut, adds=adds)
                if output is Output.units
                else replace(box, groups=cut, adds=adds)
            )
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
    """The slice that neighbouring slices make."""
    return slice(parts[run.start].start, parts[run.stop - 1].stop)
