"""Row groups of a step: which sequences belong to which domain, and which domains are off.

Group sizes are plain integers that repeat after a few steps, so tensor shapes are static. A step's
sequences have one order, however they are cut into micro-batches and divided over processes.
"""

import itertools
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import PlanError
from gr_sweep.routing.edges import Line
from gr_sweep.routing.plan import RoutePlan

_MAX_ORDERED = 6
"""Row groups of a domain of which every order is tried; of more the nearest goes next."""

MAX_LISTS = 8
"""Steps after which the row groups repeat, at most: a compiler makes a graph for each of them."""

CLOSE = Fraction(1, 100)
"""Most that a share of the sequences which is reached may differ from the one that is wanted."""


@dataclass(frozen=True)
class RowGroup:
    """Neighbouring sequences of one domain that are routed alike."""

    domain: str
    """A label, or "unlabelled"."""
    off: frozenset[str]
    """Labels that are switched off, as remove() of them would."""
    count: int
    """Number of sequences."""
    trains_core: bool = False
    """Whether a core that the domain does not own counts as its own."""


class Share(NamedTuple):
    """A share of the sequences of domains."""

    setting: str
    """Its name, for errors."""
    value: float
    counts: tuple[int, ...]
    """Sequences of a step, for each domain that it applies to."""


def row_groups(
    plan: RoutePlan,
    counts: Mapping[str, int],
    foreign_dropout: float,
    *,
    foreign_core_share: float = 0.0,
    one_block: bool = False,
    always_off: Collection[str] = (),
) -> tuple[tuple[RowGroup, ...], ...]:
    """The groups of each step of a cycle. The sequences of a step are sorted by domain in the order
    of `counts`.

    Each of a domain's sequences has a subset of the other domains switched off (`chosen_lists`),
    and always the domains that the plan isolates it from. Groups are ordered so that a block's rows
    form few slices.

    Args:
        foreign_dropout: share of a domain's sequences for which each other domain is off.
        foreign_core_share: share of its sequences that train a core which it does not own.
        one_block: every sequence has the blocks of one domain on, or none: its own; without own
            blocks those of the others in turn, and none in the share `foreign_dropout`.
        always_off: labels that are off for every sequence, for their own and unlabelled ones too.

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
    own = [d for d in plan.domains if any(plan.owns(d, block) for block in plan.blocks[1:])]
    alone = own if one_block else []
    foreign = [d for d in counts if d != UNLABELLED and not plan.owns(d, plan.core)]
    dropped = [d for d in counts if d not in alone and _others(plan, d)]
    num_lists = cycle_length(
        Share("foreign_dropout", foreign_dropout, tuple(counts[d] for d in dropped)),
        Share("foreign_core_share", foreign_core_share, tuple(counts[d] for d in foreign)),
    )
    cycle: list[list[RowGroup]] = [[] for _ in range(num_lists)]
    turn = itertools.cycle(own)
    for domain, count in counts.items():
        if count == 0:
            continue
        others = frozenset(_others(plan, domain))
        choices = [others] if one_block and others else [{d} for d in _others(plan, domain)]
        shares = [1.0 if domain in alone else foreign_dropout] * len(choices)
        core_share = foreign_core_share if domain in foreign else 0.0
        lists = chosen_lists((*shares, core_share), count, num_lists)
        for groups, of_step in zip(cycle, lists, strict=True):
            rows = []
            for chosen in of_step:
                off = frozenset[str]().union(*(choices[i] for i in chosen if i < len(choices)))
                if one_block and others and not off:
                    off = others - {next(turn)}
                off |= plan.always_off(domain).union(always_off)
                rows.append((off, len(choices) in chosen))
            kinds = [
                RowGroup(domain, off, rows.count((off, trains)), trains)
                for off, trains in dict.fromkeys(rows)
            ]
            groups += _order(plan, kinds, groups[-1:])
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


def lines_of(plan: RoutePlan, groups: Sequence[RowGroup]) -> list[Line]:
    """What the factors on the groups' gradients depend on."""
    return [Line(g.domain, plan.off_blocks(g.off), g.trains_core) for g in groups]


def cycle_length(*shares: Share) -> int:
    """Steps after which the row groups repeat: of 1 to `MAX_LISTS` those that come nearest to all
    shares.

    Raises:
        PlanError: the nearest is further away than `CLOSE`; the message names others for one share.
    """
    by_share = [
        frozenset((count, Fraction(str(share.value))) for count in share.counts if count)
        for share in shares
    ]
    distance, num_lists = _nearest(frozenset().union(*by_share))
    if distance <= CLOSE:
        return num_lists
    # Another value of the first that cannot be reached with those before it.
    [index, *_] = (
        index
        for index in range(len(shares))
        if _nearest(frozenset().union(*by_share[: index + 1]))[0] > CLOSE
    )
    before = frozenset[tuple[int, Fraction]]().union(*by_share[:index])
    present = sorted({count for count, _ in by_share[index]})
    values = sorted(
        {
            Fraction(chosen, n * count)
            for count in present
            for n in range(1, MAX_LISTS + 1)
            for chosen in range(n * count + 1)
        }
    )

    def is_reached(value: Fraction) -> bool:
        return _nearest(before | {(count, value) for count in present})[0] <= CLOSE

    setting, wanted, _ = shares[index]
    place = bisect_left(values, Fraction(str(wanted)))
    below = next(filter(is_reached, reversed(values[:place])))
    above = next(filter(is_reached, values[place:]))
    raise PlanError(
        f"{setting}={wanted:g} cannot be reached where domains have "
        f"{' or '.join(map(str, present))} of a step's sequences; use "
        f"{float(below):.4g} or {float(above):.4g}"
    )


def _nearest(wanted: frozenset[tuple[int, Fraction]]) -> tuple[Fraction, int]:
    """How near the best number of lists comes to shares of numbers of sequences, and that
    number."""

    def distance(num_lists: int) -> Fraction:
        found = [Fraction(0)]
        for count, share in wanted:
            reached = Fraction(round(share * count * num_lists), count * num_lists)
            # A share that is asked for must not turn into none, nor into all.
            is_lost = 0 < share < 1 and reached in (0, 1)
            found.append(Fraction(1) if is_lost else abs(reached - share))
        return max(found)

    return min((distance(n), n) for n in range(1, MAX_LISTS + 1))


@lru_cache(maxsize=256)
def chosen_lists(
    shares: tuple[float, ...], count: int, num_lists: int
) -> tuple[tuple[frozenset[int], ...], ...]:
    """For each step of a cycle and each of its `count` sequences, which choices apply to it: which
    other domains are off, and whether it trains a foreign core.

    Each choice applies to its share of the sequences of all steps, rounded, and to equally many of
    each step, to within one. Which apply together is as even as `_crossed` makes it.
    """
    numbers = [round(Fraction(str(share)) * count * num_lists) for share in shares]
    has_more = _crossed(num_lists, [[n % num_lists] for n in numbers], fewest_first=True)
    columns = _crossed(
        count,
        [
            [number // num_lists + is_more for is_more in column]
            for number, column in zip(numbers, has_more, strict=True)
        ],
    )
    rows = [
        frozenset(index for index, column in enumerate(columns) if column[row])
        for row in range(count * num_lists)
    ]
    return tuple(tuple(rows[start : start + count]) for start in range(0, len(rows), count))


def _crossed(
    count: int, numbers: Sequence[Sequence[int]], *, fewest_first: bool = False
) -> list[list[bool]]:
    """For each domain, in which rows it is off: `numbers` of them in each list of `count` rows.

    Rows of a list with the same domains off so far are divided in proportion, and then exchanges
    within lists even out in how many rows two domains are off together. With `fewest_first`, ties
    go to the rows that have the fewest domains off, so that steps cost the same.
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
    plan: RoutePlan, groups: list[RowGroup], before: Sequence[RowGroup]
) -> Sequence[RowGroup]:
    """The groups in the order in which the fewest blocks go on or off, or learn or not, from one to
    the next; `before` is the group before them, if any."""

    def state(group: RowGroup) -> frozenset[int]:
        owns = group.domain == UNLABELLED or plan.owns(group.domain, plan.core)
        learns = {0} if owns or group.trains_core else set()  # the core, which is never off
        return frozenset(plan.off_blocks(group.off)) | learns

    first = state(before[0]) if before else frozenset({0})
    states = {group: state(group) for group in groups}

    def changes(order: Sequence[RowGroup]) -> int:
        steps = [first, *(states[group] for group in order)]
        return sum(len(a ^ b) for a, b in itertools.pairwise(steps))

    if len(groups) <= _MAX_ORDERED:
        return min(itertools.permutations(groups), key=changes)
    ordered: list[RowGroup] = []
    left = list(groups)
    while left:
        last = states[ordered[-1]] if ordered else first
        nearest = min(left, key=lambda group: len(states[group] ^ last))
        left.remove(nearest)
        ordered.append(nearest)
    return ordered
