"""Reads the folder of a sweep into a `Sweep`.

Folders that are not jobs are skipped, and so are jobs that are there twice; unfinished and damaged
jobs are listed with the reason, and never stop the others. Metrics are recomputed from the tables
of losses and compared with the baselines among the jobs. Reads files only; never imports torch.
"""

import dataclasses
import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from gr_sweep.config import UNROUTED, is_number
from gr_sweep.errors import DataError
from gr_sweep.files import content_digest
from gr_sweep.jobdir import METRICS, SAMPLES, SUMMARY, job_folders, read_summary
from gr_sweep.report.baselines import JobTables, with_baselines
from gr_sweep.report.round_files import read_rounds
from gr_sweep.report.sweep import (
    DENSE,
    ROUTED,
    Job,
    Search,
    Sweep,
    Unfinished,
    shown,
    varied_settings,
)
from gr_sweep.tracking.jsonl import read_rows

SEARCH = "search.json"
"""In a sweep's folder: what a search found out about its settings."""

SUMMARY_FORMAT = 1
"""Version of summary.json that this module reads."""

_EDGES_ORDER = (DENSE, "none", "weight", "act", "both")
_GROUPS_ORDER = (*(method.value for method in UNROUTED), "shorter", ROUTED)

logger = logging.getLogger(__name__)


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
    seen: dict[str, Job] = {}
    unfinished: list[Unfinished] = []
    tables: dict[str, JobTables] = {}
    for entry in folders:
        history = read_rows(entry / METRICS)
        try:
            job, files = _read_job(entry)
        except DataError as error:
            step = max((row["step"] for row in history), default=None)
            unfinished.append(Unfinished(name=entry.resolve().name, step=step, why=str(error)))
            continue
        # A command that is typed in another way names its jobs, and baselines, in another way.
        if (twin := seen.setdefault(job.identity, job)) is not job:
            logger.info("%s is left out: %s is the same job", job.name, twin.name)
            continue
        samples = read_samples(entry, files.get(SAMPLES))
        job = dataclasses.replace(job, history=history, rounds=read_rounds(entry), samples=samples)
        finished.append(job)
        try:
            if (found := JobTables.read(entry, job, files)) is not None:
                tables[job.name] = found
        except (DataError, OSError) as error:
            logger.warning("%s; the metrics in the summary of %s are shown", error, job.name)
    finished = with_baselines(finished, tables)
    varied = varied_settings([job.settings for job in finished])
    finished.sort(key=lambda job: _report_order(job, varied))
    return Sweep(
        name=folder.resolve().name,
        folder=folder,
        jobs=finished,
        unfinished=unfinished,
        search=_read_search(folder / SEARCH, {job.name for job in finished}),
    )


def _read_search(path: Path, jobs: Collection[str]) -> Search | None:
    """What a search left in the folder; None without one, or if jobs of its trials are missing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        names = {name for trial in found.pop("jobs") for name in trial}
        return Search(**found) if names.issubset(jobs) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read: %s", path, " ".join(str(error).split()))
        return None


def _report_order(job: Job, varied: Sequence[str]) -> tuple[Any, ...]:
    edges = _EDGES_ORDER.index(job.edges) if job.edges in _EDGES_ORDER else len(_EDGES_ORDER)
    group = _GROUPS_ORDER.index(job.group) if job.group in _GROUPS_ORDER else len(_GROUPS_ORDER)
    values = [job.settings.get(name) for name in varied if name != "edges"]
    # Numbers by size and before words: 0.5 comes before 10.
    ranks = [(0, value, "") if is_number(value) else (1, 0, shown(value)) for value in values]
    return (edges, group, *ranks, job.name)


def _read_job(folder: Path) -> tuple[Job, dict[str, str]]:
    """The job of a folder, and the digests of its files.

    Raises:
        DataError: it has no summary, or one that is damaged.
    """
    path = folder / SUMMARY
    if not path.exists():
        raise DataError("not finished")
    try:
        summary = read_summary(path)
        if summary["format"] != SUMMARY_FORMAT:
            raise DataError(
                f"it has format {summary['format']!r}; this version reads {SUMMARY_FORMAT}"
            )
        job = Job(
            name=folder.resolve().name,
            sweep=summary.get("sweep", ""),
            title=summary.get("title", ""),
            overrides=summary.get("overrides", []),
            command=summary.get("command", ""),
            domains=summary["domains"],
            config=summary["config"],
            metrics=dict(summary["metrics"]),
            intervals={key: (low, high) for key, (low, high) in summary["intervals"].items()},
            environment=summary["environment"],
            fingerprints=summary["fingerprints"],
            started=summary["started"],
            finished=summary["finished"],
        )
        return job, dict(summary.get("files", {}))
    except (OSError, DataError, LookupError, TypeError, ValueError, AttributeError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"summary.json cannot be read: {said}") from error


def read_samples(folder: Path, digest: str | None = None) -> list[dict[str, Any]]:
    """The prompts of a job's samples.json, each with the beginning of a document (`domain`,
    `document`, `prompt`, `reference`) and the `samples` that continue it (`kind`, `part`, `text`,
    `end`). Empty if the file is missing; a damaged file is logged and skipped.

    Args:
        digest: expected digest of the file, from the job's summary.
    """
    path = folder / SAMPLES
    try:
        if digest is not None and content_digest(path) != digest:
            raise ValueError("its checksum differs from the one in summary.json")
        prompts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        return prompts
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError) as error:
        logger.warning("%s cannot be read: %s", path, " ".join(str(error).split()))
        return []
