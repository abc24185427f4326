"""The jobs of a folder: how each stands, how far it is and why it ended, from their files alone.

Reads little of each and changes nothing: what shows it may look again every second, and `Overview`
then reads only what has changed. Queues are not known here; nor is how any of it is shown. Without
torch, numpy and pandas.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gr_sweep.config import is_number
from gr_sweep.errors import DataError
from gr_sweep.jobdir import (
    METRICS,
    RECORD,
    SUMMARY,
    Holder,
    Standing,
    State,
    job_folders,
    read_summary,
    standing,
)
from gr_sweep.metrics import registry
from gr_sweep.tracking.base import STEP
from gr_sweep.tracking.jsonl import rows_from_the_end

_FILES = (RECORD, SUMMARY, METRICS)
"""What says how a job stands."""

_RECENT_ROWS = 10
"""Rows of training that a job's speed of late is of."""

_RECENT_JOBS = 20
"""Jobs that ended last, whose durations those of waiting jobs are guessed from."""


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """How one job stands."""

    folder: Path
    state: State
    title: str | None = None
    """The overrides in which it differs from other jobs, for people."""
    since: str | None = None
    """When it came to this state, UTC, as ISO 8601 says it."""
    step: int | None = None
    """Of its last row; None before the first."""
    num_steps: int | None = None
    """Of the whole run; None where the job has not said."""
    loss_nats: float | None = None
    """Of the last training row, nats per token."""
    tokens_per_second: float | None = None
    """Of training, in that row."""
    elapsed_s: float | None = None
    """In training so far, as that row says: its evaluations are in it, what comes before the first
    step and after the last is not. Summed over resumes."""
    left_s: float | None = None
    """Until its last step, at its pace of late with evaluations and checkpoints; what it measures
    after that is not in it. None where its rows do not say, or it is done."""
    seen: str | None = None
    """Last sign of life, UTC: when its record or its rows were last written."""
    holder: Holder | None = None
    """Who runs it, or ran it last."""
    slurm_job: str | None = None
    """Its number in the queue, where it is in one."""
    why: str | None = None
    """What ended it before its time, one line."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.name

    @property
    def share(self) -> float | None:
        """How much of its steps it has done, 0 to 1. None where that is not known."""
        if self.state is State.done:
            return 1.0
        if not self.num_steps:
            return None
        return min(1.0, (self.step or 0) / self.num_steps)


def read_status(folder: Path, queue: Mapping[str, str]) -> JobStatus:
    """How the job of the folder stands.

    Args:
        folder: the job's.
        queue: number of each job that is in a queue, by the name of its folder.
    """
    now = standing(folder)
    record, state = now.record, now.state
    last, trained = _last_rows(folder / METRICS)
    num_steps = None if record is None else record.num_steps
    step = _number(last, STEP, int)
    why = None
    if state in (State.failed, State.stopped):
        why = _why(now)
        if state is State.stopped and folder.name in queue:
            state = State.waiting  # and goes on by itself
    return JobStatus(
        folder=folder,
        state=state,
        title=(record.title or None) if record is not None else None,
        since=_since(folder, now),
        step=step,
        num_steps=num_steps,
        loss_nats=_number(trained[0], registry.TRAIN_LOSS.key, float) if trained else None,
        tokens_per_second=(
            _number(trained[0], registry.TRAIN_TOKENS_PER_SECOND.key, float) if trained else None
        ),
        elapsed_s=_number(trained[0], registry.TIME_S.key, float) if trained else None,
        left_s=None if state is State.done else _left_s(trained, step, num_steps),
        seen=_seen(folder),
        holder=None if record is None else record.holder,
        slurm_job=queue.get(folder.name) if state is not State.done else None,
        why=why,
    )


def _why(now: Standing) -> str | None:
    record = now.record
    if record is None:
        return None
    if record.state is State.running:
        return f"killed ({record.holder} gives no sign of life)"
    return record.error


def _since(folder: Path, now: Standing) -> str | None:
    """When it came to its state, as near as files say."""
    if now.record is not None and now.state is now.record.state:
        return now.record.since or None
    # What was killed could not say so: its last sign of life.
    return _time_of(folder / (SUMMARY if now.state is State.done else RECORD))


def _seen(folder: Path) -> str | None:
    times = (_time_of(folder / name) for name in (RECORD, METRICS))
    return max((time for time in times if time is not None), default=None)


def _time_of(path: Path) -> str | None:
    try:
        seconds = path.stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _last_rows(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last whole row, and the last ones of training, newest first; empty where none is."""
    last: dict[str, Any] = {}
    trained: list[dict[str, Any]] = []
    for row in rows_from_the_end(path):
        last = last or row
        if registry.TRAIN_LOSS.key in row:
            trained.append(row)
            if len(trained) == _RECENT_ROWS:
                break
    return last, trained


def _left_s(
    trained: Sequence[Mapping[str, Any]], step: int | None, num_steps: int | None
) -> float | None:
    """Steps that are left, times the seconds of a step in the rows of training, newest first."""
    marks = [
        (_number(row, STEP, float), _number(row, registry.TIME_S.key, float)) for row in trained
    ]
    known = [(at, seconds) for at, seconds in marks if at is not None and seconds is not None]
    if step is None or num_steps is None or not known:
        return None
    (newest, now_s), (oldest, then_s) = known[0], known[-1]
    if len(known) == 1:
        # The clock of a job starts before its first step.
        oldest, then_s = 0.0, 0.0
    if newest <= oldest or now_s < then_s:
        return None
    return max(0, num_steps - step) * (now_s - then_s) / (newest - oldest)


def _number(row: Mapping[str, Any], key: str, kind: type) -> Any:
    value = row.get(key)
    return kind(value) if is_number(value) else None


class Overview:
    """Jobs that are looked at again and again: of what has not changed since, only the times of its
    files are asked for."""

    def __init__(
        self, where: Path | Sequence[Path], queue: Callable[[], Mapping[str, str]] = dict
    ) -> None:
        """
        Args:
            where: the folder whose jobs they are, or the folders of the jobs themselves.
            queue: gives the number of each job that is in a queue, by the name of its folder.
        """
        self._where = where
        self._queue = queue
        self._known: dict[Path, tuple[object, JobStatus]] = {}

    def look(self) -> list[JobStatus]:
        """How each job stands, by name or in the order that was given.

        Raises:
            JobError: the folder does not exist or holds no job.
        """
        where, queue = self._where, self._queue()
        jobs = job_folders(where, self._known) if isinstance(where, Path) else where
        return [self._status(job, queue) for job in jobs]

    def _status(self, folder: Path, queue: Mapping[str, str]) -> JobStatus:
        signs = (*(_sign(folder / name) for name in _FILES), queue.get(folder.name))
        before = self._known.get(folder)
        # Whether a job still runs, its files do not say by themselves.
        if before is None or before[0] != signs or before[1].state is State.running:
            before = signs, read_status(folder, queue)
            self._known[folder] = before
        return before[1]


def _sign(path: Path) -> tuple[int, ...]:
    """Another one whenever the file is written."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def sweep_left_s(jobs: Sequence[JobStatus]) -> float | None:
    """Seconds until the last job will have ended, about: as many run at once as run now, and one
    that has not begun takes as long as those that are done, or as those that run will have taken.
    Jobs that were stopped or failed do not count. None where nothing runs, or nobody can know yet.
    """
    running = [job for job in jobs if job.state is State.running]
    waiting = [job for job in jobs if job.state is State.waiting]
    if not running:
        return None
    done = sorted((job for job in jobs if job.state is State.done), key=lambda job: job.since or "")
    # Of each that is done: all of it, and what of it was not training.
    took = [(_took_s(job), job.elapsed_s or 0.0) for job in done[-_RECENT_JOBS:]]
    known = [(max(whole, training), training) for whole, training in took if whole is not None]
    besides = sum(whole - training for whole, training in known) / len(known) if known else 0.0
    expected = [whole for whole, _ in known] or [
        job.elapsed_s + job.left_s
        for job in running
        if job.elapsed_s is not None and job.left_s is not None
    ]
    needs = []
    for job in (*running, *waiting):
        if job.left_s is not None:
            needs.append(job.left_s + besides)
        elif expected:
            needs.append(sum(expected) / len(expected))
        else:
            return None
    return max(*needs[: len(running)], sum(needs) / len(running), 0.0)


def _took_s(job: JobStatus) -> float | None:
    """Seconds from the start of a job that is done, or from its last one, to its end."""
    sign = _sign(job.folder / SUMMARY)
    return _duration_s(job.folder / SUMMARY, sign)


@functools.lru_cache(maxsize=1024)
def _duration_s(path: Path, sign: tuple[int, ...]) -> float | None:
    """From the summary, which is read again where its `sign` is another."""
    try:
        summary = read_summary(path)
        begin, end = (datetime.fromisoformat(summary[name]) for name in ("started", "finished"))
    except (OSError, DataError, KeyError, TypeError, ValueError):
        return None
    # Of a job whose results were taken over from another sweep these are that job's.
    return (end - begin).total_seconds()
