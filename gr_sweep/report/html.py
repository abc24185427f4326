"""The report's page and files: one self-contained index.html beside results.csv.

Everything the page needs is in it (styles, script, plotly.js, data), so that it can be mailed and
opens without a network. Knows how numbers are shown and nothing of how they are read or measured.
"""

import datetime
import importlib.resources
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gr_sweep.errors import FullDiskError, ReportError
from gr_sweep.files import write_whole
from gr_sweep.report import cards, figures, rounds, tables
from gr_sweep.report.collect import (
    DENSE,
    Job,
    Sweep,
    read_sweep,
    results,
    short_name,
    shown,
)
from gr_sweep.report.measures import MISSING
from gr_sweep.report.tables import Table


def write_report(sweep: Sweep | Path) -> Path:
    """Write report/index.html, results.csv and, of jobs in rounds, rounds/*.svg in the sweep's
    folder, each whole, and return the path of the page.

    Raises:
        ReportError: a folder (a path is read first) that does not exist or holds no job.
    """
    if isinstance(sweep, Path):
        sweep = read_sweep(sweep)
    report = sweep.folder / "report"
    try:
        report.mkdir(exist_ok=True)
        if sweep.jobs:
            write_whole(report / "results.csv", results(sweep).to_csv(index=False))
        for name, picture in rounds.files(sweep).items():
            (report / "rounds").mkdir(exist_ok=True)
            write_whole(report / "rounds" / name, picture)
        page = report / "index.html"
        write_whole(page, render(sweep))
    except FullDiskError:
        raise
    except OSError as error:
        raise ReportError(f"{report} cannot be written: {error.strerror}") from error
    return page


def render(sweep: Sweep) -> str:
    """The page as one string of HTML."""
    import jinja2
    from plotly.offline import get_plotlyjs

    files = importlib.resources.files("gr_sweep.report") / "page"
    read: Callable[[str], str] = lambda name: (files / name).read_text(encoding="utf-8")  # noqa: E731
    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(read("index.html.j2"))
    plots = _Plots()
    scatters = figures.scatters(sweep)
    scatter = plots.add("scatter", [found.figure for found in scatters]) if scatters else ""
    matrices = cards.removal_scale(sweep)
    content = {
        "sweep": sweep,
        "header": _header(sweep),
        "legend": _legend(sweep),
        "many": cards.many(sweep),
        "scatter": scatter,
        "scatters": scatters,
        "has_lines": any(job.mean_selectivity is None for job in sweep.compared),
        "has_seeds": len(sweep.replicates) < len(sweep.compared),
        "table": _table(tables.comparison(sweep)),
        "over_seeds": _table(tables.over_seeds(sweep)),
        "against": [
            {
                "name": found.name,
                "plots": [plots.add("against", figure) for figure in found.figures],
            }
            for found in figures.against(sweep)
        ],
        "scale": matrices.ticks(),
        "cards": [cards.removal(sweep, job, matrices) for job in sweep.compared],
        "transfer": cards.transfer(sweep),
        "entanglement": cards.entanglement(sweep),
        "robustness": _table(tables.robustness(sweep)),
        "relearning": [
            (part, plots.add("relearning", figure))
            for part, figure in figures.relearning(sweep).items()
        ],
        "baselines": _table(tables.dense_curve(sweep)),
        "curves": [
            (domain, plots.add("curve", figure)) for domain, figure in figures.curves(sweep).items()
        ],
        "rounds": _rounds(sweep, plots),
        "details": [_details(sweep, job) for job in sweep.jobs],
    }
    return template.render(
        content,
        style=read("style.css"),
        script=read("page.js"),
        plotly=get_plotlyjs() if plots.figures else "",
        # In a script element only "<" can end it early. NaN is no JSON: the page could not read it.
        plots=json.dumps(plots.figures, allow_nan=False).replace("<", "\\u003c"),
    )


def _rounds(sweep: Sweep, plots: "_Plots") -> dict[str, Any] | None:
    """The rounds of jobs of `procedure=alternate`; None where no job has any."""
    groups = rounds.groups(sweep)
    if not groups:
        return None
    trade_off = rounds.trade_off(groups)
    return {
        "trade_off": None
        if trade_off is None
        else {"title": trade_off.title, "plot": plots.add("trade-off", trade_off.figure)},
        "has_tax": rounds.has_tax(groups),
        "panels": [
            {"title": panel.title, "plot": plots.add("rounds", panel.figure)}
            for panel in rounds.panels(groups)
        ],
        "table": _table(rounds.table(groups)),
        "jobs": [
            {**cards.identity(sweep.labels[job.name], job), "rounds": of_job}
            for job, of_job in rounds.drawn(sweep)
        ],
    }


class _Plots:
    """The figures of the page by the names that its boxes ask for."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    def add(self, kind: str, figure: Any) -> str:
        """Take a figure, or a list of which one is shown at a time; returns its name."""
        name = f"{kind}-{len(self.figures)}"
        self.figures[name] = figure
        return name


def _table(table: Table | None) -> dict[str, Any] | None:
    """A table with its headings grouped, and how each row is drawn."""
    if table is None:
        return None
    groups: list[dict[str, Any]] = []
    for at, column in enumerate(table.columns):
        if groups and column.group and groups[-1]["name"] == column.group:
            groups[-1]["columns"].append(at)
        else:
            groups.append({"name": column.group, "direction": column.direction, "columns": [at]})
    for group in groups:
        columns = [table.columns[at] for at in group["columns"]]
        group["all"] = len(columns)
        group["few"] = sum(not column.is_detail for column in columns)
    return {
        "columns": table.columns,
        "meanings": table.meanings,
        "groups": groups,
        "can_fold": table.is_folded,
        "starts": {group["columns"][0] for group in groups if group["name"]},
        "rows": [
            {**cards.identity(row.label, row.jobs[0]), "cells": row.cells, "jobs": row.jobs}
            for row in table.rows
        ],
    }


def _header(sweep: Sweep) -> dict[str, Any]:
    commands = list(dict.fromkeys(job.command for job in sweep.jobs if job.command))
    started = min((job.started for job in sweep.jobs if job.started), default="")
    finished = max((job.finished for job in sweep.jobs if job.finished), default="")
    common = []
    if sweep.compared:
        settings = sweep.compared[0].settings
        varied = {
            name
            for name in sweep.varied
            if len({shown(job.settings.get(name)) for job in sweep.compared}) > 1
        }
        for name in (
            "model.size", "model.path", "data.kind", "partition.name", "method.name", "plan.kind",
            "plan.mlp_shared", "edges", "route.foreign_dropout", "train.steps", "train.tokens",
            "seed",
        ):  # fmt: skip
            if name not in varied and settings.get(name) is not None:
                common.append((short_name(name), shown(settings[name])))
    return {
        "commands": commands,
        "when": _when(started, finished),
        "common": common,
        "same_domains": len({tuple(job.domains) for job in sweep.jobs}) <= 1,
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
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


def _legend(sweep: Sweep) -> dict[str, Any]:
    edges = list(dict.fromkeys(job.edges for job in sweep.compared))
    kinds = list(dict.fromkeys(job.kind for job in sweep.compared if job.kind != DENSE))
    return {
        "edges": [(name, figures.colour(name)) for name in edges],
        "kinds": [(figures.glyph(kind), kind) for kind in kinds] if len(kinds) > 1 else [],
    }


def _details(sweep: Sweep, job: Job) -> dict[str, Any]:
    alone = shlex.join(["gr-sweep", *job.overrides])
    varied = set(sweep.varied)
    cost = [
        (key, _cost(key, value)) for key, value in job.metrics.items() if key.startswith("cost/")
    ]
    return {
        **cards.identity(sweep.labels[job.name], job),
        "name": job.name,
        "command": job.command,
        "alone": alone if alone != job.command else "",
        "when": _when(job.started, job.finished),
        "config": [(name, shown(value), name in varied) for name, value in job.settings.items()],
        "facts": [
            ("cost", [(key.removeprefix("cost/"), text) for key, text in cost]),
            ("environment", [(name, shown(value)) for name, value in job.environment.items()]),
            ("fingerprints", list(job.fingerprints.items())),
        ],
    }


def _cost(key: str, value: float) -> str:
    if key.endswith("seconds"):
        return f"{value:,.1f} s"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
