"""A job's folder: its file names, its lock, its state, its summary, and which job is in it.

`job.json` records the job's state, for later starts and for `gr-sweep status`; `summary.json` holds
the results of a finished job, under a checksum. The lock is a file with a heartbeat, which other
machines see too. No torch.
"""

import contextlib
import dataclasses
import enum
import hashlib
import itertools
import json
import logging
import os
import re
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout

from gr_sweep.errors import DataError, GrSweepError, JobError, JobLockedError
from gr_sweep.files import content_digest, write_whole
from gr_sweep.fingerprint import NO_EFFECT_ON_RESULT, Identity, is_below

logger = logging.getLogger(__name__)

RECORD = "job.json"
SUMMARY = "summary.json"
"""Written last: a job that has one is finished."""
METRICS = "metrics.jsonl"
DOCUMENT_LOSSES = "document_losses.csv"
RELEARN = "relearn.csv"
PLAN = "plan.json"
SAMPLES = "samples.json"
"""Text that the model has written, to look at: no metric is computed from it."""
RESULTS = (PLAN, DOCUMENT_LOSSES, RELEARN, SAMPLES)
"""Files of a finished job that its summary has digests of; some jobs lack some."""
CHECKPOINTS = "checkpoints"
MODEL = "model"
"""Folder with the model's configs and its tokenizer, for an export."""
ROUNDS = "rounds"
"""Folder with one for each round of procedure=alternate."""
ROUND = "round.json"
"""In a round's folder: its metrics; written when the round has been evaluated."""
REPLACED = ".replaced"
"""Folder beside a job's, with what `resume=fresh` has replaced."""
LOCK = ".lease"

SILENT_S = 60.0
"""A process whose lock has had no heartbeat for this long has ended."""
_PROBE_S = 1.0
"""Longer than a process holds the lock that does not run the job."""
_CHECKPOINT = re.compile(r"step_(\d{8})")


# State


class State(enum.Enum):
    """State of a job."""

    waiting = "waiting"
    running = "running"
    stopped = "stopped"
    """Ended early, by a signal or a crash; starting it again resumes it."""
    failed = "failed"
    done = "done"


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that runs, or ran, a job; the main one of several."""

    host: str
    pid: int
    slurm_job: str | None = None
    """As squeue shows it: `12`, or `12_3` in an array."""

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
    """Content of job.json."""

    state: State
    title: str = ""
    """The overrides in which the job differs from others of its sweep, for people."""
    since: str = ""
    """When it entered this state, UTC."""
    error: str | None = None
    """Why it ended, one line."""
    holder: Holder | None = None
    is_bug: bool = False
    """Whether the error is not one that the user can fix."""
    slurm_job: str | None = None
    """Number of the SLURM job that runs it, or was last submitted to."""
    num_steps: int | None = None
    """Optimizer steps of the whole run."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """Those of the identity that the job's checkpoints began with."""
    settings: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    """What `resume=force` has changed since, as from `differences`."""

    def write(self, folder: Path) -> None:
        """Writes it as the folder's record, whole."""
        self.since = datetime.now(UTC).isoformat(timespec="seconds")
        write_whole(folder / RECORD, _json(dataclasses.asdict(self) | {"state": self.state.value}))


def is_job(folder: Path) -> bool:
    """Whether it is the folder of a job, begun or not."""
    return any((folder / name).exists() for name in (RECORD, SUMMARY, METRICS, ".hydra"))


def job_folders(folder: Path) -> list[Path]:
    """The jobs in the folder of a sweep, by name, or the folder itself if it is a job; resolved.
    Raises JobError if there is none, or no such folder."""
    if is_job(folder):
        return [folder.resolve()]
    if not os.path.isdir(folder):
        raise JobError(f"{folder} is not a folder; give that of a sweep or of a job")
    found = [entry for entry in sorted(folder.resolve().iterdir()) if is_job(entry)]
    if not found:
        raise JobError(f"{folder} holds no job, with a {RECORD} or {SUMMARY}")
    return found


def read_record(folder: Path) -> Record:
    """The folder's record; that of a waiting job if there is none or it is damaged."""
    try:
        record = Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        record.state = State(record.state)
        holder: Any = record.holder
        record.holder = None if holder is None else Holder(**holder)
    except (OSError, ValueError, TypeError):
        return Record(State.waiting)
    return record


def standing(folder: Path) -> Record:
    """The folder's record, with the state that all files say and no time where that is another."""
    record = read_record(folder)
    if read_finished(folder) is not None:
        state = State.done
    elif record.state is State.done:  # somebody removed the summary
        state = State.waiting
    elif record.state is State.running and not _is_alive(folder, record.holder):
        state = State.stopped
    else:
        return record
    since = record.since if state is record.state else ""
    return dataclasses.replace(record, state=state, since=since)


def _is_alive(folder: Path, holder: Holder | None) -> bool:
    """Whether the process still runs, as far as its lock says."""
    is_here = holder is not None and holder.host == socket.gethostname()
    if holder is not None and is_here and not os.path.exists(f"/proc/{holder.pid}"):
        return False
    with contextlib.suppress(OSError):
        return time.time() - (folder / LOCK).stat().st_mtime < SILENT_S
    return False


def _acquire(lease: SoftFileLease, waits: bool) -> bool:
    """Whether it has acquired the lease; the lease itself takes over that of an ended process. One
    that has no heartbeat now gets the time to show one."""
    before, end = _heartbeat(lease), time.monotonic() + 1.5 * SILENT_S
    is_waiting = False
    while True:
        try:
            lease.acquire(timeout=_PROBE_S)
            return True
        except Timeout as error:
            is_elsewhere = "cannot probe" in str(error)  # another machine or container
        last = _heartbeat(lease)
        if time.monotonic() > end or (last is not None and last != before):
            return False
        if not is_waiting and last is not None:
            is_silent = time.time() - last > SILENT_S / 2  # a heartbeat is due each third of it
            if not (is_silent or (waits and is_elsewhere)):
                return False
            logger.info("%s: waiting for a heartbeat", lease.lock_file)
            is_waiting = True


def _heartbeat(lease: SoftFileLease) -> float | None:
    """When the lease had its last heartbeat; None if nobody holds it."""
    with contextlib.suppress(OSError):
        return os.stat(lease.lock_file).st_mtime
    return None


@contextlib.contextmanager
def _alone(folder: Path, *, waits: bool = False) -> Iterator[None]:
    """Raises JobLockedError if another process works in the folder; `waits` for the heartbeat of
    one on another machine that may have ended a moment ago."""
    record, lease = read_record(folder), SoftFileLease(folder / LOCK, lease_duration=SILENT_S)
    if not _acquire(lease, waits):
        who = f"{record.holder or 'another process'}"
        since = f" since {record.since}" if record.since else ""
        raise JobLockedError(f"{folder} is being run by {who}{since}; wait for it, or stop it")
    try:
        yield
    finally:
        lease.release()


def change_record(folder: Path, **changes: Any) -> None:
    """Changes the record of a job that neither runs nor is finished; makes the folder. An error
    that comes with a state is not a bug's unless `is_bug` says so."""
    changes = {"is_bug": False} | changes if "state" in changes else changes
    if standing(folder).state in (State.running, State.done):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(JobLockedError), _alone(folder):
        dataclasses.replace(read_record(folder), **changes).write(folder)


# Running


@contextlib.contextmanager
def lock_job_dir(folder: Path, title: str = "") -> Iterator[Record]:
    """Locks the folder, made if it is missing, and afterwards records how the block ended.

    Raises:
        JobLockedError: another process works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, waits=True):
        record, here = read_record(folder), Holder.here()
        record.title = title or record.title
        record.holder = here
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":  # not in an allocation of the user's
            record.slurm_job = here.slurm_job
        record.state, record.error, record.is_bug = State.running, None, False
        record.write(folder)
        try:
            yield record
        except BaseException as error:
            is_resumable = isinstance(error, JobError) and error.is_resumable
            has_failed = isinstance(error, Exception) and not is_resumable
            record.state = State.failed if has_failed else State.stopped
            record.is_bug = has_failed and not isinstance(error, GrSweepError)
            message = "" if record.is_bug else str(error)
            message = message or "".join(traceback.format_exception_only(error))
            record.error = " ".join(message.split())
            # The error may be about a full disk: then the record stays as it is.
            with contextlib.suppress(OSError):
                record.write(folder)
            raise
        if read_finished(folder) is not None:
            record.state = State.done
            with contextlib.suppress(OSError):  # only for people: the summary counts
                record.write(folder)


def begin_job(folder: Path, record: Record, identity: Identity, num_steps: int) -> None:
    """Records what the job of a locked folder runs with, and sets the summary of a finished one
    aside. A job without a checkpoint gets this identity; one with a checkpoint, which
    `resume=force` continues, keeps its own and lists what differs."""
    changes = differences(folder, identity)
    has_begun = newest_step(folder) is not None
    if not (has_begun and record.fingerprints):
        record.fingerprints, record.settings = identity.fingerprints, identity.settings
        record.changes = []
    if changes and has_begun:
        logger.warning("resuming with different %s", "; ".join(changes))
        record.changes += [line for line in changes if line not in record.changes]
    record.num_steps = num_steps
    record.write(folder)
    if changes:
        # The newest round is evaluated again; earlier ones cannot be, their weights are gone.
        rounds = (folder / ROUNDS).glob("[0-9]*")
        if newest := max(rounds, key=lambda path: int(path.name), default=None):
            (newest / ROUND).unlink(missing_ok=True)
    set_summary_aside(folder)


def set_summary_aside(folder: Path) -> None:
    """Renames the folder's summary, if there is one: its job is then not finished."""
    if (path := folder / SUMMARY).exists():
        aside = path.with_name(f"{SUMMARY}.replaced")
        logger.warning("%s: renamed to %s, the job evaluates again", path, aside.name)
        path.replace(aside)


def replace_job(folder: Path) -> Path:
    """Moves a job's folder to `.replaced/NAME-N` beside it, for `resume=fresh`; returns the place.
    Called before a command starts its jobs: one that is requeued continues from its checkpoints.
    Raises JobLockedError if the job is running."""
    with _alone(folder):
        pass  # the lock would move with the folder
    folder = folder.absolute()  # `hydra.run.dir=.` has a name too
    beside = folder.parent / REPLACED
    beside.mkdir(exist_ok=True)
    names = (beside / f"{folder.name}-{number}" for number in itertools.count(1))
    return folder.rename(next(place for place in names if not place.exists()))


def whole_checkpoints(checkpoints: Path) -> list[tuple[int, Path]]:
    """Step and folder of each checkpoint, oldest first; not of half written ones."""
    found = ((_CHECKPOINT.fullmatch(path.name), path) for path in checkpoints.glob("step_*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def newest_step(folder: Path) -> int | None:
    """Step of the job's newest whole checkpoint; None if it has none."""
    return max((step for step, _ in whole_checkpoints(folder / CHECKPOINTS)), default=None)


# Identity


def is_done(folder: Path, identity: Identity) -> bool:
    """Whether the folder holds the finished job of this identity."""
    summary = read_finished(folder)
    return summary is not None and summary.get("fingerprints") == identity.fingerprints


def differences(folder: Path, identity: Identity) -> list[str]:
    """What differs between the job in the folder, finished or not, and the identity: a line each
    for settings, text and code. Empty without a summary and a checkpoint.

    Raises:
        JobError: the folder holds files, but not those of a job.
    """
    if folder.is_dir() and not is_job(folder):
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if names:
            raise JobError(f"{folder} holds {_few(names)} and is not the folder of a job")
    record = read_record(folder)
    if (summary := read_finished(folder)) is not None:
        found, settings = summary.get("fingerprints", {}), flatten(summary.get("config", {}))
    elif newest_step(folder) is not None:
        found, settings = record.fingerprints, flatten(record.settings)
    else:
        return []
    new = flatten(identity.settings)
    changes = [
        f"{key} was {settings.get(key)!r}, now {new.get(key)!r}"
        for key in sorted({*settings, *new})
        if settings.get(key) != new.get(key) and not is_below(key, NO_EFFECT_ON_RESULT)
    ]
    lines = {
        "config": f"settings ({_few(changes or ['the content of a file in eval.tasks'])})",
        "text": "text (the documents or the tokenizer have changed)",
        "code": "code (gr-sweep itself has changed)",
    }
    now = identity.fingerprints
    return [line for name, line in lines.items() if found.get(name) != now[name]]


def different_job(folder: Path, changes: list[str]) -> JobError:
    """The error where a folder holds another job; `changes` as from `differences`."""
    return JobError(
        f"{folder} holds a job with different {'; '.join(changes)}. Use another folder, go on from "
        f"that job with resume=force, or begin again with resume=fresh, which moves it to "
        f"{folder.parent / REPLACED}"
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a config by dotted names; an empty mapping is "{}"."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):  # a report has thousands: Mapping would be three times as slow
            flat |= flatten(value, f"{prefix}{name}.") or {f"{prefix}{name}": "{}"}
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _few(names: list[str]) -> str:
    more = [f"and {len(names) - 3} more"] if len(names) > 3 else []
    return ", ".join(names[:3] + more)


# Summary


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Writes a summary of JSON values whole, with a checksum."""
    write_whole(path, _json({"checksum": _checksum(summary), **summary}))


def read_summary(path: Path) -> dict[str, Any]:
    """The summary as `write_summary` was given it. Raises DataError if it is damaged, and OSError
    if it cannot be read."""
    try:
        summary: dict[str, Any] = json.loads(path.read_bytes())
        if summary.pop("checksum", None) not in (None, _checksum(summary)):
            raise ValueError("its checksum does not match")
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error})") from error
    return summary


def read_finished(folder: Path) -> dict[str, Any] | None:
    """The summary of the job in the folder; None if there is none or it is damaged."""
    try:
        return read_summary(folder / SUMMARY)
    except (OSError, DataError):
        return None


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Checks the tables behind a job's metrics; `digests` are the summary's "files". The file
    `SAMPLES` is checked where it is shown. Raises DataError for one that has changed, and OSError
    for one that cannot be read."""
    for name, digest in digests.items():
        if name != SAMPLES and content_digest(folder / name) != digest:
            raise DataError(f"{folder / name} is damaged (its checksum does not match)")


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"


def _checksum(summary: Mapping[str, Any]) -> str:
    """Of the file without the line of the checksum."""
    return hashlib.sha256(_json(summary).removeprefix("{\n").encode()).hexdigest()
