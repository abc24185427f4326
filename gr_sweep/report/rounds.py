"""Rounds of `procedure=alternate`: the trade-off of splitting further, as a curve and a table.

Knows which numbers belong together, and nothing of files and HTML.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gr_sweep.metrics import registry
from gr_sweep.metrics.losses import View
from gr_sweep.metrics.registry import Metric
from gr_sweep.report import figures, measures, tables
from gr_sweep.report.figures import HUES, Figure, Point, escaped, trace_of
from gr_sweep.report.measures import Measure
from gr_sweep.report.sweep import Estimate, Job, Round, Sweep, estimate_of
from gr_sweep.report.tables import Cell, Column, Row, Table

Number = Callable[[Job, Round], float | None]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A round of jobs that differ in their seed only."""

    setting: str
    number: int
    """Counted from 1."""
    seeds: Sequence[tuple[Job, Round]]

    @property
    def jobs(self) -> list[Job]:
        """Those that have the round."""
        return [job for job, _ in self.seeds]

    @property
    def num_experts(self) -> int:
        """Labels after the round's split."""
        return len(self.seeds[0][1].labels)

    @property
    def is_last(self) -> bool:
        """Whether the round's models have trained on all tokens of their run."""
        return all(of.tokens >= job.tokens for job, of in self.seeds)

    def over_seeds(self, of: Number) -> Estimate | None:
        """Mean and t-interval over seeds; None if a job that has the round lacks the number."""
        values = [of(job, round_) for job, round_ in self.seeds]
        found = [value for value in values if value is not None]
        return estimate_of(found) if len(found) == len(values) else None


def stages(sweep: Sweep) -> list[list[Stage]]:
    """The rounds of each setting that has any."""
    found = []
    for group in sweep.replicates:
        by_number: dict[int, list[tuple[Job, Round]]] = {}
        for job in group:
            for of in job.rounds:
                by_number.setdefault(of.number, []).append((job, of))
        name = sweep.setting(group[0])
        ordered = sorted(by_number.items())
        found.append([Stage(setting=name, number=at, seeds=seeds) for at, seeds in ordered])
    return [of_setting for of_setting in found if of_setting]


def loss(view: View) -> Number:
    """Loss of the served model, or of documents in their own expert alone (view `kept`); mean over
    domains."""
    return lambda job, of: _mean_over(of.losses[view], job.domains)


def tax(view: View) -> Number:
    """The same loss minus the dense model's."""

    def minus_dense(job: Job, of: Round) -> float | None:
        own = loss(view)(job, of)
        full, full_tax = (job.metrics.get(m.mean) for m in (registry.LOSS_FULL, registry.TAX))
        if own is None or full is None or full_tax is None:
            return None
        return own - (full - full_tax)

    return minus_dense


def expert_size(job: Job, of: Round) -> float | None:
    """Parameters of an expert kept alone, as a fraction of the full model's."""
    total = job.metrics.get(registry.COST_PARAMETERS.key)
    mean = _mean_over(of.parameters_kept, of.labels)
    return mean / total if mean is not None and total else None


def selectivity(job: Job, of: Round) -> float | None:
    """Mean over the labels that have one."""
    keys = [registry.SELECTIVITY(label) for label in of.labels]
    return _mean_over(of.metrics, [key for key in keys if key in of.metrics])


def _mean_over(by_name: Mapping[str, float], names: Sequence[str]) -> float | None:
    """Mean over domains or labels; None if one lacks the number, or without names."""
    if not names or any(name not in by_name for name in names):
        return None
    return sum(by_name[name] for name in names) / len(names)


def trade_off(sweep: Sweep) -> Figure | None:
    """Served tax against the number of experts, a line for each setting. None without a dense
    baseline.

    Rounds before the last have trained on fewer tokens than the dense model: they are hollow, and
    not joined to dense, which stands at one expert.
    """
    traces: list[dict[str, Any]] = []
    for at, of_setting in enumerate(stages(sweep)):
        taxes = [(stage, stage.over_seeds(tax(View.served))) for stage in of_setting]
        known = [(stage, estimate) for stage, estimate in taxes if estimate is not None]
        if known:
            traces.append(_line(sweep, known, HUES[at % len(HUES)]))
    if not traces:
        return None
    ticks = sorted({x for trace in traces for x in trace["x"]})
    # The interval of two seeds is twelve times as wide as their distance: bars may leave the plot.
    values = [y for trace in traces for y in trace["y"]] + [0.0]
    layout = {
        "xaxis": {
            "title": {"text": "experts after the round"}, "type": "log", "zeroline": False,
            "tickvals": ticks, "ticktext": [str(tick) for tick in ticks],
        },
        "yaxis": {
            "title": {"text": "served tax, nats over dense  (↓ better)"},
            "range": figures.padded(values, 0.15),
        },
        "margin": {"l": 62, "r": 12, "t": 12, "b": 46},
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def _line(sweep: Sweep, known: Sequence[tuple[Stage, Estimate]], colour: str) -> dict[str, Any]:
    first, *_ = known[0]
    name, jobs = escaped(first.setting), figures.indices(sweep, first.jobs)
    points: list[Point] = []
    half_widths, symbols = [], []
    if first.is_last:
        points.append((1, 0.0, jobs, "dense"))
        half_widths.append(0.0)
        symbols.append("circle")
    for stage, estimate in known:
        text = (
            f"<b>{name}</b><br>round {stage.number}, {stage.num_experts} experts<br>served tax "
            f"{estimate.value:.3f}<br>{measures.nats.interval(estimate)}"
        )
        points.append((stage.num_experts, estimate.value, jobs, text))
        # Student's intervals are symmetric.
        half_widths.append(estimate.interval[1] - estimate.value if estimate.interval else 0.0)
        symbols.append("circle" if stage.is_last else "circle-open")
    line = {"width": 2, "color": colour}
    return trace_of(
        points,
        mode="lines+markers",
        name=name,
        showlegend=True,
        line={**line, "dash": "dash" if first.jobs[0].is_control else "solid"},
        marker={"color": colour, "size": 8, "symbol": symbols, "line": line},
        error_y={"type": "data", "array": half_widths, "thickness": 1, "width": 0},
    )


_EXPERT_SIZE = Metric(
    key="expert size", title="expert size", direction=-1,
    meaning="parameters of an expert kept alone, as a fraction of the full model's",
)  # fmt: skip
COLUMNS: tuple[tuple[Measure, Number], ...] = (
    (Measure(registry.SERVED_TAX), tax(View.served)),
    (Measure(registry.LOSS_SERVED), loss(View.served)),
    (Measure(registry.LEAF_TAX), tax(View.kept)),
    (Measure(registry.LOSS_EXPERT), loss(View.kept)),
    (Measure(_EXPERT_SIZE), expert_size),
    (Measure(registry.SELECTIVITY), selectivity),
    (Measure(registry.MODULARITY), lambda _, of: of.modularity),
)
"""Numbers of a round, in the order of the table."""


def table(sweep: Sweep) -> Table | None:
    """One row for each setting and round; None if no job has rounds."""
    found = [stage for of_setting in stages(sweep) for stage in of_setting]
    if not found:
        return None
    columns = [
        Column(name="setting"),
        Column(name="round", is_number=True, meaning="counted from 1"),
        Column(name="experts", is_number=True, meaning="labels after the round's split"),
        Column(name="tokens", is_number=True, meaning="training tokens up to the round's end"),
        *(tables.column(measure, measure.metric.title) for measure, _ in COLUMNS),
    ]
    rows = []
    for stage in found:
        sizes = (stage.number, stage.num_experts, stage.seeds[0][1].tokens)
        cells = [Cell(text=measures.count(size), value=size) for size in sizes]
        cells += [tables.cell(stage.over_seeds(of), measure.text) for measure, of in COLUMNS]
        rows.append(Row(name=stage.setting, jobs=stage.jobs, cells=cells))
    return Table(columns=columns, rows=rows)
