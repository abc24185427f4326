"""The jobs of a folder: how each stands, how far it is and why it ended, from their files alone.

Reads little of each and changes nothing: what shows it may look again every second. Queues are not
known here; nor is how any of it is shown. Without torch, numpy and pandas.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gr_sweep.config import is_number
from gr_sweep.errors import ReportError
from gr_sweep.folder import RECORD, Holder, Standing, State, standing
from gr_sweep.metrics import keys
from gr_sweep.summary import SUMMARY
from gr_sweep.tracking.base import STEP
from gr_sweep.tracking.jsonl import METRICS, rows_from_the_end


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


def jobs_of(folder: Path) -> list[Path]:
    """The folders of the jobs there: its direct subfolders that are jobs, or itself where it is
    one. By name.

    Raises:
        ReportError: the folder does not exist or holds no job.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder} is no folder; give the folder of a sweep or of a job")
    if _is_job(folder):
        return [folder.resolve()]
    found = sorted(entry for entry in folder.resolve().iterdir() if _is_job(entry))
    if not found:
        raise ReportError(
            f"{folder} holds no job: neither it nor a folder in it has a {RECORD}, {SUMMARY}, "
            f"{METRICS} or .hydra"
        )
    return found


def _is_job(folder: Path) -> bool:
    return any((folder / name).exists() for name in (RECORD, SUMMARY, METRICS, ".hydra"))


def read_status(folder: Path, queue: Mapping[str, str]) -> JobStatus:
    """How the job of the folder stands.

    Args:
        folder: the job's.
        queue: number of each job that is in a queue, by the name of its folder.
    """
    now = standing(folder)
    record, state = now.record, now.state
    last, trained = _last_rows(folder / METRICS)
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
        step=_number(last, STEP, int),
        num_steps=None if record is None else record.num_steps,
        loss_nats=_number(trained, keys.TRAIN_LOSS, float),
        tokens_per_second=_number(trained, keys.TRAIN_TOKENS_PER_SECOND, float),
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
    path = folder / (SUMMARY if now.state is State.done else RECORD)
    try:
        seconds = path.stat().st_mtime
    except OSError:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _last_rows(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last whole row, and the last of training; empty where there is none."""
    last: dict[str, Any] = {}
    for row in rows_from_the_end(path):
        last = last or row
        if keys.TRAIN_LOSS in row:
            return last, row
    return last, {}


def _number(row: Mapping[str, Any], key: str, kind: type) -> Any:
    value = row.get(key)
    return kind(value) if is_number(value) else None
