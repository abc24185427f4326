"""Locks a job's folder for one process, and changes the state of its job.

The lock is one of the file system (`files.lock_file`), so that it ends with the process. Where
another machine's lock is not visible, its heartbeat is: a running job sets the time of `job.json`.
"""

import contextlib
import dataclasses
import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gr_sweep.errors import GrSweepError, JobError, JobLockedError
from gr_sweep.files import lock_file
from gr_sweep.jobdir import (
    LOCK,
    RECORD,
    REPLACED,
    ROUND,
    ROUNDS,
    SILENT_S,
    SUMMARY,
    Holder,
    Identity,
    Record,
    State,
    differences,
    different_job,
    newest_step,
    read_finished,
    read_record,
    standing,
)

logger = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
"""A running job sets the time of its record this often."""
_PROBE_S = 1.0
"""Longer than a process holds the lock that does not run the job."""


class JobLock:
    """A job's folder while this process alone works in it (`lock_job_dir`)."""

    def __init__(self, folder: Path, title: str) -> None:
        self.folder = folder
        self._record = read_record(folder)
        self._record.title = title or self._record.title
        self._record.holder = holder = Holder.here()
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":  # not in an allocation of the user's
            self._record.slurm_job = holder.slurm_job
        self.write(State.running)

    def begin(self, identity: Identity, num_steps: int, *, force: bool) -> Record:
        """Records what the job runs with; returns the record.

        A job without a checkpoint gets this identity. One with a checkpoint continues, with `force`
        even if its identity differs. The summary of a finished job is set aside.

        Raises:
            JobError: the identity differs, without `force`.
        """
        changes = differences(self.folder, identity)
        if changes and not force:
            raise different_job(self.folder, changes)
        record = self._record
        has_begun = newest_step(self.folder) is not None
        if not has_begun or not record.fingerprints.keys() >= identity.fingerprints.keys():
            record.fingerprints, record.settings = identity.fingerprints, identity.settings
            record.changes = []
        if changes and has_begun:
            logger.warning("resuming with different %s", "; ".join(changes))
            record.changes += [line for line in changes if line not in record.changes]
        record.num_steps = num_steps
        record.write(self.folder, is_new_state=False)
        if changes:
            # The newest round is evaluated again; earlier ones cannot be, their weights are gone.
            rounds = (self.folder / ROUNDS).glob("[0-9]*")
            if newest := max(rounds, key=lambda path: int(path.name), default=None):
                (newest / ROUND).unlink(missing_ok=True)
        set_summary_aside(self.folder)
        return record

    def write(self, state: State, error: str | None = None, is_bug: bool = False) -> None:
        """Records the state of the job."""
        self._record.state, self._record.error, self._record.is_bug = state, error, is_bug
        self._record.write(self.folder)


@contextlib.contextmanager
def lock_job_dir(folder: Path, title: str = "") -> Iterator[JobLock]:
    """Locks the folder, made if it is missing, and afterwards records how the block ended.

    Raises:
        JobLockedError: another process works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder / LOCK, timeout_s=_PROBE_S) as has_lock:
        if not has_lock:
            raise _locked(folder)
        _await_silence(folder)
        lock = JobLock(folder, title)
        try:
            with heartbeat(folder / RECORD):
                yield lock
        except BaseException as error:
            is_resumable = isinstance(error, JobError) and error.is_resumable
            has_failed = isinstance(error, Exception) and not is_resumable
            is_bug = has_failed and not isinstance(error, GrSweepError)
            message = "" if is_bug else str(error)
            message = message or "".join(traceback.format_exception_only(error))
            # The error may be about a full disk: then the record stays as it is.
            with contextlib.suppress(OSError, GrSweepError):
                state = State.failed if has_failed else State.stopped
                lock.write(state, " ".join(message.split()), is_bug)
            raise
        if read_finished(folder) is not None:
            # Only for people: the summary counts.
            with contextlib.suppress(OSError, GrSweepError):
                lock.write(State.done)


def change_record(folder: Path, **changes: Any) -> None:
    """Changes the record of a job that neither runs nor is finished; makes the folder. An error
    that comes with a state is not a bug's unless `is_bug` says so."""
    if "state" in changes:
        changes.setdefault("is_bug", False)
    if standing(folder).state in (State.running, State.done):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder / LOCK, timeout_s=_PROBE_S) as has_lock:
        if has_lock:
            dataclasses.replace(read_record(folder), **changes).write(folder)


def set_summary_aside(folder: Path) -> None:
    """Renames the folder's summary, if there is one: its job is then not finished."""
    if (path := folder / SUMMARY).exists():
        aside = path.with_name(f"{SUMMARY}.replaced")
        logger.warning("%s: renamed to %s, the job evaluates again", path, aside.name)
        path.replace(aside)


def replace_job(folder: Path) -> Path:
    """Moves a job's folder to `.replaced/NAME-N` beside it, for `resume=fresh`; returns the place.
    Called before a command starts its jobs: one that is requeued continues from its checkpoints.

    Raises:
        JobLockedError: the job is running.
    """
    is_running = standing(folder).state is State.running  # which tries the lock itself
    with lock_file(folder / LOCK, timeout_s=_PROBE_S) as has_lock:
        if is_running or not has_lock:
            raise _locked(folder)
        place = folder.absolute()  # `hydra.run.dir=.` has a name too
        (place.parent / REPLACED).mkdir(exist_ok=True)
        number = 1
        while (to := place.parent / REPLACED / f"{place.name}-{number}").exists():
            number += 1
        return place.rename(to)


def _locked(folder: Path) -> JobLockedError:
    record = read_record(folder)
    since = f" since {record.since}" if record.since else ""
    who = f"{record.holder or 'another process'}{since}"
    return JobLockedError(f"{folder} is being run by {who}; wait for it, or stop it")


def _await_silence(folder: Path) -> None:
    """Waits until a job of another machine, whose lock may not be visible here, has had no
    heartbeat for `SILENT_S`; raises JobLockedError if it has one."""
    record = read_record(folder)
    holder = record.holder
    if record.state is not State.running or not holder or holder.host == socket.gethostname():
        return
    seen = (folder / RECORD).stat().st_mtime
    if time.time() - seen > 10 * SILENT_S:  # clocks may differ by seconds, not by minutes
        return
    logger.info("%s ran this job: waiting %.0f s for a heartbeat", holder, SILENT_S)
    if has_heartbeat(folder / RECORD):
        raise _locked(folder)


def has_heartbeat(path: Path) -> bool:
    """Whether the file's time changes within `SILENT_S`; takes as long where it does not."""
    seen = path.stat().st_mtime_ns
    give_up = time.monotonic() + SILENT_S
    while time.monotonic() < give_up:
        time.sleep(min(1.0, SILENT_S / 10))
        if path.stat().st_mtime_ns != seen:
            return True
    return False


@contextlib.contextmanager
def heartbeat(path: Path) -> Iterator[None]:
    """Sets the file's time every `HEARTBEAT_S`, from a thread."""
    ends = threading.Event()

    def beat() -> None:
        while not ends.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
