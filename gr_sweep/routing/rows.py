"""Rows of a micro-batch: which belong to which domain, and which blocks are on for them.

Row groups are plain integers, the same in every micro-batch, so shapes are static. Tiles are how
foreign work is skipped: a routed matrix product is a handful of dense products over slices of rows
and units.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """Sequences of the micro-batch; `slice(None)` for all."""
    units: slice
    """Rows or columns of the weight matrix."""
    factor: float
    """What multiplies the product."""


def row_groups(
    plan: RoutePlan, counts: Mapping[str, int], foreign_dropout: float
) -> tuple[RowGroup, ...]:
    """The groups of a micro-batch whose sequences are sorted by domain in the order of `counts`.

    Each of the n sequences of a domain has a fixed subset of the other domains switched off
    (`dropout_subsets`). Groups are ordered so that a block's rows form few slices.

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
        others = [label for label in plan.domains if label != domain]
        subsets = [
            frozenset(others[index] for index in subset)
            for subset in dropout_subsets(len(others), count, foreign_dropout)
        ]
        sizes = {subset: subsets.count(subset) for subset in dict.fromkeys(subsets)}
        before = frozenset(plan.off_blocks(groups[-1].off)) if groups else frozenset()
        ordered = _order(plan, list(sizes), before)
        groups.extend(RowGroup(domain, subset, sizes[subset]) for subset in ordered)
    return tuple(groups)


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


def tiles(
    factors: Sequence[Sequence[float]], rows: Sequence[slice], units: Sequence[slice]
) -> tuple[Tile, ...]:
    """Rectangles that cover every (group, block) whose factor is not 0, each exactly once.

    Args:
        factors: a factor for each group and block.
        rows: each group's sequences, one slice after the other.
        units: each block's units, one slice after the other; empty ones are skipped.

    Of two ways of cutting, block by block and group by group, the one with fewer tiles.
    """
    blocks = [index for index, part in enumerate(units) if part.stop > part.start]
    groups = [
        index for index, part in enumerate(rows) if part.stop is None or part.stop > part.start
    ]
    table = [[factors[group][block] for block in blocks] for group in groups]
    row_parts = [rows[group] for group in groups]
    unit_parts = [units[block] for block in blocks]
    by_group = [
        Tile(row, unit, factor)
        for row, line in _runs(table, row_parts)
        for unit, factor in _runs(line, unit_parts)
        if factor != 0.0
    ]
    columns = [list(column) for column in zip(*table, strict=True)]
    by_block = [
        Tile(row, unit, factor)
        for unit, line in _runs(columns, unit_parts)
        for row, factor in _runs(line, row_parts)
        if factor != 0.0
    ]
    return tuple(by_group if len(by_group) <= len(by_block) else by_block)


def _runs(values: Sequence[Value], parts: Sequence[slice]) -> list[tuple[slice, Value]]:
    """Neighbouring slices with equal values, joined."""
    runs: list[tuple[slice, Value]] = []
    for value, part in zip(values, parts, strict=True):
        if runs and runs[-1][1] == value:
            runs[-1] = (slice(runs[-1][0].start, part.stop), value)
        else:
            runs.append((part, value))
    return runs
