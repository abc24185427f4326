"""Uploads what W&B keeps of a job on disk and a server lacks: runs that were logged offline, and
the rest of one that was logged online.

`wandb sync` does it, on a copy in a folder of its own. Facts of wandb 0.31 that ask for one: it
marks a folder as synced and ends with status 0 though the server refused rows or files, which its
log alone tells; and what an interrupted upload has sent already it appends once more. So the copy
holds the rows that the server has not, and folders are marked here, when all of them are there.

An upload takes hours on a slow line, and a job is not kept from being started by one: uploads have
a lock of their own, and what was written to in the meantime is not marked.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gr_sweep.errors import JobError, JobLockedError
from gr_sweep.files import lock_file
from gr_sweep.jobdir import Holder, State, standing
from gr_sweep.tracking.wandb import read_records
from gr_sweep.tracking.wandb_api import (
    REQUEST_TIMEOUT_S,
    RETRIES,
    RETRY_WAIT_S,
    Server,
    ServerRun,
    plain_url,
    without_secrets,
)
from gr_sweep.tracking.wandb_file import write_payloads

START_S = 120.0
"""What an upload may take beside the time for its bytes."""

SLOWEST_BYTES_S = 20_000
"""A connection that is slower than this many bytes a second counts as none."""

_OF_A_RUN = (
    "WANDB_ENTITY", "WANDB_GROUP", "WANDB_JOB_TYPE", "WANDB_MODE", "WANDB_NAME", "WANDB_NOTES",
    "WANDB_PROJECT", "WANDB_RESUME", "WANDB_RUN_GROUP", "WANDB_RUN_ID", "WANDB_SERVICE",
    "WANDB_SWEEP_ID", "WANDB_TAGS",
)  # fmt: skip
"""Variables for the next run of a shell, which an upload of earlier ones would obey."""

_MARKER = ".synced"
_OFFLINE = "offline-"
_LOCK = ".upload_lock"
"""In a job's folder: held by who uploads it, with its name inside."""

_WANDB = """
import ctypes, os, runpy, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("its parent is gone")
del sys.argv[1]
runpy.run_module("wandb", run_name="__main__", alter_sys=True)
"""
"""Runs wandb's command, which ends with the process that started it, named as the first argument:
beside the next upload it would send rows twice."""


@dataclass(frozen=True)
class Kept:
    """The file of one attempt of a job, run-ID.wandb, and what it says of its run."""

    path: Path
    run_id: str
    entity: str
    """Empty: the account's default."""
    project: str
    steps: tuple[int, ...]
    """The numbers of its rows."""
    has_end: bool
    stamp: tuple[int, int]
    """Size and time of change when it was read."""

    @property
    def is_offline(self) -> bool:
        """Whether it was written without a server."""
        return self.path.parent.name.startswith(_OFFLINE)

    @property
    def is_marked(self) -> bool:
        """Whether it was uploaded whole to where it names."""
        return _is_marked(self.path)


def kept_files(job: Path, *, with_marked: bool = False) -> list[Path]:
    """The files of a job's attempts, oldest first.

    Args:
        with_marked: those too that were uploaded whole to where they name.
    """
    found = [
        path for path in job.glob("wandb/*run-*/run-*.wandb") if with_marked or not _is_marked(path)
    ]
    return sorted(found, key=lambda path: (path.parent.name.removeprefix(_OFFLINE), path.name))


def read_kept(path: Path) -> Kept | None:
    """What the file holds; None where it says of no run: it was killed before its first record.

    Raises:
        JobError: the file cannot be read.
    """
    run, steps, has_end = None, [], False
    try:
        stamp = _stamp(path)
        for record, _ in read_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run = record.run
            elif kind == "history":
                steps.append(record.history.step.num)
            elif kind == "exit":
                has_end = True
    except OSError as error:
        raise JobError(f"{path} cannot be read: {error.strerror}") from error
    if run is None:
        return None
    return Kept(path, run.run_id, run.entity, run.project, tuple(steps), has_end, stamp)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def missing_on(
    run: ServerRun | None, has: Set[int], kept: Sequence[Kept], *, is_own: bool
) -> list[Kept]:
    """Those of a run's files that hold something that the server has not.

    An offline file without a marker counts: its summary may be missing. Any other one does where
    the server lacks rows of it, or its end.

    Args:
        run: as the server has it; None: it does not.
        has: the numbers of the rows that are there.
        kept: of one run, oldest first.
        is_own: whether it is the place that the files name, which their markers are about.
    """
    if run is None:
        return list(kept)
    return [
        one
        for one in kept
        if (is_own and one.is_offline and not one.is_marked)
        or not has >= set(one.steps)
        or (one.has_end and one is kept[-1] and not run.has_ended)
    ]


class Uploads:
    """The processes that upload for a command. They end with it, and `end` ends them before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self.are_over = False
        """Whether they were ended."""

    def run(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str], limit_s: float
    ) -> tuple[int, str]:
        """Status and output of a command of wandb's.

        Raises:
            JobError: it took longer than `limit_s`, or uploads were ended.
        """
        with self._lock:
            if self.are_over:
                raise JobError("it was interrupted")
            process = subprocess.Popen(
                [sys.executable, "-c", _WANDB, str(os.getpid()), *words],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # Ctrl-C is for who started it, and wandb's own process is of the group.
                start_new_session=True,
            )
            self._running.add(process)
        try:
            said, _ = process.communicate(timeout=limit_s)
        except BaseException as error:
            _kill(process)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise JobError(f"it took longer than {limit_s:.0f} s") from error
            raise
        finally:
            with self._lock:
                self._running.remove(process)
        return process.returncode, said

    def end(self) -> None:
        """Ends those that run; none begins any more."""
        with self._lock:
            self.are_over = True
            for process in self._running:
                _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def upload(
    kept: Sequence[Kept],
    has: Set[int],
    server: Server,
    uploads: Uploads,
    *,
    entity: str,
    project: str,
) -> int:
    """Uploads files of one run, oldest first.

    Args:
        has: the numbers of the rows that the server has.

    Returns:
        The number of rows that the server did not have.

    Raises:
        JobError: it did not take everything; the next upload goes on from what the server has
            then.
    """
    there = set(has)
    with tempfile.TemporaryDirectory(prefix="gr-sweep-sync-") as name:
        folder = Path(name)
        copies = []
        for one in kept:
            try:
                copies.append(_copy_of_rest(one, there, folder))
            except (OSError, shutil.Error) as error:
                reason = error.strerror or "a file beside it is in the way"
                raise JobError(f"{one.path} cannot be copied: {reason}") from error
            # Files of online attempts overlap: a resume begins with what the server had then.
            there.update(one.steps)
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        _sync(copies, folder, entity, project, server, uploads, START_S + size / SLOWEST_BYTES_S)
    return len(there) - len(has)


def _marker(path: Path) -> Path:
    return path.with_name(path.name + _MARKER)


def _is_marked(path: Path) -> bool:
    """Whether the file has a marker, and has not grown since: ours holds its size then, those of
    others hold nothing."""
    try:
        said = _marker(path).read_text(encoding="utf-8", errors="replace").strip()
        return not said.isdecimal() or int(said) == path.stat().st_size
    except OSError:
        return False


def _copy_of_rest(kept: Kept, has: Set[int], folder: Path) -> Path:
    """The file without the rows that the server has, in a run's folder of its own."""
    copy = folder / "runs" / kept.path.parent.name / kept.path.name
    copy.parent.mkdir(parents=True)
    files = kept.path.parent / "files"
    media = files / "media"

    def copy_file(source: str, target: str) -> None:
        if Path(source).is_relative_to(media):
            Path(target).symlink_to(Path(source).resolve())  # large, and read alone
        else:
            shutil.copyfile(source, target)  # `wandb sync` writes some anew

    if files.is_dir():
        shutil.copytree(files, copy.parent / "files", copy_function=copy_file)
    write_payloads(copy, _rest(kept.path, has))
    return copy


def _rest(path: Path, has: Set[int]) -> Iterator[bytes]:
    for record, payload in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run" and record.run.resume:
            # It would count the rows of the file on from those that the server has.
            record.run.resume = False
            yield record.SerializeToString()
        elif kind != "history" or record.history.step.num not in has:
            yield payload


def _sync(
    copies: Sequence[Path],
    folder: Path,
    entity: str,
    project: str,
    server: Server,
    uploads: Uploads,
    limit_s: float,
) -> None:
    """Runs `wandb sync`.

    Raises:
        JobError: it did not upload everything, or took longer than `limit_s`.
    """
    retries = {
        f"WANDB__{part}_{name}": str(value)
        for part in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
        for name, value in (
            ("RETRY_MAX", RETRIES),
            ("RETRY_WAIT_MAX_SECONDS", RETRY_WAIT_S),
            ("TIMEOUT_SECONDS", REQUEST_TIMEOUT_S),
        )
    }
    # A file may be large.
    retries["WANDB__FILE_TRANSFER_TIMEOUT_SECONDS"] = str(limit_s)
    environment = {name: value for name, value in os.environ.items() if name not in _OF_A_RUN}
    environment |= {"WANDB_DIR": str(folder), "WANDB_SILENT": "false", **retries}
    environment |= server.environment
    words = ["sync", "--include-online", "--yes", "--entity", entity, "--project", project]
    words += [str(path.parent) for path in copies]
    try:
        status, said = uploads.run(words, folder, environment, limit_s)
    except JobError as error:
        raise JobError(f"W&B at {server.url} did not take everything: {error}") from error
    is_whole = all(_marker(path).exists() for path in copies)
    reason = _reason(said, _log_of(folder))
    if reason is not None or status or not is_whole:
        reason = reason or said.strip().rpartition("\n")[2] or "it does not say why"
        raise JobError(f"W&B at {server.url} did not take everything: {without_secrets(reason)}")


def _log_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The entries of the log that wandb keeps of an upload."""
    for path in folder.rglob("debug-sync*.log"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    yield entry


def _reason(said: str, log: Iterator[dict[str, Any]]) -> str | None:
    """What was not uploaded, and why; None where everything was.

    Args:
        said: the output of `wandb sync`.
        log: its entries. What is an error there may have been of no consequence, but not that of a
            file ("task") and of a request.
    """
    marked = " ERROR "
    lines = [line.partition(marked)[2] for line in said.splitlines() if marked in line]
    failed = [entry for entry in log if entry.get("level") == "ERROR"]
    files = [str(entry.get("msg")) for entry in failed if "task" in entry]
    if not lines and not files:
        return None
    refused = [
        f"HTTP {entry['status']} for {plain_url(str(entry.get('url')))}"
        for entry in failed
        if "status" in entry
    ]
    found = [line for line in lines if "<no message>" not in line and "Fatal error" not in line]
    return " ".join((refused or found or files or lines)[0].split())


def upload_job(
    job: Path, server: Server, uploads: Uploads, *, entity: str | None, project: str | None
) -> int | None:
    """Uploads what the server lacks of a job, and marks what was uploaded to where it names.

    Args:
        entity, project: in place of those that the job's files name. The server is asked then what
            it has, whatever the markers say.

    Returns:
        The number of rows that the server did not have; None where nothing was missing.

    Raises:
        JobLockedError: the job runs, or is uploaded by somebody else; or a file was written to
            meanwhile. The message says which, without the job's name.
        JobError: a file that cannot be read or marked, or a server that did not take
            everything.
    """
    is_elsewhere = entity is not None or project is not None
    num_rows, is_news = 0, False
    with _alone(job):
        paths = kept_files(job, with_marked=is_elsewhere)
        # Once they are listed: the file of an attempt that begins from here on is none of them.
        if standing(job).state is State.running:
            raise JobLockedError("it is running")
        found = [kept for path in paths if (kept := read_kept(path)) is not None]
        # One in all but a folder that was put together by hand.
        for run_id in dict.fromkeys(kept.run_id for kept in found):
            of_run = [kept for kept in found if kept.run_id == run_id]
            own = (of_run[0].entity or server.default_entity, of_run[0].project)
            place = (entity or own[0], project or own[1])
            run = server.runs(*place, ids=[run_id]).get(run_id)
            has = frozenset() if run is None else server.steps(run)
            missing = missing_on(run, has, of_run, is_own=place == own)
            if missing:
                owner, name = place
                num_rows += upload(missing, has, server, uploads, entity=owner, project=name)
                is_news = True
                if place == own:
                    _mark(missing)
    return num_rows if is_news else None


@contextlib.contextmanager
def _alone(job: Path) -> Iterator[None]:
    """Nobody else uploads the job inside.

    Raises:
        JobLockedError: somebody does.
    """
    path = job / _LOCK
    with contextlib.ExitStack() as stack:
        try:
            is_free = stack.enter_context(lock_file(path))
            if is_free:
                path.write_text(f"{Holder.here()}\n", encoding="utf-8")
        except OSError:
            is_free = True  # a folder that cannot be written: what can be read goes up all the same
        if not is_free:
            who = path.read_text(encoding="utf-8").strip() or "another process"
            raise JobLockedError(f"{who} uploads it")
        yield


def _mark(kept: Sequence[Kept]) -> None:
    """Marks the offline files as uploaded."""
    for one in kept:
        marker = _marker(one.path)
        try:
            if one.is_offline and _stamp(one.path) != one.stamp:
                raise JobLockedError("it was written to meanwhile")
            if one.is_offline:
                marker.write_text(f"{one.stamp[0]}\n", encoding="utf-8")
        except OSError as error:
            raise JobError(
                f"it was uploaded, but {marker} cannot be made: {error.strerror}"
            ) from error
