"""Tables and matrices of the report as columns and rows of cells, for the page and the terminal.

Knows nothing of HTML and nothing of how numbers are measured. To add a column, add a `Measure` to
`measures.MAIN`, or to `measures.ROBUST`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gr_sweep.config import Edges, PlanKind, is_number
from gr_sweep.domains import is_under
from gr_sweep.metrics import registry
from gr_sweep.report import measures
from gr_sweep.report.measures import MISSING, Measure, Text, interval_text, written
from gr_sweep.report.sweep import DENSE, ROUTED, Estimate, Job, Sweep, short_name, shown

_MANY_COLUMNS = 16
"""In wider tables the columns of single domains are folded."""
_OF_ROUTING = ("plan.", "route.", "procedure.")
"""Settings without meaning for a job without blocks."""
_NOTHING = ("null", "[]", "{}")
_PLANS = tuple(kind.value for kind in PlanKind)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A heading."""

    name: str
    direction: int = 0
    """1: higher is better, -1: lower is better, 0: neither."""
    is_number: bool = False
    is_detail: bool = False
    """Whether it is of one domain and stands next to the mean: it can be folded."""
    meaning: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a row."""

    text: str
    value: float | None = None
    """To sort by, or to paint."""
    interval: str = ""
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """A job or a group of jobs; its cells are those after the first column."""

    label: str
    jobs: Sequence[Job]
    cells: Sequence[Cell]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The first column shows the edges of the row's jobs."""

    columns: Sequence[Column]
    rows: Sequence[Row]

    @property
    def is_folded(self) -> bool:
        """Whether the columns of single domains are hidden at first."""
        has_details = any(column.is_detail for column in self.columns)
        return has_details and len(self.columns) > _MANY_COLUMNS

    @property
    def meanings(self) -> dict[str, str]:
        """What the columns mean, by name."""
        return {column.name: column.meaning for column in self.columns if column.meaning}


def cell(estimate: Estimate | None, text: Text, *, best: bool = False) -> Cell:
    """An estimate with its interval."""
    value = None if estimate is None else estimate.value
    interval = interval_text(estimate, text)
    return Cell(text=written(estimate, text), value=value, interval=interval, best=best)


def comparison(sweep: Sweep) -> Table:
    """One row for each job, with the main metrics that any job has."""
    return _of_jobs(sweep, sweep.compared, measures.MAIN)


def robustness(sweep: Sweep) -> Table | None:
    """The same for the robustness metrics and the jobs that have any; None if no job has."""
    jobs = [
        job
        for job in sweep.compared
        if any(measure.of(job, node) for measure in measures.ROBUST[1:] for node in job.nodes)
    ]
    return _of_jobs(sweep, jobs, measures.ROBUST) if jobs else None


def _of_jobs(sweep: Sweep, jobs: Sequence[Job], chosen: Sequence[Measure]) -> Table:
    names, columns = _of_settings(sweep)
    rows: list[list[Cell]] = [_cells_of_settings(sweep, job, names) for job in jobs]
    for measure in chosen:
        for part, is_detail in _parts(jobs, measure):
            name = measure.metric.title if part is None else f"{measure.metric.title} {part}"
            columns.append(_column(measure, name, is_detail=is_detail))
            found = [measure.of(job, part) for job in jobs]
            best = _best(found, measure.metric.direction)
            for row, estimate in zip(rows, found, strict=True):
                is_best = best is not None and estimate is not None and estimate.value == best
                row.append(cell(estimate, measure.text, best=is_best))
    return Table(
        columns=columns,
        rows=[
            Row(label=sweep.labels[job.name], jobs=[job], cells=cells)
            for job, cells in zip(jobs, rows, strict=True)
        ],
    )


def _parts(jobs: Sequence[Job], measure: Measure) -> list[tuple[str | None, bool]]:
    """None for the mean, and each domain or node of which any job has a value; whether the column
    is a detail of the mean."""
    if not measure.metric.placeholders:
        return [(None, False)] if any(measure.of(job) for job in jobs) else []
    nodes = dict.fromkeys(node for job in jobs for node in job.nodes)
    parts = [node for node in nodes if any(measure.of(job, node) for job in jobs)]
    if len(parts) < 2:  # One is its own mean.
        return [(part, False) for part in parts]
    return [(None, False), *((part, True) for part in parts)]


def _best(found: Iterable[Estimate | None], direction: int) -> float | None:
    """The best of several values; None if none is."""
    values = [
        one.value
        for one in found
        if one is not None and not (one.bound == measures.BELOW and direction > 0)
    ]
    pick: Callable[..., float] = max if direction > 0 else min
    return pick(values) if len(values) > 1 and direction else None


def over_seeds(sweep: Sweep) -> Table | None:
    """One row for each group of jobs that differ in their seed only: means over seeds, and
    differences to a reference, paired by seed. None if no group has two seeds."""
    groups = sweep.replicates
    if all(len(group) < 2 for group in groups):
        return None
    names, columns = _of_settings(sweep, seed=False)
    chosen = [
        (measure, measure.metric.mean)
        for measure in measures.OVER_SEEDS
        if any(sweep.over_seeds(group, measure.metric.mean) for group in groups)
    ]
    columns.append(Column(name="seeds", is_number=True))
    for measure, _ in chosen:
        columns.append(_column(measure, measure.metric.title))
        columns.append(Column(name="difference", is_number=True))
    rows = []
    for group in groups:
        reference = reference_of(sweep, group)
        is_reference = reference is not None and reference[0].name == group[0].name
        cells = _cells_of_settings(sweep, group[0], names)
        cells.append(Cell(text=str(len(group)), value=len(group)))
        for measure, key in chosen:
            mean = sweep.over_seeds(group, key)
            of_bounds = measures.mean_of([measure.of(job) for job in group])
            cells.append(cell(mean or of_bounds, measure.text))
            # Without a mean, a difference would be of some of the seeds only.
            difference = None
            if mean is not None and reference is not None and not is_reference:
                difference = sweep.difference(group, reference, key)
            is_mark = is_reference and mean is not None
            cells.append(Cell(text="reference") if is_mark else cell(difference, measures.signed))
        rows.append(Row(label=sweep.label(group[0], seed=False), jobs=group, cells=cells))
    return Table(columns=columns, rows=rows)


def reference_of(sweep: Sweep, group: Sequence[Job]) -> Sequence[Job] | None:
    """The group that a group is compared with: routed with edges `none`, or else dense, of the same
    model, text and tokens, and equal in most settings. None if there is none: a difference to other
    text would say nothing about the method."""
    comparable = [other for other in sweep.replicates if _is_comparable(group, other)]
    uncut = [
        other
        for other in comparable
        if other[0].edges == Edges.none.value and other[0].group == ROUTED
    ]
    candidates = uncut or [other for other in comparable if other[0].kind == DENSE]

    def num_equal(other: Sequence[Job]) -> int:
        mine, theirs = group[0].settings, other[0].settings
        return sum(mine.get(name) == theirs.get(name) for name in sweep.varied)

    return max(candidates, key=num_equal, default=None)  # The first of equals.


def _is_comparable(first: Sequence[Job], second: Sequence[Job]) -> bool:
    """Whether jobs of equal seeds share their baselines."""
    contexts = [
        {job.seed: (job.context(), job.tokens) for job in group} for group in (first, second)
    ]
    common = contexts[0].keys() & contexts[1].keys()
    return bool(common) and all(contexts[0][seed] == contexts[1][seed] for seed in common)


def short_label(sweep: Sweep, job: Job) -> str:
    """The values that distinguish a job, without their names and the seed."""
    values = [value for _, value in sweep.apart(job, seed=False)]
    return " · ".join(value for value in values if value not in _NOTHING)


# Columns of settings


def _of_settings(sweep: Sweep, *, seed: bool = True) -> tuple[list[str], list[Column]]:
    """Settings that differ among the compared jobs of one method, without those that the name of
    the method implies; and their columns, edges and methods first."""
    groups = {job.group for job in sweep.compared}
    varied = {name for group in groups for name in sweep.varied_within[group]}
    varied -= {"edges"} if seed else {"edges", "seed"}
    if _has_kinds(sweep):
        varied.discard("plan.kind")
    names = [name for name in sweep.varied if name in varied]
    first = ["edges", "method"] if _has_kinds(sweep) else ["edges"]
    return names, [Column(name=name) for name in (*first, *map(short_name, names))]


def _has_kinds(sweep: Sweep) -> bool:
    """Whether plans or methods differ among the compared jobs that cut edges."""
    kinds = {job.kind for job in sweep.compared if job.edges != DENSE}
    return len(kinds) > 1 or any(job.kind not in (DENSE, *_PLANS) for job in sweep.compared)


def _cells_of_settings(sweep: Sweep, job: Job, names: Sequence[str]) -> list[Cell]:
    """A job's cells of `_of_settings`, without its edges."""
    cells = [Cell(text=job.kind)] if _has_kinds(sweep) else []
    for name in names:
        is_free = job.edges == DENSE and name.startswith(_OF_ROUTING)
        value: Any = None if is_free else job.settings.get(name)
        text = MISSING if shown(value) in _NOTHING else shown(value)
        cells.append(Cell(text=text, value=value if is_number(value) else None))
    return cells


def _column(measure: Measure, name: str, *, is_detail: bool = False) -> Column:
    return Column(
        name=name,
        direction=measure.metric.direction,
        is_number=True,
        is_detail=is_detail,
        meaning="" if is_detail else measure.metric.meaning,
    )


# Matrices


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Numbers of one job by two names. A cell of a domain and itself, or a node above it, is
    `best`, unless rows and columns are different things."""

    corner: str
    """What the rows are."""
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    is_painted: bool = True
    """Whether values are differences, whose colour says how large they are."""


def matrices(job: Job) -> list[Matrix]:
    """What removal does to each domain, and each domain's expert alone; for a lattice, what its
    blocks are for; for a dense job, what its domains gain from each other's text."""
    found = []
    if served := _rows(job, job.nodes, registry.SERVED_MATRIX, measures.signed, has_own=True):
        found.append(Matrix(corner="removed, served", columns=job.domains, rows=served))
    if removed := _rows(job, job.nodes, registry.MATRIX, measures.signed, has_own=True):
        found.append(Matrix(corner="removed", columns=job.domains, rows=removed))
        kept = [
            *_rows(job, ["full model"], lambda _, d: registry.LOSS_FULL(d), measures.nats),
            *_rows(job, job.nodes, registry.LOSS_KEPT, measures.nats, has_own=True),
        ]
        found.append(Matrix(corner="kept alone", columns=job.domains, rows=kept, is_painted=False))
    inside_outside = (registry.ENTANGLEMENT_INSIDE, registry.ENTANGLEMENT_OUTSIDE)
    keys = [registry.find(key) for key in job.metrics]
    sets = [
        (names[0], [cell(job.estimate(of(*names)), measures.signed) for of in inside_outside])
        for metric, names in filter(None, keys)
        if metric is registry.ENTANGLEMENT_INSIDE
    ]
    if sets:
        columns = ("its domains", "the others")
        found.append(Matrix(corner="block off", columns=columns, rows=sets))
    gains = _rows(job, job.nodes, registry.TRANSFER, measures.signed)
    if gains and job.kind == DENSE:
        found.append(Matrix(corner="gain from", columns=job.domains, rows=gains))
    return found


def _rows(
    job: Job,
    names: Sequence[str],
    key: Callable[[str, str], str],
    text: Text,
    *,
    has_own: bool = False,
) -> list[tuple[str, list[Cell]]]:
    """Those of the names for which the job has any value."""
    return [
        (
            name,
            [
                cell(job.estimate(key(name, d)), text, best=has_own and is_under(d, name))
                for d in job.domains
            ],
        )
        for name in names
        if any(key(name, domain) in job.metrics for domain in job.domains)
    ]
