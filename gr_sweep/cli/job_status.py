"""The state of the jobs in a folder, read from their files and from SLURM's queue.

Reads little of each job and changes nothing, so that a live table can read it every other second.
Does not know how it is shown. Without torch, numpy and pandas.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gr_sweep.config import is_number
from gr_sweep.jobdir import METRICS, Holder, State, job_folders, standing
from gr_sweep.metrics import registry
from gr_sweep.tracking.base import STEP
from gr_sweep.tracking.jsonl import TAIL_BYTES, read_rows

QUEUE_S = 30.0
"""Seconds between two questions to SLURM's queue, which all users of a cluster share."""


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """The state of one job, as its files tell it; what is not known is None."""

    folder: Path
    state: State
    title: str = ""
    """Its short name, as the report has it; empty if its record has none."""
    since: str | None = None
    """When it entered this state, UTC, ISO 8601."""
    step: int | None = None
    """Of its last row of training, as are loss, speed and time."""
    num_steps: int | None = None
    """Of the whole run."""
    loss_nats: float | None = None
    """Nats per token."""
    tokens_per_second: float | None = None
    elapsed_s: float | None = None
    """Training so far, with evaluations, over all resumes."""
    left_s: float | None = None
    """Until the last step, at the mean pace so far."""
    holder: Holder | None = None
    """The process that runs it, or ran it last."""
    slurm_job: str | None = None
    """Its number, while it is in SLURM's queue."""
    why: str | None = None
    """Why it failed or stopped, one line."""

    @property
    def note(self) -> str:
        """Which process runs it, or why it does not run; one line."""
        where = f"SLURM job {self.slurm_job}" if self.slurm_job is not None else ""
        if self.state is State.running and self.holder is not None:
            where = str(self.holder)
        return _printable("; ".join(filter(None, (where, self.why))))


def read_status(folder: Path, in_queue: Callable[[str], bool]) -> JobStatus:
    """Reads the files of one job; `in_queue` says whether SLURM has a number in its queue."""
    record = standing(folder)
    number = record.slurm_job
    slurm_job = number if number and record.state is not State.done and in_queue(number) else None
    state, why = record.state, None
    if state in (State.failed, State.stopped):
        why = record.error or f"killed ({record.holder} does not respond)"
    if state is State.stopped and slurm_job is not None:
        state = State.waiting  # SLURM starts it again
    rows = read_rows(folder / METRICS, last_bytes=TAIL_BYTES)
    trained = [row for row in rows if registry.TRAIN_LOSS.key in row]
    row = trained[-1] if trained else {}
    step, elapsed_s = _number(row, STEP), _number(row, registry.TIME_S.key)
    num_steps = record.num_steps
    left_s = None
    if step and elapsed_s is not None and num_steps is not None and state is not State.done:
        left_s = max(0.0, num_steps - step) * elapsed_s / step
    return JobStatus(
        folder=folder,
        state=state,
        title=_printable(str(record.title or "")),
        since=record.since or None,
        step=None if step is None else int(step),
        num_steps=num_steps,
        loss_nats=_number(row, registry.TRAIN_LOSS.key),
        tokens_per_second=_number(row, registry.TRAIN_TOKENS_PER_SECOND.key),
        elapsed_s=elapsed_s,
        left_s=left_s,
        holder=record.holder,
        slurm_job=slurm_job,
        why=why,
    )


def _printable(line: str) -> str:
    """A title or an error may quote anything, control characters of a terminal included."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value: Any = row.get(key)
    return float(value) if is_number(value) else None


class JobReader:
    """Reads the same jobs again and again; those that are done only once."""

    def __init__(self, where: Path | Sequence[Path]) -> None:
        """
        Args:
            where: the folder whose jobs are read, or the folders of the jobs themselves.
        """
        self._where = where
        self._done: dict[Path, JobStatus] = {}
        self._queue: set[str] = set()
        self._asked_s = float("-inf")

    def read(self) -> list[JobStatus]:
        """The status of each job, by name or in the order that was given.

        Raises:
            JobError: the folder does not exist or holds no job.
        """
        where = self._where
        jobs = job_folders(where) if isinstance(where, Path) else where
        found = [self._done.get(job) or read_status(job, self._in_queue) for job in jobs]
        self._done = {job.folder: job for job in found if job.state is State.done}
        return found

    def _in_queue(self, number: str) -> bool:
        if time.monotonic() - self._asked_s >= QUEUE_S:
            from gr_sweep.launch.slurm import queue_of_user

            # While SLURM does not answer, its last answer is used.
            queue, self._asked_s = queue_of_user(), time.monotonic()
            self._queue = self._queue if queue is None else queue
        return number in self._queue


def sweep_left_s(jobs: Sequence[JobStatus]) -> float | None:
    """Estimated seconds until the last job ends; None if that is not known for any running job.

    Assumes that as many jobs run at once as run now, and that a waiting one takes as long as those
    do on average. Jobs that stopped or failed are not counted.
    """
    running = [job for job in jobs if job.state is State.running and job.left_s is not None]
    if not running:
        return None
    left = [job.left_s or 0.0 for job in running]
    length = sum(left) + sum(job.elapsed_s or 0.0 for job in running)
    num_waiting = sum(job.state is State.waiting for job in jobs)
    return max(*left, (sum(left) + num_waiting * length / len(running)) / len(running))
