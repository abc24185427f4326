"""Writes the report: index.html, one page that needs no network, and results.csv.

Styles, scripts, plotly.js and all data are in the page, so that it can be mailed. Tables are made
here; what depends on the chosen axes, the filter or the open job is made by the page's scripts.
"""

import datetime
import functools
import importlib.resources
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.errors import JobError
from gr_sweep.files import write_whole
from gr_sweep.report import figures, round_figures, rounds, tables
from gr_sweep.report.collect import read_sweep, results
from gr_sweep.report.measures import MISSING
from gr_sweep.report.page_data import page_data
from gr_sweep.report.sweep import DENSE, Job, Sweep, short_name, shown
from gr_sweep.report.tables import Table

if TYPE_CHECKING:
    import jinja2

_SCRIPTS = ("plots.js", "filter.js", "scatter.js", "job.js", "page.js")
"""In this order, as one script: each may use what stands before it."""

_LARGE_TABLE = 17
"""From so many rows, intervals are tooltips."""

_HEADER_SETTINGS = (
    "model.size", "model.path", "data.kind", "partition.name", "method.name", "plan.kind",
    "plan.mlp_shared", "edges", "route.foreign_dropout", "train.steps", "train.tokens", "seed",
)  # fmt: skip


def write_report(sweep: Sweep | Path) -> Path:
    """Writes report/index.html and report/results.csv in the sweep's folder.

    Args:
        sweep: or its folder.

    Returns:
        Path of the page.

    Raises:
        JobError: the folder does not exist or contains no job, or cannot be written to.
    """
    if isinstance(sweep, Path):
        sweep = read_sweep(sweep)
    report = sweep.folder / "report"
    try:
        report.mkdir(exist_ok=True)
        if sweep.jobs:
            write_whole(report / "results.csv", results(sweep).to_csv(index=False))
        page = report / "index.html"
        write_whole(page, render(sweep))
    except OSError as error:
        raise JobError(f"{report} cannot be written: {error.strerror}") from error
    return page


def _read(name: str) -> str:
    path = importlib.resources.files("gr_sweep.report") / "page" / name
    return path.read_text(encoding="utf-8")


@functools.cache
def _template() -> "jinja2.Template":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("index.html.j2")


def render(sweep: Sweep) -> str:
    """The page."""
    from plotly.offline import get_plotlyjs

    plots = _Plots()
    curves = {
        domain: plots.add("curve", figure) for domain, figure in figures.curves(sweep).items()
    }
    data = page_data(sweep)
    data |= {"about": [_about(job) for job in sweep.compared], "curves": curves}
    return _template().render(
        sweep=sweep,
        header=_header(sweep),
        has_parts=any(job.parts for job in sweep.compared),
        has_seeds=len(sweep.replicates) < len(sweep.compared),
        has_axes=len(data["axes"]) > 1,
        has_samples=bool(data["texts"]["prompts"]),
        has_matrices=any(
            key.startswith("separability/matrix/") for job in sweep.compared for key in job.metrics
        ),
        transfer=data["transfer"],
        table=_table(sweep, tables.comparison(sweep)),
        over_seeds=_table(sweep, tables.over_seeds(sweep)),
        robustness=_table(sweep, tables.robustness(sweep)),
        against=[
            (name, [plots.add("against", figure) for figure in found])
            for name, found in figures.against(sweep)
        ],
        entanglement=[
            {
                **figures.identity(sweep.label(group[0], seed=False), group[0]),
                "seeds": len(group),
                "jobs": figures.indices(sweep, group),
                "plot": plots.add("entanglement", figure),
            }
            for group, figure in figures.entanglement(sweep)
        ],
        relearning=[
            (part, plots.add("relearning", figure))
            for part, figure in figures.relearning(sweep).items()
        ],
        curves=list(curves.items()),
        rounds=_rounds(sweep, plots),
        style=_read("style.css"),
        script="\n".join(_read(name) for name in _SCRIPTS),
        plotly=get_plotlyjs() if sweep.compared else "",
        plots=_json(plots.figures),
        data=_json(data),
    )


def _json(content: Any) -> str:
    """JSON inside a script element, which "<" could end. NaN is not JSON: the page could not read
    it."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


class _Plots:
    """Figures of the page, by the names that its boxes ask for."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    def add(self, kind: str, figure: figures.Figure) -> str:
        """Adds a figure; returns its name."""
        name = f"{kind}-{len(self.figures)}"
        self.figures[name] = figure
        return name


def _rounds(sweep: Sweep, plots: _Plots) -> dict[str, Any] | None:
    """What the page shows of `procedure=alternate`; None if no job has rounds."""
    groups = rounds.groups(sweep)
    if not groups:
        return None
    jobs = []
    for at, job in enumerate(sweep.compared):
        of_job = [
            {
                "title": round_figures.title(of),
                "blocks": plots.add("blocks", round_figures.blocks(of, sweep.domains, at)),
                "units": [
                    (name, plots.add("units", figure))
                    for name, figure in round_figures.units(of, sweep.domains, at)
                ],
            }
            for of in job.rounds
        ]
        if of_job:
            of_page = {**figures.identity(sweep.labels[job.name], job), "index": at}
            jobs.append(of_page | {"rounds": of_job})
    return {
        "has_tax": rounds.has_tax(groups),
        "panels": [(title, plots.add("rounds", figure)) for title, figure in rounds.panels(groups)],
        "table": _table(sweep, rounds.table(groups)),
        "jobs": jobs,
    }


def _table(sweep: Sweep, table: Table | None) -> dict[str, Any] | None:
    """A table with its headings in groups, and how each row is drawn."""
    if table is None:
        return None
    index = {job.name: at for at, job in enumerate(sweep.compared)}
    groups: list[dict[str, Any]] = []
    for at, column in enumerate(table.columns):
        if groups and column.group and groups[-1]["name"] == column.group:
            groups[-1]["columns"].append(at)
        else:
            groups.append({"name": column.group, "direction": column.direction, "columns": [at]})
    for group in groups:
        group["few"] = sum(not table.columns[at].is_detail for at in group["columns"])
    return {
        "columns": table.columns,
        "meanings": table.meanings,
        "groups": groups,
        "can_fold": table.is_folded,
        "quiet": len(table.rows) >= _LARGE_TABLE,
        "starts": {group["columns"][0] for group in groups if group["name"]},
        "rows": [
            {
                **figures.identity(row.label, row.jobs[0]),
                "name": row.jobs[0].name,
                "cells": row.cells,
                "jobs": " ".join(str(index[job.name]) for job in row.jobs if job.name in index),
            }
            for row in table.rows
        ],
    }


def _header(sweep: Sweep) -> dict[str, Any]:
    started = min((job.started for job in sweep.jobs if job.started), default="")
    finished = max((job.finished for job in sweep.jobs if job.finished), default="")
    common = []
    for name in _HEADER_SETTINGS if sweep.compared else ():
        values = {shown(job.settings.get(name)) for job in sweep.compared}
        if len(values) == 1 and values != {"null"}:
            common.append((short_name(name), *values))
    edges = dict.fromkeys(job.edges for job in sweep.compared)
    kinds = dict.fromkeys(job.kind for job in sweep.compared if job.kind != DENSE)
    return {
        "when": _when(started, finished),
        "common": common,
        "same_domains": len({tuple(job.domains) for job in sweep.jobs}) <= 1,
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "edges": [(name, figures.colour(name)) for name in edges],
        "kinds": [(figures.glyph(kind), kind) for kind in kinds] if len(kinds) > 1 else [],
    }


def _when(started: str, finished: str) -> str:
    try:
        start = datetime.datetime.fromisoformat(started)
        end = datetime.datetime.fromisoformat(finished)
    except ValueError:
        return f" {MISSING} ".join(filter(None, (started, finished)))
    day = "" if start.date() == end.date() else "%Y-%m-%d "
    zone = end.tzname() or ""
    return f"{start:%Y-%m-%d %H:%M} {MISSING} {end.strftime(day + '%H:%M')} {zone}".rstrip()


def _about(job: Job) -> dict[str, Any]:
    """What the view of a job says apart from settings and metrics."""
    cost = {key: value for key, value in job.metrics.items() if key.startswith("cost/")}
    return {
        "command": job.command,
        "when": _when(job.started, job.finished),
        "facts": [
            ["cost", [[key.removeprefix("cost/"), _cost(key, of)] for key, of in cost.items()]],
            ["environment", [[name, shown(value)] for name, value in job.environment.items()]],
            ["fingerprints", [[name, shown(value)] for name, value in job.fingerprints.items()]],
        ],
    }


def _cost(key: str, value: float) -> str:
    if key.endswith("seconds"):
        return f"{value:,.1f} s"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
