"""The rounds of jobs of `procedure=alternate`: the trade-off of splitting further as curves and as
a table, and the pictures of every round.

Knows which numbers belong together, and nothing of files and of HTML.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gr_sweep.config import ProcedureKind
from gr_sweep.metrics import registry
from gr_sweep.report import figures, measures, pictures, tables
from gr_sweep.report.baselines import train_tokens
from gr_sweep.report.collect import Estimate, Job, Sweep, estimate_of, short_name, shown
from gr_sweep.report.measures import MISSING
from gr_sweep.report.round_files import Round, mean_over
from gr_sweep.report.tables import Cell, Column, Row, Table

LINES = (
    "#4c78a8", "#e0802b", "#54a24b", "#c8526b", "#8f6bb3", "#4fa3a0", "#a0745c", "#b8a13a",
)  # fmt: skip
"""Colours of groups of jobs, where edges do not tell them apart."""
_CONTROLS = ("random", "none")
"""Attributions that assign nothing by what the network does: dashed."""
_ROUNDS = "procedure.rounds"

Number = Callable[[Job, Round], float | None]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Jobs that differ in their seed alone, and have rounds."""

    name: str
    """What sets the group apart from the others."""
    jobs: Sequence[Job]
    places: Sequence[int]
    """Of the jobs, as the traces of a figure name them."""
    colour: str
    dash: str

    def numbers(self) -> list[int]:
        """Of the rounds that any of the jobs has."""
        return sorted({of.number for job in self.jobs for of in job.rounds})

    def rounds(self, number: int) -> list[tuple[Job, Round]]:
        """That round of each job that has it."""
        return [(job, of) for job in self.jobs for of in job.rounds if of.number == number]

    def over_seeds(self, number: int, of: Number) -> Estimate | None:
        """Mean and t-interval of a number of that round, one value a seed; None where a job that
        has the round lacks the number."""
        found = {job.seed: of(job, round_) for job, round_ in self.rounds(number)}
        values = [value for value in found.values() if value is not None]
        return estimate_of(values) if len(values) == len(found) else None

    def is_last(self, number: int) -> bool:
        """Whether the round's models have seen all tokens of their run."""
        return all(
            of.tokens >= (train_tokens(job.settings) or 0) for job, of in self.rounds(number)
        )


def is_control(job: Job) -> bool:
    """Whether its units were assigned by nothing that the network does."""
    settings = job.settings
    is_alternate = settings.get("procedure.name") == ProcedureKind.alternate.value
    return is_alternate and settings.get("procedure.attribution") in _CONTROLS


def leaf_tax(job: Job, of: Round) -> float | None:
    """Mean over domains of what documents lose in their own expert alone against dense."""
    return mean_over(of.leaf_tax, job.domains)


def leaf_loss(job: Job, of: Round) -> float | None:
    """Mean over domains of the loss of documents in their own expert alone."""
    return mean_over(of.leaf_loss, job.domains)


def parameters_share(job: Job, of: Round) -> float | None:
    """Parameters of an expert kept alone, of those of the full model."""
    total, mean = job.metrics.get(registry.COST_PARAMETERS.key), of.mean_parameters
    return mean / total if mean is not None and total else None


def selectivity(job: Job, of: Round) -> float | None:
    """Mean over the labels that have one."""
    found = of.selectivities
    return sum(found) / len(found) if found else None


def groups(sweep: Sweep) -> list[Group]:
    """The groups of compared jobs that have rounds, each with a look of its own."""
    found = [[job for job in group if job.rounds] for group in sweep.replicates]
    found = [group for group in found if group]
    names = _apart(sweep, [group[0] for group in found])
    edges = [group[0].edges for group in found]
    by_edges = len(set(edges)) == len(edges) > 1
    return [
        Group(
            name=name,
            jobs=group,
            places=figures.numbers(sweep, group),
            colour=figures.colour(group[0].edges) if by_edges else LINES[at % len(LINES)],
            dash="dash" if is_control(group[0]) else "solid",
        )
        for at, (name, group) in enumerate(zip(names, found, strict=True))
    ]


def _apart(sweep: Sweep, firsts: Sequence[Job]) -> list[str]:
    """Of each job the settings in which it differs from the others, seeds aside."""
    varied = [
        name
        for name in sweep.varied
        if name != "seed" and len({shown(job.settings.get(name)) for job in firsts}) > 1
    ]
    return [
        " ".join(
            f"{short_name(name).removeprefix('procedure.')}={shown(job.settings.get(name))}"
            for name in varied
        )
        or "alternate"
        for job in firsts
    ]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure of the trade-off."""

    title: str
    figure: dict[str, Any]


def has_tax(found: Sequence[Group]) -> bool:
    """Whether any round stands beside a dense baseline."""
    return any(leaf_tax(job, of) is not None for g in found for job in g.jobs for of in job.rounds)


def trade_off(found: Sequence[Group]) -> Panel | None:
    """Leaf tax against the number of experts, a line a group of jobs; the loss itself where there
    is no dense baseline. None where no round has either.

    A round before the last has seen fewer tokens than the dense model: it is hollow, and not joined
    to dense, which stands at one expert. Where jobs differ in their number of rounds alone, a line
    joins dense and their last rounds.
    """
    taxed = has_tax(found)
    number: Number = leaf_tax if taxed else leaf_loss
    what = "leaf tax" if taxed else "leaf loss"
    traces, last = [], _Last()
    for group in found:
        points = []
        for at in group.numbers():
            estimate = group.over_seeds(at, number)
            if estimate is not None:
                points.append((_experts(group, at), estimate, at))
        if not points:
            continue
        traces.append(_seeds(group, [at for _, _, at in points], number, lambda of: len(of.labels)))
        filled = [group.is_last(at) for _, _, at in points]
        start: list[tuple[float, float]] = [(1, 0.0)] if taxed and filled[0] else []
        traces.append(
            {
                **_line(group),
                "x": [*(x for x, _ in start), *(x for x, _, _ in points)],
                "y": [*(y for _, y in start), *(estimate.value for _, estimate, _ in points)],
                "hovertext": [*("dense" for _ in start)]
                + [
                    f"<b>{figures.escaped(group.name)}</b><br>round {at}, {x:g} experts"
                    f"<br>{what} {figures.number_text(estimate)}{_seeds_text(group, at)}"
                    for x, estimate, at in points
                ],
                "marker": {
                    "size": [*(0 for _ in start), *(9 for _ in points)],
                    "color": group.colour,
                    "symbol": [
                        *("circle" for _ in start),
                        *("circle" if is_last else "circle-open" for is_last in filled),
                    ],
                    "line": {"width": 2, "color": group.colour},
                },
                "error_y": figures.error_bars([*(None for _ in start), *(e for _, e, _ in points)]),
            }
        )
        if filled[-1]:
            last.add(group, points[-1][0], points[-1][1].value)
    if not traces:
        return None
    traces += last.traces([(1, 0.0)] if taxed else [])
    if taxed:
        traces.append(
            {
                "type": "scatter", "x": [1], "y": [0.0], "mode": "markers", "name": "dense",
                "hoverinfo": "name", "showlegend": True,
                "marker": {"symbol": "x", "size": 10, "color": figures.colour("dense")},
            }
        )  # fmt: skip
    counts = {x for trace in traces for x in trace["x"] if x is not None}
    unit = "nats over dense" if taxed else "nats per token (no dense baseline here)"
    title = "Loss of each document in its own expert alone"
    figure = _figure(traces, f"{what}, {unit}  (↓ better)", zero=taxed)
    ticks = sorted(counts)
    figure["layout"]["xaxis"] = {
        "title": figures.axis_title("experts after the round"), "type": "log", "zeroline": False,
        "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks],
    }  # fmt: skip
    return Panel(title=title, figure=figure)


class _Last:
    """Last rounds of groups that differ in their number of rounds alone: all at the same tokens."""

    def __init__(self) -> None:
        self._points: dict[tuple[str, ...], list[tuple[float, float]]] = {}

    def add(self, group: Group, experts: float, value: float) -> None:
        """A group's last round."""
        settings = group.jobs[0].settings
        key = tuple(
            f"{name}={shown(value)}"
            for name, value in settings.items()
            if name not in (_ROUNDS, "seed")
        )
        self._points.setdefault(key, []).append((experts, value))

    def traces(self, start: list[tuple[float, float]]) -> list[dict[str, Any]]:
        """A line from the start on for each that has several."""
        return [
            {
                "type": "scatter", "mode": "lines", "hoverinfo": "skip",
                "x": [x for x, _ in start + sorted(points)],
                "y": [y for _, y in start + sorted(points)],
                "line": {"color": figures.colour("dense"), "width": 1.5, "dash": "dot"},
                "name": "last rounds", "showlegend": at == 0,
            }
            for at, points in enumerate(p for p in self._points.values() if len(set(p)) > 1)
        ]  # fmt: skip


def panels(found: Sequence[Group]) -> list[Panel]:
    """What splitting further makes of the experts, against rounds: size, selectivity and
    modularity; those for which there are numbers."""
    drawn = [
        _by_round(
            found, "Parameters of an expert alone", "share of the full model  (↓ cheaper)",
            [(parameters_share, "share of parameters")],
        ),
        _by_round(
            found, "Mean selectivity", "nats  (↑ better)",
            [(selectivity, "mean selectivity")], zero=True,
        ),
        _by_round(
            found, "Modularity: after training (●), as assigned (□)",
            "share in own blocks  (↑ better)",
            [
                (lambda job, of: of.modularity, "modularity after training"),
                (lambda job, of: of.modularity_assigned, "modularity as assigned"),
            ],
        ),
    ]  # fmt: skip
    return [panel for panel in drawn if panel is not None]


def _by_round(
    found: Sequence[Group],
    title: str,
    axis: str,
    numbers: Sequence[tuple[Number, str]],
    *,
    zero: bool = False,
) -> Panel | None:
    traces = []
    last = 1
    for group in found:
        for place, (number, name) in enumerate(numbers):
            points = [
                (at, estimate)
                for at in group.numbers()
                if (estimate := group.over_seeds(at, number)) is not None
            ]
            if not points:
                continue
            last = max(last, *(at for at, _ in points))
            if not place:
                traces.append(_seeds(group, [at for at, _ in points], number, lambda of: of.number))
            traces.append(
                {
                    **_line(group),
                    "showlegend": False,
                    "x": [at for at, _ in points],
                    "y": [estimate.value for _, estimate in points],
                    "hovertext": [
                        f"<b>{figures.escaped(group.name)}</b><br>round {at}"
                        f"<br>{name} {figures.number_text(estimate)}"
                        f"{_seeds_text(group, at)}"
                        for at, estimate in points
                    ],
                    "marker": {
                        "size": 8 if not place else 6,
                        "color": group.colour,
                        "symbol": "circle" if not place else "square-open",
                    },
                    "opacity": 1 if not place else 0.65,
                    "error_y": figures.error_bars(
                        [estimate for _, estimate in points], visible=not place
                    ),
                }
            )
    if not traces:
        return None
    figure = _figure(traces, axis, zero=zero)
    figure["layout"]["xaxis"] = {
        "title": figures.axis_title("round"), "dtick": 1, "range": [0.8, last + 0.2],
        "zeroline": False,
    }  # fmt: skip
    return Panel(title=title, figure=figure)


def _figure(traces: Sequence[dict[str, Any]], axis: str, *, zero: bool) -> dict[str, Any]:
    # An interval of two seeds is twelve times as wide as they are apart: bars may leave the plot.
    values = [y for trace in traces for y in trace["y"] if y is not None] + [0.0] * zero
    return {
        "data": list(traces),
        "layout": {
            **figures.plain_layout(),
            "yaxis": {
                "title": figures.axis_title(axis), "range": figures.padded(values, 0.15),
                "zeroline": zero,
            },
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "hovermode": "closest",
            "margin": {"l": 62, "r": 12, "t": 12, "b": 46},
        },
    }  # fmt: skip


def _line(group: Group) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": figures.escaped(group.name),
        "hoverinfo": "text",
        "meta": {"jobs": group.places},
        "line": {"color": group.colour, "width": 2, "dash": group.dash},
    }


def _seeds(
    group: Group, numbers: Iterable[int], of: Number, place: Callable[[Round], float]
) -> dict[str, Any]:
    """A small point a job, where they are several."""
    points = [
        (place(round_), value, job)
        for at in numbers
        for job, round_ in (group.rounds(at) if len(group.jobs) > 1 else ())
        if (value := of(job, round_)) is not None
    ]
    number = {job.name: at for job, at in zip(group.jobs, group.places, strict=True)}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x for x, _, _ in points],
        "y": [y for _, y, _ in points],
        "name": figures.escaped(f"{group.name}, seeds"),
        "hovertext": [
            f"{figures.escaped(group.name)}<br>seed {job.seed}<br>{y:.3f}" for _, y, job in points
        ],
        "hoverinfo": "text",
        "meta": {"points": [[number[job.name]] for _, _, job in points]},
        "showlegend": False,
        "opacity": 0.4,
        "marker": {"color": group.colour, "size": 5},
    }


def _experts(group: Group, number: int) -> float:
    found = [len(of.labels) for _, of in group.rounds(number)]
    return sum(found) / len(found)


def _seeds_text(group: Group, number: int) -> str:
    num_seeds = len(group.rounds(number))
    return f"<br>mean of {num_seeds} seeds" if num_seeds > 1 else ""


def table(found: Sequence[Group]) -> Table | None:
    """A row a group and round; None where no job has rounds."""
    if not found:
        return None
    several_groups = len(found) > 1
    several_seeds = any(len(group.jobs) > 1 for group in found)
    needs_loss = any(
        leaf_tax(job, of) is None for g in found for job in g.jobs for of in job.rounds
    )
    numbers = [entry for entry in _COLUMNS if entry[1] is not leaf_loss or needs_loss]
    numbers = [
        entry
        for entry in numbers
        if any(entry[1](job, of) is not None for g in found for job in g.jobs for of in job.rounds)
    ]
    columns = [Column(name="edges")]
    if several_groups:
        columns.append(Column(name="jobs"))
    if several_seeds:
        columns.append(Column(name="seeds", is_number=True))
    columns += [
        Column(name="round", is_number=True, meaning="counted from 1"),
        Column(name="experts", is_number=True, meaning="labels after the round's split"),
        Column(name="tokens", is_number=True, meaning="training tokens until the round's end"),
        *(column for column, _, _ in numbers),
    ]
    rows = []
    for group in found:
        for at in group.numbers():
            of_round = group.rounds(at)
            tokens = sum(of.tokens for _, of in of_round) / len(of_round)
            cells = [Cell(text=group.name)] if several_groups else []
            if several_seeds:
                num_seeds = len({job.seed for job, _ in of_round})
                cells.append(Cell(text=str(num_seeds), value=num_seeds))
            experts = _experts(group, at)
            cells += [
                Cell(text=str(at), value=at),
                Cell(text=f"{experts:g}", value=experts),
                Cell(text=figures.rounded(tokens), value=tokens),
            ]
            for _, number, text in numbers:
                estimate = group.over_seeds(at, number)
                partial = _partial(of_round) if number is selectivity else ""
                cells.append(_cell(estimate, text, partial))
            rows.append(Row(label=f"{group.name} round {at}", jobs=group.jobs, cells=cells))
    return Table(columns=columns, rows=rows)


def _cell(estimate: Estimate | None, text: measures.Text, partial: str) -> Cell:
    if estimate is None:
        return Cell(text=MISSING)
    bound = measures.unsigned if text is measures.signed else text
    is_exact = estimate.interval is not None and estimate.interval[0] == estimate.interval[1]
    return Cell(
        text=text(estimate.value) + partial,
        value=estimate.value,
        interval="" if is_exact else tables.interval_text(estimate, bound),
    )


def _partial(of_round: Sequence[tuple[Job, Round]]) -> str:
    """How many labels a mean is over, where it is not over all."""
    have = sum(len(of.selectivities) for _, of in of_round)
    wanted = sum(len(of.labels) for _, of in of_round)
    return f" ({have}/{wanted})" if 0 < have < wanted else ""


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


_COLUMNS: tuple[tuple[Column, Number, measures.Text], ...] = (
    (
        Column(
            name="leaf tax", direction=-1, is_number=True,
            meaning="loss of each document in its own expert alone, less that of the dense model "
            "on the same documents; mean over the partition's domains. A round before the last has "
            "seen fewer tokens than the dense model",
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
            meaning="parameters of an expert kept alone, of those of the full model",
        ),
        parameters_share, _percent,
    ),
    (
        Column(
            name="selectivity", direction=1, is_number=True,
            meaning="what removing an expert costs its own documents, less what it costs the "
            "others; mean over experts (3/4: over those 3 of 4 that have held-out documents)",
        ),
        selectivity, measures.signed,
    ),
    (
        Column(
            name="assigned", group="modularity", direction=1, is_number=True,
            meaning="share of a domain's attribution outside the core that lies in blocks it owns: "
            "after the assignment, and after the training that followed",
        ),
        lambda job, of: of.modularity_assigned, measures.unsigned,
    ),
    (
        Column(
            name="trained", group="modularity", direction=1, is_number=True,
            meaning="share of a domain's attribution outside the core that lies in blocks it owns: "
            "after the assignment, and after the training that followed",
        ),
        lambda job, of: of.modularity, measures.unsigned,
    ),
    (
        Column(
            name="stability", direction=1, is_number=True,
            meaning="how alike the scores are that assign units, from two halves of the documents",
        ),
        lambda job, of: of.mean_stability, measures.unsigned,
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RoundPictures:
    """What is drawn of a round."""

    number: int
    title: str
    tree: str
    network: str | None
    tree_numbers: list[list[Any]]
    """What the tree shows: names of columns, then a row a block."""
    network_numbers: list[list[Any]]
    """What the network's picture comes to: names of columns, then a row a layer, kind and block
    that has units there; empty where there is no such picture."""
    agreement: str
    """The same in words."""


def drawn(sweep: Sweep) -> list[tuple[Job, list[RoundPictures]]]:
    """The pictures of every job that has rounds, in the order of the report."""
    jobs = [job for job in sweep.compared if job.rounds]
    domains = list(dict.fromkeys(domain for job in jobs for domain in job.domains))
    labels = [label for job in jobs for of in job.rounds for label in of.labels]
    colours = pictures.colours_of(domains, labels)
    found = []
    for job in jobs:
        of_job = []
        for of in job.rounds:
            agreement = pictures.agreement(of, colours)
            several = "s" if len(of.labels) > 1 else ""
            of_job.append(
                RoundPictures(
                    number=of.number,
                    title=f"round {of.number}: {len(of.labels)} expert{several}, "
                    f"{len(of.blocks)} blocks, {figures.rounded(of.tokens)} tokens",
                    tree=pictures.tree(of, colours),
                    network=pictures.network(of, colours),
                    tree_numbers=_tree_numbers(of),
                    network_numbers=pictures.used_most(of, colours),
                    agreement="" if agreement is None else _agreement(of, *agreement),
                )
            )
        found.append((job, of_job))
    return found


def _tree_numbers(of: Round) -> list[list[Any]]:
    rows: list[list[Any]] = [
        [
            "block", "owners", *(f"{kind} units" for kind in of.kinds),
            "loss alone, nats per token", "loss in the full model, nats per token",
        ]
    ]  # fmt: skip
    for block in of.blocks:
        own, full = of.losses(block)
        units = [block.units.get(kind, 0) for kind in of.kinds]
        rows.append([block.name, " ".join(block.owners), *units, own, full])
    return rows


def _agreement(of: Round, share: float, by_chance: float) -> str:
    text = (
        f"Of the units outside the core, {_percent(share)} are used most by a domain that owns "
        f"them ({_percent(by_chance)} by chance)"
    )
    if of.modularity is not None:
        text += f"; modularity {of.modularity:.2f}"
    return text + "."


def files(sweep: Sweep) -> dict[str, str]:
    """The pictures as files of their own, by name."""
    return {
        f"{job.name}-round-{of.number}-{kind}.svg": pictures.standing_alone(picture)
        for job, of_job in drawn(sweep)
        for of in of_job
        for kind, picture in (("blocks", of.tree), ("units", of.network))
        if picture is not None
    }
