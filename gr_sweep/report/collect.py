"""A sweep's folder as data: its jobs, what they differ in, and one tidy data frame, a row a job.

A folder that is no job is passed over; a job that is unfinished or broken is named and never fatal.
Metrics are computed anew from the tables of losses, and joined with those against the baselines
that the folder holds. Knows the files a job leaves behind and nothing of how they are shown.
"""

import dataclasses
import functools
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gr_sweep.config import NO_EFFECT_ON_RESULT, UNROUTED, Method, is_number
from gr_sweep.domains import ancestors
from gr_sweep.errors import DataError
from gr_sweep.jobdir import METRICS, SAMPLES, SUMMARY, check_files, job_folders, read_summary
from gr_sweep.metrics import registry, seeds
from gr_sweep.metrics.compare import Attack, attacks
from gr_sweep.report.baselines import JobTables, alike, dotted, joined, train_tokens
from gr_sweep.report.round_files import Round, read_rounds, with_leaf_tax
from gr_sweep.report.samples import Prompt, read_samples
from gr_sweep.tracking.jsonl import read_rows

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
    "procedure.name": "procedure",
}
"""Fields that a user sets by the name of their group."""

DENSE = Method.dense.value
"""Edges and kind of a job without a plan: there is nothing to cut."""

ROUTED = Method.routed.value

_EDGES_ORDER = (DENSE, "none", "weight", "act", "both")
_GROUPS_ORDER = (*(method.value for method in UNROUTED), "shorter", ROUTED)
_UNROUTED = tuple(method.value for method in UNROUTED)

Value = TypeVar("Value")

_LARGEST = sys.float_info.max

_MOST_RESAMPLES = 1_000_000
"""More are no setting of a job, and would fill the memory."""

logger = logging.getLogger(__name__)


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
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """Checksums of its tables, by name."""
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    attacks: dict[str, list[Attack]] = dataclasses.field(default_factory=dict)
    """By part: the relearning attacks on the model that it was removed from."""
    smallest_share: float | None = None
    """The smallest share of the job's tokens that a dense run of the folder was trained on: a
    compute equivalent that is missing beside its loss is below it."""
    is_shorter_dense: bool = False
    """Whether the job is there only for the compute equivalents of longer jobs."""
    rounds: list[Round] = dataclasses.field(default_factory=list)
    """The rounds of `procedure=alternate` that the folder holds; empty for other jobs."""
    samples: list[Prompt] = dataclasses.field(default_factory=list)
    """What its model wrote."""

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The config with dotted names, in its own order; a list is a value."""
        return dotted(self.config)

    @functools.cached_property
    def context(self) -> tuple[str, int | None]:
        """Equal for jobs that share their baselines: those of the same model, text, seed and
        training tokens."""
        return alike(self.settings, self.domains, self.fingerprints), train_tokens(self.settings)

    @property
    def method(self) -> str:
        """The name of its method."""
        return str(self.settings.get("method.name", ROUTED))

    @property
    def kind(self) -> str:
        """What the job is compared as: its plan, or its method where that is not `routed`."""
        plan = str(self.settings.get("plan.kind", "peers"))
        if self.method == ROUTED:
            return DENSE if plan == "none" else plan
        return self.method

    @property
    def edges(self) -> str:
        """Which edges are cut; `dense` for a job without routing, whatever its edges say."""
        if self.kind in _UNROUTED:
            return DENSE
        return str(self.settings.get("edges", "none"))

    @property
    def group(self) -> str:
        """The jobs that it is told apart from by settings: those of its method."""
        if self.is_shorter_dense:
            return "shorter"
        return ROUTED if self.method == ROUTED and self.kind != DENSE else self.kind

    @property
    def seed(self) -> int:
        """What everything random comes from."""
        return int(self.settings.get("seed", 0))

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
        return [
            part for part in self.domains if self.estimate(registry.SELECTIVITY(part)) is not None
        ]

    @property
    def mean_loss(self) -> Estimate | None:
        """Mean of L(d) over the job's domains."""
        return self.estimate(registry.MEAN_LOSS)

    @property
    def mean_selectivity(self) -> Estimate | None:
        """Mean of selectivity over the domains that can be removed."""
        return self.estimate(registry.MEAN_SELECTIVITY)

    @property
    def mean_compute_equivalent(self) -> Estimate | None:
        """Mean compute equivalent of the full model over the job's domains."""
        return self.estimate(registry.MEAN_COMPUTE_EQUIVALENT)

    @property
    def mean_removal(self) -> Estimate | None:
        """Mean removal over the domains that can be removed."""
        return self.estimate(registry.MEAN_REMOVAL)


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
    def compared(self) -> list[Job]:
        """The jobs that are compared: all but shorter dense baselines."""
        return [job for job in self.jobs if not job.is_shorter_dense]

    @functools.cached_property
    def varied(self) -> list[str]:
        """Dotted names of the settings in which the compared jobs differ, those that change no
        number aside."""
        return _varied(self.compared)

    @functools.cached_property
    def varied_within(self) -> dict[str, list[str]]:
        """The same among all jobs of each group (`Job.group`), what makes the group left out."""
        groups: dict[str, list[Job]] = {}
        for job in self.jobs:
            groups.setdefault(job.group, []).append(job)
        made_by = ("method.name", "method.fixes")
        return {
            group: [
                name
                for name in _varied(jobs)
                if not name.startswith(made_by) and not (name == "edges" and group == ROUTED)
            ]
            for group, jobs in groups.items()
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

        A job of a method that fixes its edges, or has none, has what it is compared as instead,
        without a name. Two jobs with equal settings are equal here.
        """
        first = ("edges", job.edges) if job.group == ROUTED else ("", job.kind)
        return [first] + [
            (short_name(name), shown(job.settings.get(name)))
            for name in self.varied_within[job.group]
            if seed or name != "seed"
        ]

    def label(self, job: Job, *, seed: bool = True) -> str:
        """What sets the job apart as a user would type it."""
        pairs = self.apart(job, seed=seed)
        return " ".join(f"{name}={value}" if name else value for name, value in pairs)

    @functools.cached_property
    def replicates(self) -> list[list[Job]]:
        """The compared jobs in groups that differ in their seed alone."""
        groups: dict[str, list[Job]] = {}
        for job in self.compared:
            settings = {
                name: value
                for name, value in job.settings.items()
                if name != "seed" and not _changes_nothing(name)
            }
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(job)
        return list(groups.values())

    def over_seeds(self, group: Sequence[Job], key: str) -> Estimate | None:
        """Mean of a metric over jobs that differ in their seed alone.

        The interval is Student's, of one value a seed; without one for a single seed. None where a
        job lacks the metric: a mean over the others would be of other seeds.
        """
        values = _by_seed(group, key)
        if not values or len(values) < len({job.seed for job in group}):
            return None
        return estimate_of(list(values.values()))

    def difference(self, first: Sequence[Job], second: Sequence[Job], key: str) -> Estimate | None:
        """Mean of the metric of the first jobs less that of the second, paired on their seeds."""
        of_first, of_second = _by_seed(first, key), _by_seed(second, key)
        common = sorted(of_first.keys() & of_second.keys())
        found = seeds.paired_difference(of_first, of_second)
        if found is not None:
            return Estimate(value=found[0], interval=found[1:])
        return estimate_of([of_first[seed] - of_second[seed] for seed in common])


def _by_seed(jobs: Sequence[Job], key: str) -> dict[int, float]:
    """The metric by seed; the first job counts where two have the same seed."""
    found: dict[int, float] = {}
    for job in jobs:
        estimate = job.estimate(key)
        if estimate is not None:
            found.setdefault(job.seed, estimate.value)
    return found


def estimate_of(values: Sequence[float]) -> Estimate | None:
    """Mean and t-interval of a value a seed; None without any."""
    if not values:
        return None
    found = seeds.t_interval(values)
    if found is None:
        return Estimate(value=values[0])
    return Estimate(value=found[0], interval=found[1:])


def _changes_nothing(name: str) -> bool:
    """Whether a setting changes no number that a job ends with."""
    return any(name == free or name.startswith(free + ".") for free in NO_EFFECT_ON_RESULT)


def _varied(jobs: Sequence[Job]) -> list[str]:
    return varied_settings([job.settings for job in jobs])


def varied_settings(of_jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted names of the settings that differ, those that change no number aside."""
    names = dict.fromkeys(name for settings in of_jobs for name in settings)
    varied = [
        name
        for name in names
        if not _changes_nothing(name)
        and len({json.dumps(settings.get(name)) for settings in of_jobs}) > 1
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


def read_sweep(folder: Path, only: Collection[Path] | None = None) -> Sweep:
    """Reads the jobs of a folder.

    Args:
        folder: of a sweep, whose direct subfolders are jobs, or of one job.
        only: folders of the jobs to read; None reads all.

    Raises:
        JobError: the folder does not exist or contains no job.
    """
    folders = job_folders(folder)
    if only is not None:
        wanted = {job.resolve() for job in only}
        folders = [entry for entry in folders if entry.resolve() in wanted]
    jobs, unfinished = [], []
    tables: dict[str, JobTables | None] = {}
    for entry in folders:
        history = read_rows(entry / METRICS)
        try:
            job = _read_job(entry)
        except _Broken as error:
            step = max((row["step"] for row in history), default=None)
            unfinished.append(Unfinished(name=entry.resolve().name, step=step, why=str(error)))
        else:
            job = dataclasses.replace(
                job,
                history=history,
                rounds=read_rounds(entry),
                samples=read_samples(entry, job.files.get(SAMPLES)),
            )
            jobs.append(job)
            try:
                check_files(entry, job.files)
                tables[job.name] = JobTables.read(
                    entry, domains=job.domains, settings=job.settings, fingerprints=job.fingerprints
                )
            except (DataError, OSError) as error:
                logger.warning("%s: metrics of %s are those of its summary", error, job.name)
    jobs = _with_baselines(jobs, tables)
    varied = _varied(jobs)
    jobs.sort(key=lambda job: _report_order(job, varied))
    return Sweep(name=folder.resolve().name, folder=folder, jobs=jobs, unfinished=unfinished)


def _with_baselines(jobs: Sequence[Job], tables: Mapping[str, JobTables | None]) -> list[Job]:
    """The jobs with metrics made anew from their tables and those of their baselines."""
    found = joined(tables)
    with_baselines = []
    for job in jobs:
        tables_of_job = tables.get(job.name)
        if tables_of_job is not None:
            of_job, rows = found[job.name], tables_of_job.relearn
            job = dataclasses.replace(
                job,
                metrics=_not_made_anew(job.metrics) | of_job.metrics,
                intervals=_not_made_anew(job.intervals) | of_job.intervals,
                attacks={
                    part: attacks(rows, part, job.domains)
                    for part in dict.fromkeys(row.part for row in rows)
                },
                smallest_share=of_job.smallest_share,
                is_shorter_dense=of_job.is_shorter_dense,
            )
        own = [] if tables_of_job is None else tables_of_job.losses
        dense = None if tables_of_job is None else found[job.name].dense
        rounds = [with_leaf_tax(of, job.domains, own, dense) for of in job.rounds]
        job = dataclasses.replace(job, rounds=rounds)
        with_baselines.append(job)
    return with_baselines


_MADE_ANEW = ("loss/", "bits_per_byte/", "utility/", "separability/", "robustness/", "mean_")
"""How the metrics begin that come from the tables."""


def _not_made_anew(by_key: Mapping[str, Value]) -> dict[str, Value]:
    """What is left of a summary beside the tables: what these no longer give is out of date."""
    return {key: value for key, value in by_key.items() if not key.startswith(_MADE_ANEW)}


def results(sweep: Sweep, value: Callable[[Any], Any] = shown) -> "pd.DataFrame":
    """One row a job: name, the settings that differ, all others, metrics, intervals.

    Settings have dotted names, and values as `value` makes them; an interval is in two columns,
    `<metric>/low` and `<metric>/high`. A value that a job lacks is empty.
    """
    import pandas as pd

    rows = []
    varied = _varied(sweep.jobs)
    for job in sweep.jobs:
        row: dict[str, Any] = {"job": job.name}
        row.update({name: value(job.settings.get(name)) for name in varied})
        row.update({name: value(of) for name, of in job.settings.items() if name not in row})
        row.update(job.metrics)
        for key, (low, high) in job.intervals.items():
            row[f"{key}/low"], row[f"{key}/high"] = low, high
        rows.append(row)
    frame = pd.DataFrame(rows, columns=None if rows else ["job"])
    order = [name for job in sweep.jobs for name in job.settings] + [
        key for job in sweep.jobs for key in job.metrics
    ]
    front = list(dict.fromkeys(["job", *varied, *order]))
    return frame[[*front, *[name for name in frame.columns if name not in set(front)]]]


def _report_order(job: Job, varied: Sequence[str]) -> tuple[Any, ...]:
    edges = _EDGES_ORDER.index(job.edges) if job.edges in _EDGES_ORDER else len(_EDGES_ORDER)
    values = [job.settings.get(name) for name in varied if name != "edges"]
    # Numbers by size and before words: 0.5 comes before 10.
    ranks = [(0, value, "") if is_number(value) else (1, 0, shown(value)) for value in values]
    group = _GROUPS_ORDER.index(job.group) if job.group in _GROUPS_ORDER else len(_GROUPS_ORDER)
    return (edges, group, *ranks, job.name)


def _read_job(folder: Path) -> Job:
    path = folder / SUMMARY
    if not path.exists():
        raise _Broken("not finished")
    try:
        summary = read_summary(path)
    except (OSError, DataError) as error:
        raise _Broken(f"summary.json cannot be read: {error}") from error
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

    metrics = {key: value for key, value in field("metrics", dict).items() if is_number(value)}
    intervals = {}
    for key, bounds in field("intervals", dict).items():
        if not (isinstance(bounds, list) and len(bounds) == 2 and all(map(is_number, bounds))):
            raise _Broken(f"summary.json: the interval of {key} is no pair of numbers")
        intervals[key] = (float(bounds[0]), float(bounds[1]))
    config = field("config", dict)
    for name, value, most in (
        ("seed", config.get("seed", 0), sys.maxsize),
        ("eval.bootstrap", dotted(config).get("eval.bootstrap", 0), _MOST_RESAMPLES),
    ):
        if type(value) is not int or not 0 <= value <= most:
            raise _Broken(f"summary.json: {name}={value!r} is no whole number from 0 to {most}")
    return Job(
        name=folder.resolve().name,
        sweep=str(summary.get("sweep", "")),
        command=str(summary.get("command", "")),
        overrides=[str(override) for override in field("overrides", list)],
        domains=[str(domain) for domain in field("domains", list)],
        config=config,
        metrics=metrics,
        intervals=intervals,
        environment=field("environment", dict),
        fingerprints=field("fingerprints", dict),
        started=str(summary.get("started", "")),
        finished=str(summary.get("finished", "")),
        files=field("files", dict) if "files" in summary else {},
    )
