"""Tables and matrices of the report as columns and rows of cells, for the page and the terminal.

Knows nothing of HTML and nothing of how numbers are measured. To add a column, add a `Measure` to
`measures.MAIN`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gr_sweep.domains import is_under
from gr_sweep.metrics import registry
from gr_sweep.report import measures
from gr_sweep.report.answer import RULE, Ranking, rankings
from gr_sweep.report.measures import MISSING, Measure, Text
from gr_sweep.report.sweep import DENSE, Estimate, Job, Sweep, over_seeds, short_name


@dataclass(frozen=True, kw_only=True)
class Column:
    """A heading."""

    name: str
    direction: int = 0
    """1: higher is better, -1: lower is better, 0: neither."""
    is_number: bool = False
    is_domain: bool = False
    """Whether it is of one domain and stands next to the mean."""
    meaning: str = ""
    key: str = ""
    """What the page's scripts call the number of one job."""
    digits: int = 0


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a row."""

    text: str
    value: float | None = None
    """To sort by, or to paint."""
    interval: str = ""
    is_own: bool = False
    key: str = ""
    """The metric that it shows, in a matrix."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A setting, or a round of one; its cells are those after the first column."""

    name: str
    jobs: Sequence[Job]
    """They differ in their seed only."""
    cells: Sequence[Cell]
    is_front: bool = False
    """Whether it is on the frontier."""
    group: str = ""
    """What distinguishes it from rows that it cannot be compared with."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The first column has the rows' names."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    num_details: int = 0
    """How many of the last columns the page folds at first."""


def cell(estimate: Estimate | None, text: Text, *, is_difference: bool = False) -> Cell:
    """An estimate with its interval."""
    write = text.difference if is_difference else text.value
    value = None if estimate is None else estimate.value
    return Cell(text=write(estimate), value=value, interval=text.interval(estimate))


def column(measure: Measure, part: str | None = None) -> Column:
    """The heading of a measure, of one domain or the mean."""
    metric = measure.metric
    name = metric.title if part is None else f"{metric.title} {part}"
    return Column(
        name=name, direction=metric.direction, is_number=True, is_domain=part is not None,
        meaning=metric.meaning if part is None else "",
        key=name if metric.placeholders else metric.key, digits=measure.text.digits,
    )  # fmt: skip


@functools.lru_cache(maxsize=1)
def settings(sweep: Sweep) -> Table:
    """A row for each setting, by rank: means over seeds on both axes, and paired differences to the
    setting that is best on the first. Then details: all other measures."""
    ranked = rankings(sweep)
    places = [(ranking, place) for ranking in ranked for place in ranking.places]
    groups, axes = [place.jobs for _, place in places], ranked[0].axes
    meaning = f"1: on the frontier; else one more than the number of settings that beat it. {RULE}"
    ranks = [Cell(text=str(of.rank or MISSING), value=of.rank) for _, of in places]
    first = [(Column(name="rank", is_number=True, meaning=meaning), ranks)]
    rest: list[tuple[Column, list[Cell]]] = []
    for (measure, part), by_job in measures.numbers(sweep).items():
        found = [over_seeds(jobs, lambda job, of=by_job: of[job.name]) for jobs in groups]  # type: ignore[misc]
        filled = (column(measure, part), [cell(of, measure.text) for of in found])
        (first if measure in axes and part is None else rest).append(filled)
    if any(len(ranking.ranked) > 1 for ranking in ranked):
        first += [_differences(ranked, measure) for measure in axes]
    by_row = zip(*(of for _, of in [*first, *rest]), strict=True)
    rows = [
        Row(
            name=place.name, jobs=place.jobs, cells=cells, is_front=place.rank == 1,
            group=ranking.name,
        )
        for (ranking, place), cells in zip(places, by_row, strict=True)
    ]  # fmt: skip
    columns = [Column(name="setting"), *(head for head, _ in [*first, *rest])]
    return Table(columns=columns, rows=rows, num_details=len(rest))


def _differences(found: Sequence[Ranking], measure: Measure) -> tuple[Column, list[Cell]]:
    title, utility = measure.metric.title, found[0].axes[0].metric.title
    text = Text(measure.text.digits, "+")
    head = Column(
        name=f"\N{GREEK CAPITAL LETTER DELTA} {title}",
        is_number=True,
        meaning=f"{title} minus that of the reference, the setting with the best {utility}, paired "
        "by seed. If the interval includes 0, the comparison is inconclusive",
    )
    cells = []
    for ranking in found:
        reference = ranking.by(0)[0] if ranking.ranked else None
        for place in ranking.places:
            if place is reference:
                cells.append(Cell(text="reference"))
            elif reference is None or place.why:
                cells.append(Cell(text=MISSING))
            else:
                found_one = measure.difference(place.jobs, reference.jobs)
                cells.append(cell(found_one, text, is_difference=True))
    return head, cells


# Matrices


@dataclass(frozen=True)
class Matrix:
    """Numbers of a setting by two names. A cell of a domain and itself, or a node above it, is
    `is_own`, unless rows and columns are different things."""

    corner: str
    """What the rows are."""
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    is_painted: bool = True
    """Whether values are differences, whose colour says how large they are."""


def matrices(jobs: Sequence[Job]) -> list[Matrix]:
    """Means over jobs that differ in their seed only: what removal does to each domain, and each
    domain's expert alone; for a lattice, what its blocks are for; for a dense model, what its
    domains gain from each other's text."""
    first, signed = jobs[0], measures.signed
    domains, nodes = first.domains, first.nodes
    blocks = [
        of[1][0]
        for key in first.metrics
        if (of := registry.find(key)) and of[0] is registry.ENTANGLEMENT_INSIDE
    ]
    sides = {"its domains": registry.ENTANGLEMENT_INSIDE, "others": registry.ENTANGLEMENT_OUTSIDE}
    removed = _rows(jobs, nodes, domains, registry.MATRIX, signed, has_own=True)
    kept = [
        *_rows(jobs, ["full model"], domains, lambda _, d: registry.LOSS_FULL(d), measures.nats),
        *_rows(jobs, nodes, domains, registry.LOSS_KEPT, measures.nats, has_own=True),
    ]
    served = _rows(jobs, nodes, domains, registry.SERVED_MATRIX, signed, has_own=True)
    off = _rows(jobs, blocks, [*sides], lambda block, side: sides[side](block), signed)
    gains = _rows(jobs, nodes, domains, registry.TRANSFER, signed) if first.kind == DENSE else []
    found = [
        Matrix("removed, served", domains, served),
        Matrix("removed", domains, removed),
        Matrix("kept alone", domains, removed and kept, is_painted=False),
        Matrix("block off", [*sides], off),
        Matrix("gain from", domains, gains),
    ]
    return [matrix for matrix in found if matrix.rows]


def _rows(
    jobs: Sequence[Job],
    names: Sequence[str],
    columns: Sequence[str],
    key: Callable[[str, str], str],
    text: Text,
    *,
    has_own: bool = False,
) -> list[tuple[str, list[Cell]]]:
    """Those of the names for which any job has a value, with the same digits in every cell."""

    def mean(name: str, column: str) -> Cell:
        found = over_seeds(jobs, lambda job: job.estimate(key(name, column)))
        is_own = has_own and is_under(column, name)
        if found is None:
            return Cell(text=MISSING, is_own=is_own, key=key(name, column))
        return Cell(
            text=text(found.value), value=found.value, interval=text.interval(found),
            is_own=is_own, key=key(name, column),
        )  # fmt: skip

    return [
        (name, [mean(name, column) for column in columns])
        for name in names
        if any(key(name, column) in job.metrics for column in columns for job in jobs)
    ]


def importance(sweep: Sweep) -> Matrix | None:
    """How much of each objective of a search each setting explains; None without a search, or
    after too few trials."""
    found = sweep.search.get("importance", {})
    names = dict.fromkeys(name for of in found.values() for name in of)
    rows = [
        (
            short_name(name),
            [Cell(text=f"{of.get(name, 0):.2f}", value=of.get(name, 0)) for of in found.values()],
        )
        for name in names
    ]
    return Matrix("setting", [*found], rows, is_painted=False) if rows else None
