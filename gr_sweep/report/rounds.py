"""Rounds of `procedure=alternate`: the trade-off of splitting further, as curves and a table, and
the blocks and units of each round.

Knows which numbers belong together, and nothing of files and HTML.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gr_sweep.config import ProcedureKind
from gr_sweep.metrics import registry
from gr_sweep.report import figures, measures, tables
from gr_sweep.report.figures import HUES, Figure, Points, axis_title, escaped
from gr_sweep.report.measures import number_text
from gr_sweep.report.round_files import Round, mean_over
from gr_sweep.report.sweep import Estimate, Job, Sweep, estimate_of
from gr_sweep.report.tables import Cell, Column, Row, Table

_CONTROLS = ("random", "none")
"""Attributions that ignore what the network does: dashed."""

Number = Callable[[Job, Round], float | None]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Jobs with rounds that differ in their seed only."""

    name: str
    """The settings that distinguish it from other groups."""
    jobs: Sequence[Job]
    indices: Sequence[int]
    """Of the jobs, as traces name them."""
    colour: str
    dash: str

    def numbers(self) -> list[int]:
        """Numbers of the rounds that any of the jobs has."""
        return sorted({of.number for job in self.jobs for of in job.rounds})

    def rounds(self, number: int) -> list[tuple[Job, Round]]:
        """That round of each job that has it."""
        return [(job, of) for job in self.jobs for of in job.rounds if of.number == number]

    def num_experts(self, number: int) -> float:
        """Labels after that round's split."""
        found = [len(of.labels) for _, of in self.rounds(number)]
        return sum(found) / len(found)

    def over_seeds(self, number: int, of: Number) -> Estimate | None:
        """Mean and t-interval over seeds; None if a job that has the round lacks the number."""
        found = {job.seed: of(job, round_) for job, round_ in self.rounds(number)}
        values = [value for value in found.values() if value is not None]
        return estimate_of(values) if len(values) == len(found) else None

    def numbers_with(self, number: Number) -> list[int]:
        """Those over which there is a mean of a number."""
        return [at for at in self.numbers() if self.over_seeds(at, number) is not None]

    def is_last(self, number: int) -> bool:
        """Whether the round's models have trained on all tokens of their run."""
        return all(of.tokens >= (job.tokens or 0) for job, of in self.rounds(number))


def is_control(job: Job) -> bool:
    """Whether its units were assigned without regard to what the network does."""
    is_alternate = job.settings.get("procedure.name") == ProcedureKind.alternate.value
    return is_alternate and job.settings.get("procedure.attribution") in _CONTROLS


def leaf_tax(job: Job, of: Round) -> float | None:
    """Loss of documents in their own expert alone minus the dense model's; mean over domains."""
    return mean_over(of.leaf_tax, job.domains)


def leaf_loss(job: Job, of: Round) -> float | None:
    """Loss of documents in their own expert alone; mean over domains."""
    return mean_over(of.leaf_loss, job.domains)


def expert_size(job: Job, of: Round) -> float | None:
    """Parameters of an expert kept alone, as a fraction of the full model's."""
    total, mean = job.metrics.get(registry.COST_PARAMETERS.key), of.mean_parameters
    return mean / total if mean is not None and total else None


def selectivity(job: Job, of: Round) -> float | None:
    """Mean over the labels that have one."""
    found = of.selectivities
    return sum(found) / len(found) if found else None


def groups(sweep: Sweep) -> list[Group]:
    """The groups of compared jobs that have rounds."""
    found = [[job for job in group if job.rounds] for group in sweep.replicates]
    found = [group for group in found if group]
    firsts = [group[0] for group in found]
    names = [
        name
        for name in sweep.varied
        if name != "seed" and len({str(job.settings.get(name)) for job in firsts}) > 1
    ]
    return [
        Group(
            name=tables.said(group[0], names).replace("procedure.", "") or "alternate",
            jobs=group,
            indices=figures.indices(sweep, group),
            colour=HUES[at % len(HUES)],
            dash="dash" if is_control(group[0]) else "solid",
        )
        for at, group in enumerate(found)
    ]


def has_tax(found: Sequence[Group]) -> bool:
    """Whether any round can be compared with a dense baseline."""
    return any(leaf_tax(job, of) is not None for g in found for job in g.jobs for of in job.rounds)


def panels(found: Sequence[Group]) -> list[tuple[str, Figure]]:
    """Figures with a line for each group: the trade-off, then size, selectivity and modularity by
    round. Those without numbers are left out."""
    drawn = [
        ("Loss of each document in its own expert alone", _trade_off(found)),
        (
            "Parameters of an expert alone",
            _by_round(found, expert_size, "expert size", "fraction of the full model  (↓ cheaper)"),
        ),
        (
            "Mean selectivity",
            _by_round(found, selectivity, "mean selectivity", "nats  (↑ better)", zero=True),
        ),
        (
            "Modularity after training",
            _by_round(
                found, lambda _, of: of.modularity, "modularity",
                "fraction in own blocks  (↑ better)",
            ),
        ),
    ]  # fmt: skip
    return [(title, figure) for title, figure in drawn if figure is not None]


def _trade_off(found: Sequence[Group]) -> Figure | None:
    """Leaf tax against the number of experts; the loss itself without a dense baseline.

    Rounds before the last have trained on fewer tokens than the dense model: they are hollow, and
    not joined to dense, which stands at one expert.
    """
    taxed = has_tax(found)
    number: Number = leaf_tax if taxed else leaf_loss
    what = "leaf tax" if taxed else "leaf loss"
    traces: list[dict[str, Any]] = []
    for group in found:
        rounds = group.numbers_with(number)
        if not rounds:
            continue
        points = Points()
        if taxed and group.is_last(rounds[0]):
            points.add(1, Estimate(value=0.0), list(group.indices), "dense")
        symbols = ["circle"] * len(points.xs)
        symbols += ["circle" if group.is_last(at) else "circle-open" for at in rounds]
        line, seeds = _line(group, rounds, number, what, group.num_experts, points)
        line["marker"] |= {"symbol": symbols, "line": {"width": 2, "color": group.colour}}
        traces += [seeds, line]
    if not traces:
        return None
    if taxed:
        traces.append(
            {
                "type": "scatter", "x": [1], "y": [0.0], "mode": "markers", "name": "dense",
                "hoverinfo": "name", "showlegend": True,
                "marker": {"symbol": "x", "size": 10, "color": figures.colour("dense")},
            }
        )  # fmt: skip
    unit = "nats over dense" if taxed else "nats per token (no dense baseline here)"
    ticks = sorted({x for trace in traces for x in trace["x"]})
    xaxis = {
        "title": axis_title("experts after the round"), "type": "log", "zeroline": False,
        "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks],
    }  # fmt: skip
    return _figure(traces, f"{what}, {unit}  (↓ better)", xaxis, zero=taxed)


def _by_round(
    found: Sequence[Group], number: Number, what: str, axis: str, *, zero: bool = False
) -> Figure | None:
    traces: list[dict[str, Any]] = []
    last = 1
    for group in found:
        rounds = group.numbers_with(number)
        if rounds:
            last = max(last, *rounds)
            line, seeds = _line(group, rounds, number, what, float, Points())
            traces += [seeds, line | {"showlegend": False}]
    if not traces:
        return None
    xaxis = {
        "title": axis_title("round"), "dtick": 1, "range": [0.8, last + 0.2], "zeroline": False,
    }  # fmt: skip
    return _figure(traces, axis, xaxis, zero=zero)


def _line(
    group: Group,
    rounds: Sequence[int],
    number: Number,
    what: str,
    x_of: Callable[[int], float],
    points: Points,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A group's line over its rounds, after the points that are there; and its seeds as small
    points, if there are several."""
    seeds = Points()
    index = {job.name: at for job, at in zip(group.jobs, group.indices, strict=True)}
    for at in rounds:
        estimate = group.over_seeds(at, number)
        assert estimate is not None  # numbers_with: these rounds have one.
        of_round = group.rounds(at)
        text = f"<b>{escaped(group.name)}</b><br>round {at}, {group.num_experts(at):g} experts"
        text += f"<br>{what} {number_text(estimate)}"
        if len(of_round) > 1:
            text += f"<br>mean of {len(of_round)} seeds"
        points.add(x_of(at), estimate, list(group.indices), text)
        for job, of in of_round if len(group.jobs) > 1 else ():
            value = number(job, of)
            if value is not None:
                text = f"{escaped(group.name)}<br>seed {job.seed}<br>{value:.3f}"
                seeds.add(x_of(at), Estimate(value=value), [index[job.name]], text)
    line = points.trace(
        mode="lines+markers",
        name=escaped(group.name),
        showlegend=True,
        line={"color": group.colour, "width": 2, "dash": group.dash},
        marker={"color": group.colour, "size": 8},
        error_y=figures.error_bars(points.ys),
    )
    marker = {"color": group.colour, "size": 5}
    name = escaped(f"{group.name}, seeds")
    return line, seeds.trace(mode="markers", name=name, opacity=0.4, marker=marker)


def _figure(
    traces: Sequence[dict[str, Any]], axis: str, xaxis: dict[str, Any], *, zero: bool
) -> Figure:
    # The interval of two seeds is twelve times as wide as their distance: bars may leave the plot.
    values = [y for trace in traces for y in trace["y"]] + [0.0] * zero
    yaxis = {
        "title": axis_title(axis), "range": figures.padded(values, 0.15), "zeroline": zero,
    }  # fmt: skip
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    margin = {"l": 62, "r": 12, "t": 12, "b": 46}
    layout = figures.layout(xaxis=xaxis, yaxis=yaxis, legend=legend, margin=margin)
    return {"data": list(traces), "layout": layout}


_MODULARITY = (
    "fraction of a domain's attribution outside the core that lies in blocks it owns: after the "
    "assignment, and after the training that followed"
)

COLUMNS: tuple[tuple[Column, Number, measures.Text], ...] = (
    (
        Column(
            name="leaf tax", direction=-1, is_number=True,
            meaning="loss of each document in its own expert alone, minus that of the dense model "
            "on the same documents; mean over domains. Rounds before the last have trained on "
            "fewer tokens than the dense model",
        ),
        leaf_tax, measures.signed,
    ),
    (
        Column(
            name="leaf loss", direction=-1, is_number=True,
            meaning="loss of each document in its own expert alone, nats per token",
        ),
        leaf_loss, measures.nats,
    ),
    (
        Column(
            name="expert size", direction=-1, is_number=True,
            meaning="parameters of an expert kept alone, as a fraction of the full model's",
        ),
        expert_size, measures.percent,
    ),
    (
        Column(
            name="selectivity", direction=1, is_number=True,
            meaning="what removing an expert costs its own documents, minus what it costs the "
            "others; mean over the experts that have held-out documents",
        ),
        selectivity, measures.signed,
    ),
    (
        Column(
            name="assigned", group="modularity", direction=1, is_number=True, meaning=_MODULARITY
        ),
        lambda _, of: of.modularity_assigned, measures.unsigned,
    ),
    (
        Column(
            name="trained", group="modularity", direction=1, is_number=True, meaning=_MODULARITY
        ),
        lambda _, of: of.modularity, measures.unsigned,
    ),
    (
        Column(
            name="stability", direction=1, is_number=True,
            meaning="agreement of the scores that assign units, from two halves of the documents",
        ),
        lambda _, of: of.mean_stability, measures.unsigned,
    ),
)  # fmt: skip
"""Numbers of a round, in the order of the table."""


def table(found: Sequence[Group]) -> Table | None:
    """One row for each group and round; None if no job has rounds."""
    if not found:
        return None
    has_names = len(found) > 1
    has_seeds = any(len(group.jobs) > 1 for group in found)
    rounds = [(job, of) for group in found for job in group.jobs for of in job.rounds]
    needs_loss = any(leaf_tax(job, of) is None for job, of in rounds)
    numbers = [
        entry
        for entry in COLUMNS
        if (entry[1] is not leaf_loss or needs_loss)
        and any(entry[1](job, of) is not None for job, of in rounds)
    ]
    columns = [Column(name="edges"), *[Column(name="jobs")] * has_names]
    columns += [Column(name="seeds", is_number=True)] * has_seeds
    columns += [
        Column(name="round", is_number=True, meaning="counted from 1"),
        Column(name="experts", is_number=True, meaning="labels after the round's split"),
        Column(name="tokens", is_number=True, meaning="training tokens up to the round's end"),
        *(column for column, _, _ in numbers),
    ]
    rows = []
    for group in found:
        for at in group.numbers():
            of_round = group.rounds(at)
            tokens = sum(of.tokens for _, of in of_round) / len(of_round)
            num_seeds = len({job.seed for job, _ in of_round})
            cells = [Cell(text=group.name)] if has_names else []
            cells += [Cell(text=str(num_seeds), value=num_seeds)] if has_seeds else []
            experts = group.num_experts(at)
            cells += [
                Cell(text=str(at), value=at),
                Cell(text=f"{experts:g}", value=experts),
                Cell(text=measures.rounded(tokens), value=tokens),
            ]
            for _, number, text in numbers:
                cells.append(_cell(group.over_seeds(at, number), text))
            rows.append(Row(label=f"{group.name} round {at}", jobs=group.jobs, cells=cells))
    return Table(columns=columns, rows=rows)


def _cell(estimate: Estimate | None, text: measures.Text) -> Cell:
    if estimate is not None and estimate.interval == (estimate.value, estimate.value):
        estimate = Estimate(value=estimate.value)  # The same for every seed.
    return tables.cell(estimate, text)
