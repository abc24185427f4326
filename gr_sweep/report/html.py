"""Writes the report: index.html, one page that needs no network, and results.csv.

Styles, scripts, plotly.js and all data are in the page, so that it can be mailed. Tables are made
here; what depends on the chosen axes, the filter or the open job is made by the page's scripts.
"""

import datetime
import functools
import importlib.resources
import json
from pathlib import Path
from typing import Any

from gr_sweep.errors import JobError
from gr_sweep.files import write_whole
from gr_sweep.metrics import registry
from gr_sweep.report import answer, figures, rounds, tables
from gr_sweep.report.collect import read_sweep
from gr_sweep.report.frames import csv_of
from gr_sweep.report.page_data import page_data, period
from gr_sweep.report.sweep import DENSE, Sweep, short_name, shown

_SCRIPTS = ("plots.js", "filter.js", "scatter.js", "job.js", "page.js")
"""In this order, as one script: each may use what stands before it."""

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
            write_whole(report / "results.csv", csv_of(sweep))
        write_whole(report / "index.html", render(sweep))
    except OSError as error:
        raise JobError(f"{report} cannot be written: {error.strerror}") from error
    return report / "index.html"


def _read(name: str) -> str:
    path = importlib.resources.files("gr_sweep.report") / "page" / name
    return path.read_text(encoding="utf-8")


def render(sweep: Sweep) -> str:
    """The page."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    curves, relearning = figures.curves(sweep), figures.relearning(sweep)
    trade_off = rounds.trade_off(sweep)
    plots = {"trade-off": trade_off} if trade_off else {}
    plots |= {f"curve of {domain}": figure for domain, figure in curves.items()}
    plots |= {f"relearning {part}": figure for part, figure in relearning.items()}
    rankings = answer.rankings(sweep)
    data = page_data(sweep) | {"curves": {domain: f"curve of {domain}" for domain in curves}}
    matrices = [(place.jobs, tables.matrices(place.jobs)) for of in rankings for place in of.places]
    prefix = tuple(of.key.split("{")[0] for of in (registry.MATRIX, registry.SERVED_MATRIX))
    costs = [of for job in sweep.jobs for key, of in job.metrics.items() if key.startswith(prefix)]
    return environment.get_template("index.html.j2").render(
        sweep=sweep,
        identity=figures.identity,
        indices=functools.partial(figures.indices, sweep),
        header=_header(sweep),
        # Every second piece of a sentence, which stood in backticks, is a name.
        answers=[line.split("`") for line in answer.sentences(sweep)],
        notes=[line.split("`") for line in answer.notes(sweep)],
        rule=answer.RULE,
        has_seeds=len(sweep.replicates) < len(sweep.compared),
        has_axes=len(data["axes"]) > 1,
        tables={
            "settings": tables.settings(sweep) if rankings else None,
            "rounds": rounds.table(sweep),
        },
        importance=tables.importance(sweep),
        matrices=[found for found in matrices if found[1]],
        top=max(map(abs, costs), default=0) or 1.0,
        has_trade_off=trade_off is not None,
        relearning=list(relearning),
        curves=list(curves),
        style=_read("style.css"),
        script="\n".join(_read(name) for name in _SCRIPTS),
        plotly=get_plotlyjs() if sweep.compared else "",
        plots=_json(plots),
        data=_json(data),
    )


def _json(content: Any) -> str:
    """JSON inside a script element, which "<" could end. NaN is not JSON: the page could not read
    it."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _header(sweep: Sweep) -> dict[str, Any]:
    started = min((job.started for job in sweep.jobs if job.started), default="")
    finished = max((job.finished for job in sweep.jobs if job.finished), default="")
    common = []
    for name in _HEADER_SETTINGS if sweep.compared else ():
        values = {shown(job.settings.get(name)) for job in sweep.compared}
        if len(values) == 1 and values != {"null"}:
            common.append((short_name(name), *values))
    edges = dict.fromkeys(job.edges for job in sweep.compared)
    routed = [job for job in sweep.compared if job.kind != DENSE]
    kinds = {job.kind: figures.identity("", job)["glyph"] for job in routed}
    return {
        "when": period(started, finished),
        "common": common,
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "edges": [(name, figures.colour(name)) for name in edges],
        "kinds": [(glyph, kind) for kind, glyph in kinds.items() if len(kinds) > 1],
    }
