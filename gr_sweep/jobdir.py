"""A job's folder, as it is read: its file names, its state, its summary, and which job is in it.

`job.json` records the job's state, for later starts and for `gr-sweep status`; `summary.json` holds
the results of a finished job, under a checksum; an `Identity` says which job they are the results
of. `joblock` locks a folder and changes its state. No torch.
"""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gr_sweep.config import RunConfig
from gr_sweep.errors import DataError, JobError
from gr_sweep.files import content_digest, is_locked, write_whole
from gr_sweep.fingerprint import NO_EFFECT_ON_RESULT, fingerprint, fingerprinted_settings, is_below

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
LOCK = ".lock"

SILENT_S = 60.0
"""A job of another machine without a heartbeat for this long has ended."""
_CHECKPOINT = re.compile(r"step_(\d{8})")
_NO_PART_IN_NUMBERS = ("bench", "cli", "export", "launch", "report", "tracking")


# Identity


@dataclass(frozen=True, slots=True)
class Identity:
    """What decides a job's numbers: jobs of equal identity have equal results.

    The folder of the results does not count; a path that names text (`data.root`) does.
    """

    config: str
    """Fingerprint of the settings that can change a number."""
    text: str
    """Fingerprint of the documents, their domains, and the tokenizer."""
    code: str
    """Fingerprint of the source files that can change a number."""
    settings: dict[str, Any] = field(compare=False, repr=False)
    """The settings behind `config`, so that a message can name those that differ."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """As a record and a summary hold them."""
        return {"config": self.config, "text": self.text, "code": self.code}


def identity_of(config: RunConfig, text: str) -> Identity:
    """Identity of the job that this code runs with the config on the text."""
    return Identity(fingerprint(config), text, code_fingerprint(), fingerprinted_settings(config))


@functools.cache
def code_fingerprint() -> str:
    """64 hexadecimal digits of the source files that can change a job's numbers."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        if name.parts[0] not in _NO_PART_IN_NUMBERS:
            digest.update(f"{name.as_posix()} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


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
            raise JobError(
                f"{folder} holds {_few(names)} and is not the folder of a job; use another folder"
            )
    record = read_record(folder)
    if (summary := read_finished(folder)) is not None:
        found, settings = summary.get("fingerprints", {}), flatten(summary.get("config", {}))
    elif newest_step(folder) is not None:
        found, settings = record.fingerprints, flatten(record.settings)
    else:
        return []
    if not found.keys() >= identity.fingerprints.keys():
        said = "an older gr-sweep ran it, and did not record all that it depends on"
        return [f"version ({said}; or its {RECORD} is damaged)"]
    lines = []
    if found["config"] != identity.config:
        new = flatten(identity.settings)
        changes = [
            f"{key} was {settings.get(key)!r}, now {new.get(key)!r}"
            for key in sorted({*settings, *new})
            if settings.get(key) != new.get(key) and not is_below(key, NO_EFFECT_ON_RESULT)
        ]
        lines.append(f"settings ({_few(changes or ['the content of a file in eval.tasks'])})")
    if found["text"] != identity.text:
        lines.append("text (the documents or the tokenizer have changed)")
    if found["code"] != identity.code:
        lines.append("code (gr-sweep itself has changed)")
    return lines


def different_job(folder: Path, changes: list[str]) -> JobError:
    """The error where a folder holds another job; `changes` as from `differences`."""
    return JobError(
        f"{folder} holds a job with different {'; '.join(changes)}. Use another folder, go on from "
        f"that job with resume=force, or begin again with resume=fresh, which moves it to "
        f"{folder.parent / REPLACED}"
    )


def copy_results(folder: Path, identity: Identity, names: Mapping[str, str]) -> bool:
    """Copies the results of a finished job of equal identity from another sweep next to this one;
    returns whether there is such a job. `names` replace fields of its summary."""
    # By default the folder of a job ends in these digits.
    for path in sorted(folder.parent.parent.glob(f"*/*-{identity.config[:8]}/{SUMMARY}")):
        source = path.parent
        summary = read_finished(source) or {}
        # A job with changes has trained some steps with another identity.
        if summary.get("fingerprints") != identity.fingerprints or summary.get("changes"):
            continue
        try:
            check_files(source, summary.get("files", {}))
        except (OSError, DataError):
            continue
        for name in (METRICS, *RESULTS):
            if (source / name).exists():
                write_whole(folder / name, (source / name).read_text(encoding="utf-8"))
            else:
                (folder / name).unlink(missing_ok=True)
        origin = f"{source.parent.name}/{source.name}"
        summary |= {"job": folder.name, **names, "taken_from": origin}
        write_summary(folder / SUMMARY, summary)
        logger.info("%s has finished the same job: its results are copied", origin)
        return True
    return False


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a config by dotted names; an empty mapping is "{}"."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):  # a report has thousands: Mapping would be three times as slow
            flat |= flatten(value, f"{prefix}{name}.") or {f"{prefix}{name}": "{}"}
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _few(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


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

    def write(self, folder: Path, *, is_new_state: bool = True) -> None:
        """Writes it as the folder's record, whole."""
        if is_new_state:
            self.since = datetime.now(UTC).isoformat(timespec="seconds")
        content = dataclasses.asdict(self) | {"state": self.state.value}
        write_whole(folder / RECORD, json.dumps(content, indent=1) + "\n")


def is_job(folder: Path) -> bool:
    """Whether it is the folder of a job, begun or not."""
    return any((folder / name).exists() for name in (RECORD, SUMMARY, METRICS, ".hydra"))


def job_folders(folder: Path) -> list[Path]:
    """The jobs in the folder of a sweep, by name, or the folder itself if it is a job; resolved.

    Raises:
        JobError: there is none, or no such folder.
    """
    if is_job(folder):
        return [folder.resolve()]
    if not os.path.isdir(folder):
        raise JobError(f"{folder} is not a folder; give that of a sweep or of a job")
    found = [entry for entry in sorted(folder.resolve().iterdir()) if is_job(entry)]
    if not found:
        names = f"{RECORD}, {SUMMARY}, {METRICS} or .hydra"
        raise JobError(f"{folder} holds no job: neither it nor a folder in it has a {names}")
    return found


def read_record(folder: Path) -> Record:
    """The folder's record; that of a waiting job if there is none or it is damaged."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        holder = content.pop("holder")
        known = content.keys() & {item.name for item in dataclasses.fields(Record)}
        given = {name: content[name] for name in known}
        record = Record(**given | {"state": State(content["state"])})
        record.holder = None if holder is None else Holder(**holder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Record(State.waiting)
    return record


def standing(folder: Path) -> Record:
    """The folder's record, with the state that all files say and no time where that is another."""
    record = read_record(folder)
    state = record.state
    if read_finished(folder) is not None:
        state = State.done
    elif state is State.done:  # somebody removed the summary
        state = State.waiting
    elif state is State.running and not _is_alive(folder, record.holder):
        state = State.stopped
    if state is not record.state:
        record.state, record.since = state, ""
    return record


def _is_alive(folder: Path, holder: Holder | None) -> bool:
    """Whether the process still runs, as far as the lock or the heartbeat says."""
    if holder is not None and holder.host == socket.gethostname():
        found = is_locked(folder / LOCK)
        if found is not None:
            return found
    # Whether another machine's lock is visible here depends on the file system. A clock that was
    # set back leaves heartbeats in the future.
    with contextlib.suppress(OSError):
        return abs(time.time() - (folder / RECORD).stat().st_mtime) < SILENT_S
    return False


def whole_checkpoints(checkpoints: Path) -> list[tuple[int, Path]]:
    """Step and folder of each checkpoint, oldest first; not of half written ones."""
    found = ((_CHECKPOINT.fullmatch(path.name), path) for path in checkpoints.glob("step_*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def newest_step(folder: Path) -> int | None:
    """Step of the job's newest whole checkpoint; None if it has none."""
    return max((step for step, _ in whole_checkpoints(folder / CHECKPOINTS)), default=None)


# Summary


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Writes a summary of JSON values whole, with a checksum."""
    write_whole(path, _json({"checksum": _checksum(summary), **summary}))


def read_summary(path: Path) -> dict[str, Any]:
    """The summary as `write_summary` was given it; an older version's may have no checksum.

    Raises:
        DataError: it is damaged.
        OSError: it does not exist or cannot be read.
    """
    try:
        summary = json.loads(path.read_bytes())
        if not isinstance(summary, dict):
            raise ValueError("expected a JSON object")
        checksum = summary.pop("checksum", None)
        if checksum is not None and checksum != _checksum(summary):
            raise ValueError("its checksum does not match")
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error})") from error
    return summary


def read_finished(folder: Path) -> dict[str, Any] | None:
    """The summary of the job in the folder; None if there is none or it is damaged."""
    try:
        return read_summary(folder / SUMMARY)
    except (OSError, DataError):
        return None


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Checks the tables behind a job's metrics; `digests` are the summary's "files". The
    file `SAMPLES` is checked where it is shown.

    Raises:
        DataError: one has changed.
        OSError: one does not exist or cannot be read.
    """
    for name, digest in digests.items():
        if name != SAMPLES and content_digest(folder / name) != digest:
            raise DataError(f"{folder / name} is damaged (its checksum does not match)")


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"


def _checksum(summary: Mapping[str, Any]) -> str:
    """Of the file without the line of the checksum, as all versions have computed it."""
    return hashlib.sha256(_json(summary).removeprefix("{\n").encode()).hexdigest()
