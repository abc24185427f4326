"""Row groups of a micro-batch: which sequences belong to which domain, and which domains are off.

Group sizes are plain integers, the same in every micro-batch with the same counts, so tensor shapes
are static.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import PlanError
from gr_sweep.routing.plan import RoutePlan

_MAX_ORDERED = 6
"""Up to this many row groups per domain every order is tried; above it the nearest group goes
next."""


@dataclass(frozen=True)
class RowGroup:
    """Neighbouring sequences of one domain with the same domains switched off."""

    domain: str
    """A label, or "unlabelled"."""
    off: frozenset[str]
    """Labels that are switched off, as remove() of them would."""
    count: int
    """Number of sequences."""


def row_groups(
    plan: RoutePlan, counts: Mapping[str, int], foreign_dropout: float
) -> tuple[RowGroup, ...]:
    """The groups of a micro-batch whose sequences are sorted by domain in the order of `counts`.

    Each of a domain's sequences has a fixed subset of the other domains switched off
    (`dropout_subsets`), and always the domains that the plan isolates it from. Groups are ordered
    so that a block's rows form few slices.

    Raises:
        PlanError: an unknown domain, or a negative count.
    """
    for domain, count in counts.items():
        if domain != UNLABELLED and domain not in plan.domains:
            raise PlanError(
                f"unknown domain {domain!r}; the plan's domains are {', '.join(plan.domains)}"
            )
        if count < 0:
            raise PlanError(f"expected counts of 0 or more, got {dict(counts)}")
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
    """How many rows of each run lie in `rows`, for runs of `counts` rows one after the other."""
    found, start = [], 0
    for count in counts:
        stop = start + count
        found.append(max(0, min(stop, rows.stop) - max(start, rows.start)))
        start = stop
    return found


@lru_cache(maxsize=4096)
def dropout_subsets(num_others: int, count: int, share: float) -> tuple[frozenset[int], ...]:
    """For each of `count` sequences, which other domains are switched off: a fixed, balanced list.

    Each domain is off in round(share * count) sequences. Domains are crossed one after the other:
    sequences with the same domains off so far are divided in proportion, and then exchanges make
    the number of sequences in which two domains are off together as even as possible.
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
        # Rows with equal entries are interchangeable: one of each kind is enough.
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
    """The subsets in the order in which the fewest blocks go on or off from one to the next."""
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
