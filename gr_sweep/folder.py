"""A job's folder: how the job stands, who runs it, and what it began with.

One process at a time holds a folder, by a file lock and a sign of life; `job.json` says how it
stands, for who comes later and for `gr-sweep status`. What a job does is not known here. Without
torch.
"""

import contextlib
import dataclasses
import enum
import errno
import fcntl
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gr_sweep.errors import GrSweepError, JobError, JobLockedError, LostError
from gr_sweep.files import write_whole
from gr_sweep.sources import source_digests
from gr_sweep.summary import METRICS, SUMMARY, is_finished

logger = logging.getLogger(__name__)

RECORD = "job.json"
CHECKPOINTS = "checkpoints"
_CHECKPOINT = re.compile(r"step_(\d{8})")
_LOCK = ".lock"

SIGN_S = 10.0
"""Seconds between the signs of life that a running job gives: the time of its record."""

SILENT_S = 60.0
"""Without a sign for so long, a job of another machine has ended."""

_PROBE_S = 1.0
"""Longer than anybody holds the lock who just looks whether it is held."""


class State(enum.Enum):
    """How a job stands."""

    waiting = "waiting"
    """Asked for, not begun."""
    running = "running"
    stopped = "stopped"
    """Ended before its time, by a signal or a crash; it goes on when it is started again."""
    failed = "failed"
    done = "done"


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that runs, or ran, a job; of several, the main one."""

    host: str
    pid: int
    slurm_job: str | None = None
    """As squeue names it: `12`, or `12_3` in an array."""

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        array, task = (os.environ.get(f"SLURM_ARRAY_{name}") for name in ("JOB_ID", "TASK_ID"))
        number = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
        return cls(socket.gethostname(), os.getpid(), number or None)

    def __str__(self) -> str:
        slurm = f" (SLURM job {self.slurm_job})" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{slurm}"


@dataclass(slots=True)
class Record:
    """What job.json holds."""

    state: State
    title: str = ""
    """The overrides in which it differs from other jobs, for people."""
    since: str = ""
    """When it came to this state, UTC."""
    error: str | None = None
    """What ended it, one line."""
    holder: Holder | None = None
    is_bug: bool = False
    """Whether the error is none that the user can mend."""
    num_steps: int | None = None
    """Optimizer steps of the whole run."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Of code, config and data, as the job began."""
    config: dict[str, Any] = field(default_factory=dict)
    """As the job began, in plain values."""
    sources: dict[str, str] = field(default_factory=dict)
    """`source_digests` as the job began."""

    def write(self, folder: Path, *, is_news: bool = True) -> None:
        """Makes it the folder's record, whole; `is_news`: of a state that it has come to now."""
        if is_news:
            self.since = datetime.now(UTC).isoformat(timespec="seconds")
        content = dataclasses.asdict(self) | {"state": self.state.value}
        write_whole(folder / RECORD, json.dumps(content, indent=1) + "\n")


def is_job(folder: Path) -> bool:
    """Whether it is the folder of a job, be it one that has not begun."""
    return any((folder / name).exists() for name in (RECORD, SUMMARY, METRICS, ".hydra"))


def job_folders(folder: Path, known: Container[Path] = ()) -> list[Path]:
    """The direct subfolders that are jobs, by name, or the folder itself where it is one; resolved.

    Args:
        folder: of a sweep or of one job.
        known: folders that were jobs before, and are not looked into again.

    Raises:
        JobError: the folder does not exist or holds no job.
    """
    if not os.path.isdir(folder):
        raise JobError(f"{folder} is no folder; give the folder of a sweep or of a job")
    if is_job(folder):
        return [folder.resolve()]
    entries = sorted(folder.resolve().iterdir())
    found = [entry for entry in entries if entry in known or is_job(entry)]
    if not found:
        raise JobError(
            f"{folder} holds no job: neither it nor a folder in it has a {RECORD}, {SUMMARY}, "
            f"{METRICS} or .hydra"
        )
    return found


def read_record(folder: Path) -> Record | None:
    """The folder's record; None where there is none, or none that can be read: it is written whole
    and says nothing that a job cannot do without."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        holder = content.pop("holder")
        known = {item.name for item in dataclasses.fields(Record)}
        record = Record(**{key: value for key, value in content.items() if key in known})
        record.state = State(content["state"])
        record.holder = None if holder is None else Holder(**holder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record


@dataclass(frozen=True, slots=True)
class Standing:
    """How a job stands, as its files say."""

    state: State
    record: Record | None


def standing(folder: Path) -> Standing:
    """How the job of the folder stands.

    What says that it runs, but gives no sign of life, was stopped.
    """
    record = read_record(folder)
    if is_finished(folder / SUMMARY):
        return Standing(State.done, record)
    if record is None:
        # Left by a version that kept no record, or begun by hand.
        return Standing(State.waiting, None)
    if record.state is State.running and not _is_alive(folder, record):
        return Standing(State.stopped, record)
    # A record that says done without a summary: somebody removed it.
    state = State.waiting if record.state is State.done else record.state
    return Standing(state, record)


def announce(folder: Path, title: str) -> None:
    """Makes the folder, with a record that says that the job waits; what it began with stays in the
    record, and one that runs or is done is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    if standing(folder).state in (State.running, State.done):
        return
    with locked(folder) as is_free:
        if is_free:
            record = read_record(folder) or Record(State.waiting)
            record.state, record.title, record.holder = State.waiting, title, None
            record.error, record.is_bug = None, False
            record.write(folder)


def note_end(folder: Path, state: State, error: str) -> None:
    """Writes how a job ended that could not say so itself; nothing where it is run again."""
    record = read_record(folder) or Record(state)
    if record.state is State.running and _is_alive(folder, record):
        return
    with locked(folder) as is_free:
        if is_free:
            record = read_record(folder) or Record(state)
            record.state, record.error, record.is_bug = state, error, False
            record.write(folder)


def _is_alive(folder: Path, record: Record) -> bool:
    if record.holder is not None and record.holder.host == socket.gethostname():
        is_locked = _is_locked(folder / _LOCK)
        if is_locked is not None:
            return is_locked
    # Another machine: whether its locks are seen here is the file system's secret.
    with contextlib.suppress(OSError):
        return time.time() - (folder / RECORD).stat().st_mtime < SILENT_S
    return False


def _is_locked(path: Path) -> bool | None:
    """Whether a process of this machine holds the lock; None where nobody can say.

    Makes no file, and asks for a lock that readers share: two who look at
    once do not take each other for a holder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return False


def whole_checkpoints(checkpoints: Path) -> list[tuple[int, Path]]:
    """Step and folder of each whole checkpoint, oldest first: not of those that are being written
    or were set aside.

    Args:
        checkpoints: the folder of one job's.
    """
    found = ((_CHECKPOINT.fullmatch(path.name), path) for path in checkpoints.glob("step_*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def newest_step(folder: Path) -> int | None:
    """Step of the job's newest whole checkpoint; None where it has none."""
    whole = whole_checkpoints(folder / CHECKPOINTS)
    return whole[-1][0] if whole else None


class Hold:
    """A folder that this process alone works in."""

    def __init__(self, folder: Path, title: str) -> None:
        self.folder = folder
        self._before = read_record(folder)
        # What it began with stays.
        before = self._before or Record(State.running)
        self._record = dataclasses.replace(
            before,
            state=State.running,
            title=title or before.title,
            holder=Holder.here(),
            error=None,
            is_bug=False,
        )

    @property
    def begun(self) -> Record | None:
        """The record of the start that left a checkpoint; None where there is none."""
        if self._before is None or not self._before.fingerprints:
            return None
        return self._before if newest_step(self.folder) is not None else None

    def begin(
        self, fingerprints: Mapping[str, str], config: dict[str, Any], num_steps: int
    ) -> None:
        """Writes down what the job begins with."""
        self._record.fingerprints = dict(fingerprints)
        self._record.config = config
        self._record.sources = dict(source_digests())
        self._record.num_steps = num_steps
        self._record.write(self.folder, is_news=False)

    def _write(self, state: State, error: str | None = None, is_bug: bool = False) -> None:
        self._record.state, self._record.error, self._record.is_bug = state, error, is_bug
        self._record.write(self.folder)


@contextlib.contextmanager
def held(folder: Path, title: str = "") -> Iterator[Hold]:
    """The folder, this process's alone inside; made if it is missing. How the block ends is written
    into its record.

    Raises:
        JobLockedError: another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, timeout_s=_PROBE_S) as is_free:
        if not is_free:
            raise _held_by(folder)
        _await_silence(folder)
        hold = Hold(folder, title)
        with _signs_of_life(folder / RECORD), _outcome(hold):
            hold._write(State.running)
            yield hold


@contextlib.contextmanager
def locked(folder: Path, name: str = _LOCK, *, timeout_s: float = 0.0) -> Iterator[bool]:
    """Whether the folder's lock is this process's inside; it ends with the process in any case.

    Args:
        name: of the file that is locked, for another lock than that of whoever runs the job.
        timeout_s: how long it is waited for.

    On a file system without locks it is everybody's: signs of life are all there is then. (A lock
    that is a file, as `filelock` makes it there, would outlive a process that is killed.)
    """
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
    give_up = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                if time.monotonic() < give_up:
                    time.sleep(_PROBE_S / 20)
                    continue
                yield False
                return
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                    raise
            yield True
            return
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _outcome(hold: Hold) -> Iterator[None]:
    """Writes into the record how the block ends."""
    try:
        yield
    except BaseException as error:
        is_failure = isinstance(error, Exception) and not isinstance(error, LostError)
        kind = State.failed if is_failure else State.stopped
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
        if isinstance(error, GrSweepError) or (kind is State.stopped and str(error)):
            said = str(error)
        # A full disk may be what the error is about; the record is then as it was.
        with contextlib.suppress(OSError, GrSweepError):
            is_bug = kind is State.failed and not isinstance(error, GrSweepError)
            hold._write(kind, " ".join(said.split()), is_bug)
        raise
    if is_finished(hold.folder / SUMMARY):
        # The summary says it anyway: no reason to fail.
        with contextlib.suppress(OSError):
            hold._write(State.done)


def _held_by(folder: Path) -> JobLockedError:
    record = read_record(folder)
    holder = None if record is None else record.holder
    who = "another process" if holder is None else str(holder)
    since = f" since {record.since}" if record is not None and record.since else ""
    return JobLockedError(f"{folder} is being run by {who}{since}; wait for it, or stop it")


def _await_silence(folder: Path) -> None:
    """Where locks of other machines cannot be seen, a job that one of them runs has not been given
    up: it is, if it gives no sign of life for a while.

    Raises:
        JobLockedError: it does give one.
    """
    record = read_record(folder)
    if record is None or record.state is not State.running or record.holder is None:
        return
    if record.holder.host == socket.gethostname():
        return
    seen = (folder / RECORD).stat().st_mtime_ns
    # Clocks may differ by seconds, not by minutes.
    if time.time() - seen / 1e9 > 10 * SILENT_S:
        return
    logger.info("%s ran this job: waiting %.0f s for a sign of life", record.holder, SILENT_S)
    give_up = time.monotonic() + SILENT_S
    while time.monotonic() < give_up:
        time.sleep(min(1.0, SILENT_S / 10))
        if (folder / RECORD).stat().st_mtime_ns != seen:
            raise _held_by(folder)


@contextlib.contextmanager
def _signs_of_life(path: Path) -> Iterator[None]:
    """Sets the file's time every now and then, from a thread."""
    ends = threading.Event()

    def beat() -> None:
        while not ends.wait(SIGN_S):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="signs-of-life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def refuse_changes(
    begun: Record, fingerprints: Mapping[str, str], config: Mapping[str, Any], folder: Path
) -> None:
    """A job goes on with what it began with.

    Args:
        begun: the record of the start that is gone on from.
        fingerprints: of code, config and, where it is known, data, now.
        config: now.
        folder: the job's.

    Raises:
        JobError: they differ. Says what, and how to go on all the same.
    """
    changes = differences(begun, fingerprints, config)
    if changes:
        raise JobError(
            f"{folder} was begun with other {'; '.join(changes)}. Use another folder, or go on all "
            "the same with resume=force"
        )


def differences(
    begun: Record, fingerprints: Mapping[str, str], config: Mapping[str, Any]
) -> list[str]:
    """What is another now than when the job began, a line each."""
    changed = [
        name
        for name, value in fingerprints.items()
        if name in begun.fingerprints and begun.fingerprints[name] != value
    ]
    lines = []
    for name in changed:
        if name == "code":
            lines.append(f"code ({_few(_changed_keys(begun.sources, source_digests()))})")
        elif name == "config":
            before, now = _flat(begun.config), _flat(config)
            keys = _changed_keys(before, now)
            said = (f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in keys)
            lines.append(f"settings ({_few(list(said))})")
        else:
            lines.append("text (what the data settings name has changed)")
    return lines


def _changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]


def _flat(node: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping) or not node:
        return {where: node}
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat |= _flat(value, f"{where}.{name}" if where else str(name))
    return flat


def _few(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
