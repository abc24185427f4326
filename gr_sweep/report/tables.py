"""Tables of the report as columns and rows of cells, for the page and the terminal.

Knows nothing of HTML and nothing of how numbers are measured. To add a column, add a `Measure` to
`measures.MAIN`, or to `measures.ROBUST`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gr_sweep.config import Edges, Method, PlanKind, is_number
from gr_sweep.report import measures
from gr_sweep.report.measures import MISSING, Measure, Text, interval_text
from gr_sweep.report.sweep import DENSE, ROUTED, Estimate, Job, Sweep, short_name, shown

_MANY_COLUMNS = 14
"""In wider tables the columns of single domains are folded."""
_OF_ROUTING = ("plan.", "route.", "procedure.")
"""Settings without meaning for a job without blocks."""
_NOTHING = ("null", "[]", "{}")
_PLANS = tuple(kind.value for kind in PlanKind)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A heading."""

    name: str
    group: str = ""
    """Heading above neighbouring columns of the same group."""
    direction: int = 0
    """1: higher is better, -1: lower is better, 0: neither."""
    is_number: bool = False
    is_detail: bool = False
    """Whether it is of one domain and stands next to the mean: it can be folded."""
    meaning: str = ""
    """What the group means, or the column if it has none."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry of a row."""

    text: str
    value: float | None = None
    """To sort by."""
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
        """What the columns mean, by group or name."""
        named = ((column.group or column.name, column.meaning) for column in self.columns)
        return {name: meaning for name, meaning in named if meaning}


def cell(estimate: Estimate | None, text: Text, missing: str = MISSING) -> Cell:
    """An estimate with its interval."""
    if estimate is None:
        return Cell(text=missing)
    bound = measures.unsigned if text is measures.signed else text
    return Cell(
        text=text(estimate.value), value=estimate.value, interval=interval_text(estimate, bound)
    )


def comparison(sweep: Sweep) -> Table:
    """One row for each job, with the main metrics that any job has."""
    return _of_jobs(sweep, sweep.compared, measures.MAIN)


def robustness(sweep: Sweep) -> Table | None:
    """The same for the robustness metrics and the jobs that have any; None if no job has. What a
    filtered model relearns has columns of its own."""
    jobs = []
    for job in sweep.compared:
        is_filtered = job.kind.startswith(Method.filtered.value)
        chosen = measures.OF_TEXT if is_filtered else measures.ROBUST
        if any(measure.of(job, node) for measure in chosen for node in job.nodes):
            jobs.append(job)
    return _of_jobs(sweep, jobs, (measures.REMOVED, *measures.ROBUST)) if jobs else None


def over_seeds(sweep: Sweep) -> Table | None:
    """One row for each group of jobs that differ in their seed only: means over seeds, and
    differences to a reference, paired by seed. None if no group has two seeds."""
    groups = sweep.replicates
    if all(len(group) < 2 for group in groups):
        return None
    of_setting = _SettingColumns(sweep, seed=False)
    found = [
        (measure, measure.key)
        for measure in measures.CHIEF
        if measure.key is not None
        and any(sweep.over_seeds(group, measure.key) is not None for group in groups)
    ]
    references = [reference_of(sweep, group) for group in groups]
    several = len({reference[0].name for reference in references if reference}) > 1
    columns = [*of_setting.columns, Column(name="seeds", is_number=True)]
    for measure, _ in found:
        columns.append(_number(measure, "mean"))
        columns.append(Column(name="difference", group=measure.name, is_number=True))
    if several:
        columns.append(Column(name="difference to"))
    rows = []
    for group, reference in zip(groups, references, strict=True):
        is_reference = reference is not None and reference[0].name == group[0].name
        cells = [*of_setting.cells(group[0]), Cell(text=str(len(group)), value=len(group))]
        for measure, key in found:
            mean = sweep.over_seeds(group, key)
            cells.append(cell(mean, measure.text, _bound_over_seeds(measure, group)))
            # Without a mean, a difference would be of some of the seeds only.
            difference = None
            if mean is not None and reference is not None and not is_reference:
                difference = sweep.difference(group, reference, key)
            missing = "reference" if is_reference and mean is not None else MISSING
            cells.append(cell(difference, measures.signed, missing))
        if several:
            is_named = reference is not None and not is_reference
            text = short_label(sweep, reference[0]) if reference and is_named else MISSING
            cells.append(Cell(text=text))
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
    if not candidates:
        return None

    def num_equal(other: Sequence[Job]) -> int:
        mine, theirs = group[0].settings, other[0].settings
        return sum(mine.get(name) == theirs.get(name) for name in sweep.varied)

    return max(candidates, key=num_equal)  # The first of equals.


def _is_comparable(first: Sequence[Job], second: Sequence[Job]) -> bool:
    """Whether jobs of equal seeds share their baselines."""
    contexts = [{job.seed: job.context for job in group} for group in (first, second)]
    common = contexts[0].keys() & contexts[1].keys()
    return bool(common) and all(contexts[0][seed] == contexts[1][seed] for seed in common)


def said(job: Job, names: Sequence[str]) -> str:
    """Some settings of a job, as a user would type them."""
    return " ".join(f"{short_name(name)}={shown(job.settings.get(name))}" for name in names)


def baseline_names(sweep: Sweep, jobs: Sequence[Job]) -> list[str]:
    """Settings that decide which baselines a job has, and in which these jobs differ."""
    return [
        name
        for name in sweep.varied
        if name.startswith(("model.", "partition.", "data.", "train."))
        # Label noise concerns routing only.
        and not name.startswith(("partition.unlabelled", "partition.mislabelled"))
        and len({shown(job.settings.get(name)) for job in jobs}) > 1
    ]


def setting_names(sweep: Sweep, *, seed: bool = True) -> list[str]:
    """Settings that differ among the compared jobs of one method, without those that the name of
    the method implies."""
    groups = {job.group for job in sweep.compared}
    varied = {name for group in groups for name in sweep.varied_within[group]}
    varied -= {"edges"} if seed else {"edges", "seed"}
    if has_kinds(sweep):
        varied.discard("plan.kind")
    return [name for name in sweep.varied if name in varied]


def short_label(sweep: Sweep, job: Job) -> str:
    """The values that distinguish a job, without their names and the seed."""
    values = [value for _, value in sweep.apart(job, seed=False)]
    return " · ".join(value for value in values if value not in _NOTHING)


def has_kinds(sweep: Sweep) -> bool:
    """Whether plans or methods differ among the compared jobs that cut edges."""
    kinds = {job.kind for job in sweep.compared if job.edges != DENSE}
    return len(kinds) > 1 or any(job.kind not in (DENSE, *_PLANS) for job in sweep.compared)


class _SettingColumns:
    """The columns for the settings in which jobs differ, edges first."""

    def __init__(self, sweep: Sweep, *, seed: bool = True) -> None:
        self.names, self.has_kinds = setting_names(sweep, seed=seed), has_kinds(sweep)
        names = [short_name(name) for name in self.names]
        kinds = ["method"] if self.has_kinds else []
        self.columns = [Column(name=name) for name in ("edges", *kinds, *names)]

    def cells(self, job: Job) -> list[Cell]:
        """A job's cells, without its edges."""
        cells = [Cell(text=job.kind)] if self.has_kinds else []
        values: dict[str, Any] = {
            name: None
            if job.edges == DENSE and name.startswith(_OF_ROUTING)
            else job.settings.get(name)
            for name in self.names
        }
        for value in values.values():
            text = MISSING if shown(value) in _NOTHING else shown(value)
            cells.append(Cell(text=text, value=value if is_number(value) else None))
        return cells


def _of_jobs(sweep: Sweep, jobs: Sequence[Job], chosen: Sequence[Measure]) -> Table:
    of_setting = _SettingColumns(sweep)
    numeric = [found for measure in chosen for found in _columns(jobs, measure)]
    best: list[float | None] = []
    for column, measure, part in numeric:
        values = [at for job in jobs if (at := _ranked(measure, job, part)) is not None]
        pick: Callable[..., float] = max if column.direction > 0 else min
        best.append(pick(values) if len(values) > 1 and column.direction else None)
    rows = []
    for job in jobs:
        cells = of_setting.cells(job)
        for (_, measure, part), top in zip(numeric, best, strict=True):
            estimate = measure.of(job, part)
            cells.append(
                Cell(
                    text=measure.written(job, part),
                    value=None if estimate is None else estimate.value,
                    interval=interval_text(estimate, measure.bound),
                    best=top is not None and top == _ranked(measure, job, part),
                )
            )
        rows.append(Row(label=sweep.labels[job.name], jobs=[job], cells=cells))
    columns = [*of_setting.columns, *(column for column, *_ in numeric)]
    return Table(columns=columns, rows=rows)


def _columns(jobs: Sequence[Job], measure: Measure) -> list[tuple[Column, Measure, str | None]]:
    """The mean (part None), and a column for each domain or node of which any job has a value."""
    if not measure.has_parts:
        if all(measure.mean(job) is None for job in jobs):
            return []
        column = Column(
            name=measure.name,
            direction=measure.direction,
            is_number=True,
            meaning=measure.metric.meaning,
        )
        return [(column, measure, None)]
    nodes = dict.fromkeys(node for job in jobs for node in job.nodes)
    parts = [node for node in nodes if any(measure.of(job, node) is not None for job in jobs)]
    if len(parts) == 1:  # It is its own mean.
        return [(_number(measure, parts[0]), measure, parts[0])]
    if not parts:
        return []
    details = [(_number(measure, part, is_detail=True), measure, part) for part in parts]
    return [(_number(measure, "mean"), measure, None), *details]


def _ranked(measure: Measure, job: Job, part: str | None) -> float | None:
    """The value by which a job may be the best of a column; where lower is better, a bound counts
    too."""
    estimate = measure.of(job, part)
    if estimate is not None:
        return estimate.value
    return measure.at_most(job, part) if measure.direction < 0 else None


def _number(measure: Measure, name: str, *, is_detail: bool = False) -> Column:
    return Column(
        name=name,
        group=measure.name,
        direction=measure.direction,
        is_number=True,
        is_detail=is_detail,
        meaning=measure.metric.meaning,
    )


def _bound_over_seeds(measure: Measure, group: Sequence[Job]) -> str:
    """Bound of a mean over seeds that some of the jobs lack."""
    bounds = [known.value for job in group if (known := measure.known(job)) is not None]
    if len(bounds) < len(group):
        return MISSING
    return measures.below(sum(bounds) / len(bounds))
