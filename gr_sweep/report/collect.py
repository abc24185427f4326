"""A sweep's folder as data: its jobs, what they differ in, and one tidy data frame, a row a job.

A folder that is no job is passed over; a job that is unfinished or broken is named and never fatal.
Knows the files a job leaves behind and nothing of how they are shown.
"""

import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.domains import ancestors
from gr_sweep.errors import ReportError
from gr_sweep.metrics import bootstrap, keys

if TYPE_CHECKING:
    import pandas as pd

SUMMARY_FORMAT = 1
"""Version of summary.json that this module reads."""

SHORT_NAMES = {
    "model.size": "model",
    "plan.kind": "plan",
    "data.kind": "data",
    "method.name": "method",
    "partition.name": "partition",
}
"""Fields that a user sets by the name of their group."""

DENSE = "dense"
"""Edges and kind of a job without a plan: there is nothing to cut."""

_EDGES_ORDER = (DENSE, "none", "weight", "act", "both")


class _Broken(Exception):
    """A file of a job that does not hold what it should."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and, where there is one, its 95 % interval."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A finished job: its summary.json and the rows of its metrics.jsonl."""

    name: str
    sweep: str
    command: str
    overrides: list[str]
    domains: list[str]
    config: dict[str, Any]
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    environment: dict[str, Any]
    fingerprints: dict[str, str]
    started: str
    finished: str
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The config with dotted names, in its own order; a list is a value."""
        return _flatten(self.config)

    @property
    def kind(self) -> str:
        """What the job is compared as: its plan, or its method where that is not `routed`."""
        method = str(self.settings.get("method.name", "routed"))
        plan = str(self.settings.get("plan.kind", "peers"))
        if method == "routed":
            return DENSE if plan == "none" else plan
        return method

    @property
    def edges(self) -> str:
        """Which edges are cut; `dense` for a job without routing, whatever its edges say."""
        if self.kind in (DENSE, "filtered"):
            return DENSE
        return str(self.settings.get("edges", "none"))

    def estimate(self, key: str) -> Estimate | None:
        """A metric and its interval; None where the job lacks it."""
        if key not in self.metrics:
            return None
        return Estimate(value=self.metrics[key], interval=self.intervals.get(key))

    @property
    def nodes(self) -> list[str]:
        """All that could have been removed or kept: the domains and the nodes above them."""
        return list(dict.fromkeys(node for domain in self.domains for node in ancestors(domain)))

    @property
    def parts(self) -> list[str]:
        """The domains that have a selectivity, in the order of the job's domains."""
        return [part for part in self.domains if self.estimate(keys.selectivity(part)) is not None]

    @property
    def mean_loss(self) -> Estimate | None:
        """Mean of L(d) over the job's domains; None where one of them is missing."""
        return self._mean([keys.loss_full(domain) for domain in self.domains])

    @property
    def mean_selectivity(self) -> Estimate | None:
        """Mean of selectivity over the domains that have one; None where none has."""
        return self._mean([keys.selectivity(part) for part in self.parts])

    def _mean(self, metric_keys: Sequence[str]) -> Estimate | None:
        estimates = [self.estimate(key) for key in metric_keys]
        found = [estimate for estimate in estimates if estimate is not None]
        if not found or len(found) < len(estimates):
            return None
        values = [estimate.value for estimate in found]
        intervals = [estimate.interval for estimate in found if estimate.interval is not None]
        return Estimate(
            value=sum(values) / len(values),
            # Domains are independent; selectivities share documents a little, which makes this one
            # wider than it need be, not narrower.
            interval=bootstrap.interval_of_mean(values, intervals)
            if len(intervals) == len(values)
            else None,
        )


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A job without a summary that can be read."""

    name: str
    step: int | None
    """Last step of its metrics.jsonl."""
    why: str


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The jobs of a folder."""

    name: str
    folder: Path
    jobs: list[Job]
    """In the order of the report: dense first, then by edges, then by what they differ in."""
    unfinished: list[Unfinished]

    @functools.cached_property
    def varied(self) -> list[str]:
        """Dotted names of the settings in which the jobs differ, those that change no number
        aside."""
        return _varied(self.jobs)

    @functools.cached_property
    def varied_within(self) -> dict[bool, list[str]]:
        """The same among the dense jobs (True) and among the routed ones (False)."""
        return {
            dense: _varied([job for job in self.jobs if (job.edges == DENSE) == dense])
            for dense in (True, False)
        }

    @functools.cached_property
    def domains(self) -> list[str]:
        """Every domain of any job, in order of appearance."""
        return list(dict.fromkeys(domain for job in self.jobs for domain in job.domains))

    @functools.cached_property
    def labels(self) -> dict[str, str]:
        """The label of each job by its name; the name itself where two jobs have equal settings."""
        labels = {job.name: self.label(job) for job in self.jobs}
        twice = [label for label, times in Counter(labels.values()).items() if times > 1]
        return {name: name if label in twice else label for name, label in labels.items()}

    def apart(self, job: Job, *, seed: bool = True) -> list[tuple[str, str]]:
        """Name and value of what sets the job apart from those like it, its edges first.

        A dense job has no edges: it has what it is compared as instead, without a name. Two jobs
        with equal settings are equal here.
        """
        dense = job.edges == DENSE
        first = ("", job.kind) if dense else ("edges", job.edges)
        names = [name for name in self.varied_within[dense] if name != "edges"]
        return [first] + [
            (short_name(name), shown(job.settings.get(name)))
            for name in names
            if seed or name != "seed"
        ]

    def label(self, job: Job, *, seed: bool = True) -> str:
        """What sets the job apart as a user would type it."""
        pairs = self.apart(job, seed=seed)
        return " ".join(f"{name}={value}" if name else value for name, value in pairs)

    @functools.cached_property
    def replicates(self) -> list[list[Job]]:
        """The jobs in groups that differ in their seed alone."""
        groups: dict[str, list[Job]] = {}
        for job in self.jobs:
            settings = {
                name: value
                for name, value in job.settings.items()
                if name != "seed" and not name.startswith("tracking.")
            }
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(job)
        return list(groups.values())


def _varied(jobs: Sequence[Job]) -> list[str]:
    names = dict.fromkeys(name for job in jobs for name in job.settings)
    varied = [
        name
        for name in names
        if not name.startswith("tracking.")
        and len({json.dumps(job.settings.get(name)) for job in jobs}) > 1
    ]
    if "partition.name" in varied:
        varied = [name for name in varied if not name.startswith("partition.domains.")]
    return varied


def short_name(name: str) -> str:
    """The name that a user types for a dotted setting."""
    return SHORT_NAMES.get(name, name)


def shown(value: Any) -> str:
    """A setting as a user would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(shown(item) for item in value) + "]"
    return str(value)


def read_sweep(folder: Path) -> Sweep:
    """The jobs of a folder: its direct subfolders that are jobs, or itself where it is one.

    Raises:
        ReportError: the folder does not exist or holds no job.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder} is no folder; give the folder of a sweep or of a job")
    folders = [folder]
    if not _is_job(folder):
        folders = sorted(entry for entry in folder.iterdir() if entry.is_dir() and _is_job(entry))
    if not folders:
        raise ReportError(
            f"{folder} holds no job: neither it nor a folder in it has a summary.json, "
            "metrics.jsonl or .hydra"
        )
    jobs, unfinished = [], []
    for entry in folders:
        history = _read_history(entry / "metrics.jsonl")
        try:
            job = _read_job(entry)
        except _Broken as error:
            step = max((row["step"] for row in history), default=None)
            unfinished.append(Unfinished(name=entry.resolve().name, step=step, why=str(error)))
        else:
            jobs.append(dataclasses.replace(job, history=history))
    varied = _varied(jobs)
    jobs.sort(key=lambda job: _report_order(job, varied))
    return Sweep(name=folder.resolve().name, folder=folder, jobs=jobs, unfinished=unfinished)


def results(sweep: Sweep) -> "pd.DataFrame":
    """One row a job: name, the settings that differ, all others, metrics, intervals, means.

    Settings have dotted names; an interval is in two columns, `<metric>/low` and `<metric>/high`. A
    value that a job lacks is empty.
    """
    import pandas as pd

    rows = []
    for job in sweep.jobs:
        row: dict[str, Any] = {"job": job.name}
        row.update({name: shown(job.settings.get(name)) for name in sweep.varied})
        row.update({name: shown(value) for name, value in job.settings.items() if name not in row})
        row.update(job.metrics)
        for key, (low, high) in job.intervals.items():
            row[f"{key}/low"], row[f"{key}/high"] = low, high
        for name, mean in (
            ("mean_loss", job.mean_loss),
            ("mean_selectivity", job.mean_selectivity),
        ):
            if mean is not None:
                row[name] = mean.value
        rows.append(row)
    frame = pd.DataFrame(rows)
    order = [name for job in sweep.jobs for name in job.settings] + [
        key for job in sweep.jobs for key in job.metrics
    ]
    front = list(dict.fromkeys(["job", *sweep.varied, *order]))
    return frame[[*front, *[name for name in frame.columns if name not in set(front)]]]


def _report_order(job: Job, varied: Sequence[str]) -> tuple[Any, ...]:
    edges = _EDGES_ORDER.index(job.edges) if job.edges in _EDGES_ORDER else len(_EDGES_ORDER)
    values = [job.settings.get(name) for name in varied if name != "edges"]
    # Numbers by size and before words: 0.5 comes before 10.
    ranks = [(0, value, "") if _is_number(value) else (1, 0, shown(value)) for value in values]
    return (edges, *ranks, job.name)


def _is_job(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("summary.json", "metrics.jsonl", ".hydra"))


def _read_job(folder: Path) -> Job:
    path = folder / "summary.json"
    if not path.exists():
        raise _Broken("not finished")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _Broken(f"summary.json cannot be read: {error}") from error
    if not isinstance(summary, dict):
        raise _Broken("summary.json holds no object")
    if summary.get("format") != SUMMARY_FORMAT:
        raise _Broken(
            f"summary.json has format {summary.get('format')!r}; "
            f"this version reads {SUMMARY_FORMAT}"
        )

    def field(name: str, kind: type) -> Any:
        value = summary.get(name)
        if not isinstance(value, kind):
            raise _Broken(f"summary.json lacks {name!r}, or it is no {kind.__name__}")
        return value

    metrics = {key: value for key, value in field("metrics", dict).items() if _is_number(value)}
    intervals = {}
    for key, bounds in field("intervals", dict).items():
        if not (isinstance(bounds, list) and len(bounds) == 2 and all(map(_is_number, bounds))):
            raise _Broken(f"summary.json: the interval of {key} is no pair of numbers")
        intervals[key] = (float(bounds[0]), float(bounds[1]))
    return Job(
        name=folder.resolve().name,
        sweep=str(summary.get("sweep", "")),
        command=str(summary.get("command", "")),
        overrides=[str(override) for override in field("overrides", list)],
        domains=[str(domain) for domain in field("domains", list)],
        config=field("config", dict),
        metrics=metrics,
        intervals=intervals,
        environment=field("environment", dict),
        fingerprints=field("fingerprints", dict),
        started=str(summary.get("started", "")),
        finished=str(summary.get("finished", "")),
    )


def _read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a line that is cut off or no row is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            # The last line of a job that was killed, or is writing at this moment.
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = "{}" if isinstance(value, Mapping) else value
    return flat
