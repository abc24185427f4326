"""The report's page and files: one self-contained index.html beside results.csv.

Everything the page needs is in it (styles, scripts, plotly.js, data), so that it can be mailed and
opens without a network. What is the same for every reader is made here; what depends on the chosen
axes, the filter and the job that is looked at is made by the page's scripts from the same data.
Knows how numbers are shown and nothing of how they are read or measured.
"""

import datetime
import importlib.resources
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gr_sweep.errors import JobError
from gr_sweep.files import write_whole
from gr_sweep.report import cards, columns, figures, rounds, tables
from gr_sweep.report.collect import DENSE, Job, Sweep, read_sweep, results, short_name, shown
from gr_sweep.report.measures import MISSING
from gr_sweep.report.tables import Table

_FIRST_CARDS = 48
"""So many matrices are in the page from the start; with more jobs the others come when one scrolls
to them."""

_SCRIPTS = ("plots.js", "filter.js", "scatter.js", "samples.js", "job.js", "page.js")
"""In this order, as one script: each may use what stands before it."""


def write_report(sweep: Sweep | Path) -> Path:
    """Write report/index.html, results.csv and, of jobs in rounds, rounds/*.svg in the sweep's
    folder, each whole, and return the path of the page.

    Raises:
        JobError: a folder (a path is read first) that does not exist or holds no job.
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
    except OSError as error:
        raise JobError(f"{report} cannot be written: {error.strerror}") from error
    return page


def render(sweep: Sweep) -> str:
    """The page as one string of HTML."""
    import jinja2
    from plotly.offline import get_plotlyjs

    files = importlib.resources.files("gr_sweep.report") / "page"
    read: Callable[[str], str] = lambda name: (files / name).read_text(encoding="utf-8")  # noqa: E731
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    numbers = {job.name: at for at, job in enumerate(sweep.compared)}
    environment.filters["number"] = numbers.get
    plots = _Plots()
    matrices = cards.removal_scale(sweep)
    card = environment.get_template("card.html.j2")
    of_jobs = {
        at: card.render(card=found | {"place": at})
        for at, job in enumerate(sweep.compared)
        if (found := cards.removal(sweep, job, matrices))["matrix"]
    }
    content: dict[str, Any] = {
        "sweep": sweep,
        "header": _header(sweep),
        "legend": _legend(sweep),
        "many": cards.many(sweep),
        "has_parts": any(job.mean_selectivity is not None for job in sweep.compared),
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
        "cards": list(of_jobs.values()),
        "first_cards": _FIRST_CARDS,
        "transfer": cards.transfer(sweep),
        "entanglement": [
            {
                **cards.identity(sweep.label(group[0], seed=False), group[0]),
                "seeds": len(group),
                "places": " ".join(str(numbers[job.name]) for job in group),
                "plot": plots.add("entanglement", figure),
            }
            for group, figure in figures.entanglement(sweep)
        ],
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
    }
    data = columns.of_sweep(sweep)
    content["has_samples"] = bool(data["texts"]["prompts"])
    content["has_axes"] = len(data["axes"]) > 1
    data |= {
        "about": [_about(job) for job in sweep.compared],
        "curves": dict(content["curves"]),
        "cards": list(of_jobs.items())[_FIRST_CARDS:],
        # In the order of the pictures on the page.
        "pictures": [
            numbers
            for job in (content["rounds"] or {"jobs": []})["jobs"]
            for of in job["rounds"]
            for numbers in (of.tree_numbers, *([of.network_numbers] if of.network else []))
        ],
    }
    return environment.get_template("index.html.j2").render(
        content,
        style=read("style.css"),
        script="\n".join(read(name) for name in _SCRIPTS),
        plotly=get_plotlyjs() if sweep.compared else "",
        plots=_json(plots.figures),
        data=_json(data),
    )


def _json(content: Any) -> str:
    """JSON for a script element, which only "<" can end early. NaN is no JSON: the page could not
    read it."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


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
            {
                **cards.identity(sweep.labels[job.name], job),
                "place": figures.numbers(sweep, [job])[0],
                "rounds": of_job,
            }
            for job, of_job in rounds.drawn(sweep)
        ],
    }


class _Plots:
    """The figures of the page by the names that its boxes ask for."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    def add(self, kind: str, figure: dict[str, Any]) -> str:
        """Take a figure; returns its name."""
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


def _about(job: Job) -> dict[str, Any]:
    """What the panel of a job says beside settings and metrics."""
    alone = shlex.join(["gr-sweep", *job.overrides])
    cost = [(key, value) for key, value in job.metrics.items() if key.startswith("cost/")]
    return {
        "command": job.command,
        "alone": alone if alone != job.command else "",
        "when": _when(job.started, job.finished),
        "facts": [
            ["cost", [[key.removeprefix("cost/"), _cost(key, value)] for key, value in cost]],
            ["environment", [[name, shown(value)] for name, value in job.environment.items()]],
            ["fingerprints", [[name, shown(value)] for name, value in job.fingerprints.items()]],
        ],
    }


def _cost(key: str, value: float) -> str:
    if key.endswith("seconds"):
        return f"{value:,.1f} s"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
