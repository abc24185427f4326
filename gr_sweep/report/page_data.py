"""What the page's scripts know of the jobs, as JSON values: settings to filter by, numbers for the
axes of the scatter plot, metrics and texts.

Lists have one entry for each compared job, in the report's order. Numbers have six digits.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from gr_sweep.config import is_number
from gr_sweep.metrics import registry
from gr_sweep.metrics.seeds import t_quantile
from gr_sweep.report import figures, measures, tables
from gr_sweep.report.answer import rankings
from gr_sweep.report.measures import MISSING, Measure
from gr_sweep.report.sweep import DENSE, Estimate, Job, Sweep, short_name, shown

_MOST_LETTERS = 2_000_000
"""Of all samples in the page; the rest is in the jobs' folders only."""
_OTHERS = ("cost/", "task/")
"""Metrics that are axes by their keys."""
_REMOVAL_RANGE = (-0.5, 1.5)
"""Range of removal that is drawn; its meaning is in 0 to 1."""


def page_data(sweep: Sweep) -> dict[str, Any]:
    """Everything the scripts read, except plots."""
    jobs, found = sweep.compared, rankings(sweep)
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
    found = [
        _axis_of(measure, part, list(by_job.values()))
        for (measure, part), by_job in measures.numbers(sweep).items()
        if measure.metric.placeholders
    ]
    for key in dict.fromkeys(key for job in jobs for key in job.metrics if key.startswith(_OTHERS)):
        metric = registry.find(key)
        group, _, name = key.partition("/")
        axis = _axis(group, key, name, [job.estimate(key) for job in jobs])
        found.append(axis | {"direction": metric[0].direction if metric else 0})
    for name in sweep.varied:
        values: list[Any] = [job.settings.get(name) for job in jobs]
        if all(is_number(of) for job, of in zip(jobs, values, strict=True) if job.edges != DENSE):
            numbers = [Estimate(float(of)) if is_number(of) else None for of in values]
            found.append(_axis("settings", name, short_name(name), numbers))
    return found


def _axis(
    group: str, identifier: str, name: str, estimates: Sequence[Estimate | None]
) -> dict[str, Any]:
    return {
        "id": identifier, "group": group, "name": name, "title": name, "direction": 0,
        **_column(estimates), "bounds": [one.bound if one else "" for one in estimates],
    }  # fmt: skip


def _axis_of(
    measure: Measure, part: str | None, estimates: Sequence[Estimate | None]
) -> dict[str, Any]:
    """A metric of one domain, or its mean."""
    metric, name = measure.metric, tables.column(measure, part).name
    axis = _axis(part or "means over domains", name, name, estimates)
    axis["title"] = metric.mean_axis if part is None else f"{metric.axis} · {part}"
    axis["direction"] = metric.direction
    if measure.most == 1.0:
        axis |= {"clip": _REMOVAL_RANGE, "most": 1.0, "line": [1.0, "as if never trained"]}
    return axis


def _column(found: Sequence[Estimate | None]) -> Mapping[str, Any]:
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
