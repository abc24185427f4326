"""The W&B dashboard of a sweep: its panels, and how it is saved as a workspace and a report.

`make_dashboard` gives plain values and needs neither wandb nor a network; a panel names only
metrics and settings that the runs have. `save` makes or updates both with wandb-workspaces.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gr_sweep.domains import metric_name
from gr_sweep.metrics import registry
from gr_sweep.metrics.registry import Metric
from gr_sweep.tracking.base import HEAT_MAP, MATRIX_TABLE, STEP_FIELD

ADDED = "gr_sweep"
"""Entry of a run's config that `gr-sweep dashboard` adds; a job's own config does not have it."""

COMPARED_AS = "compared_as"
"""In it: the edges of a routed run, the method of another."""

LABEL = "label"
"""In it: the settings that tell the run from others, without the seed."""

MAX_RUNS = 200
"""Runs and bars that a panel shows; W&B's default is 10."""

_BY_DOMAIN = (
    registry.LOSS_FULL,
    registry.TAX,
    registry.COMPUTE_EQUIVALENT_FULL,
    registry.REMOVAL,
    registry.SELECTIVITY,
)


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What the runs of a dashboard have, each in at least one of them."""

    history: frozenset[str]
    """Metrics with a value per step."""
    summary: frozenset[str]
    """Metrics, tables and pictures with one value per run."""
    settings: frozenset[str]
    """Dotted names of the config, with the entries of ADDED."""
    varied: tuple[str, ...]
    """Settings in which the runs differ, without the seed."""
    domains: tuple[str, ...]
    rounds: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Labels of each round of `procedure=alternate`, by its number."""
    needs_labels: bool = False
    """Whether runs that are compared as the same differ in other settings."""


@dataclass(frozen=True)
class Panel:
    """A plot of metrics."""

    panel: str
    """scatter (x, y), parallel, bars, curves, picture or table."""
    title: str
    metrics: tuple[str, ...]
    settings: tuple[str, ...] = ()
    """What runs are grouped by; of a parallel plot, its first axes."""
    x: str | None = None
    """Of curves: the horizontal axis."""


@dataclass(frozen=True)
class Section:
    """Panels that belong together."""

    name: str
    about: str
    """A sentence or two, for the report."""
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A workspace and a report with the same sections."""

    entity: str | None
    """None: the account's default."""
    project: str
    groups: tuple[str, ...]
    """The W&B groups whose runs are shown, that of the oldest job first."""
    columns: tuple[str, ...]
    """Metrics that the list of runs shows."""
    sections: tuple[Section, ...]

    @property
    def title(self) -> str:
        """Of the workspace and of the report."""
        return f"gr-sweep: {self.groups[0]}"

    def as_plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"title": self.title} | dataclasses.asdict(self)


def make_dashboard(
    logged: Logged, *, entity: str | None, project: str, groups: Sequence[str]
) -> Dashboard:
    """The dashboard of runs that have logged this."""
    compared = f"{ADDED}.{COMPARED_AS}"
    by = compared if compared in logged.settings else "edges"
    axes = [pair for pair in registry.AXES if {metric.mean for metric in pair} <= logged.summary]
    means = _bars_of_means(logged, ("loss/", "utility/", "separability/"), by)
    over_settings = [] if not logged.needs_labels else [
        dataclasses.replace(panel, settings=(f"{ADDED}.{LABEL}",)) for panel in means
    ]  # fmt: skip
    sections = (
        Section(
            "Utility and separability",
            "Each point or line is a run: which choice separates best at the least cost?",
            _frontier(logged, axes),
        ),
        Section(
            "Edge choices",
            "Mean over the runs of each edge choice or method, with the spread of their seeds.",
            (*means, *_bars_by_domain(logged, by)),
        ),
        Section(
            "All settings",
            "Mean over the runs that differ only in their seed, with their spread.",
            tuple(over_settings),
        ),
        Section(
            "Loss curves",
            "By domain, over optimizer steps; the runs of a method are one line.",
            _curves(logged),
        ),
        Section(
            "Removal",
            "Rows are removed domains, columns the domains that are read: the diagonal should be "
            "high, the rest 0.",
            _removal(logged, by),
        ),
        Section(
            "Robustness",
            "What attacks on the removed domain recover.",
            tuple(_bars_of_means(logged, ("robustness/",), by)),
        ),
        Section(
            "Cost", "What runs took, and what their experts cost to run.", _cost(logged, by)
        ),
        *_rounds(logged, by),
    )  # fmt: skip
    return Dashboard(
        entity=entity,
        project=project,
        groups=tuple(groups),
        columns=tuple(str(metric.mean) for pair in axes[:1] for metric in pair),
        sections=tuple(section for section in sections if section.panels),
    )


def _bars(title: str, wanted: Iterable[str], logged: Logged, by: str) -> list[Panel]:
    metrics = tuple(key for key in wanted if key in logged.summary)
    return [Panel("bars", title, metrics, (by,))] if metrics else []


def _lines(title: str, wanted: Iterable[str], logged: Logged, by: str, x: str) -> list[Panel]:
    metrics = tuple(key for key in wanted if key in logged.history)
    return [Panel("curves", title, metrics, (by,), x)] if metrics else []


def _bars_of_means(logged: Logged, families: tuple[str, ...], by: str) -> list[Panel]:
    found: list[Panel] = []
    for metric in registry.METRICS:
        if metric.mean is not None and metric.key.startswith(families):
            found += _bars(metric.mean_axis, [metric.mean], logged, by)
    return found


def _bars_by_domain(logged: Logged, by: str) -> list[Panel]:
    found: list[Panel] = []
    for metric in _BY_DOMAIN:
        title = f"{metric.title} by domain" + (f", {metric.unit}" if metric.unit else "")
        found += _bars(title, map(metric, logged.domains), logged, by)
    return found


def _frontier(logged: Logged, axes: Sequence[tuple[Metric, Metric]]) -> tuple[Panel, ...]:
    found = [
        Panel(
            "scatter",
            f"{utility.mean_axis} against {separability.mean_axis}",
            (str(utility.mean), str(separability.mean)),
        )
        for utility, separability in axes
    ]
    varied = tuple(name for name in logged.varied if name in logged.settings)
    if varied and found:
        found.append(
            Panel("parallel", "swept settings and their results", found[0].metrics, varied)
        )
    return tuple(found)


def _curves(logged: Logged) -> tuple[Panel, ...]:
    by = "method.name" if "method.name" in logged.settings else "edges"
    found = _lines(
        "training loss, nats per token", [registry.TRAIN_LOSS.key], logged, by, STEP_FIELD
    )
    for metric in (registry.EVAL_LOSS, registry.TRAIN_LOSS_OF):
        for domain in logged.domains:
            title = f"{metric.title} on {domain}, {metric.unit}"
            found += _lines(title, [metric(domain)], logged, by, STEP_FIELD)
    return tuple(found)


def _removal(logged: Logged, by: str) -> tuple[Panel, ...]:
    found: list[Panel] = []
    for panel, key in (("picture", HEAT_MAP), ("table", MATRIX_TABLE)):
        if key in logged.summary:
            found.append(Panel(panel, "loss that removing a domain adds, per run", (key,)))
    for part in logged.domains:
        wanted = [registry.MATRIX(part, domain) for domain in logged.domains]
        found += _bars(f"cost of removing {part}, nats per token", wanted, logged, by)
    return tuple(found)


def _cost(logged: Logged, by: str) -> tuple[Panel, ...]:
    found: list[Panel] = []
    for metric in registry.METRICS:
        if metric.key.startswith("cost/"):
            names = logged.domains if metric.placeholders else [None]
            wanted = [metric(*([] if name is None else [name])) for name in names]
            found += _bars(metric.axis, wanted, logged, by)
    speed = registry.TRAIN_TOKENS_PER_SECOND
    found += _lines(f"{speed.title}, over steps", [speed.key], logged, by, STEP_FIELD)
    return tuple(found)


def _rounds(logged: Logged, by: str) -> list[Section]:
    """The trade-off over the rounds of `procedure=alternate`, and a section for each of them."""
    x = registry.ROUND.key
    over_rounds: list[Panel] = []
    if x in logged.history:
        experts = map(registry.LOSS_EXPERT, logged.domains)
        over_rounds += _lines(registry.LOSS_EXPERT.axis, experts, logged, by, x)
        over_rounds += _lines("modularity", [registry.MODULARITY.key], logged, by, x)
    about = "What splitting further gains and costs, round by round."
    sections = [Section("Rounds", about, tuple(over_rounds))]
    for number, labels in sorted(logged.rounds.items()):
        panels: list[Panel] = []
        size, tax = (
            registry.in_round(number, key)
            for key in (registry.MEAN_PARAMETERS_KEPT, registry.MEAN_LEAF_TAX)
        )
        if {size, tax} <= logged.summary:
            panels.append(Panel("scatter", "size of an expert against its leaf tax", (size, tax)))
        wanted = [registry.in_round(number, registry.MEAN_SELECTIVITY)]
        panels += _bars(registry.SELECTIVITY.mean_axis, wanted, logged, by)
        for metric, names in (
            (registry.LEAF_TAX, logged.domains),
            (registry.LOSS_EXPERT, logged.domains),
            (registry.SELECTIVITY, labels),
            (registry.PARAMETERS_KEPT, labels),
        ):
            wanted = [registry.in_round(number, metric(name)) for name in names]
            panels += _bars(metric.axis, wanted, logged, by)
        labelled = map(registry.TRAIN_LOSS_OF, labels)
        panels += _lines("training loss by label", labelled, logged, by, STEP_FIELD)
        about = f"Labels: {', '.join(map(metric_name, labels))}."
        sections.append(Section(f"Round {number}", about, tuple(panels)))
    return sections


# On a server


def save(dashboard: Dashboard, entity: str, earlier: Mapping[str, str]) -> dict[str, str]:
    """Saves the workspace and the report on the W&B server that is logged in.

    Args:
        entity: whose project it is.
        earlier: addresses that an earlier call returned. What is still there is updated.

    Returns:
        The addresses of "workspace" and "report".
    """
    import wandb_workspaces.reports.v2.interface as wr
    import wandb_workspaces.workspaces as ws

    place: dict[str, Any] = {"entity": entity, "project": dashboard.project}
    title = "".join(c if c.isalnum() or c in " -_.,:()[]" else "-" for c in dashboard.title)[:128]
    # As the server has it: the library takes filters as text, in which quotes and `=` are lost.
    runs = {
        "filterFormat": "filterV2",
        "filters": [
            {
                "key": {"section": "run", "name": "group"},
                "op": "IN",
                "value": list(dashboard.groups),
                "disabled": False,
            }
        ],
    }

    workspace = _existing(ws.Workspace, earlier.get("workspace")) or ws.Workspace(**place)
    workspace.name = title
    workspace.sections = [
        ws.Section(
            name=section.name,
            panels=[_view_of(panel) for panel in section.panels],
            is_open=True,
            layout_settings=ws.SectionLayoutSettings(
                columns=min(3, len(section.panels)), rows=-(-len(section.panels) // 3)
            ),
            panel_settings=ws.SectionPanelSettings(x_axis=STEP_FIELD),
        )
        for section in dashboard.sections
    ]
    workspace.settings = ws.WorkspaceSettings(x_axis=STEP_FIELD, max_runs=MAX_RUNS)
    workspace.runset_settings = ws.RunsetSettings(
        pinned_columns=[f"summary:{key}" for key in dashboard.columns]
    )
    workspace._stashed_filters_v2, workspace._stashed_filter_string = runs, ""
    workspace.save()

    report = _existing(wr.Report, earlier.get("report")) or wr.Report(**place)
    report.title, report.width = title, "fluid"
    report.description = (
        f"Made from {', '.join(dashboard.groups)} by `gr-sweep dashboard`, which overwrites changes"
    )
    blocks: list[Any] = [wr.TableOfContents()]
    for section in dashboard.sections:
        runset = wr.Runset(**place, name=dashboard.title)
        runset._stashed_filters_v2, runset._stashed_filter_string = runs, ""
        panels = [
            _view_of(panel, layout=wr.Layout(x=8 * (at % 3), y=8 * (at // 3), w=8, h=8))
            for at, panel in enumerate(section.panels)
        ]
        blocks += [wr.H2(section.name), wr.P(section.about)]
        blocks.append(wr.PanelGrid(runsets=[runset], panels=panels))
    report.blocks = blocks
    report.save()
    return {"workspace": str(workspace.url), "report": str(report.url)}


def _existing(kind: Any, url: str | None) -> Any:
    """The workspace or report at a URL; None where it is gone."""
    try:
        return kind.from_url(url) if url else None
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def _view_of(panel: Panel, **layout: Any) -> Any:
    """A panel of wandb-workspaces.

    Args:
        layout: position and size, in a report.
    """
    import wandb_workspaces.reports.v2.interface as wr

    layout["title"] = panel.title
    match panel.panel:
        case "scatter":
            x, y = map(wr.SummaryMetric, panel.metrics)
            return wr.ScatterPlot(x=x, y=y, **layout)
        case "parallel":
            axes: list[Any] = [wr.Config(name) for name in panel.settings]
            axes += [wr.SummaryMetric(key) for key in panel.metrics]
            columns = [wr.ParallelCoordinatesPlotColumn(axis) for axis in axes]
            return wr.ParallelCoordinatesPlot(columns=columns, **layout)
        case "bars":
            return wr.BarPlot(
                metrics=list(panel.metrics),
                groupby=wr.Config(panel.settings[0]),
                groupby_aggfunc="mean",
                groupby_rangefunc="stderr",
                max_runs_to_show=MAX_RUNS,
                max_bars_to_show=MAX_RUNS,
                **layout,
            )
        case "curves":
            return wr.LinePlot(
                x=panel.x,
                y=list(panel.metrics),
                title_x="round" if panel.x == registry.ROUND.key else "optimizer steps",
                groupby=wr.Config(panel.settings[0]),
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
                max_runs_to_show=MAX_RUNS,
                **layout,
            )
        case "picture":
            return wr.MediaBrowser(media_keys=list(panel.metrics), num_columns=3, **layout)
        case "table":
            del layout["title"]  # it has none
            return wr.WeavePanelSummaryTable(table_name=panel.metrics[0], **layout)
    raise AssertionError(f"unknown kind of panel: {panel.panel}")
