"""The W&B dashboard of a sweep: its panels, and how it is saved as a workspace and a report.

`make_dashboard` gives plain values and needs neither wandb nor a network; a panel names only
metrics that the runs have. `save` makes or updates both with wandb-workspaces.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gr_sweep.metrics import registry
from gr_sweep.metrics.registry import Metric
from gr_sweep.tracking.base import HEAT_MAP, STEP_FIELD

ADDED = "gr_sweep"
"""Entry of a run's config that `gr-sweep dashboard` adds; a job's own config does not have it."""

COMPARED_AS = "compared_as"
"""In it: the edges of a routed run, the method of another. Panels are grouped by it."""

LABEL = "label"
"""In it: the settings that tell the run from others, without the seed."""

MAX_RUNS = 200
"""Runs and bars that a panel shows; W&B's default is 10."""

_BY = f"{ADDED}.{COMPARED_AS}"
_BY_DOMAIN = (
    registry.LOSS_SERVED,
    registry.SERVED_TAX,
    registry.COMPUTE_EQUIVALENT_SERVED,
    registry.SERVED_REMOVAL,
    registry.SELECTIVITY,
)


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What the runs of a dashboard have, each in at least one of them."""

    history: frozenset[str]
    """Metrics with a value per step."""
    summary: frozenset[str]
    """Metrics and pictures with one value per run."""
    varied: tuple[str, ...]
    """Settings in which the runs differ, by their dotted names, without the seed."""
    domains: tuple[str, ...]


@dataclass(frozen=True)
class Panel:
    """A plot of metrics."""

    panel: str
    """scatter (x, y), parallel, bars, curves or picture."""
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
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A workspace and a report with the same sections."""

    title: str
    """Of the workspace and of the report."""
    entity: str | None
    """None: the account's default."""
    project: str
    groups: tuple[str, ...]
    """The W&B groups whose runs are shown, that of the oldest job first."""
    columns: tuple[str, ...]
    """Metrics that the list of runs shows."""
    sections: tuple[Section, ...]


def make_dashboard(
    logged: Logged, *, entity: str | None, project: str, groups: Sequence[str]
) -> Dashboard:
    """The dashboard of runs that have logged this."""
    pairs = [(utility.mean, separability.mean) for utility, separability in registry.AXES]
    axes = next((pair for pair in pairs if logged.summary.issuperset(pair)), ())
    sections = []
    for name, panels in _sections(logged, axes):
        shown = [found for panel in panels if (found := _of_logged(panel, logged)) is not None]
        if shown:
            sections.append(Section(name, tuple(shown)))
    return Dashboard(
        title=f"gr-sweep: {groups[0]}",
        entity=entity,
        project=project,
        groups=tuple(groups),
        columns=axes,
        sections=tuple(sections),
    )


def _of_logged(panel: Panel, logged: Logged) -> Panel | None:
    """The panel with those of its metrics that the runs have; None if too few are left to plot."""
    has = logged.history if panel.panel == "curves" else logged.summary
    metrics = tuple(key for key in panel.metrics if key in has)
    is_whole = metrics == panel.metrics or panel.panel not in ("scatter", "parallel")
    has_x = panel.x in (None, STEP_FIELD) or panel.x in logged.history
    return dataclasses.replace(panel, metrics=metrics) if metrics and is_whole and has_x else None


def _bars(title: str, metrics: Iterable[str], by: str = _BY) -> Panel:
    return Panel("bars", title, tuple(metrics), (by,))


def _curves(title: str, metrics: Iterable[str], by: str = _BY, x: str = STEP_FIELD) -> Panel:
    return Panel("curves", title, tuple(metrics), (by,), x)


def _bars_of_means(families: tuple[str, ...], by: str = _BY) -> list[Panel]:
    return [
        _bars(metric.mean_axis, [metric.mean], by)
        for metric in registry.METRICS
        if metric.mean and metric.key.startswith(families)
    ]


def _sections(logged: Logged, axes: tuple[str, ...]) -> Iterator[tuple[str, Iterable[Panel]]]:
    """Names and panels of all sections that a sweep may have."""
    domains, means = logged.domains, ("loss/", "utility/", "separability/")

    def over_domains(metric: Metric) -> list[str]:
        return [metric(domain) for domain in domains] if metric.placeholders else [metric.key]

    scatters = [
        Panel("scatter", f"{y.mean_axis} against {x.mean_axis}", (str(y.mean), str(x.mean)))
        for y, x in registry.AXES
    ]
    if logged.varied:
        title = "swept settings and their results"
        scatters.append(Panel("parallel", title, axes, logged.varied))
    yield "Utility and separability", scatters

    by_domain = [
        _bars(f"{metric.title} by domain{metric.unit and ', '}{metric.unit}", over_domains(metric))
        for metric in _BY_DOMAIN
    ]
    yield "Edge choices", [*_bars_of_means(means), *by_domain]
    yield "All settings", _bars_of_means(means, f"{ADDED}.{LABEL}")

    loss = registry.TRAIN_LOSS
    curves = [_curves(loss.axis, [loss.key], "method.name")]
    for metric in (registry.EVAL_LOSS, registry.TRAIN_LOSS_OF):
        for domain in domains:
            title = f"{metric.title} on {domain}, {metric.unit}"
            curves.append(_curves(title, [metric(domain)], "method.name"))
    yield "Loss curves", curves

    removal = [Panel("picture", "loss that removing a domain adds, per run", (HEAT_MAP,))]
    for part in domains:
        keys = [registry.MATRIX(part, domain) for domain in domains]
        removal.append(_bars(f"cost of removing {part}, nats per token", keys))
    yield "Removal", removal
    yield "Robustness", _bars_of_means(("robustness/",))

    costs = [metric for metric in registry.METRICS if metric.key.startswith("cost/")]
    speed = registry.TRAIN_TOKENS_PER_SECOND
    over_steps = _curves(f"{speed.title}, over steps", [speed.key])
    yield "Cost", [*(_bars(metric.axis, over_domains(metric)) for metric in costs), over_steps]

    x = registry.ROUND.key
    rounds = (registry.LOSS_SERVED, registry.LOSS_EXPERT, registry.MODULARITY)
    yield "Rounds", [_curves(metric.axis, over_domains(metric), x=x) for metric in rounds]


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
    group = {"section": "run", "name": "group"}
    only = {"key": group, "op": "IN", "value": list(dashboard.groups), "disabled": False}
    runs = {"filterFormat": "filterV2", "filters": [only]}

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
        blocks += [wr.H2(section.name), wr.PanelGrid(runsets=[runset], panels=panels)]
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
    raise AssertionError(f"unknown kind of panel: {panel.panel}")
