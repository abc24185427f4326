"""Saves a dashboard on a W&B server: a saved view of the project's workspace, and a report.

Each is found again on the server by a marker that comes from the sweep's name: the view's own name,
and a word in the report's description. So there is one of each however often it is saved, and
nothing has to be remembered here. A report without the word is never written to: it may be
anybody's, whatever its title.

Facts of wandb-workspaces 0.4 that shape this file: a filter goes through a text of Python, in which
a quote or `=` of a name is lost, so filters are given as the server has them; symbols in the name
of a view are refused; saving a report gives it a new name each time, but keeps its id.
"""

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws
from wandb.apis import public
from wandb_workspaces._graphql import execute_graphql

from gr_sweep.metrics import registry
from gr_sweep.tracking.base import STEP_FIELD
from gr_sweep.tracking.dashboard import (
    Bars,
    Curves,
    Dashboard,
    Panel,
    Parallel,
    Pictures,
    Scatter,
    Section,
    Table,
)
from gr_sweep.tracking.wandb_api import Server, asking

MOST_RUNS = 200
"""Shown at once; W&B shows 10 otherwise."""

_LONGEST_TITLE = 128
_WIDTH = 24
"""Of a report's grid, in its units."""
_HEIGHT = 8

_VIEWS = """
    query Views($entity: String, $project: String, $viewName: String) {
        project(name: $project, entityName: $entity) {
            allViews(viewType: "project-view", viewName: $viewName) {
                edges { node { id name } }
            }
        }
    }
"""


def save(dashboard: Dashboard, server: Server, entity: str) -> list[tuple[str, str, bool]]:
    """Makes workspace and report, or brings those that there are up to date.

    Args:
        entity: whose project it is.

    Returns:
        Of each: what it is, its address, and whether it is new.

    Raises:
        JobError: the server is away or refuses, or there is no such project.
    """
    # Outside of `asking`: what goes wrong here is no server's fault.
    workspace, report = _workspace(dashboard, entity), _report(dashboard, entity)
    with asking(server.url):
        name, found = _view(server, dashboard, entity)
        workspace._internal_name, workspace._internal_id = name, found or ""
        workspace.save()  # type: ignore[no-untyped-call]
        marker, known = _known_report(server, dashboard, entity)
        report.description += _mark(marker)
        report.id = known or ""
        report.save()
        return [
            ("workspace", workspace.url, found is None),
            ("report", report.url, known is None),
        ]


def shown_title(title: str) -> str:
    """A title without what an address or W&B refuses."""
    plain = "".join(c if c.isalnum() or c in " -_.,:()[]" else "-" for c in title)
    return plain[:_LONGEST_TITLE]


def _view(server: Server, dashboard: Dashboard, entity: str) -> tuple[str, str | None]:
    """Name of the dashboard's view, and its id where it is there."""
    names = [f"nw-{marker}-v" for marker in dashboard.markers]
    for name in names:
        variables = {"entity": entity, "project": dashboard.project, "viewName": name}
        project = execute_graphql(server.api, _VIEWS, variables)["project"] or {}
        for edge in (project.get("allViews") or {}).get("edges") or []:
            if edge["node"]["name"] == name:
                return name, str(edge["node"]["id"])
    return names[0], None


def _known_report(server: Server, dashboard: Dashboard, entity: str) -> tuple[str, str | None]:
    """Marker of the dashboard's report, and its id where it is there; of several the oldest."""
    reports: list[public.BetaReport] = list(
        server.api.reports(f"{entity}/{dashboard.project}", per_page=100)
    )
    for marker in dashboard.markers:
        found = [report for report in reports if _mark(marker) in (report.description or "")]
        if found:
            return marker, str(min(found, key=lambda report: report.created_at or "").id)
    return dashboard.markers[0], None


def _mark(marker: str) -> str:
    return f"[gr-sweep {marker}]"


def _workspace(dashboard: Dashboard, entity: str) -> ws.Workspace:
    workspace = ws.Workspace(
        entity=entity,
        project=dashboard.project,
        name=shown_title(dashboard.title),
        sections=[_section(section) for section in dashboard.sections],
        settings=ws.WorkspaceSettings(x_axis=STEP_FIELD, max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            pinned_columns=[f"summary:{key}" for key in dashboard.columns]
        ),
    )
    workspace._stashed_filters_v2 = _filters(dashboard.groups)
    workspace._stashed_filter_string = ""  # what the settings say
    return workspace


def _section(section: Section) -> ws.Section:
    columns = min(3, len(section.panels))
    return ws.Section(
        name=section.name,
        panels=[_panel(panel) for panel in section.panels],
        is_open=True,
        layout_settings=ws.SectionLayoutSettings(
            columns=columns, rows=-(-len(section.panels) // columns)
        ),
        panel_settings=ws.SectionPanelSettings(x_axis=STEP_FIELD),
    )


def _report(dashboard: Dashboard, entity: str) -> wr.Report:
    blocks: list[Any] = [wr.TableOfContents()]
    for section in dashboard.sections:
        runset = wr.Runset(entity=entity, project=dashboard.project, name=dashboard.title)
        runset._stashed_filters_v2 = _filters(dashboard.groups)
        runset._stashed_filter_string = ""  # what the runset says
        blocks += [
            wr.H2(section.name),
            wr.P(section.about),
            wr.PanelGrid(runsets=[runset], panels=_grid(section.panels)),
        ]
    name = ", ".join(dashboard.groups) or dashboard.project
    return wr.Report(
        entity=entity,
        project=dashboard.project,
        title=shown_title(dashboard.title),
        description=f"Made of {name} by `gr-sweep dashboard`, which finds it by the mark that "
        "follows, and writes over changes that are made here. ",
        blocks=blocks,
        width="fluid",
    )


def _grid(panels: Sequence[Panel]) -> list[Any]:
    """Panels in rows of up to three."""
    columns = min(3, len(panels))
    width = _WIDTH // columns
    return [
        _panel(
            panel,
            layout=wr.Layout(
                x=width * (at % columns), y=_HEIGHT * (at // columns), w=width, h=_HEIGHT
            ),
        )
        for at, panel in enumerate(panels)
    ]


def _filters(groups: Sequence[str]) -> dict[str, Any]:
    """Runs of these groups; of all where none is named."""
    filters: list[dict[str, Any]] = []
    if groups:
        value: Any = groups[0] if len(groups) == 1 else list(groups)
        filters.append(
            {
                "key": {"section": "run", "name": "group"},
                "op": "=" if len(groups) == 1 else "IN",
                "value": value,
                "disabled": False,
            }
        )
    return {"filterFormat": "filterV2", "filters": filters}


def _panel(panel: Panel, **layout: Any) -> Any:
    """The library's panel.

    Args:
        layout: where it stands, for a report.
    """
    match panel:
        case Scatter(title, x, y):
            return wr.ScatterPlot(
                title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y), **layout
            )
        case Parallel(title, over, ends):
            columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(name)) for name in over]
            columns += [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(key)) for key in ends]
            return wr.ParallelCoordinatesPlot(title=title, columns=columns, **layout)
        case Bars(title, of, grouped_by):
            return wr.BarPlot(
                title=title,
                metrics=list(of),
                groupby=wr.Config(grouped_by),
                groupby_aggfunc="mean",
                groupby_rangefunc="stderr",
                max_runs_to_show=MOST_RUNS,
                max_bars_to_show=MOST_RUNS,
                **layout,
            )
        case Curves(title, of, x, grouped_by):
            return wr.LinePlot(
                title=title,
                x=x,
                y=list(of),
                title_x="round" if x == registry.ROUND.key else "optimizer steps",
                groupby=wr.Config(grouped_by),
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
                max_runs_to_show=MOST_RUNS,
                **layout,
            )
        case Pictures(title, of):
            return wr.MediaBrowser(title=title, media_keys=[of], num_columns=3, **layout)
        case Table(_, of):
            return wr.WeavePanelSummaryTable(table_name=of, **layout)
    raise AssertionError(f"no panel for {panel}")
