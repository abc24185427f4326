"""Writes the report: index.html, one page that needs no network, and results.csv.

Styles, scripts, plotly.js and all data are in the page, so that it can be mailed. Tables are made
here; what depends on the chosen axes, the filter or the open job is made by the page's scripts.
"""

import datetime
import functools
import importlib.resources
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gr_sweep.config import is_number
from gr_sweep.errors import JobError
from gr_sweep.files import write_whole
from gr_sweep.metrics import registry
from gr_sweep.metrics.seeds import t_quantile
from gr_sweep.report import answer, figures, measures, rounds, tables
from gr_sweep.report.collect import read_sweep
from gr_sweep.report.frames import csv_of
from gr_sweep.report.measures import MISSING
from gr_sweep.report.sweep import DENSE, Estimate, Job, Sweep, short_name, shown

_SCRIPTS = ("plots.js", "filter.js", "scatter.js", "job.js", "page.js")
"""In this order, as one script: each may use what stands before it."""

_HEADER_SETTINGS = (
    "model.size", "model.path", "data.kind", "partition.name", "method.name", "plan.kind",
    "plan.mlp_shared", "edges", "route.foreign_dropout", "train.steps", "train.tokens", "seed",
)  # fmt: skip


_MOST_LETTERS = 2_000_000
"""Of all samples in the page; the rest is in the jobs' folders only."""
_OTHERS = ("cost/", "task/")
"""Metrics that are axes by their keys."""
_REMOVAL_RANGE = (-0.5, 1.5)
"""Range of removal that is drawn; its meaning is in 0 to 1."""


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


# What the scripts know of the jobs. Lists have one entry for each compared job, in the report's
# order; numbers have six digits.


def page_data(sweep: Sweep) -> dict[str, Any]:
    """Everything the scripts read, except plots."""
    jobs, found = sweep.compared, answer.rankings(sweep)
    most_seeds = max((len(group) for group in sweep.replicates), default=1)
    keys = dict.fromkeys(key for job in jobs for key in job.metrics)
    return {
        "jobs": [_job(sweep, job) for job in jobs],
        # What is comparable, and in each the jobs that differ in their seed only, by rank.
        "rankings": [ranking.name for ranking in found],
        "groups": [[figures.indices(sweep, of.jobs) for of in each.places] for each in found],
        # By the number of seeds.
        "t": [0, 0, *map(t_quantile, range(2, most_seeds + 1))],
        "settings": _settings(sweep),
        "axes": _axes(sweep),
        "chosen": [measure.metric.title for measure in found[0].axes] if found else [],
        "metrics": {key: _column([job.estimate(key) for job in jobs]) for key in keys},
        "texts": _texts(jobs),
        "hues": figures.HUES,
    }


def period(started: str, finished: str) -> str:
    """Two UTC times in ISO 8601, to the minute."""
    times = [time[:16].replace("T", " ") for time in (started, finished) if time]
    return f" {MISSING} ".join(times) + (" UTC" if times else "")


def _job(sweep: Sweep, job: Job) -> dict[str, Any]:
    about = {**job.environment, **job.fingerprints}
    return {
        **figures.identity(sweep.labels[job.name], job),
        "short": sweep.settings[job.name],
        "nodes": job.nodes,
        "seed": job.seed,
        "control": job.is_control,
        "command": job.command,
        "when": period(job.started, job.finished),
        "about": [[name, shown(value)] for name, value in about.items()],
    }


def _settings(sweep: Sweep) -> list[dict[str, Any]]:
    """Every setting of any job, those that differ first, and before them the kind of the jobs."""
    jobs = sweep.compared
    of: dict[str, list[str | None]] = {"kind": [job.kind for job in jobs]}
    for name in dict.fromkeys([*sweep.varied, *(name for job in jobs for name in job.settings)]):
        of[name] = [shown(job.settings[name]) if name in job.settings else None for job in jobs]
    of["edges"] = [job.edges for job in jobs]  # A dense job has no edges to choose.
    return [
        {"name": name, "short": short_name(name), "of": values, "varied": len(set(values)) > 1
         and (name == "kind" or name in sweep.varied)}
        for name, values in of.items()
    ]  # fmt: skip


def _axes(sweep: Sweep) -> list[dict[str, Any]]:
    """Numbers that can be an axis: means of metrics, metrics by domain, costs, and numeric settings
    that differ."""
    jobs = sweep.compared
    found = []
    for (measure, part), by_job in measures.numbers(sweep).items():
        metric, name = measure.metric, tables.column(measure, part).name
        axis = _axis(part or "means over domains", name, list(by_job.values()))
        axis["title"] = metric.mean_axis if part is None else f"{metric.axis} · {part}"
        axis["direction"] = metric.direction
        if measure.most == 1.0:
            axis |= {"clip": _REMOVAL_RANGE, "most": 1.0, "line": [1.0, "as if never trained"]}
        if metric.placeholders:
            found.append(axis)
    for key in dict.fromkeys(key for job in jobs for key in job.metrics if key.startswith(_OTHERS)):
        group, _, name = key.partition("/")
        known, estimates = registry.find(key), [job.estimate(key) for job in jobs]
        direction = known[0].direction if known else 0
        found.append(_axis(group, name, estimates, key, direction=direction))
    for name in sweep.varied:
        values: list[Any] = [job.settings.get(name) for job in jobs]
        if all(is_number(of) for job, of in zip(jobs, values, strict=True) if job.edges != DENSE):
            numbers = [Estimate(float(of)) if is_number(of) else None for of in values]
            found.append(_axis("settings", short_name(name), numbers, name))
    return found


def _axis(
    group: str, name: str, found: Sequence[Estimate | None], key: str | None = None, **more: Any
) -> dict[str, Any]:
    bounds = [one.bound if one else "" for one in found]
    axis = {"id": key or name, "group": group, "name": name, "title": name, "direction": 0}
    return axis | _column(found) | {"bounds": bounds} | more


def _column(found: Sequence[Estimate | None]) -> dict[str, Any]:
    column: dict[str, Any] = {"values": [one and _digits(one.value) for one in found]}
    intervals = [
        [_digits(at) for at in one.interval] if one and one.interval else None for one in found
    ]
    return column | ({"intervals": intervals} if any(intervals) else {})


def _digits(value: float) -> float | None:
    """Six digits; None for numbers that JSON does not have."""
    number = float(f"{value:.6g}")
    return number if abs(number) < float("inf") else None


def _texts(jobs: Sequence[Job]) -> list[list[dict[str, Any]]]:
    """The prompts of each job with its samples, as far as they fit."""
    ends = itertools.accumulate(len(str(job.samples)) for job in jobs)
    return [
        job.samples if end <= _MOST_LETTERS else [] for job, end in zip(jobs, ends, strict=True)
    ]
