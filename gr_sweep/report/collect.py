"""Reads the folder of a sweep into a `Sweep`, and writes its table of results.

Folders that are not jobs are skipped; unfinished and damaged jobs are listed with the reason, and
never stop the others. Metrics are recomputed from the tables of losses and compared with the
baselines among the jobs. Reads files only; never imports torch.
"""

import dataclasses
import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gr_sweep.config import UNROUTED, is_number
from gr_sweep.errors import DataError
from gr_sweep.jobdir import METRICS, SAMPLES, SUMMARY, flatten, job_folders, read_summary
from gr_sweep.metrics.compare import attacks
from gr_sweep.report.baselines import JobTables, joined
from gr_sweep.report.round_files import read_rounds, with_leaf_tax
from gr_sweep.report.samples import read_samples
from gr_sweep.report.sweep import DENSE, ROUTED, Job, Sweep, Unfinished, shown, varied_settings
from gr_sweep.tracking.jsonl import read_rows

if TYPE_CHECKING:
    import pandas as pd

SUMMARY_FORMAT = 1
"""Version of summary.json that this module reads."""

_EDGES_ORDER = (DENSE, "none", "weight", "act", "both")
_GROUPS_ORDER = (*(method.value for method in UNROUTED), "shorter", ROUTED)
_MOST_RESAMPLES = 1_000_000
"""More would fill the memory."""
_RECOMPUTED = ("loss/", "bits_per_byte/", "utility/", "separability/", "robustness/", "mean_")
"""Prefixes of the metrics that come from the tables of losses."""

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


class _BrokenError(Exception):
    """A file of a job does not hold what it should."""


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
    finished: list[Job] = []
    unfinished: list[Unfinished] = []
    tables: dict[str, JobTables] = {}
    for entry in folders:
        history = read_rows(entry / METRICS)
        try:
            job, summary = _read_job(entry)
        except _BrokenError as error:
            step = max((row["step"] for row in history), default=None)
            unfinished.append(Unfinished(name=entry.resolve().name, step=step, why=str(error)))
            continue
        digest = summary.get("files", {}).get(SAMPLES)
        job = dataclasses.replace(
            job, history=history, rounds=read_rounds(entry), samples=read_samples(entry, digest)
        )
        finished.append(job)
        try:
            found = JobTables.read(entry, job, summary.get("files", {}))
            if found is not None:
                tables[job.name] = found
        except (DataError, OSError) as error:
            logger.warning("%s; using the metrics in the summary of %s", error, job.name)
    finished = _with_baselines(finished, tables)
    varied = varied_settings([job.settings for job in finished])
    finished.sort(key=lambda job: _report_order(job, varied))
    return Sweep(name=folder.resolve().name, folder=folder, jobs=finished, unfinished=unfinished)


def _with_baselines(jobs: Sequence[Job], tables: Mapping[str, JobTables]) -> list[Job]:
    """The jobs with metrics recomputed from their tables and those of their baselines."""
    found = joined(tables)
    with_baselines = []
    for job in jobs:
        own = tables.get(job.name)
        if own is not None:
            of_job = found[job.name]
            parts = dict.fromkeys(row.part for row in own.relearn)
            job = dataclasses.replace(
                job,
                metrics=_not_recomputed(job.metrics) | of_job.metrics,
                intervals=_not_recomputed(job.intervals) | of_job.intervals,
                attacks={part: attacks(own.relearn, part, job.domains) for part in parts},
                smallest_share=of_job.smallest_share,
                is_shorter_dense=of_job.is_shorter_dense,
            )
        losses = [] if own is None else own.losses
        dense = None if own is None else found[job.name].dense
        rounds = [with_leaf_tax(of, job.domains, losses, dense) for of in job.rounds]
        with_baselines.append(dataclasses.replace(job, rounds=rounds))
    return with_baselines


def _not_recomputed(by_key: Mapping[str, Value]) -> dict[str, Value]:
    return {key: value for key, value in by_key.items() if not key.startswith(_RECOMPUTED)}


def results(sweep: Sweep, value: Callable[[Any], Any] = shown) -> "pd.DataFrame":
    """One row for each job: its name, the settings that differ, all other settings, the
    fingerprints `code` and `text`, the metrics, and the bounds of their intervals.

    Settings have dotted names and values as `value` makes them. An interval has two columns,
    `<metric>/low` and `<metric>/high`. A value that a job lacks is empty.
    """
    import pandas as pd

    varied = varied_settings([job.settings for job in sweep.jobs])
    names = dict.fromkeys([*varied, *(name for job in sweep.jobs for name in job.settings)])
    rows: list[dict[str, Any]] = []
    bounds: dict[str, None] = {}
    for job in sweep.jobs:
        row: dict[str, Any] = {"job": job.name}
        row |= {name: value(job.settings.get(name)) for name in varied}
        row |= {name: value(of) for name, of in job.settings.items() if name not in row}
        row |= {"code": job.fingerprints.get("code"), "text": job.text}
        row |= job.metrics
        for key, (low, high) in job.intervals.items():
            row[f"{key}/low"], row[f"{key}/high"] = low, high
            bounds |= dict.fromkeys((f"{key}/low", f"{key}/high"))
        rows.append(row)
    if not rows:
        return pd.DataFrame(columns=["job"])
    metrics = dict.fromkeys(key for job in sweep.jobs for key in job.metrics)
    return pd.DataFrame(
        rows, columns=list(dict.fromkeys(["job", *names, "code", "text", *metrics, *bounds]))
    )


def _report_order(job: Job, varied: Sequence[str]) -> tuple[Any, ...]:
    edges = _EDGES_ORDER.index(job.edges) if job.edges in _EDGES_ORDER else len(_EDGES_ORDER)
    group = _GROUPS_ORDER.index(job.group) if job.group in _GROUPS_ORDER else len(_GROUPS_ORDER)
    values = [job.settings.get(name) for name in varied if name != "edges"]
    # Numbers by size and before words: 0.5 comes before 10.
    ranks = [(0, value, "") if is_number(value) else (1, 0, shown(value)) for value in values]
    return (edges, group, *ranks, job.name)


def _read_job(folder: Path) -> tuple[Job, dict[str, Any]]:
    """The job of a folder, and its summary."""
    path = folder / SUMMARY
    if not path.exists():
        raise _BrokenError("not finished")
    try:
        summary = read_summary(path)
    except (OSError, DataError) as error:
        raise _BrokenError(f"summary.json cannot be read: {error}") from error
    if summary.get("format") != SUMMARY_FORMAT:
        raise _BrokenError(
            f"summary.json has format {summary.get('format')!r}; "
            f"this version reads {SUMMARY_FORMAT}"
        )
    for name, kind in (
        ("metrics", dict), ("intervals", dict), ("config", dict), ("domains", list),
        ("environment", dict), ("fingerprints", dict), ("files", dict),
    ):  # fmt: skip
        if not isinstance(summary.get(name, {} if name == "files" else None), kind):
            raise _BrokenError(f"summary.json lacks {name!r}, or it is not a {kind.__name__}")
    intervals = {}
    for key, bounds in summary["intervals"].items():
        if not (isinstance(bounds, list) and len(bounds) == 2 and all(map(is_number, bounds))):
            raise _BrokenError(f"summary.json: the interval of {key} is not a pair of numbers")
        intervals[key] = (float(bounds[0]), float(bounds[1]))
    config = summary["config"]
    for name, value, most in (
        ("seed", config.get("seed", 0), sys.maxsize),
        ("eval.bootstrap", flatten(config).get("eval.bootstrap", 0), _MOST_RESAMPLES),
    ):
        if type(value) is not int or not 0 <= value <= most:
            raise _BrokenError(
                f"summary.json: expected an integer from 0 to {most} for {name}, got {value!r}"
            )
    job = Job(
        name=folder.resolve().name,
        sweep=str(summary.get("sweep", "")),
        command=str(summary.get("command", "")),
        domains=[str(domain) for domain in summary["domains"]],
        config=config,
        metrics={key: value for key, value in summary["metrics"].items() if is_number(value)},
        intervals=intervals,
        environment=summary["environment"],
        fingerprints=summary["fingerprints"],
        started=str(summary.get("started", "")),
        finished=str(summary.get("finished", "")),
    )
    return job, summary
