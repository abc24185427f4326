"""The report's page and files: one self-contained index.html beside results.csv.

Everything the page needs is in it (styles, script, plotly.js, data), so that it can be mailed and
opens without a network. Knows how numbers are shown and nothing of how they are read or measured.
"""

import datetime
import importlib.resources
import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gr_sweep import domains
from gr_sweep.errors import ReportError
from gr_sweep.files import write_whole
from gr_sweep.metrics import keys
from gr_sweep.report import figures
from gr_sweep.report.collect import (
    DENSE,
    Estimate,
    Job,
    Sweep,
    read_sweep,
    results,
    short_name,
    shown,
)

_MISSING = "\N{EN DASH}"
"""What a cell without a value shows."""
_MANY_JOBS = 17
"""From here on tables are compact and intervals are tooltips."""
_MANY_DOMAINS = 5
"""From here on a matrix has no room for its intervals."""
_COLUMNS_OF_SETTINGS = 6
"""More settings than these that differ are shown as one column."""


def write_report(folder: Path) -> Path:
    """Write `folder`/report/index.html and results.csv, each whole, and return the path of the
    page.

    Raises:
        ReportError: the folder does not exist or holds no job.
    """
    sweep = read_sweep(folder)
    report = folder / "report"
    try:
        report.mkdir(exist_ok=True)
        if sweep.jobs:
            write_whole(report / "results.csv", results(sweep).to_csv(index=False))
        page = report / "index.html"
        write_whole(page, render(sweep))
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
    scatter, curves = figures.scatter(sweep), figures.curves(sweep)
    scale = _Scale(sweep)
    return template.render(
        sweep=sweep,
        header=_header(sweep),
        legend=_legend(sweep),
        table=comparison(sweep),
        scatter=scatter is not None,
        has_lines=any(job.mean_selectivity is None for job in sweep.jobs),
        many=len(sweep.jobs) >= _MANY_JOBS,
        curves=list(curves),
        scale=scale.ticks(),
        cards=[_card(sweep, job, scale) for job in sweep.jobs],
        details=[_details(sweep, job) for job in sweep.jobs],
        style=read("style.css"),
        script=read("page.js"),
        plotly=get_plotlyjs() if scatter or curves else "",
        # In a script element only "<" can end it early.
        plots=json.dumps({"scatter": scatter, "curves": list(curves.values())}).replace(
            "<", "\\u003c"
        ),
    )


def comparison(sweep: Sweep) -> dict[str, Any]:
    """The comparison table as plain values: columns, and a row of cells a job.

    A column is a dict of group, name and direction (1: higher is better, -1: lower, 0: neither); a
    cell one of text, value (to sort by, or None), interval (text, may be empty) and best.
    """
    within = {name for names in sweep.varied_within.values() for name in names}
    varied = [name for name in sweep.varied if name in within and name != "edges"]
    separate = len(varied) <= _COLUMNS_OF_SETTINGS
    columns: list[dict[str, Any]] = [{"group": "", "name": "edges", "direction": 0}]
    names = [short_name(name) for name in varied] if separate else ["settings"]
    columns += [{"group": "", "name": name, "direction": 0} for name in names]
    parts = [d for d in sweep.domains if any(d in job.parts for job in sweep.jobs)]
    loss, selectivity = "loss L(d), nats", "selectivity, nats"
    numeric = [_Column(loss, d, -1, _metric(keys.loss_full(d)), nats) for d in sweep.domains]
    numeric.append(_Column(loss, "mean", -1, lambda job: job.mean_loss, nats))
    numeric += [_Column(selectivity, d, 1, _metric(keys.selectivity(d)), signed) for d in parts]
    if parts:
        numeric.append(_Column(selectivity, "mean", 1, lambda job: job.mean_selectivity, signed))
    numeric.append(_Column("speed", "tokens/s", 1, _metric(keys.COST_TOKENS_PER_SECOND), count))
    columns += [
        {"group": column.group, "name": column.name, "direction": column.direction}
        for column in numeric
    ]

    best: list[float | None] = []
    for column in numeric:
        values = [e.value for job in sweep.jobs if (e := column.estimate(job)) is not None]
        pick = max if column.direction > 0 else min
        best.append(pick(values) if len(values) > 1 else None)

    rows = []
    for index, job in enumerate(sweep.jobs):
        settings = [_setting(job, name) for name in varied]
        if not separate:
            settings = [{"text": sweep.labels[job.name], "value": None}]
        cells: list[dict[str, Any]] = []
        for column, top in zip(numeric, best, strict=True):
            estimate = column.estimate(job)
            if estimate is None:
                cells.append({"text": _MISSING, "value": None, "interval": "", "best": False})
                continue
            cells.append(
                {
                    "text": column.text(estimate.value),
                    "value": estimate.value,
                    "interval": _interval(
                        estimate, unsigned if column.text is signed else column.text
                    ),
                    "best": estimate.value == top,
                }
            )
        rows.append({"index": index, **_identity(sweep, job), "settings": settings, "cells": cells})
    return {"columns": columns, "num_settings": 1 + len(names), "rows": rows}


def nats(value: float) -> str:
    """A loss in nats with three decimals."""
    return f"{value:.3f}"


def unsigned(value: float) -> str:
    """As `signed` without the plus: for the bounds of an interval."""
    return signed(value).removeprefix("+")


def signed(value: float) -> str:
    """A difference in nats with its sign and two decimals; a true minus, as wide as a plus."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "\N{MINUS SIGN}")


def count(value: float) -> str:
    """A number of things, with separators."""
    return f"{value:,.0f}"


@dataclass(frozen=True)
class _Column:
    """A column of numbers in the comparison table."""

    group: str
    name: str
    direction: int
    estimate: Callable[[Job], Estimate | None]
    text: Callable[[float], str]


class _Scale:
    """One colour scale for the matrices of all jobs, diverging at 0.

    Strength goes with the square root, so that half a nat is seen beside ten.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.top = max(
            (
                abs(estimate.value)
                for job in sweep.jobs
                for part in job.nodes
                for domain in job.domains
                if (estimate := job.estimate(keys.matrix(part, domain))) is not None
            ),
            default=0.0,
        )

    def strength(self, value: float) -> int:
        """Percent of the full colour, 0 at 0."""
        return round(100 * math.sqrt(abs(value) / self.top)) if self.top else 0

    def ticks(self) -> list[dict[str, Any]]:
        """Values at even distances on the scale, from the lowest to the highest."""
        steps = (-1.0, -0.5, 0.0, 0.5, 1.0)
        values = [math.copysign(step * step * self.top, step) for step in steps]
        return [{"text": signed(value), **self._paint(value)} for value in values]

    def cell(self, estimate: Estimate | None) -> dict[str, Any]:
        """Text, interval and paint of one entry of a matrix."""
        if estimate is None:
            return {"text": _MISSING, "interval": "", "strength": 0, "sign": "pos", "dark": False}
        return {
            "text": signed(estimate.value),
            "interval": _interval(estimate, unsigned),
            **self._paint(estimate.value),
        }

    def _paint(self, value: float) -> dict[str, Any]:
        strength = self.strength(value)
        sign = "neg" if value < 0 else "pos"
        # From here on white text reads better on the cell than black.
        return {"strength": strength, "sign": sign, "dark": strength > 60}


def _identity(sweep: Sweep, job: Job) -> dict[str, Any]:
    return {
        "label": sweep.labels[job.name],
        "edges": job.edges,
        "kind": job.kind,
        "colour": figures.colour(job.edges),
        "glyph": figures.glyph(job.kind),
    }


def _header(sweep: Sweep) -> dict[str, Any]:
    commands = list(dict.fromkeys(job.command for job in sweep.jobs if job.command))
    started = min((job.started for job in sweep.jobs if job.started), default="")
    finished = max((job.finished for job in sweep.jobs if job.finished), default="")
    common = []
    if sweep.jobs:
        settings = sweep.jobs[0].settings
        for name in (
            "model.size", "model.path", "data.kind", "partition.name", "method.name", "plan.kind",
            "plan.mlp_shared", "edges", "route.foreign_dropout", "train.steps", "train.tokens",
            "seed",
        ):  # fmt: skip
            if name not in sweep.varied and settings.get(name) is not None:
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
        return f" {_MISSING} ".join(filter(None, (started, finished)))
    day = "" if start.date() == end.date() else "%Y-%m-%d "
    zone = end.tzname() or ""
    return f"{start:%Y-%m-%d %H:%M} {_MISSING} {end.strftime(day + '%H:%M')} {zone}".rstrip()


def _legend(sweep: Sweep) -> dict[str, Any]:
    edges = list(dict.fromkeys(job.edges for job in sweep.jobs))
    kinds = list(dict.fromkeys(job.kind for job in sweep.jobs if job.kind != DENSE))
    return {
        "edges": [(name, figures.colour(name)) for name in edges],
        "kinds": [(figures.glyph(kind), kind) for kind in kinds] if len(kinds) > 1 else [],
    }


def _metric(key: str) -> Callable[[Job], Estimate | None]:
    return lambda job: job.estimate(key)


def _setting(job: Job, name: str) -> dict[str, Any]:
    value = job.settings.get(name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"text": _MISSING if value is None else shown(value), "value": value if number else None}


def _interval(estimate: Estimate, text_of: Callable[[float], str]) -> str:
    if estimate.interval is None:
        return ""
    low, high = estimate.interval
    return f"{text_of(low)} to {text_of(high)}"


def _card(sweep: Sweep, job: Job, scale: _Scale) -> dict[str, Any]:
    """The matrix of a job and its parts kept alone; both are empty for a dense job."""
    matrix, kept = [], []
    for part in job.nodes:
        row = [job.estimate(keys.matrix(part, domain)) for domain in job.domains]
        own = [domains.is_under(domain, part) for domain in job.domains]
        if any(row):
            cells = [
                scale.cell(estimate) | {"own": o} for estimate, o in zip(row, own, strict=True)
            ]
            matrix.append({"part": part, "cells": cells})
        row = [job.estimate(keys.loss_kept(part, domain)) for domain in job.domains]
        if any(row):
            kept.append({"part": part, "cells": _losses(row, own)})
    full = [job.estimate(keys.loss_full(domain)) for domain in job.domains]
    return {
        **_identity(sweep, job),
        "domains": job.domains,
        "matrix": matrix,
        "full": _losses(full, [False] * len(full)),
        "kept": kept,
        "printed": len(sweep.jobs) < _MANY_JOBS and len(job.domains) < _MANY_DOMAINS,
    }


def _losses(row: Sequence[Estimate | None], own: Sequence[bool]) -> list[dict[str, Any]]:
    return [
        {
            "text": _MISSING if estimate is None else f"{estimate.value:.2f}",
            "interval": "" if estimate is None else _interval(estimate, nats),
            "own": is_own,
        }
        for estimate, is_own in zip(row, own, strict=True)
    ]


def _details(sweep: Sweep, job: Job) -> dict[str, Any]:
    alone = shlex.join(["gr-sweep", *job.overrides])
    varied = set(sweep.varied)
    cost = [
        (key, _cost(key, value)) for key, value in job.metrics.items() if key.startswith("cost/")
    ]
    return {
        **_identity(sweep, job),
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
