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
from gr_sweep.report.measures import Measure, interval_text
from gr_sweep.report.round_files import Round
from gr_sweep.report.sweep import Estimate, Job, Sweep, estimate_of
from gr_sweep.report.tables import Cell, Column, Row, Table

Number = Callable[[Job, Round], float | None]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Jobs with rounds that differ in their seed only."""

    name: str
    """The settings that distinguish it from other groups."""
    jobs: Sequence[Job]
    indices: list[int]
    """Of the jobs, as traces name them."""

    def numbers(self) -> list[int]:
        """Numbers of the rounds that any of the jobs has."""
        return sorted({of.number for job in self.jobs for of in job.rounds})

    def rounds(self, number: int) -> list[tuple[Job, Round]]:
        """That round of each job that has it."""
        return [(job, of) for job in self.jobs for of in job.rounds if of.number == number]

    def num_experts(self, number: int) -> int:
        """Labels after that round's split."""
        return len(self.rounds(number)[0][1].labels)

    def over_seeds(self, number: int, of: Number) -> Estimate | None:
        """Mean and t-interval over seeds; None if a job that has the round lacks the number."""
        found = {job.seed: of(job, round_) for job, round_ in self.rounds(number)}
        values = [value for value in found.values() if value is not None]
        return estimate_of(values) if len(values) == len(found) else None

    def is_last(self, number: int) -> bool:
        """Whether the round's models have trained on all tokens of their run."""
        return all(of.tokens >= job.tokens for job, of in self.rounds(number))


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
    found = [of.metrics.get(registry.SELECTIVITY(label)) for label in of.labels]
    values = [value for value in found if value is not None]
    return sum(values) / len(values) if values else None


def _mean_over(by_domain: Mapping[str, float], domains: Sequence[str]) -> float | None:
    """Mean over domains or labels; None if one lacks the number."""
    if not domains or any(domain not in by_domain for domain in domains):
        return None
    return sum(by_domain[domain] for domain in domains) / len(domains)


def groups(sweep: Sweep) -> list[Group]:
    """The groups of compared jobs that have rounds."""
    found = [[job for job in group if job.rounds] for group in sweep.replicates]
    return [
        Group(
            name=sweep.label(group[0], seed=False),
            jobs=group,
            indices=figures.indices(sweep, group),
        )
        for group in filter(None, found)
    ]


def trade_off(found: Sequence[Group]) -> Figure | None:
    """Served tax against the number of experts, a line for each group. None without a dense
    baseline.

    Rounds before the last have trained on fewer tokens than the dense model: they are hollow, and
    not joined to dense, which stands at one expert.
    """
    traces: list[dict[str, Any]] = []
    served_tax = tax(View.served)
    for at, group in enumerate(found):
        colour = HUES[at % len(HUES)]
        points: list[Point] = []
        estimates, symbols = [], []
        for number in group.numbers():
            estimate = group.over_seeds(number, served_tax)
            if estimate is None:
                continue
            is_last, experts = group.is_last(number), group.num_experts(number)
            if is_last and not points:
                points.append((1, 0.0, group.indices, "dense"))
                estimates.append(Estimate(value=0.0))
                symbols.append("circle")
            text = (
                f"<b>{escaped(group.name)}</b><br>round {number}, {experts} experts<br>served "
                f"tax {estimate.value:.3f}<br>{interval_text(estimate, measures.nats)}"
            )
            points.append((experts, estimate.value, group.indices, text))
            estimates.append(estimate)
            symbols.append("circle" if is_last else "circle-open")
        if not points:
            continue
        line = {"width": 2, "color": colour}
        dash = "dash" if group.jobs[0].is_control else "solid"
        traces.append(
            trace_of(
                points,
                mode="lines+markers",
                name=escaped(group.name),
                showlegend=True,
                line={**line, "dash": dash},
                marker={"color": colour, "size": 8, "symbol": symbols, "line": line},
                error_y=_error_bars(estimates),
            )
        )
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


def _error_bars(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Student's intervals are symmetric."""
    half = [e.interval[1] - e.value if e.interval else 0 for e in estimates]
    return {"type": "data", "array": half, "thickness": 1, "width": 0, "visible": any(half)}


_EXPERT_SIZE = Metric(
    key="expert size", title="expert size", direction=-1,
    meaning="parameters of an expert kept alone, as a fraction of the full model's",
)  # fmt: skip
COLUMNS: tuple[tuple[Measure, Number], ...] = (
    (measures.SERVED_TAX, tax(View.served)),
    (measures.SERVED_LOSS, loss(View.served)),
    (measures.LEAF_TAX, tax(View.kept)),
    (Measure(metric=registry.LOSS_EXPERT, text=measures.nats), loss(View.kept)),
    (Measure(metric=_EXPERT_SIZE, text=measures.fraction), expert_size),
    (measures.SELECTIVITY, selectivity),
    (Measure(metric=registry.MODULARITY, text=measures.fraction), lambda _, of: of.modularity),
)
"""Numbers of a round, in the order of the table."""


def table(found: Sequence[Group]) -> Table | None:
    """One row for each group and round; None if no job has rounds."""
    if not found:
        return None
    rounds = [(job, of) for group in found for job in group.jobs for of in job.rounds]
    numbers = [of for of in COLUMNS if any(of[1](*one) is not None for one in rounds)]
    columns = [
        Column(name="setting"),
        Column(name="round", is_number=True, meaning="counted from 1"),
        Column(name="experts", is_number=True, meaning="labels after the round's split"),
        Column(name="tokens", is_number=True, meaning="training tokens up to the round's end"),
        *(tables.column(measure, measure.metric.title) for measure, _ in numbers),
    ]
    rows = []
    for group in found:
        for at in group.numbers():
            tokens, experts = group.rounds(at)[0][1].tokens, group.num_experts(at)
            cells = [Cell(text=measures.count(of), value=of) for of in (at, experts, tokens)]
            cells += [
                tables.cell(group.over_seeds(at, of), measure.text) for measure, of in numbers
            ]
            label = f"{group.name} round {at}"
            rows.append(Row(name=group.name, label=label, jobs=group.jobs, cells=cells))
    return Table(columns=columns, rows=rows)
