"""What the page's scripts know of the jobs, as JSON values: settings to filter by, numbers for the
axes of the scatter plot, metrics, matrices and texts.

Lists have one entry for each compared job, in the report's order. Numbers have six digits;
results.csv has all of them. Knows nothing of HTML.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from gr_sweep.config import Method, is_number
from gr_sweep.domains import is_under
from gr_sweep.metrics import registry
from gr_sweep.report import figures, measures, rounds, tables
from gr_sweep.report.measures import Measure
from gr_sweep.report.sweep import DENSE, Estimate, Job, Sweep, short_name, shown

_MOST_LETTERS = 2_000_000
"""Of all samples in the page; the rest is in the jobs' folders only."""


def page_data(sweep: Sweep) -> dict[str, Any]:
    """Everything the scripts read, except plots."""
    jobs = sweep.compared
    index = {job.name: at for at, job in enumerate(jobs)}
    first = measures.best_axes([job for job in jobs if job.parts])
    keys = dict.fromkeys(key for job in jobs for key in job.metrics)
    return {
        "jobs": [_job(sweep, job) for job in jobs],
        # Jobs that differ in their seed only.
        "groups": [[index[job.name] for job in group] for group in sweep.replicates],
        "settings": _settings(sweep),
        "axes": _axes(sweep),
        "chosen": [measure.name for measure in first],
        "metrics": {key: _column([job.estimate(key) for job in jobs]) for key in keys},
        "texts": _texts(jobs),
        "transfer": _transfer(sweep),
        "keys": {
            "matrix": registry.MATRIX("PART", "DOMAIN"),
            "kept": registry.LOSS_KEPT("PART", "DOMAIN"),
            "full": registry.LOSS_FULL("DOMAIN"),
        },
    }


def _job(sweep: Sweep, job: Job) -> dict[str, Any]:
    return {
        **figures.identity(sweep.labels[job.name], job),
        "name": job.name,
        "short": tables.short_label(sweep, job),
        "symbol": figures.symbol(job.kind),
        "domains": job.domains,
        "nodes": job.nodes,
        "control": job.kind == Method.random.value or rounds.is_control(job),
    }


def _settings(sweep: Sweep) -> list[dict[str, Any]]:
    """Every setting of any job, those that differ first, and before them the kind of the jobs."""
    jobs, varied = sweep.compared, sweep.varied
    names = dict.fromkeys([*varied, *(name for job in jobs for name in job.settings)])
    found = [_setting("kind", [job.kind for job in jobs], varied=True)]
    for name in names:
        of = [shown(job.settings[name]) if name in job.settings else None for job in jobs]
        if name == "edges":
            # To filter by what tables and plots show: a dense job has no edges to choose.
            edges = _setting(name, [job.edges for job in jobs], varied=name in varied)
            found.append(edges | {"config": of})
        else:
            found.append(_setting(name, of, varied=name in varied))
    return found


def _setting(name: str, of: Sequence[str | None], *, varied: bool) -> dict[str, Any]:
    def order(value: str) -> tuple[int, float, str]:
        try:
            return (0, float(value), "")
        except ValueError:
            return (1, 0.0, value)

    values = sorted({value for value in of if value is not None}, key=order)
    number = {value: at for at, value in enumerate(values)}
    return {
        "name": name,
        "short": short_name(name),
        "varied": varied and len(set(of)) > 1,
        "values": values,
        "of": [None if value is None else number[value] for value in of],
    }


def _axes(sweep: Sweep) -> list[dict[str, Any]]:
    """Numbers that can be an axis: means of metrics, metrics by domain, costs, and numeric settings
    that differ. Those that no job has are left out."""
    jobs = sweep.compared
    chosen = [m for m in (*measures.MAIN, *measures.ROBUST) if m.has_parts]
    nodes = dict.fromkeys(node for job in jobs for node in job.nodes)
    parts = [None, *nodes] if len(nodes) > 1 else [None]
    found = [_axis_of_metric(jobs, measure, part) for part in parts for measure in chosen]
    speed = measures.SPEED
    costs = dict.fromkeys(key for job in jobs for key in job.metrics if key.startswith("cost/"))
    for key in dict.fromkeys([str(speed.key), *costs]):
        name = speed.name if key == speed.key else key.removeprefix("cost/")
        found.append(_axis(name, "cost", name, [job.estimate(key) for job in jobs]))
        found[-1]["direction"] = speed.direction if key == speed.key else 0
    for name in sweep.varied:
        values: list[Any] = [job.settings.get(name) for job in jobs]
        if all(is_number(of) for job, of in zip(jobs, values, strict=True) if job.edges != DENSE):
            numbers = [Estimate(value=float(of)) if is_number(of) else None for of in values]
            found.append(_axis(name, "settings", short_name(name), numbers))
    return [axis for axis in found if any(value is not None for value in axis["values"])]


def _axis(
    identifier: str, group: str, name: str, estimates: Sequence[Estimate | None]
) -> dict[str, Any]:
    return {
        "id": identifier, "group": group, "name": name, "label": name, "title": name,
        "direction": 0, "capped": [], "censored": [], **_column(estimates),
    }  # fmt: skip


def _axis_of_metric(jobs: Sequence[Job], measure: Measure, part: str | None) -> dict[str, Any]:
    """A metric of one domain or its mean. Where a job is only known to be below a bound, it has the
    bound and is `capped`; where its value is a lower bound, it is `censored`."""
    estimates = [measure.of(job, part) for job in jobs]
    axis = _axis(measure.name, part or "means over domains", measure.name, estimates)
    axis |= {"title": measure.axis, "direction": measure.direction}
    if part is not None:
        axis["id"] = f"{measure.name} {part}"
        axis["label"] = f"{measure.name} · {part}"
        axis["title"] = f"{measure.metric.axis} · {part}"
    for at, job in enumerate(jobs):
        if axis["values"][at] is not None:
            axis["censored"] += [at] if measure.is_censored(job, part) else []
        elif (bound := measure.at_most(job, part)) is not None:
            axis["values"][at] = _digits(bound)
            axis["capped"].append(at)
    if measure in (measures.TAX, measures.EXPERT_TAX, measures.COMPUTE_EQUIVALENT):
        axis["dense"] = 1.0 if measure is measures.COMPUTE_EQUIVALENT else 0.0
    elif measure is measures.LOSS:
        axis["lines"] = True  # Models without parts have it too, and are drawn as lines.
    elif measure is measures.REMOVAL:
        axis |= {"always": [0.0, 1.0], "clip": figures.REMOVAL_RANGE, "most": 1.0}
        axis["line"] = [1.0, "as if never trained"]
    elif measure is measures.SELECTIVITY:
        axis["always"] = [0.0]
    return axis


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


def _texts(jobs: Sequence[Job]) -> dict[str, Any]:
    """The prompts, each once, and for each job its samples by prompt."""
    prompts: dict[tuple[str, ...], int] = {}
    of_jobs: list[list[dict[str, Any]]] = [[] for _ in jobs]
    num_letters = 0
    # The first prompt of every job comes first, so that jobs can be compared.
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
    return {"prompts": [dict(zip(fields, key, strict=True)) for key in prompts], "of": of_jobs}


def _transfer(sweep: Sweep) -> list[dict[str, Any]]:
    """What each domain gains from each other in a dense model: a matrix for each set of baselines,
    with means over seeds."""
    jobs = [
        job
        for job in sweep.compared
        if any(registry.TRANSFER(e, d) in job.metrics for e in job.nodes for d in job.domains)
    ]
    names = tables.baseline_names(sweep, jobs)
    groups: dict[str, dict[int, Job]] = {}
    for job in jobs:
        groups.setdefault(tables.said(job, names), {}).setdefault(job.seed, job)
    cards = []
    for label, by_seed in groups.items():
        group = list(by_seed.values())
        rows = {
            part: [
                None
                if is_under(domain, part)
                else sweep.over_seeds(group, registry.TRANSFER(part, domain))
                for domain in group[0].domains
            ]
            for part in group[0].nodes
        }
        rows = {part: row for part, row in rows.items() if any(row)}
        cards.append(
            {
                "label": label,
                "seeds": len(group),
                "rows": list(rows),
                "columns": group[0].domains,
                "z": [[e and _digits(e.value) for e in row] for row in rows.values()],
                "intervals": [[e and e.interval for e in row] for row in rows.values()],
            }
        )
    return cards
