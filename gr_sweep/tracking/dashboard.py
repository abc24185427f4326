"""What a W&B dashboard of a sweep shows, as plain values: sections of panels, and in each panel
only metrics and settings that runs have.

Nothing of W&B is loaded: what is printed needs no account. `tracking/wandb_views.py` makes panels
of a server from it.
"""

import abc
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gr_sweep.domains import metric_name
from gr_sweep.metrics import registry
from gr_sweep.tracking.base import HEAT_MAP, MATRIX_TABLE, STEP_FIELD

ADDED = "gr_sweep"
"""Entry of a run's config that the verb `dashboard` adds; a job's own config has no such entry."""

COMPARED_AS = "compared_as"
"""In it: the edges of a routed run, the method of another."""
LABEL = "label"
"""In it: all that tells the run apart, but for its seed."""

_EDGES = "edges"
_METHOD = "method.name"

_COST = {
    registry.COST_TOKENS_PER_SECOND.key: "tokens a second",
    registry.COST_TRAIN_SECONDS.key: "training, seconds",
    registry.COST_PEAK_MEMORY_GIB.key: "peak memory, GiB",
    registry.COST_MFU.key: "model FLOP utilisation",
    registry.COST_PARAMETERS.key: "parameters",
    registry.COST_FLOPS_PER_TOKEN.key: "FLOPs a token",
    registry.COST_TRAIN_FLOPS_PER_TOKEN.key: "training FLOPs a token",
    registry.COST_EVAL_SHARE.key: "share of the time that evaluation takes",
}
"""The cost panels, in their order."""


@dataclass(frozen=True)
class Measure:
    """A metric and what an axis says of it."""

    key: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What the runs of a dashboard have, each at least in one of them."""

    history: frozenset[str]
    """Metrics with a row a step."""
    summary: frozenset[str]
    """Metrics with one number a run."""
    settings: frozenset[str]
    """Dotted names of the config, with what the dashboard adds."""
    varied: tuple[str, ...]
    """Those in which the runs differ, but for the seed."""
    domains: tuple[str, ...]
    rounds: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Labels of each round of `procedure=alternate`, by its number."""
    media: frozenset[str] = frozenset()
    """Tables and pictures."""
    num_compared: int = 0
    """Values of COMPARED_AS."""
    num_labels: int = 0
    """Values of LABEL."""


@dataclass(frozen=True)
class Panel(abc.ABC):
    """A plot. `metrics` are all that it reads of history or summaries, `settings` of configs."""

    title: str

    @property
    @abc.abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of metrics, tables and pictures."""

    @property
    def settings(self) -> tuple[str, ...]:
        """Dotted names of settings."""
        return ()


@dataclass(frozen=True)
class Scatter(Panel):
    """A point a run."""

    x: str
    y: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """Both axes."""
        return (self.x, self.y)


@dataclass(frozen=True)
class Parallel(Panel):
    """A line a run, over settings and then metrics."""

    over: tuple[str, ...]
    ends: tuple[str, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The last axes."""
        return self.ends

    @property
    def settings(self) -> tuple[str, ...]:
        """The first axes."""
        return self.over


@dataclass(frozen=True)
class Bars(Panel):
    """A bar a group of runs with its mean; seeds are the spread."""

    of: tuple[str, ...]
    grouped_by: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """What the bars are as long as."""
        return self.of

    @property
    def settings(self) -> tuple[str, ...]:
        """What makes a group."""
        return (self.grouped_by,)


@dataclass(frozen=True)
class Curves(Panel):
    """A line a group of runs and metric, over steps or rounds."""

    of: tuple[str, ...]
    x: str
    grouped_by: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """Both axes."""
        return (*self.of, self.x)

    @property
    def settings(self) -> tuple[str, ...]:
        """What makes a group."""
        return (self.grouped_by,)


@dataclass(frozen=True)
class Pictures(Panel):
    """A picture a run."""

    of: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """The pictures' name."""
        return (self.of,)


@dataclass(frozen=True)
class Table(Panel):
    """A table of each run, one below the other."""

    of: str

    @property
    def metrics(self) -> tuple[str, ...]:
        """The table's name."""
        return (self.of,)


@dataclass(frozen=True)
class Section:
    """Panels that belong together."""

    name: str
    about: str
    """For the report, a sentence or two."""
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A workspace and a report of the same sections."""

    entity: str | None
    """None: the account's default."""
    project: str
    groups: tuple[str, ...]
    """The W&B groups whose runs are shown, that of the oldest job first; none: all of the project.
    """
    columns: tuple[str, ...]
    """Metrics that the list of runs shows."""
    sections: tuple[Section, ...]

    @property
    def title(self) -> str:
        """Of the workspace and of the report."""
        return f"gr-sweep: {self.groups[0] if self.groups else self.project}"

    @property
    def markers(self) -> tuple[str, ...]:
        """What is made has the first; what is found by any of them is updated, not made twice.

        A sweep whose folder was renamed has several groups, and one of them may go.
        """
        names = ["\n".join((self.project, group)) for group in self.groups] or [self.project]
        return tuple(hashlib.sha256(name.encode()).hexdigest()[:11] for name in names)

    @property
    def panels(self) -> list[Panel]:
        """Of all sections."""
        return [panel for section in self.sections for panel in section.panels]

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title,
            "entity": self.entity,
            "project": self.project,
            "groups": list(self.groups),
            "columns": list(self.columns),
            "sections": [
                {
                    "name": section.name,
                    "about": section.about,
                    "panels": [
                        {"panel": type(panel).__name__.lower()} | dataclasses.asdict(panel)
                        for panel in section.panels
                    ],
                }
                for section in self.sections
            ],
        }


def make_dashboard(
    logged: Logged,
    *,
    entity: str | None,
    project: str,
    groups: Sequence[str],
    axes: Sequence[tuple[Measure, Measure]],
    measures: Sequence[Measure],
    robust: Sequence[Measure],
) -> Dashboard:
    """The dashboard of runs that have logged this.

    Args:
        axes: utility and separability; the pair that is to be seen first comes first.
        measures: what runs are compared by.
        robust: measures of attacks and of the text.
    """
    by = _grouping(logged)
    found = [pair for pair in axes if all(measure.key in logged.summary for measure in pair)]
    compared = [
        measure
        for measure in measures
        if measure.key in logged.summary and measure.key not in _COST
    ]
    sections = (
        _frontier(logged, found, compared),
        _bars(
            "Edge choices",
            "Mean over the runs of each edge choice or method, with the spread of their seeds.",
            [*compared, *_by_domain(logged)],
            by,
        ),
        *_more_bars(logged, compared),
        _curves(logged),
        _removal(logged, by),
        _bars(
            "Robustness",
            "What attacks on the removed domain find, and what the text's markers do.",
            [measure for measure in robust if measure.key in logged.summary],
            by,
        ),
        _cost(logged, by),
        *_rounds(logged, by),
    )
    return Dashboard(
        entity=entity,
        project=project,
        groups=tuple(groups),
        columns=tuple(dict.fromkeys(measure.key for pair in found[:1] for measure in pair)),
        sections=tuple(section for section in sections if section.panels),
    )


def _grouping(logged: Logged) -> str:
    added = f"{ADDED}.{COMPARED_AS}"
    return added if added in logged.settings else _EDGES


def _have(wanted: Iterable[str], has: frozenset[str]) -> tuple[str, ...]:
    return tuple(key for key in dict.fromkeys(wanted) if key in has)


def _frontier(
    logged: Logged, axes: Sequence[tuple[Measure, Measure]], compared: Sequence[Measure]
) -> Section:
    panels: list[Panel] = [
        Scatter(f"{utility.title} against {separability.title}", utility.key, separability.key)
        for utility, separability in axes
    ]
    over = _have(logged.varied, logged.settings)
    ends = [measure.key for pair in axes[:1] for measure in pair]
    ends = ends or [measure.key for measure in compared[:2]]
    if over and ends:
        panels.append(Parallel("the swept choices and what they come to", over, tuple(ends)))
    return Section(
        "Utility and separability",
        "A point, or a line, is a run: which choice separates best at the least cost?",
        tuple(panels),
    )


def _by_domain(logged: Logged) -> list[tuple[str, tuple[str, ...]]]:
    """Title and metrics of panels with a bar a domain."""
    families = (
        ("loss L(d) by domain, nats a token", registry.LOSS_FULL),
        ("tax by domain, nats a token", registry.TAX),
        ("compute-equivalent by domain", registry.COMPUTE_EQUIVALENT_FULL),
        ("removal by domain", registry.REMOVAL),
        ("selectivity by domain, nats a token", registry.SELECTIVITY),
    )
    found = ((title, _have(map(key, logged.domains), logged.summary)) for title, key in families)
    return [(title, of) for title, of in found if of]


def _bars(
    name: str,
    about: str,
    measures: Iterable[Measure | tuple[str, tuple[str, ...]]],
    by: str,
) -> Section:
    panels = []
    for measure in measures:
        title, of = (measure.title, (measure.key,)) if isinstance(measure, Measure) else measure
        panels.append(Bars(title, of, by))
    return Section(name, about, tuple(panels))


def _more_bars(logged: Logged, compared: Sequence[Measure]) -> list[Section]:
    """The same by all settings, where these tell apart what the edge choice does not."""
    by = f"{ADDED}.{LABEL}"
    if by not in logged.settings or logged.num_labels <= logged.num_compared:
        return []
    return [
        _bars(
            "All settings",
            "Mean over the runs that differ in their seed alone, with their spread.",
            compared,
            by,
        )
    ]


def _curves(logged: Logged) -> Section:
    by = _METHOD if _METHOD in logged.settings else _EDGES
    panels = []
    for title, wanted in (
        ("training loss, nats a token", [registry.TRAIN_LOSS.key]),
        *(
            (f"held-out loss on {domain}, nats a token", [registry.EVAL_LOSS(domain)])
            for domain in logged.domains
        ),
        *(
            (f"training loss on {domain}, nats a token", [registry.TRAIN_LOSS_OF(domain)])
            for domain in logged.domains
        ),
    ):
        of = _have(wanted, logged.history)
        if of:
            panels.append(Curves(title, of, STEP_FIELD, by))
    return Section(
        "Loss curves", "By domain, over optimizer steps; runs of one method are one line.",
        tuple(panels),
    )  # fmt: skip


def _removal(logged: Logged, by: str) -> Section:
    panels: list[Panel] = []
    if HEAT_MAP in logged.media:
        panels.append(Pictures("loss that removing a domain adds, a picture a run", HEAT_MAP))
    if MATRIX_TABLE in logged.media:
        panels.append(Table("loss that removing a domain adds, as a table", MATRIX_TABLE))
    for part in logged.domains:
        wanted = [registry.MATRIX(part, domain) for domain in logged.domains]
        of = _have(wanted, logged.summary)
        if of:
            panels.append(Bars(f"what removing {part} costs each domain, nats a token", of, by))
    return Section(
        "Removal",
        "Rows are removed domains, columns those that are read: the diagonal is to be high, the "
        "rest 0.",
        tuple(panels),
    )


def _cost(logged: Logged, by: str) -> Section:
    panels: list[Panel] = [
        Bars(title, (key,), by) for key, title in _COST.items() if key in logged.summary
    ]
    for title, key in (
        ("parameters of each expert alone", registry.PARAMETERS_KEPT),
        ("FLOPs a token of each expert alone", registry.FLOPS_PER_TOKEN_KEPT),
    ):
        of = _have(map(key, logged.domains), logged.summary)
        if of:
            panels.append(Bars(title, of, by))
    if registry.TRAIN_TOKENS_PER_SECOND.key in logged.history:
        of = (registry.TRAIN_TOKENS_PER_SECOND.key,)
        panels.append(Curves("tokens a second, over steps", of, STEP_FIELD, by))
    return Section("Cost", "What runs took, and what their experts cost to run.", tuple(panels))


def _rounds(logged: Logged, by: str) -> list[Section]:
    """The trade-off over rounds, and a section for each of them."""
    over_rounds = []
    if registry.ROUND.key in logged.history:
        for title, wanted in (
            (
                "loss of each document in its own expert, nats a token",
                [registry.LOSS_EXPERT(domain) for domain in logged.domains],
            ),
            ("modularity", [registry.MODULARITY.key]),
        ):
            of = _have(wanted, logged.history)
            if of:
                over_rounds.append(Curves(title, of, registry.ROUND.key, by))
    sections = [
        Section(
            "Rounds",
            "Of procedure=alternate: what splitting further gains and costs, round by round.",
            tuple(over_rounds),
        )
    ]
    for number, labels in sorted(logged.rounds.items()):
        panels: list[Panel] = []
        scatter = (
            registry.in_round(number, registry.MEAN_PARAMETERS_KEPT),
            registry.in_round(number, registry.MEAN_LEAF_TAX),
        )
        if set(scatter) <= logged.summary:
            panels.append(Scatter("size of an expert against its leaf tax", *scatter))
        by_title: dict[str, Iterable[str]] = {
            "mean selectivity, nats": [registry.MEAN_SELECTIVITY],
            "modularity": [registry.MODULARITY.key],
            "leaf tax by domain, nats a token": map(registry.LEAF_TAX, logged.domains),
            "loss of each document in its own expert, nats a token": map(
                registry.LOSS_EXPERT, logged.domains
            ),
            "selectivity by label, nats a token": map(registry.SELECTIVITY, labels),
            "parameters of each expert alone": map(registry.PARAMETERS_KEPT, labels),
        }
        for title, in_round in by_title.items():
            of = _have((registry.in_round(number, key) for key in in_round), logged.summary)
            if of:
                panels.append(Bars(title, of, by))
        of = _have(map(registry.TRAIN_LOSS_OF, labels), logged.history)
        if of:
            panels.append(Curves("training loss by label, nats a token", of, STEP_FIELD, by))
        names = ", ".join(map(metric_name, labels))
        sections.append(Section(f"Round {number}", f"Labels: {names}.", tuple(panels)))
    return sections
