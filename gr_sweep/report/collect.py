"""Reads the folder of a sweep into a `Sweep`.

Folders that are not jobs are skipped, and so are jobs that are there twice; unfinished and damaged
jobs are listed with the reason, and never stop the others. Metrics are compared with the baselines
among the jobs. Reads files only; never imports torch.
"""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from gr_sweep.config import UNROUTED, is_number
from gr_sweep.errors import DataError
from gr_sweep.files import content_digest
from gr_sweep.jobdir import METRICS, ROUND, ROUNDS, SAMPLES, SUMMARY, job_folders, read_summary
from gr_sweep.report.baselines import with_baselines
from gr_sweep.report.sweep import DENSE, ROUTED, Job, Sweep, Unfinished, shown, varied_settings
from gr_sweep.tracking.jsonl import read_rows

SEARCH = "search.json"
"""In a sweep's folder: what a search found out about its settings."""

SUMMARY_FORMAT = 1
"""Version of summary.json that this module reads."""

ROUND_NUMBERS = (
    "round", "tokens", "labels", "parameters_kept", "modularity", "served_loss", "expert_loss",
    "metrics",
)  # fmt: skip
"""What a round.json must have."""
_EDGES_ORDER = (DENSE, "none", "weight", "act", "both")
_GROUPS_ORDER = (*(method.value for method in UNROUTED), ROUTED)
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError)

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
        folders = [entry for entry in folders if entry in wanted]
    finished: dict[str, Job] = {}
    unfinished: list[Unfinished] = []
    for entry in folders:
        history = read_rows(entry / METRICS)
        try:
            job = _read_job(entry, history)
        except DataError as error:
            step = max((row["step"] for row in history), default=None)
            unfinished.append(Unfinished(entry.name, step, str(error)))
            continue
        # A command that is typed in another way names its jobs, and baselines, in another way.
        if (twin := finished.setdefault(job.identity, job)) is not job:
            logger.info("%s is left out: %s is the same job", job.name, twin.name)
    jobs = with_baselines(list(finished.values()))
    varied = varied_settings([job.settings for job in jobs])
    jobs.sort(key=lambda job: _report_order(job, varied))
    return Sweep(
        name=folder.resolve().name,
        folder=folder,
        jobs=jobs,
        unfinished=unfinished,
        search=_read_search(folder / SEARCH, {job.name for job in jobs}),
    )


@contextlib.contextmanager
def _damage_logged(path: Path) -> Iterator[None]:
    """A file that is missing is passed over; one that is damaged is named in the log."""
    try:
        yield
    except FileNotFoundError:
        pass
    except _DAMAGE as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        logger.warning("%s cannot be read: %s", path, said)


def _read_search(path: Path, jobs: Collection[str]) -> dict[str, Any]:
    """What a search left in the folder; empty without one, or if jobs of its trials are missing."""
    with _damage_logged(path):
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = {name for trial in found["jobs"] for name in trial}
        return found if names.issubset(jobs) else {}
    return {}


def _report_order(job: Job, varied: Sequence[str]) -> tuple[Any, ...]:
    orders = ((job.edges, _EDGES_ORDER), (job.group, _GROUPS_ORDER))
    first = [order.index(of) if of in order else len(order) for of, order in orders]
    values = [job.settings.get(name) for name in varied if name != "edges"]
    # Numbers by size and before words: 0.5 comes before 10.
    ranks = [(0, value, "") if is_number(value) else (1, 0, shown(value)) for value in values]
    return (*first, job.is_shorter_dense, *ranks, job.name)


def _read_job(folder: Path, history: list[dict[str, Any]]) -> Job:
    """The job of a folder with these rows of metrics.

    Raises:
        DataError: it has no summary, or one that is damaged.
    """
    if not (folder / SUMMARY).exists():
        raise DataError("not finished")
    try:
        summary = read_summary(folder / SUMMARY)
        if summary["format"] != SUMMARY_FORMAT:
            raise DataError(
                f"it has format {summary['format']!r}; this version reads {SUMMARY_FORMAT}"
            )
        summary["metrics"], summary["intervals"] = (
            dict(summary[name]) for name in ("metrics", "intervals")
        )
        job = Job(
            folder=folder,
            history=history,
            rounds=_read_rounds(folder),
            samples=read_samples(folder, summary.get("files", {}).get(SAMPLES)),
            **{of.name: summary[of.name] for of in dataclasses.fields(Job) if of.name in summary},
        )
        _ = job.tokens, job.edges, job.seed, job.is_control  # Its config has what is read of it.
        return job
    except (DataError, *_DAMAGE) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"summary.json cannot be read: {said}") from error


def _read_rounds(job: Path) -> list[dict[str, Any]]:
    found = []
    for path in (job / ROUNDS).glob(f"*/{ROUND}"):
        with _damage_logged(path):
            of = json.loads(path.read_text(encoding="utf-8"))
            found.append({name: of[name] for name in ROUND_NUMBERS})
    return sorted(found, key=lambda of: int(of["round"]))


def read_samples(folder: Path, digest: str | None = None) -> list[dict[str, Any]]:
    """The prompts of a job's samples.json, each with the beginning of a document (`domain`,
    `document`, `prompt`, `reference`) and the `samples` that continue it (`kind`, `part`, `text`,
    `end`). Empty if the file is missing; a damaged file is logged and skipped.

    Args:
        digest: expected digest of the file, from the job's summary.
    """
    path = folder / SAMPLES
    with _damage_logged(path):
        if digest is not None and content_digest(path) != digest:
            raise ValueError("its checksum differs from the one in summary.json")
        prompts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        return prompts
    return []
