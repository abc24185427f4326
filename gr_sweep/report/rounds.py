"""Rounds of `procedure=alternate`: the trade-off of splitting further, as a curve and a table.

To add a number of a round, write it to round.json, and add it to `collect.ROUND_NUMBERS`,
`COLUMNS` and `_numbers`.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gr_sweep.metrics import registry
from gr_sweep.metrics.registry import Metric
from gr_sweep.report import figures, measures, tables
from gr_sweep.report.figures import HUES, Figure, Point, escaped, trace_of
from gr_sweep.report.measures import Measure
from gr_sweep.report.sweep import Estimate, Job, Sweep, estimate_of
from gr_sweep.report.tables import Cell, Column, Row, Table

_EXPERT_SIZE = Metric(
    "expert size", "expert size",
    "parameters of an expert kept alone, as a fraction of the full model's", direction=-1,
)  # fmt: skip
COLUMNS = tuple(
    Measure(metric)
    for metric in (
        registry.SERVED_TAX, registry.LOSS_SERVED, registry.LEAF_TAX, registry.LOSS_EXPERT,
        _EXPERT_SIZE, registry.SELECTIVITY, registry.MODULARITY,
    )
)  # fmt: skip
"""Numbers of a round, in the order of the table."""


Round = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A round of jobs that differ in their seed only."""

    setting: str
    number: int
    """Counted from 1."""
    seeds: Sequence[tuple[Job, Round]]

    @property
    def num_experts(self) -> int:
        """Labels after the round's split."""
        return len(self.seeds[0][1]["labels"])

    @property
    def is_last(self) -> bool:
        """Whether the round's models have trained on all tokens of their run."""
        return all(of["tokens"] >= job.tokens for job, of in self.seeds)

    @functools.cached_property
    def numbers(self) -> list[Estimate | None]:
        """Mean and t-interval over seeds of each of `COLUMNS`; None where a seed lacks it."""
        found = []
        for values in zip(*(_numbers(job, of) for job, of in self.seeds), strict=True):
            known = [value for value in values if value is not None]
            found.append(estimate_of(known) if len(known) == len(values) else None)
        return found


def _numbers(job: Job, of: Round) -> list[float | None]:
    served, expert = (_mean(of[name], job.domains) for name in ("served_loss", "expert_loss"))
    full, tax = (job.metrics.get(metric.mean) for metric in (registry.LOSS_FULL, registry.TAX))
    dense = None if full is None or tax is None else full - tax
    selective = {registry.SELECTIVITY(label) for label in of["labels"]} & of["metrics"].keys()
    kept = _mean(of["parameters_kept"], of["labels"])
    whole = job.metrics.get(registry.COST_PARAMETERS.key)
    return [
        None if served is None or dense is None else served - dense,
        served,
        None if expert is None or dense is None else expert - dense,
        expert,
        kept / whole if kept and whole else None,
        _mean(of["metrics"], sorted(selective)),
        of["modularity"],
    ]


def _mean(by_name: Mapping[str, float], names: Sequence[str]) -> float | None:
    """Mean over domains or labels; None if one lacks the number, or without names."""
    if not names or any(name not in by_name for name in names):
        return None
    return sum(by_name[name] for name in names) / len(names)


def stages(sweep: Sweep) -> list[list[Stage]]:
    """The rounds of each setting that has any."""
    found = []
    for group in sweep.replicates:
        by_number: dict[int, list[tuple[Job, Round]]] = {}
        for job in group:
            for of in job.rounds:
                by_number.setdefault(of["round"], []).append((job, of))
        name, ordered = sweep.settings[group[0].name], sorted(by_number.items())
        found.append([Stage(setting=name, number=at, seeds=seeds) for at, seeds in ordered])
    return [of_setting for of_setting in found if of_setting]


def trade_off(sweep: Sweep) -> Figure | None:
    """Served tax against the number of experts, a line for each setting. None without a dense
    baseline.

    Rounds before the last have trained on fewer tokens than the dense model: they are hollow, and
    not joined to dense, which stands at one expert.
    """
    lines = [
        [(stage, tax) for stage in of_setting if (tax := stage.numbers[0]) is not None]
        for of_setting in stages(sweep)
    ]
    traces = [_line(sweep, known, HUES[at % len(HUES)]) for at, known in enumerate(lines) if known]
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
    name, jobs = escaped(first.setting), figures.indices(sweep, [job for job, _ in first.seeds])
    points: list[Point] = [(1, 0.0, jobs, "dense")] if first.is_last else []
    half_widths, symbols = [0.0] * len(points), ["circle"] * len(points)
    for stage, tax in known:
        text = (
            f"<b>{name}</b><br>round {stage.number}, {stage.num_experts} experts<br>served tax "
            f"{tax.value:.3f}<br>{measures.nats.interval(tax)}"
        )
        points.append((stage.num_experts, tax.value, jobs, text))
        # Student's intervals are symmetric.
        half_widths.append(tax.interval[1] - tax.value if tax.interval else 0.0)
        symbols.append("circle" if stage.is_last else "circle-open")
    line = {"width": 2, "color": colour}
    return trace_of(
        points,
        mode="lines+markers",
        name=name,
        showlegend=True,
        line={**line, "dash": "dash" if first.seeds[0][0].is_control else "solid"},
        marker={"color": colour, "size": 8, "symbol": symbols, "line": line},
        error_y={"type": "data", "array": half_widths, "thickness": 1, "width": 0},
    )


def table(sweep: Sweep) -> Table | None:
    """One row for each setting and round; None if no job has rounds."""
    columns = [
        Column(name="setting"),
        Column(name="round", is_number=True, meaning="counted from 1"),
        Column(name="experts", is_number=True, meaning="labels after the round's split"),
        Column(name="tokens", is_number=True, meaning="training tokens up to the round's end"),
        *(tables.column(measure) for measure in COLUMNS),
    ]
    rows = []
    for stage in (stage for of_setting in stages(sweep) for stage in of_setting):
        sizes = (stage.number, stage.num_experts, stage.seeds[0][1]["tokens"])
        cells = [Cell(text=measures.count(size), value=size) for size in sizes]
        cells += [
            tables.cell(found, measure.text)
            for found, measure in zip(stage.numbers, COLUMNS, strict=True)
        ]
        rows.append(Row(name=stage.setting, jobs=[job for job, _ in stage.seeds], cells=cells))
    return Table(columns=columns, rows=rows) if rows else None
