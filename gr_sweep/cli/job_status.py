"""The state of the jobs in a folder, read from their files and from SLURM's queue.

Reads little of each job and changes nothing, so that a live table can read it every other second.
Does not know how it is shown. Without torch, numpy and pandas.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gr_sweep.config import is_number
from gr_sweep.jobdir import METRICS, RECORD, SUMMARY, Holder, State, job_folders, standing
from gr_sweep.metrics import registry
from gr_sweep.tracking.base import STEP
from gr_sweep.tracking.jsonl import TAIL_BYTES, read_rows

QUEUE_S = 30.0
"""Seconds between two questions to SLURM's queue, which all users of a cluster share."""

_RECENT_ROWS = 10
"""Rows of training that a job's pace is computed from."""


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """The state of one job, as its files tell it."""

    folder: Path
    state: State
    title: str | None = None
    """The overrides in which it differs from other jobs, for people."""
    since: str | None = None
    """When it entered this state, UTC, ISO 8601."""
    step: int | None = None
    """Of its last row; None before the first."""
    num_steps: int | None = None
    """Of the whole run; None before the job has recorded it."""
    loss_nats: float | None = None
    """Of the last training row, nats per token."""
    tokens_per_second: float | None = None
    """Of training, in that row."""
    elapsed_s: float | None = None
    """Training so far, with evaluations, over all resumes."""
    left_s: float | None = None
    """Until the last step, at the recent pace, with evaluations and checkpoints."""
    holder: Holder | None = None
    """The process that runs it, or ran it last."""
    slurm_job: str | None = None
    """Its number, while it is in SLURM's queue."""
    why: str | None = None
    """Why it failed or stopped, one line."""

    @property
    def share(self) -> float | None:
        """Fraction of its steps that are done, 0 to 1; None if that is not known."""
        if self.state is State.done:
            return 1.0
        return min(1.0, (self.step or 0) / self.num_steps) if self.num_steps else None

    @property
    def note(self) -> str:
        """Which process runs it, or why it does not run; one line."""
        parts = []
        if self.state is State.running and self.holder is not None:
            parts.append(str(self.holder))
        elif self.slurm_job is not None:
            parts.append(f"SLURM job {self.slurm_job}")
        line = "; ".join([*parts, self.why] if self.why else parts)
        # An error may quote anything, control characters of a terminal included.
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def read_status(folder: Path, queue: Mapping[str, str]) -> JobStatus:
    """Reads the files of one job.

    Args:
        folder: the job's.
        queue: SLURM's number of each job in its queue, by the name of the job's folder.
    """
    found = standing(folder)
    record, state = found.record, found.state
    why = None
    if record is not None and state in (State.failed, State.stopped):
        was_killed = record.state is State.running
        why = f"killed ({record.holder} does not respond)" if was_killed else record.error
    if state is State.stopped and folder.name in queue:
        state = State.waiting  # SLURM starts it again
    last, trained = _last_rows(folder / METRICS)
    newest = trained[0] if trained else {}
    step, num_steps = _number(last, STEP), None if record is None else record.num_steps
    if record is not None and record.state is found.state:
        since = record.since or None
    else:  # a job that was killed could not record it
        since = _time_of(folder / (SUMMARY if state is State.done else RECORD))
    return JobStatus(
        folder=folder,
        state=state,
        title=(record.title or None) if record is not None else None,
        since=since,
        step=None if step is None else int(step),
        num_steps=num_steps,
        loss_nats=_number(newest, registry.TRAIN_LOSS.key),
        tokens_per_second=_number(newest, registry.TRAIN_TOKENS_PER_SECOND.key),
        elapsed_s=_number(newest, registry.TIME_S.key),
        left_s=None if state is State.done else _left_s(trained, step, num_steps),
        holder=None if record is None else record.holder,
        slurm_job=queue.get(folder.name) if state is not State.done else None,
        why=why,
    )


def _time_of(path: Path) -> str | None:
    try:
        seconds = path.stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _last_rows(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last whole row, and the last rows of training, newest first."""
    rows = read_rows(path, last_bytes=TAIL_BYTES)[::-1]
    trained = [row for row in rows if registry.TRAIN_LOSS.key in row]
    return (rows[0] if rows else {}), trained[:_RECENT_ROWS]


def _left_s(
    trained: Sequence[Mapping[str, Any]], step: float | None, num_steps: int | None
) -> float | None:
    """The remaining steps times the seconds a step took in these rows, newest first."""
    marks = [(_number(row, STEP), _number(row, registry.TIME_S.key)) for row in trained]
    known = [(at, seconds) for at, seconds in marks if at is not None and seconds is not None]
    if step is None or num_steps is None or not known:
        return None
    (newest, now_s), (oldest, then_s) = known[0], known[-1]
    if len(known) == 1:  # the clock of a job starts at step 0
        oldest, then_s = 0.0, 0.0
    if newest <= oldest or now_s < then_s:
        return None
    return max(0.0, num_steps - step) * (now_s - then_s) / (newest - oldest)


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value: Any = row.get(key)
    return float(value) if is_number(value) else None


class JobReader:
    """Reads the same jobs again and again; a job that has ended only when its files change."""

    def __init__(self, where: Path | Sequence[Path]) -> None:
        """
        Args:
            where: the folder whose jobs are read, or the folders of the jobs themselves.
        """
        self._where = where
        self._known: dict[Path, tuple[object, JobStatus]] = {}
        self._queue: Mapping[str, str] = {}
        self._asked_s = float("-inf")
        self.is_queue_known = True
        """False while SLURM does not answer; its last answer is used then."""

    def read(self) -> list[JobStatus]:
        """The status of each job, by name or in the order that was given.

        Raises:
            JobError: the folder does not exist or holds no job.
        """
        where = self._where
        jobs = job_folders(where) if isinstance(where, Path) else where
        if time.monotonic() - self._asked_s >= QUEUE_S:
            from gr_sweep.launch.slurm import numbers_in_queue

            queue, self._asked_s = numbers_in_queue(jobs[0].parent), time.monotonic()
            self.is_queue_known = queue is not None
            self._queue = self._queue if queue is None else queue
        return [self._status(job) for job in jobs]

    def _status(self, folder: Path) -> JobStatus:
        paths = [folder / name for name in (RECORD, SUMMARY, METRICS)]
        signature = (*map(_signature, paths), self._queue.get(folder.name))
        before = self._known.get(folder)
        # A running job may be killed, which changes none of its files.
        if before is None or before[0] != signature or before[1].state is State.running:
            before = signature, read_status(folder, self._queue)
            self._known[folder] = before
        return before[1]


def _signature(path: Path) -> tuple[int, ...]:
    """Changes whenever the file is written."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def sweep_left_s(jobs: Sequence[JobStatus]) -> float | None:
    """Estimated seconds until the last job ends; None if no job runs, or before the first rows.

    Assumes that as many jobs run at once as run now, and that a job which has not begun takes as
    long as the mean of the others. Jobs that stopped or failed are not counted.
    """
    running = [job for job in jobs if job.state is State.running]
    if not running:
        return None
    lengths = [
        job.elapsed_s + (job.left_s or 0.0)
        for job in jobs
        if job.elapsed_s is not None and (job.state is State.done or job.left_s is not None)
    ]
    if not lengths:
        return None
    mean = sum(lengths) / len(lengths)
    left = [mean if job.left_s is None else job.left_s for job in running]
    num_waiting = sum(job.state is State.waiting for job in jobs)
    return max(*left, (sum(left) + num_waiting * mean) / len(running), 0.0)
