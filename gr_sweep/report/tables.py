"""Tables and matrices of the report as columns and rows of cells, for the page and the terminal.

Knows nothing of HTML and nothing of how numbers are measured. To add a column, add a `Measure` to
`measures.MAIN`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gr_sweep.config import is_number
from gr_sweep.domains import is_under
from gr_sweep.metrics import registry
from gr_sweep.report import measures
from gr_sweep.report.answer import RULE, Ranking
from gr_sweep.report.measures import MISSING, Measure, Text, interval_text, written
from gr_sweep.report.sweep import (
    DENSE,
    NOTHING,
    Estimate,
    Job,
    Sweep,
    over_seeds,
    short_name,
    shown,
)

_OF_ROUTING = ("plan.", "route.", "procedure.")
"""Settings without meaning for a job without blocks."""


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
    """A setting, or a part of one; its cells are those after the first column."""

    name: str
    label: str
    """The name with all that distinguishes it, as a user would type it."""
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


def cell(estimate: Estimate | None, text: Text) -> Cell:
    """An estimate with its interval."""
    value = None if estimate is None else estimate.value
    interval = interval_text(estimate, text)
    return Cell(text=written(estimate, text), value=value, interval=interval)


_Filled = tuple[Column, list[Cell]]


def settings(sweep: Sweep, rankings: Sequence[Ranking]) -> Table:
    """A row for each setting, by rank: means over seeds on both axes, and paired differences to the
    setting that is best on the first. Then details: what varies, and the other main metrics."""
    places = [place for ranking in rankings for place in ranking.places]
    names = [ranking.name for ranking in rankings for _ in ranking.places]
    groups, axes = [place.jobs for place in places], rankings[0].axes
    rank = Column(
        name="rank",
        is_number=True,
        meaning=f"1: on the frontier; otherwise one more than the number of settings that beat it. "
        f"{RULE}",
    )
    first = [(rank, [Cell(text=str(of.rank or MISSING), value=of.rank) for of in places])]
    seeds = [Cell(text=str(len(jobs)), value=len(jobs)) for jobs in groups]
    rest = [(Column(name="seeds", is_number=True), seeds), *_of_settings(sweep, groups)]
    for measure, filled in _of_measures(groups):
        is_axis = measure in axes and not filled[0].is_domain
        (first if is_axis else rest).append(filled)
    if any(len(ranking.ranked) > 1 for ranking in rankings):
        first += [_differences(rankings, measure) for measure in axes]
    by_row = zip(*(of for _, of in [*first, *rest]), strict=True)
    rows = [
        Row(
            name=place.name, label=sweep.label(place.jobs[0], seed=False), jobs=place.jobs,
            cells=cells, is_front=place.rank == 1, group=name,
        )
        for place, name, cells in zip(places, names, by_row, strict=True)
    ]  # fmt: skip
    columns = [Column(name="setting"), *(head for head, _ in [*first, *rest])]
    return Table(columns=columns, rows=rows, num_details=len(rest))


def column(measure: Measure, name: str, *, is_domain: bool = False) -> Column:
    """The heading of a measure."""
    metric = measure.metric
    return Column(
        name=name, direction=metric.direction, is_number=True, is_domain=is_domain,
        meaning="" if is_domain else metric.meaning,
        key=name if metric.placeholders else metric.key, digits=measure.text.digits,
    )  # fmt: skip


def _differences(rankings: Sequence[Ranking], measure: Measure) -> _Filled:
    title, utility = measure.metric.title, rankings[0].axes[0].metric.title
    text = Text(measure.text.digits, "+")
    head = Column(
        name=f"\N{GREEK CAPITAL LETTER DELTA} {title}",
        is_number=True,
        meaning=f"{title} minus that of the reference, the setting with the best {utility}, paired "
        "by seed. If the interval includes 0, the comparison is inconclusive",
    )
    cells = []
    for ranking in rankings:
        reference = ranking.by(0)[0] if ranking.ranked else None
        for place in ranking.places:
            found = None
            if reference is not None and not place.why:
                found = measure.difference(place.jobs, reference.jobs)
            cells.append(Cell(text="reference") if place is reference else cell(found, text))
    return head, cells


def _of_measures(groups: Sequence[Sequence[Job]]) -> list[tuple[Measure, _Filled]]:
    """Means over seeds of all measures: over domains, and of each domain that has a value."""
    filled = []
    for measure in measures.MAIN:
        for part, is_domain in _parts([job for jobs in groups for job in jobs], measure):
            name = measure.metric.title if part is None else f"{measure.metric.title} {part}"
            cells = [cell(measure.over_seeds(jobs, part), measure.text) for jobs in groups]
            filled.append((measure, (column(measure, name, is_domain=is_domain), cells)))
    return filled


def _parts(jobs: Sequence[Job], measure: Measure) -> list[tuple[str | None, bool]]:
    """None for the mean, and each domain or node of which any job has a value; whether the column
    is one of several domains."""
    if not measure.metric.placeholders:
        return [(None, False)] if any(measure.of(job) for job in jobs) else []
    nodes = dict.fromkeys(node for job in jobs for node in job.nodes)
    parts = [node for node in nodes if any(measure.of(job, node) for job in jobs)]
    if len(parts) < 2:  # One is its own mean.
        return [(part, False) for part in parts]
    return [(None, False), *((part, True) for part in parts)]


def _of_settings(sweep: Sweep, groups: Sequence[Sequence[Job]]) -> list[_Filled]:
    """The settings that differ within a method or plan."""
    varied = {name for of in sweep.varied_within.values() for name in of} - {"edges", "seed"}
    filled = []
    for name in [name for name in sweep.varied if name in varied]:
        cells = []
        for first, *_ in groups:
            is_free = first.edges == DENSE and name.startswith(_OF_ROUTING)
            value = None if is_free else first.settings.get(name)
            text = MISSING if shown(value) in NOTHING else shown(value)
            cells.append(Cell(text=text, value=value if is_number(value) else None))
        filled.append((Column(name=short_name(name)), cells))
    return filled


# Matrices


@dataclass(frozen=True, kw_only=True)
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
    found, first = [], jobs[0]
    if served := _rows(jobs, first.nodes, registry.SERVED_MATRIX, measures.signed, has_own=True):
        found.append(Matrix(corner="removed, served", columns=first.domains, rows=served))
    if removed := _rows(jobs, first.nodes, registry.MATRIX, measures.signed, has_own=True):
        found.append(Matrix(corner="removed", columns=first.domains, rows=removed))
        kept = [
            *_rows(jobs, ["full model"], lambda _, d: registry.LOSS_FULL(d), measures.nats),
            *_rows(jobs, first.nodes, registry.LOSS_KEPT, measures.nats, has_own=True),
        ]
        found.append(
            Matrix(corner="kept alone", columns=first.domains, rows=kept, is_painted=False)
        )
    inside_outside = (registry.ENTANGLEMENT_INSIDE, registry.ENTANGLEMENT_OUTSIDE)
    keys = [registry.find(key) for key in first.metrics]
    sets = [
        (names[0], [_mean(jobs, of(*names), measures.signed) for of in inside_outside])
        for metric, names in filter(None, keys)
        if metric is registry.ENTANGLEMENT_INSIDE
    ]
    if sets:
        columns = ("its domains", "the others")
        found.append(Matrix(corner="block off", columns=columns, rows=sets))
    gains = _rows(jobs, first.nodes, registry.TRANSFER, measures.signed)
    if gains and first.kind == DENSE:
        found.append(Matrix(corner="gain from", columns=first.domains, rows=gains))
    return found


def _mean(jobs: Sequence[Job], key: str, text: Text, *, is_own: bool = False) -> Cell:
    """With the same digits in every cell of a matrix."""
    found = over_seeds(jobs, lambda job: job.estimate(key))
    if found is None:
        return Cell(text=MISSING, is_own=is_own, key=key)
    interval = interval_text(found, text)
    return Cell(
        text=text(found.value), value=found.value, interval=interval, is_own=is_own, key=key
    )


def importance(sweep: Sweep) -> Matrix | None:
    """How much of each objective of a search each setting explains; None without a search, or
    after too few trials."""
    found = sweep.search.importance if sweep.search else {}
    names = dict.fromkeys(name for of in found.values() for name in of)

    def row(name: str) -> tuple[str, list[Cell]]:
        shares = [of.get(name, 0.0) for of in found.values()]
        return short_name(name), [Cell(text=measures.fraction(at), value=at) for at in shares]

    rows = [row(name) for name in names]
    return Matrix(corner="setting", columns=[*found], rows=rows, is_painted=False) if rows else None


def _rows(
    jobs: Sequence[Job],
    names: Sequence[str],
    key: Callable[[str, str], str],
    text: Text,
    *,
    has_own: bool = False,
) -> list[tuple[str, list[Cell]]]:
    """Those of the names for which any job has a value."""
    return [
        (
            name,
            [
                _mean(jobs, key(name, d), text, is_own=has_own and is_under(d, name))
                for d in jobs[0].domains
            ],
        )
        for name in names
        if any(key(name, domain) in job.metrics for domain in jobs[0].domains for job in jobs)
    ]
