"""Uploads what W&B keeps of a job on disk and a server lacks: runs that were logged offline, and
the rest of one that was logged online.

`wandb sync` does it, on a copy in a folder of its own. Facts of wandb 0.31 that ask for one: it
marks a folder as synced and ends with status 0 though the server refused rows or files, which its
log alone tells; and what an interrupted upload has sent already it appends once more. So the copy
holds the rows that the server has not, and folders are marked here, when all of them are there.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gr_sweep.errors import TrackingError
from gr_sweep.tracking.wandb import read_records
from gr_sweep.tracking.wandb_api import (
    REQUEST_TIMEOUT_S,
    RETRIES,
    RETRY_WAIT_S,
    Server,
    ServerRun,
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

    @property
    def is_offline(self) -> bool:
        """Whether it was written without a server."""
        return self.path.parent.name.startswith(_OFFLINE)

    @property
    def is_marked(self) -> bool:
        """Whether it was uploaded whole."""
        return _marker(self.path).exists()

    @property
    def num_rows(self) -> int:
        """Rows of the run once this file and those before it are uploaded."""
        return self.steps[-1] + 1 if self.steps else 0


def kept_files(job: Path) -> list[Path]:
    """The files of a job's attempts, oldest first; not those that were uploaded whole."""
    found = [path for path in job.glob("wandb/*run-*/run-*.wandb") if not _marker(path).exists()]
    return sorted(found, key=lambda path: (path.parent.name.removeprefix(_OFFLINE), path.name))


def read_kept(path: Path) -> Kept | None:
    """What the file holds; None where it says of no run: it was killed before its first record.

    Raises:
        TrackingError: the file cannot be read.
    """
    run, steps, has_end = None, [], False
    try:
        for record, _ in read_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run = record.run
            elif kind == "history":
                steps.append(record.history.step.num)
            elif kind == "exit":
                has_end = True
    except OSError as error:
        raise TrackingError(f"{path} cannot be read: {error.strerror}") from error
    if run is None:
        return None
    return Kept(path, run.run_id, run.entity, run.project, tuple(steps), has_end)


def missing_on(run: ServerRun | None, kept: Sequence[Kept]) -> list[Kept]:
    """Those of a run's files that hold something that the server has not.

    An offline file without a marker counts: its summary may be missing. An online one does where
    the server lacks rows of it, or its end.

    Args:
        run: as the server has it; None: it does not.
        kept: of one run, oldest first.
    """
    if run is None:
        return list(kept)
    return [
        one
        for one in kept
        if one.is_offline
        or one.num_rows > run.num_rows
        or (one.has_end and one is kept[-1] and not run.has_ended)
    ]


def upload(
    kept: Sequence[Kept], run: ServerRun | None, *, entity: str, project: str, url: str
) -> int:
    """Uploads files of one run, oldest first, and marks the offline ones as synced.

    Args:
        run: as the server has it.
        url: of the server.

    Returns:
        The number of rows that the server did not have.

    Raises:
        TrackingError: it did not take everything. Nothing is marked; the next upload goes on from
            what the server has then.
    """
    has = 0 if run is None else run.num_rows
    num_rows = 0
    with tempfile.TemporaryDirectory(prefix="gr-sweep-sync-") as name:
        folder = Path(name)
        copies = []
        for one in kept:
            try:
                copies.append(_copy_of_rest(one, has, folder))
            except OSError as error:
                raise TrackingError(f"{one.path} cannot be copied: {error.strerror}") from error
            num_rows += sum(step >= has for step in one.steps)
        size = sum(path.stat().st_size for copy in copies for path in copy.parent.rglob("*"))
        _sync(copies, folder, entity, project, url, START_S + size / SLOWEST_BYTES_S)
    for one in kept:
        if one.is_offline:
            _marker(one.path).touch()
    return num_rows


def _marker(path: Path) -> Path:
    return path.with_name(path.name + _MARKER)


def _copy_of_rest(kept: Kept, has: int, folder: Path) -> Path:
    """The file without the rows that the server has, in a run's folder of its own."""
    copy = folder / "runs" / kept.path.parent.name / kept.path.name
    copy.parent.mkdir(parents=True)
    files = kept.path.parent / "files"
    if files.is_dir():
        (copy.parent / "files").symlink_to(files.resolve(), target_is_directory=True)
    write_payloads(copy, _rest(kept.path, has))
    return copy


def _rest(path: Path, has: int) -> Iterator[bytes]:
    for record, payload in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run" and record.run.resume:
            # It would count the rows of the file on from those that the server has.
            record.run.resume = False
            yield record.SerializeToString()
        elif kind != "history" or record.history.step.num >= has:
            yield payload


def _sync(
    copies: Sequence[Path], folder: Path, entity: str, project: str, url: str, limit_s: float
) -> None:
    """Runs `wandb sync`.

    Raises:
        TrackingError: it did not upload everything, or took longer than `limit_s`.
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
    command = [sys.executable, "-m", "wandb", "sync", "--include-online", "--yes"]
    command += ["--entity", entity, "--project", project, *(str(path.parent) for path in copies)]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit_s)
    except BaseException as error:
        # wandb's own process goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise TrackingError(f"W&B at {url} did not take it within {limit_s:.0f} s") from error
        raise
    is_whole = all(_marker(path).exists() for path in copies)
    reason = _reason(said, _log_of(folder))
    if reason is not None or process.returncode or not is_whole:
        reason = reason or said.strip().rpartition("\n")[2] or "it does not say why"
        raise TrackingError(f"W&B at {url} did not take everything: {reason}")


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
        f"HTTP {entry['status']} for {entry.get('url')}" for entry in failed if "status" in entry
    ]
    found = [line for line in lines if "<no message>" not in line and "Fatal error" not in line]
    return " ".join((refused or found or files or lines)[0].split())


def upload_job(job: Path, server: Server, *, entity: str | None, project: str | None) -> int | None:
    """Uploads what the server lacks of a job.

    Args:
        entity, project: in place of those that the job's files name.

    Returns:
        The number of rows that the server did not have; None where nothing was missing.

    Raises:
        TrackingError: a file that cannot be read, or a server that did not take everything.
    """
    found = [kept for path in kept_files(job) if (kept := read_kept(path)) is not None]
    num_rows, is_news = 0, False
    # One in all but a folder that was put together by hand.
    for run_id in dict.fromkeys(kept.run_id for kept in found):
        of_run = [kept for kept in found if kept.run_id == run_id]
        owner = entity or of_run[0].entity or server.default_entity
        name = project or of_run[0].project
        run = server.runs(owner, name, ids=[run_id]).get(run_id)
        missing = missing_on(run, of_run)
        if missing:
            num_rows += upload(missing, run, entity=owner, project=name, url=server.url)
            is_news = True
    return num_rows if is_news else None
