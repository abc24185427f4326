"""The report's tables as plain values: columns, and rows of cells, for the page and the terminal.

Knows which rows belong together and nothing of HTML or of how numbers are measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from gr_sweep.config import Edges, Method, PlanKind
from gr_sweep.metrics import registry
from gr_sweep.report import measures
from gr_sweep.report.baselines import train_tokens
from gr_sweep.report.collect import DENSE, ROUTED, Estimate, Job, Sweep, short_name, shown
from gr_sweep.report.measures import MISSING, Measure

_COLUMNS_OF_SETTINGS = 6
"""More settings than these that differ are shown as one column."""
_COLUMNS_WITH_DETAILS = 14
"""With more columns than these, single domains are folded away behind their means."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A heading."""

    name: str
    group: str = ""
    """Columns side by side with one group stand under it."""
    direction: int = 0
    """1: higher is better, -1: lower, 0: neither."""
    is_number: bool = False
    is_detail: bool = False
    """Of one domain, beside a mean: may be hidden."""
    meaning: str = ""
    """Of the group, or of the column where it has none."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What stands in a row under a column."""

    text: str
    value: float | None = None
    """To sort by."""
    interval: str = ""
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One job or one group of jobs; a cell a column, but the first."""

    label: str
    jobs: Sequence[Job]
    cells: Sequence[Cell]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The first column is the edges of the row's jobs."""

    columns: Sequence[Column]
    rows: Sequence[Row]

    @property
    def is_folded(self) -> bool:
        """Whether there are so many columns that those of single domains are for who asks."""
        has_details = any(column.is_detail for column in self.columns)
        return has_details and len(self.columns) > _COLUMNS_WITH_DETAILS

    @property
    def meanings(self) -> dict[str, str]:
        """What each group of columns means, by its name."""
        named = ((column.group or column.name, column.meaning) for column in self.columns)
        return {name: meaning for name, meaning in named if meaning}


def comparison(sweep: Sweep) -> Table:
    """A row a job, with the main measures that any job has."""
    return _of_jobs(sweep, sweep.compared, measures.MAIN)


def robustness(sweep: Sweep) -> Table | None:
    """The same for the measures of robustness, for the jobs that have any; None where none has.

    What a filtered model relearns stands beside the others, in columns.
    """
    jobs = []
    for job in sweep.compared:
        is_filtered = job.kind.startswith(Method.filtered.value)
        chosen = measures.OF_TEXT if is_filtered else measures.ROBUST
        if any(_has(measure, job) for measure in chosen):
            jobs.append(job)
    return _of_jobs(sweep, jobs, (measures.REMOVED, *measures.ROBUST)) if jobs else None


def over_seeds(sweep: Sweep) -> Table | None:
    """A row a group of jobs that differ in their seed alone: means over seeds, and differences to a
    reference, paired by seed. None where no group has two seeds."""
    groups = sweep.replicates
    if all(len(group) < 2 for group in groups):
        return None
    names, kinds = setting_names(sweep, seed=False), has_kinds(sweep)
    found = [
        (measure, measure.key)
        for measure in measures.CHIEF
        if measure.key is not None
        and any(sweep.over_seeds(group, measure.key) is not None for group in groups)
    ]
    references = [reference_of(sweep, group) for group in groups]
    several = len({reference[0].name for reference in references if reference}) > 1
    columns = [*_of_settings(names, kinds), Column(name="seeds", is_number=True)]
    for measure, _ in found:
        columns.append(_number(measure, "mean"))
        columns.append(Column(name="difference", group=measure.name, is_number=True))
    if several:
        columns.append(Column(name="difference to"))
    rows = []
    for group, reference in zip(groups, references, strict=True):
        is_reference = reference is not None and reference[0].name == group[0].name
        cells = [*_settings(group[0], names, kinds), Cell(text=str(len(group)), value=len(group))]
        for measure, key in found:
            mean = sweep.over_seeds(group, key)
            cells.append(_written(mean, measure.text, measure.bound, _below(measure, group)))
            # Of some of the seeds alone it would stand beside a mean that is not there.
            difference = None
            if mean is not None and reference is not None and not is_reference:
                difference = sweep.difference(group, reference, key)
            missing = "reference" if is_reference and mean is not None else MISSING
            cells.append(_written(difference, measures.signed, measures.unsigned, missing))
        if several:
            is_named = reference is not None and not is_reference
            text = short_label(sweep, reference[0]) if reference and is_named else MISSING
            cells.append(Cell(text=text))
        rows.append(Row(label=sweep.label(group[0], seed=False), jobs=group, cells=cells))
    return Table(columns=columns, rows=rows)


def reference_of(sweep: Sweep, group: Sequence[Job]) -> Sequence[Job] | None:
    """What a group is held against: of the groups of the same model, text and tokens the routed one
    of edges `none`, or else the dense one, that agrees with it in most settings. None where there
    is none: a difference to another text would say nothing of the method."""
    comparable = [other for other in sweep.replicates if _is_comparable(group, other)]
    uncut = [
        other
        for other in comparable
        if other[0].edges == Edges.none.value and other[0].group == ROUTED
    ]
    candidates = uncut or [other for other in comparable if other[0].kind == DENSE]
    if not candidates:
        return None

    def agreeing(other: Sequence[Job]) -> int:
        mine, theirs = group[0].settings, other[0].settings
        return sum(mine.get(name) == theirs.get(name) for name in sweep.varied)

    # Where two agree equally, the first: max keeps it.
    return max(candidates, key=agreeing)


def _is_comparable(first: Sequence[Job], second: Sequence[Job]) -> bool:
    """Whether jobs of equal seeds share their baselines."""
    contexts = [{job.seed: job.context for job in group} for group in (first, second)]
    common = contexts[0].keys() & contexts[1].keys()
    return bool(common) and all(contexts[0][seed] == contexts[1][seed] for seed in common)


def dense_curve(sweep: Sweep) -> Table | None:
    """Losses of dense runs by their share of the tokens; None where none is shorter."""
    if not any(job.is_shorter_dense for job in sweep.jobs):
        return None
    dense = [job for job in sweep.jobs if job.kind == DENSE]
    names = [name for name in baseline_names(sweep, dense) if name not in _OF_LENGTH]
    runs: dict[tuple[str, float], list[Job]] = {}
    for job in dense:
        label = " ".join(f"{short_name(name)}={shown(job.settings.get(name))}" for name in names)
        runs.setdefault((label, train_tokens(job.settings) or 0), []).append(job)
    longest: dict[str, float] = {}
    for label, tokens in runs:
        longest[label] = max(tokens, longest.get(label, 0))
    has_labels = len(longest) > 1
    columns = [Column(name="run"), Column(name="tokens"), Column(name="seeds", is_number=True)]
    if has_labels:
        columns.insert(1, Column(name="settings"))
    columns += [_number(measures.LOSS, domain) for domain in sweep.domains]
    rows = []
    for (label, tokens), group in sorted(runs.items(), key=lambda item: item[0]):
        cells = [Cell(text=label)] if has_labels else []
        share = Fraction(tokens / longest[label]).limit_denominator(64)
        num_seeds = len({job.seed for job in group})
        cells += [
            Cell(text=str(share), value=float(share)),
            Cell(text=str(num_seeds), value=num_seeds),
        ]
        for domain in sweep.domains:
            loss = sweep.over_seeds(group, registry.LOSS_FULL(domain))
            cells.append(_written(loss, measures.nats, measures.nats))
        rows.append(Row(label=f"dense {label} {share}", jobs=group, cells=cells))
    return Table(columns=columns, rows=rows)


def baseline_names(sweep: Sweep, jobs: Sequence[Job]) -> list[str]:
    """Settings in which the jobs differ that decide which baselines belong to them."""
    return [
        name
        for name in sweep.varied
        if name.startswith(("model.", "partition.", "data.", "train."))
        # Label noise is routing's alone.
        and not name.startswith(("partition.unlabelled", "partition.mislabelled"))
        and len({shown(job.settings.get(name)) for job in jobs}) > 1
    ]


_OF_LENGTH = ("train.steps", "train.tokens")


def setting_names(sweep: Sweep, *, seed: bool = True) -> list[str]:
    """Settings that differ among the compared jobs of one method; what a method fixes is said by
    its name."""
    groups = {job.group for job in sweep.compared}
    varied = {name for group in groups for name in sweep.varied_within[group]}
    varied -= {"edges"} if seed else {"edges", "seed"}
    if has_kinds(sweep):
        varied.discard("plan.kind")
    return [name for name in sweep.varied if name in varied]


def short_label(sweep: Sweep, job: Job) -> str:
    """The values that set a job apart, without their names and the seed: for beside a point."""
    values = [value for _, value in sweep.apart(job, seed=False)]
    return " · ".join(value for value in values if value not in _NOTHING)


_OF_ROUTING = ("plan.", "route.", "procedure.")
"""Settings that do not concern a job without blocks."""
_NOTHING = ("null", "[]", "{}")
"""Values of settings that say nothing."""


def has_kinds(sweep: Sweep) -> bool:
    """Whether plans or methods differ among the compared jobs that cut edges."""
    return len({job.kind for job in sweep.compared if job.edges != DENSE}) > 1 or any(
        job.kind not in (DENSE, *_PLANS) for job in sweep.compared
    )


_PLANS = tuple(kind.value for kind in PlanKind)


def interval_text(estimate: Estimate, text: measures.Text) -> str:
    """The bounds, or nothing."""
    if estimate.interval is None:
        return ""
    low, high = estimate.interval
    return f"{text(low)} to {text(high)}"


def _of_jobs(sweep: Sweep, jobs: Sequence[Job], chosen: Sequence[Measure]) -> Table:
    names, kinds = setting_names(sweep), has_kinds(sweep)
    numeric = [found for measure in chosen for found in _columns(jobs, measure)]
    best: list[float | None] = []
    for column, measure, part in numeric:
        values = [at for job in jobs if (at := _ranked(measure, job, part)) is not None]
        pick = max if column.direction > 0 else min
        best.append(pick(values) if len(values) > 1 and column.direction else None)
    rows = []
    for job in jobs:
        cells = [*_settings(job, names, kinds)]
        for (_, measure, part), top in zip(numeric, best, strict=True):
            estimate = _value(measure, job, part)
            cells.append(
                Cell(
                    text=measure.written(job, part),
                    value=None if estimate is None else estimate.value,
                    interval="" if estimate is None else interval_text(estimate, measure.bound),
                    best=top is not None and top == _ranked(measure, job, part),
                )
            )
        rows.append(Row(label=sweep.labels[job.name], jobs=[job], cells=cells))
    columns = [*_of_settings(names, kinds), *(column for column, *_ in numeric)]
    return Table(columns=columns, rows=rows)


def _columns(jobs: Sequence[Job], measure: Measure) -> list[tuple[Column, Measure, str | None]]:
    """The mean (part None), and a column for each domain or part that any job has the number of."""
    if measure.of is None:
        if all(measure.mean(job) is None for job in jobs):
            return []
        column = Column(
            name=measure.name,
            direction=measure.direction,
            is_number=True,
            meaning=measure.meaning,
        )
        return [(column, measure, None)]
    nodes = dict.fromkeys(node for job in jobs for node in job.nodes)
    parts = [node for node in nodes if any(_value(measure, job, node) is not None for job in jobs)]
    if len(parts) == 1:
        # The mean over one is that one.
        return [(_number(measure, parts[0]), measure, parts[0])]
    if not parts:
        return []
    details = [(_number(measure, part, is_detail=True), measure, part) for part in parts]
    return [(_number(measure, "mean"), measure, None), *details]


def _value(measure: Measure, job: Job, part: str | None) -> Estimate | None:
    if part is None or measure.of is None:
        return measure.mean(job)
    return measure.of(job, part)


def _ranked(measure: Measure, job: Job, part: str | None) -> float | None:
    """What decides whether the job is the best of a column: its value, or, where lower is better,
    what it is known to be below."""
    estimate = _value(measure, job, part)
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
        meaning=measure.meaning,
    )


def _has(measure: Measure, job: Job) -> bool:
    if measure.of is None:
        return measure.mean(job) is not None
    return any(measure.of(job, node) is not None for node in job.nodes)


def _of_settings(names: Sequence[str], kinds: bool) -> list[Column]:
    columns = [Column(name="edges")]
    if kinds:
        columns.append(Column(name="method"))
    if len(names) > _COLUMNS_OF_SETTINGS:
        columns.append(Column(name="settings"))
    else:
        columns += [Column(name=short_name(name)) for name in names]
    return columns


def _settings(job: Job, names: Sequence[str], kinds: bool) -> list[Cell]:
    cells = [Cell(text=job.kind)] if kinds else []
    values = {
        name: None
        if job.edges == DENSE and name.startswith(_OF_ROUTING)
        else job.settings.get(name)
        for name in names
    }
    if len(names) > _COLUMNS_OF_SETTINGS:
        pairs = [
            f"{short_name(name)}={shown(value)}"
            for name, value in values.items()
            if value is not None
        ]
        return [*cells, Cell(text=" ".join(pairs))]
    for value in values.values():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        text = MISSING if shown(value) in _NOTHING else shown(value)
        cells.append(Cell(text=text, value=value if is_number else None))
    return cells


def _below(measure: Measure, group: Sequence[Job]) -> str:
    """What is known of a mean over seeds that some of the jobs lack."""
    bounds = []
    for job in group:
        estimate = measure.mean(job)
        bound = measure.at_most(job, None) if estimate is None else estimate.value
        if bound is None:
            return MISSING
        bounds.append(bound)
    return measures.below(sum(bounds) / len(bounds))


def _written(
    estimate: Estimate | None, text: measures.Text, bound: measures.Text, missing: str = MISSING
) -> Cell:
    if estimate is None:
        return Cell(text=missing)
    return Cell(
        text=text(estimate.value), value=estimate.value, interval=interval_text(estimate, bound)
    )
