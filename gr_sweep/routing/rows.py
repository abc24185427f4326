"""Row groups of a step: which sequences belong to which domain, and which domains are off.

Group sizes are plain integers that repeat after a few steps, so tensor shapes are static. A step's
sequences have one order, however they are cut into micro-batches and divided over processes.
"""

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import PlanError
from gr_sweep.routing.plan import RoutePlan

_MAX_ORDERED = 6
"""Up to this many row groups per domain every order is tried; above it the nearest group goes
next."""

MAX_LISTS = 8
"""Steps after which the lists of foreign dropout repeat, at most. Each list has its own shapes, for
which a compiler makes a graph."""

CLOSE = Fraction(1, 100)
"""Most that the share which is reached may differ from the foreign dropout."""


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
) -> tuple[tuple[RowGroup, ...], ...]:
    """The groups of each step of a cycle. The sequences of a step are sorted by domain in the order
    of `counts`.

    Each of a domain's sequences has a subset of the other domains switched off (`dropout_lists`),
    and always the domains that the plan isolates it from. Groups are ordered so that a block's rows
    form few slices.

    Raises:
        PlanError: an unknown domain, a negative count, or a share that cannot be reached.
    """
    for domain, count in counts.items():
        if domain != UNLABELLED and domain not in plan.domains:
            raise PlanError(
                f"unknown domain {domain!r}; the plan's domains are {', '.join(plan.domains)}"
            )
        if count < 0:
            raise PlanError(f"expected counts of 0 or more, got {dict(counts)}")
    others = {domain: _others(plan, domain) for domain in counts}
    num_lists = cycle_length([counts[d] for d, found in others.items() if found], foreign_dropout)
    cycle: list[list[RowGroup]] = [[] for _ in range(num_lists)]
    for domain, count in counts.items():
        if count == 0:
            continue
        always_off = plan.always_off(domain)
        lists = dropout_lists(len(others[domain]), count, foreign_dropout, num_lists)
        for groups, of_step in zip(cycle, lists, strict=True):
            subsets = [frozenset(others[domain][i] for i in off) | always_off for off in of_step]
            sizes = {subset: subsets.count(subset) for subset in dict.fromkeys(subsets)}
            before = frozenset(plan.off_blocks(groups[-1].off)) if groups else frozenset()
            ordered = _order(plan, list(sizes), before)
            groups.extend(RowGroup(domain, subset, sizes[subset]) for subset in ordered)
    return tuple(map(tuple, cycle))


def _others(plan: RoutePlan, domain: str) -> list[str]:
    """The domains that foreign dropout switches off for this one, or for `unlabelled`."""
    if domain == UNLABELLED or len(plan.blocks) == 1:
        return []
    never = {domain, *plan.always_off(domain)}
    return [other for other in plan.domains if other not in never]


def dropped_share(plan: RoutePlan, groups: Iterable[RowGroup]) -> float | None:
    """The foreign dropout of these groups: over their sequences and each one's other domains, the
    share that is off. None if there are none."""
    num_off = num_others = 0
    for group in groups:
        others = _others(plan, group.domain)
        num_off += group.count * len(group.off.intersection(others))
        num_others += group.count * len(others)
    return num_off / num_others if num_others else None


def within(groups: Iterable[RowGroup], rows: Sequence[int]) -> tuple[RowGroup, ...]:
    """The part of each group that lies in `rows`, in ascending order."""
    found, start = [], 0
    for group in groups:
        stop = start + group.count
        count = bisect_left(rows, stop) - bisect_left(rows, start)
        found += [replace(group, count=count)] if count else []
        start = stop
    return tuple(found)


def cycle_length(counts: Iterable[int], foreign_dropout: float) -> int:
    """Steps after which the lists of foreign dropout repeat: of 1 to `MAX_LISTS` those that come
    nearest to it, for domains with these numbers of sequences in a step.

    Raises:
        PlanError: the nearest share is further away than `CLOSE`; the message names others.
    """
    present = frozenset(count for count in counts if count)
    wanted = Fraction(str(foreign_dropout))
    distance, num_lists = _nearest(present, wanted)
    if distance <= CLOSE:
        return num_lists
    shares = sorted(
        {
            Fraction(num_off, n * count)
            for count in present
            for n in range(1, MAX_LISTS + 1)
            for num_off in range(n * count + 1)
        }
    )
    place = bisect_left(shares, wanted)
    below, above = (
        next(share for share in found if _nearest(present, share)[0] <= CLOSE)
        for found in (reversed(shares[:place]), shares[place:])
    )
    raise PlanError(
        f"foreign_dropout={foreign_dropout:g} cannot be reached where domains have "
        f"{' or '.join(map(str, sorted(present)))} of a step's sequences; use "
        f"{float(below):.4g} or {float(above):.4g}"
    )


@lru_cache(maxsize=4096)
def _nearest(counts: frozenset[int], share: Fraction) -> tuple[Fraction, int]:
    """How near to `share` the best number of lists comes, and that number."""

    def distance(num_lists: int) -> Fraction:
        reached = {Fraction(round(share * n * num_lists), n * num_lists) for n in counts}
        # Dropout that is asked for must not turn into none, nor into a mixture of experts.
        if 0 < share < 1 and reached & {0, 1}:
            return Fraction(1)
        return max((abs(found - share) for found in reached), default=Fraction(0))

    return min((distance(n), n) for n in range(1, MAX_LISTS + 1))


@lru_cache(maxsize=4096)
def dropout_lists(
    num_others: int, count: int, share: float, num_lists: int
) -> tuple[tuple[frozenset[int], ...], ...]:
    """For each step of a cycle and each of its `count` sequences, which other domains are off.

    Each other domain is off in `share` of the sequences of all steps, rounded to a whole number,
    and in equally many of each step, to within one. Which domains are off together is as even as
    `_crossed` makes it: within a step, over the steps, and in which steps have one more.
    """
    num_off = round(Fraction(str(share)) * count * num_lists)
    each, more = divmod(num_off, num_lists)
    has_more = _crossed(num_lists, [[more]] * num_others, fewest_first=True)
    columns = _crossed(count, [[each + is_more for is_more in column] for column in has_more])
    rows = [
        frozenset(index for index, column in enumerate(columns) if column[row])
        for row in range(count * num_lists)
    ]
    return tuple(tuple(rows[start : start + count]) for start in range(0, len(rows), count))


def _crossed(
    count: int, numbers: Sequence[Sequence[int]], *, fewest_first: bool = False
) -> list[list[bool]]:
    """For each domain, in which rows it is off: `numbers` of them in each list of `count` rows.

    Domains are crossed one after the other: rows of a list with the same domains off so far are
    divided in proportion, and then exchanges within lists make the number of rows in which two
    domains are off together as even as possible. With `fewest_first`, ties go to the rows that have
    the fewest domains off, so that steps cost the same.
    """
    columns: list[list[bool]] = []
    for of_lists in numbers:
        off: set[int] = set()
        for index, num_off in enumerate(of_lists):
            cells: dict[tuple[bool, ...], list[int]] = {}
            for row in range(index * count, (index + 1) * count):
                cells.setdefault(tuple(column[row] for column in columns), []).append(row)
            quotas = {cell: len(rows) * num_off / count for cell, rows in cells.items()}
            take = {cell: int(quota) for cell, quota in quotas.items()}
            by_remainder = sorted(
                cells, key=lambda c: (take[c] - quotas[c], sum(c) if fewest_first else 0, c)
            )
            for cell in by_remainder[: num_off - sum(take.values())]:
                take[cell] += 1
            off.update(row for cell, rows in cells.items() for row in rows[: take[cell]])
        columns.append([row in off for row in range(count * len(of_lists))])
        while _exchanges(columns, count):
            pass
    return columns


def _exchanges(columns: Sequence[list[bool]], count: int) -> bool:
    """Exchanges on and off of two rows of the last column, of one list, if that evens out how often
    it is off together with the others, in the list and over all lists."""
    *others, column = columns

    def excess(rows: range) -> list[float]:
        num_off = sum(column[row] for row in rows)
        return [
            sum(other[row] and column[row] for row in rows)
            - sum(other[row] for row in rows) * num_off / len(rows)
            for other in others
        ]

    over_all = excess(range(len(column)))
    for start in range(0, len(column), count):
        rows = range(start, start + count)
        both = [a + b for a, b in zip(over_all, excess(rows), strict=True)]
        # Rows with equal entries are interchangeable: one of each kind is enough.
        kinds = {(column[row], *(other[row] for other in others)): row for row in rows}
        for i, j in itertools.product(kinds.values(), repeat=2):
            if column[i] and not column[j]:
                moves = [other[j] - other[i] for other in others]
                if sum(m * (e + m) for m, e in zip(moves, both, strict=True)) < -1e-9:
                    column[i], column[j] = False, True
                    return True
    return False


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
