"""Rounds of `procedure=alternate`: the trade-off of splitting further, as a curve and a table, and
the blocks of a job's last round.

Knows which numbers belong together, and nothing of files and HTML.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gr_sweep.config import ProcedureKind
from gr_sweep.metrics import registry
from gr_sweep.report import figures, measures, tables
from gr_sweep.report.figures import HUES, Figure, Points, escaped
from gr_sweep.report.measures import interval_text
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
    return [
        Group(
            name=sweep.label(group[0], seed=False),
            jobs=group,
            indices=figures.indices(sweep, group),
            colour=HUES[at % len(HUES)],
        )
        for at, group in enumerate(filter(None, found))
    ]


def has_tax(found: Sequence[Group]) -> bool:
    """Whether any round can be compared with a dense baseline."""
    return any(leaf_tax(job, of) is not None for g in found for job in g.jobs for of in job.rounds)


def trade_off(found: Sequence[Group]) -> Figure | None:
    """Leaf tax against the number of experts, a line for each group; the loss itself without a
    dense baseline. None without numbers.

    Rounds before the last have trained on fewer tokens than the dense model: they are hollow, and
    not joined to dense, which stands at one expert.
    """
    taxed = has_tax(found)
    number: Number = leaf_tax if taxed else leaf_loss
    what = "leaf tax" if taxed else "leaf loss"
    traces: list[dict[str, Any]] = []
    for group in found:
        points, seeds, symbols = Points(), Points(), []
        index = {job.name: at for job, at in zip(group.jobs, group.indices, strict=True)}
        for at in group.numbers():
            estimate = group.over_seeds(at, number)
            if estimate is None:
                continue
            is_last, experts = group.is_last(at), group.num_experts(at)
            if taxed and is_last and not points.xs:
                points.add(1, Estimate(value=0.0), list(group.indices), "dense")
                symbols.append("circle")
            text = (
                f"<b>{escaped(group.name)}</b><br>round {at}, {experts:g} experts<br>{what} "
                f"{estimate.value:.3f}<br>{interval_text(estimate, measures.nats)}"
            )
            points.add(experts, estimate, list(group.indices), text)
            symbols.append("circle" if is_last else "circle-open")
            for job, of in group.rounds(at) if len(group.jobs) > 1 else ():
                if (value := number(job, of)) is not None:
                    text = f"{escaped(group.name)}<br>seed {job.seed}<br>{value:.3f}"
                    seeds.add(experts, Estimate(value=value), [index[job.name]], text)
        if not points.xs:
            continue
        marker = {"color": group.colour, "size": 5}
        traces.append(seeds.trace(mode="markers", name="seeds", opacity=0.4, marker=marker))
        dash = "dash" if is_control(group.jobs[0]) else "solid"
        traces.append(
            points.trace(
                mode="lines+markers",
                name=escaped(group.name),
                showlegend=True,
                line={"color": group.colour, "width": 2, "dash": dash},
                marker={
                    "color": group.colour, "size": 8, "symbol": symbols,
                    "line": {"width": 2, "color": group.colour},
                },
                error_y=_error_bars(points.ys),
            )
        )  # fmt: skip
    if not traces:
        return None
    unit = "nats over dense" if taxed else "nats per token (no dense baseline here)"
    ticks = sorted({x for trace in traces for x in trace["x"]})
    # The interval of two seeds is twelve times as wide as their distance: bars may leave the plot.
    values = [y for trace in traces for y in trace["y"]] + [0.0] * taxed
    layout = {
        "xaxis": {
            "title": {"text": "experts after the round"}, "type": "log", "zeroline": False,
            "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks],
        },
        "yaxis": {
            "title": {"text": f"{what}, {unit}  (↓ better)"}, "zeroline": taxed,
            "range": figures.padded(values, 0.15),
        },
        "margin": {"l": 62, "r": 12, "t": 12, "b": 46},
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def _error_bars(estimates: Sequence[Estimate | None]) -> dict[str, Any]:
    above = [(e.interval[1] - e.value) if e and e.interval else 0 for e in estimates]
    below = [(e.value - e.interval[0]) if e and e.interval else 0 for e in estimates]
    return {
        "type": "data", "symmetric": False, "array": above, "arrayminus": below,
        "thickness": 1, "width": 0, "visible": any(above + below),
    }  # fmt: skip


def blocks(found: Round, job: int) -> Figure:
    """The blocks of a round as an icicle: the core on the left, experts on the right; their height
    is their number of units.

    Args:
        job: index of the round's job.
    """
    names = list(found.blocks)
    parents = [""]
    for name in names[1:]:
        above = name.rpartition("/")[0]
        while above and above not in names:
            above = above.rpartition("/")[0]
        parents.append(above or names[0])
    leaves = [name not in parents for name in names]
    trace = {
        "type": "icicle",
        "ids": names,
        "labels": [escaped(name) for name in names],
        "parents": parents,
        # Plotly adds the values of the blocks below.
        "values": [found.blocks[name] * leaf for name, leaf in zip(names, leaves, strict=True)],
        "text": [f"{size:,} units" for size in found.blocks.values()],
        "textinfo": "label+text",
        "hoverinfo": "label+text",
        "pathbar": {"visible": False},
        "meta": {"jobs": [job]},
    }
    margin = {"l": 0, "r": 0, "t": 4, "b": 4}
    return {"data": [trace], "layout": {"height": 30 + 40 * sum(leaves), "margin": margin}}


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
        expert_size, measures.fraction,
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
            name="modularity", direction=1, is_number=True,
            meaning="fraction of a domain's attribution outside the core that lies in blocks it "
            "owns, at the end of the round",
        ),
        lambda _, of: of.modularity, measures.fraction,
    ),
)  # fmt: skip
"""Numbers of a round, in the order of the table."""


def table(found: Sequence[Group]) -> Table | None:
    """One row for each group and round; None if no job has rounds."""
    if not found:
        return None
    rounds = [(job, of) for group in found for job in group.jobs for of in job.rounds]
    numbers = [
        entry
        for entry in COLUMNS
        if (entry[1] is not leaf_loss or not has_tax(found))
        and any(entry[1](job, of) is not None for job, of in rounds)
    ]
    columns = [
        Column(name="edges"),
        Column(name="jobs"),
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
            experts = group.num_experts(at)
            cells = [
                Cell(text=group.name),
                Cell(text=str(at), value=at),
                Cell(text=f"{experts:g}", value=experts),
                Cell(text=measures.count(tokens), value=tokens),
            ]
            for _, number, text in numbers:
                cells.append(tables.cell(group.over_seeds(at, number), text))
            rows.append(Row(label=f"{group.name} round {at}", jobs=group.jobs, cells=cells))
    return Table(columns=columns, rows=rows)
