"""The W&B dashboard of a sweep: its panels, saved as a workspace and as a report.

A panel names only metrics that the runs have. `make_sections` needs no network.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws

from gr_sweep.metrics import registry
from gr_sweep.metrics.registry import Metric
from gr_sweep.tracking.base import HEAT_MAP, STEP_FIELD
from gr_sweep.tracking.wandb import without_password

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

    @property
    def axes(self) -> tuple[str, ...]:
        """The preferred means of utility and of separability that the runs have; or empty."""
        pairs = ((utility.mean, other.mean) for utility, other in registry.AXES)
        return next((pair for pair in pairs if self.summary.issuperset(pair)), ())


def make_sections(logged: Logged) -> dict[str, list[Any]]:
    """The panels of each section, as wandb-workspaces has them, of metrics that the runs have."""
    found = {name: [panel for panel in panels if panel] for name, panels in _sections(logged)}
    return {name: panels for name, panels in found.items() if panels}


def _sections(logged: Logged) -> Iterator[tuple[str, Iterable[Any]]]:
    """Names and panels of all sections that a sweep may have; None for a panel without metrics."""
    domains, means = logged.domains, ("loss/", "utility/", "separability/")
    groups = {"groupby_aggfunc": "mean", "max_runs_to_show": MAX_RUNS}

    def bars(title: str, keys: Iterable[str], by: str = _BY) -> Any:
        found = [key for key in keys if key in logged.summary]
        more = {"groupby_rangefunc": "stderr", "max_bars_to_show": MAX_RUNS, **groups}
        return found and wr.BarPlot(title=title, metrics=found, groupby=wr.Config(by), **more)

    def curves(title: str, keys: Iterable[str], by: str = _BY, x: str = STEP_FIELD) -> Any:
        found = [key for key in keys if key in logged.history]
        title_x = "optimizer steps" if x == STEP_FIELD else "round"
        more = {"title_x": title_x, "groupby_rangefunc": "minmax", **groups}
        return found and wr.LinePlot(title=title, x=x, y=found, groupby=wr.Config(by), **more)

    def bars_of_means(families: tuple[str, ...], by: str = _BY) -> list[Any]:
        return [
            bars(metric.mean_axis, [metric.mean], by)
            for metric in registry.METRICS
            if metric.mean and metric.key.startswith(families)
        ]

    def over_domains(metric: Metric) -> list[str]:
        return [metric(domain) for domain in domains] if metric.placeholders else [metric.key]

    yield "Utility and separability", _trade_offs(logged)

    by_domain = [
        bars(f"{metric.title} by domain{metric.unit and ', '}{metric.unit}", over_domains(metric))
        for metric in _BY_DOMAIN
    ]
    yield "Edge choices", [*bars_of_means(means), *by_domain]
    yield "All settings", bars_of_means(means, f"{ADDED}.{LABEL}")

    loss = registry.TRAIN_LOSS
    losses = [curves(loss.axis, [loss.key], "method.name")]
    for metric in (registry.EVAL_LOSS, registry.TRAIN_LOSS_OF):
        for domain in domains:
            title = f"{metric.title} on {domain}, {metric.unit}"
            losses.append(curves(title, [metric(domain)], "method.name"))
    yield "Loss curves", losses

    removal: list[Any] = []
    if HEAT_MAP in logged.summary:
        title = "loss that removing a domain adds, per run"
        removal.append(wr.MediaBrowser(title=title, media_keys=[HEAT_MAP], num_columns=3))
    for part in domains:
        keys = [registry.MATRIX(part, domain) for domain in domains]
        removal.append(bars(f"cost of removing {part}, nats per token", keys))
    yield "Removal", removal
    yield "Robustness", bars_of_means(("robustness/",))

    costs = [metric for metric in registry.METRICS if metric.key.startswith("cost/")]
    speed = registry.TRAIN_TOKENS_PER_SECOND
    over_steps = curves(f"{speed.title}, over steps", [speed.key])
    yield "Cost", [*(bars(metric.axis, over_domains(metric)) for metric in costs), over_steps]

    rounds = (registry.LOSS_SERVED, registry.LOSS_EXPERT, registry.MODULARITY)
    if (x := registry.ROUND.key) in logged.history:
        yield "Rounds", [curves(metric.axis, over_domains(metric), x=x) for metric in rounds]


def _trade_offs(logged: Logged) -> list[Any]:
    panels: list[Any] = [
        wr.ScatterPlot(
            title=f"{utility.mean_axis} against {other.mean_axis}",
            x=wr.SummaryMetric(utility.mean),
            y=wr.SummaryMetric(other.mean),
        )
        for utility, other in registry.AXES
        if logged.summary.issuperset((utility.mean, other.mean))
    ]
    if logged.varied and logged.axes:
        axes = [*map(wr.Config, logged.varied), *map(wr.SummaryMetric, logged.axes)]
        columns = [wr.ParallelCoordinatesPlotColumn(axis) for axis in axes]
        title = "swept settings and their results"
        panels.append(wr.ParallelCoordinatesPlot(title=title, columns=columns))
    return panels


def save(
    logged: Logged, groups: Sequence[str], place: Mapping[str, str], earlier: Mapping[str, str]
) -> dict[str, str]:
    """Saves the workspace and the report on the W&B server that is logged in.

    Args:
        logged: what the runs have.
        groups: the W&B groups whose runs are shown, that of the oldest job first.
        place: `entity` and `project`.
        earlier: addresses that an earlier call returned. What is still there is updated.

    Returns:
        The addresses of "workspace" and "report".
    """
    sections, name = make_sections(logged), f"gr-sweep: {groups[0]}"
    title = "".join(c if c.isalnum() or c in " -_.,:()[]" else "-" for c in name)[:128]
    # As the server has it: the library takes filters as text, in which quotes and `=` are lost.
    group = {"section": "run", "name": "group"}
    only = {"key": group, "op": "IN", "value": list(groups), "disabled": False}
    runs = {"filterFormat": "filterV2", "filters": [only]}

    workspace = _existing(ws.Workspace, earlier.get("workspace")) or ws.Workspace(**place)
    workspace.name = title
    workspace.sections = [
        ws.Section(
            name=section,
            panels=panels,
            is_open=True,
            layout_settings=ws.SectionLayoutSettings(
                columns=min(3, len(panels)), rows=-(-len(panels) // 3)
            ),
            panel_settings=ws.SectionPanelSettings(x_axis=STEP_FIELD),
        )
        for section, panels in sections.items()
    ]
    workspace.settings = ws.WorkspaceSettings(x_axis=STEP_FIELD, max_runs=MAX_RUNS)
    workspace.runset_settings = ws.RunsetSettings(
        pinned_columns=[f"summary:{key}" for key in logged.axes]
    )
    workspace._stashed_filters_v2, workspace._stashed_filter_string = runs, ""
    workspace.save()

    report = _existing(wr.Report, earlier.get("report")) or wr.Report(**place)
    report.title, report.width = title, "fluid"
    report.description = (
        f"Made from {', '.join(groups)} by `gr-sweep dashboard`, which overwrites changes"
    )
    blocks: list[Any] = [wr.TableOfContents()]
    for section, panels in sections.items():
        runset = wr.Runset(**place, name=name)
        runset._stashed_filters_v2, runset._stashed_filter_string = runs, ""
        for at, panel in enumerate(panels):
            panel.layout = wr.Layout(x=8 * (at % 3), y=8 * (at // 3), w=8, h=8)
        blocks += [wr.H2(section), wr.PanelGrid(runsets=[runset], panels=panels)]
    report.blocks = blocks
    report.save()
    urls = {"workspace": workspace.url, "report": report.url}
    return {kind: without_password(str(url)) for kind, url in urls.items()}


def _existing(kind: Any, url: str | None) -> Any:
    """The workspace or report at a URL; None where it is gone."""
    try:
        return kind.from_url(url) if url else None
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
