"""The jobs of a sweep in columns, for the page's script: settings to filter by, numbers for the two
axes of the scatter, and what the panel of one job shows.

Numbers have six digits here; results.csv has them all. Knows nothing of HTML.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from gr_sweep.config import Method
from gr_sweep.metrics import registry
from gr_sweep.report import figures, measures, rounds, tables
from gr_sweep.report.collect import DENSE, Estimate, Job, Sweep, short_name, shown
from gr_sweep.report.measures import Measure

_OF_MEANS = "means over domains"
_OF_COST = "cost"
_OF_SETTINGS = "settings"

_REMOVAL_AXIS = (0.0, 1.0)
"""Always on the axis of removal: nothing is gone, and as if never trained."""

_MOST_LETTERS = 2_000_000
"""Of all samples in the page: with many jobs the later ones are in their folders alone."""


def of_sweep(sweep: Sweep) -> dict[str, Any]:
    """Everything as JSON has it: lists with an entry a compared job, in the report's order."""
    jobs = sweep.compared
    axes = _axes(sweep)
    first = measures.best_axes([job for job in jobs if job.mean_selectivity is not None])
    return {
        "jobs": [_job(sweep, job) for job in jobs],
        "groups": _groups(sweep),
        "settings": _settings(sweep),
        "axes": axes,
        "chosen": [_identifier(measure, None) for measure in first],
        "metrics": _metrics(jobs),
        "texts": _texts(jobs),
        "keys": {
            "matrix": registry.MATRIX("PART", "DOMAIN"),
            "kept": registry.LOSS_KEPT("PART", "DOMAIN"),
            "full": registry.LOSS_FULL("DOMAIN"),
        },
    }


def _job(sweep: Sweep, job: Job) -> dict[str, Any]:
    return {
        "name": job.name,
        "label": sweep.labels[job.name],
        "short": tables.short_label(sweep, job),
        "edges": job.edges,
        "kind": job.kind,
        "colour": figures.colour(job.edges),
        "symbol": figures.symbol(job.kind),
        "glyph": figures.glyph(job.kind),
        "domains": job.domains,
        "nodes": job.nodes,
        "control": job.kind == Method.random.value or rounds.is_control(job),
    }


def _groups(sweep: Sweep) -> list[list[int]]:
    """The jobs that differ in their seed alone, by their numbers."""
    number = {job.name: at for at, job in enumerate(sweep.compared)}
    return [[number[job.name] for job in group] for group in sweep.replicates]


def _settings(sweep: Sweep) -> list[dict[str, Any]]:
    """Every setting of any job: its values, and which of them each job has (null: none). Those that
    differ come first, and before them what a job is compared as (`Job.kind`)."""
    jobs = sweep.compared
    names = list(dict.fromkeys(name for job in jobs for name in job.settings))
    varied = sweep.varied

    def value(job: Job, name: str) -> str | None:
        if name == "edges":
            # As tables and plots say it: a dense job has none to choose.
            return job.edges
        return shown(job.settings[name]) if name in job.settings else None

    found = [
        _setting_column(name, [value(job, name) for job in jobs], varied=name in varied)
        for name in [*varied, *(name for name in names if name not in set(varied))]
    ]
    for setting in found:
        if setting["name"] == "edges":
            setting["config"] = [shown(job.settings.get("edges")) for job in jobs]
    return [_setting_column("kind", [job.kind for job in jobs], varied=True), *found]


def _setting_column(name: str, of_job: Sequence[str | None], *, varied: bool) -> dict[str, Any]:
    values = sorted({value for value in of_job if value is not None}, key=_in_order)
    number = {value: at for at, value in enumerate(values)}
    return {
        "name": name,
        "short": short_name(name),
        "varied": varied and len(set(of_job)) > 1,
        "values": values,
        "of": [None if value is None else number[value] for value in of_job],
    }


def _in_order(value: str) -> tuple[int, float, str]:
    """Numbers by size and before words."""
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0.0, value)


def _axes(sweep: Sweep) -> list[dict[str, Any]]:
    """Every number that could be an axis and that any job has: measures as means and by domain,
    costs, and numeric settings that differ."""
    jobs = sweep.compared
    chosen = (*measures.MAIN, *measures.ROBUST)
    found = [_axis(jobs, measure, None) for measure in chosen if measure is not measures.SPEED]
    nodes = dict.fromkeys(node for job in jobs for node in job.nodes)
    if len(nodes) > 1:
        found += [
            _axis(jobs, measure, node)
            for node in nodes
            for measure in chosen
            if measure.of is not None
        ]
    found.append(_axis(jobs, measures.SPEED, None) | {"group": _OF_COST})
    costs = dict.fromkeys(key for job in jobs for key in job.metrics if key.startswith("cost/"))
    for key in costs:
        if key != measures.SPEED.key:
            name = key.removeprefix("cost/")
            found.append(_column(jobs, key, _OF_COST, name, _metric(key)))
    for name in sweep.varied:
        if all(_is_number(job.settings.get(name)) for job in jobs if job.edges != DENSE):
            found.append(_column(jobs, name, _OF_SETTINGS, short_name(name), _setting(name)))
    return [axis for axis in found if any(value is not None for value in axis["values"])]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _metric(key: str) -> Callable[[Job], Estimate | None]:
    return lambda job: job.estimate(key)


def _setting(name: str) -> Callable[[Job], Estimate | None]:
    def of(job: Job) -> Estimate | None:
        value: Any = job.settings.get(name)
        return Estimate(value=float(value)) if _is_number(value) else None

    return of


def _identifier(measure: Measure, part: str | None) -> str:
    return measure.name if part is None else f"{measure.name} {part}"


def _axis(jobs: Sequence[Job], measure: Measure, part: str | None) -> dict[str, Any]:
    """A measure, as the mean over domains or of one; where a job is known to be below a number
    alone, that number, and the job is `capped`; where it is a lower bound, the job is
    `censored`."""
    if part is None or measure.of is None:
        of, title = measure.mean, measure.axis
    else:
        of = functools.partial(_of_part, measure, part)
        title = f"{measure.axis.removeprefix('mean ')} · {part}"
    values = [of(job) for job in jobs]
    bounds = [
        measure.at_most(job, part) if value is None else None
        for job, value in zip(jobs, values, strict=True)
    ]
    axis = _column(jobs, _identifier(measure, part), part or _OF_MEANS, measure.name, of)
    if part is not None:
        axis["label"] = f"{measure.name} · {part}"
    axis["censored"] = [
        at
        for at, (job, value) in enumerate(zip(jobs, values, strict=True))
        if value is not None
        and any(measure.is_censored(job, of) for of in (job.domains if part is None else [part]))
    ]
    axis["values"] = [
        value if bound is None else _rounded(bound)
        for value, bound in zip(axis["values"], bounds, strict=True)
    ]
    axis["capped"] = [at for at, bound in enumerate(bounds) if bound is not None]
    axis |= {"title": title, "direction": measure.direction}
    if measure in (measures.TAX, measures.EXPERT_TAX, measures.COMPUTE_EQUIVALENT):
        axis["dense"] = 1.0 if measure is measures.COMPUTE_EQUIVALENT else 0.0
    if measure is measures.LOSS:
        # Models without parts have it too: they are lines.
        axis["lines"] = True
    if measure is measures.REMOVAL:
        axis |= {"always": _REMOVAL_AXIS, "clip": figures.REMOVAL_RANGE, "most": 1.0}
        axis["line"] = [1.0, "as if never trained"]
    elif measure is measures.SELECTIVITY:
        axis["always"] = [0.0]
    return axis


def _of_part(measure: Measure, part: str, job: Job) -> Estimate | None:
    assert measure.of is not None  # `_axes` asks for no other.
    return measure.of(job, part)


def _column(
    jobs: Sequence[Job],
    identifier: str,
    group: str,
    name: str,
    of: Callable[[Job], Estimate | None],
) -> dict[str, Any]:
    found = [of(job) for job in jobs]
    intervals = [
        None if one is None or one.interval is None else [_rounded(at) for at in one.interval]
        for one in found
    ]
    return {
        "id": identifier,
        "group": group,
        "name": name,
        "label": name,
        "title": name,
        "direction": 0,
        "values": [None if one is None else _rounded(one.value) for one in found],
        "intervals": intervals if any(intervals) else None,
        "capped": [],
        "censored": [],
    }


def _texts(jobs: Sequence[Job]) -> dict[str, Any]:
    """Prompts, each once however many jobs have it, and by job the samples of its prompts."""
    prompts: dict[tuple[str, ...], int] = {}
    of_jobs: list[list[dict[str, Any]]] = [[] for _ in jobs]
    num_letters = 0
    # First the first prompt of every job, so that jobs can be read side by side.
    most = max((len(job.samples) for job in jobs), default=0)
    for at, number in itertools.product(range(most), range(len(jobs))):
        if at >= len(jobs[number].samples):
            continue
        found = jobs[number].samples[at]
        num_letters += len(found.prompt) + len(found.reference)
        num_letters += sum(len(sample.text) for sample in found.samples)
        if num_letters > _MOST_LETTERS:
            break
        key = (found.domain, found.document, found.prompt, found.reference)
        samples = [[one.kind, one.part, one.text, one.end] for one in found.samples]
        prompt = prompts.setdefault(key, len(prompts))
        of_jobs[number].append({"prompt": prompt, "samples": samples})
    fields = ("domain", "document", "prompt", "reference")
    return {
        "prompts": [dict(zip(fields, key, strict=True)) for key in prompts],
        "of": of_jobs,
    }


def _metrics(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """By key: the values of the jobs, and their intervals where any job has one."""
    found: dict[str, dict[str, Any]] = {}
    counts = Counter(key for job in jobs for key in job.metrics)
    for key in counts:
        column = _column(jobs, key, "", key, _metric(key))
        found[key] = {"values": column["values"]}
        if column["intervals"]:
            found[key]["intervals"] = column["intervals"]
    return found


def _rounded(value: float) -> float | None:
    """Six digits; None where the number is none that JSON has."""
    number = float(f"{value:.6g}")
    return number if abs(number) < float("inf") else None
