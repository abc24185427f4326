"""Cache folders that are built once and checked whenever they are opened, and digests of files.

A folder is built next to its place, and renamed into place when it is complete. The process that
builds it is the one that made the newest `HOLDER` file in it, since locks may not be visible on
other machines. What the folder contains is not known here.
"""

import contextlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gr_sweep.errors import DataError, JobError
from gr_sweep.files import (
    content_digest,
    full_disk,
    is_full,
    is_locked,
    lock_file,
    sync_folder,
    write_whole,
)
from gr_sweep.joblock import has_heartbeat, heartbeat

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CONTENTS = "contents.json"
"""Remembered digests of files, by path."""
PROGRESS = "progress.json"
"""In a folder that is being built: what a later process needs to go on after this one is killed."""
HOLDER = "holder"
"""In a folder that is being built: `holder.N` contains the machine of the Nth process that builds
it, which sets its time as a heartbeat."""

ALWAYS_READ_BYTES = 64 << 20
"""A file of a cache that is smaller is read as a whole whenever the cache is opened."""
_WAIT_S = 1.0
_CLOCK_S = 2.0
"""A file that changed this recently could change again without a new time of change."""


def open_or_build(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest of a cache folder, which is built first if it is missing or damaged.

    Processes that ask for the same folder at once wait while one of them builds it.

    Args:
        folder: the cache folder; its parent contains the lock.
        build: writes the files into the temporary folder that it is given and returns the manifest
            in JSON values. The folder is empty, or as a killed process left it with a `PROGRESS`.

    Raises:
        DataError: the parent folder cannot be written.
        JobError: the disk is full: nothing is left. Or this process stood still, and another one
            has taken its place.
    """
    with contextlib.suppress(_UnusableError):
        return _checked_manifest(folder)
    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if not (folder.parent.is_dir() and os.access(folder.parent, os.W_OK)):
        raise DataError(
            f"cache folder {folder.parent} cannot be written; set data.cache or GR_SWEEP_CACHE to "
            "a folder that can be written"
        )
    logger.info("building the token cache %s, or waiting for the process that does", folder)
    building, lock = (
        folder.with_name(folder.name + ".building"),
        folder.with_name(f"{folder.name}.lock"),
    )
    while True:
        with lock_file(lock) as has_lock:
            if has_lock and (holder := _held(folder, building, lock)):
                with heartbeat(holder):
                    return _built(folder, holder, build)
        time.sleep(_WAIT_S)
        with contextlib.suppress(_UnusableError):  # without the lock: many may wait
            return _checked_manifest(folder)


def _held(folder: Path, building: Path, lock: Path) -> Path | None:
    """This process's file in the folder that is being built; None if another one is at work there,
    or was faster."""
    try:
        building.mkdir(exist_ok=True)
        number = _newest_holder(building)
        if number:
            before = building / f"{HOLDER}.{number}"
            # A process of this machine would have the lock, if locks work.
            is_gone = before.read_text() == socket.gethostname() and is_locked(lock)
            if not is_gone and has_heartbeat(before):
                return None
        holder = building / f"{HOLDER}.{number + 1}"
        with holder.open("x") as file:  # one process alone succeeds
            file.write(socket.gethostname())
        return holder
    except (FileExistsError, FileNotFoundError):
        return None
    except OSError as error:
        if is_full(error):
            raise _full(folder, building, error) from error
        raise


def _newest_holder(building: Path) -> int:
    return max((int(path.suffix[1:]) for path in building.glob(f"{HOLDER}.*")), default=0)


def _built(
    folder: Path, holder: Path, build: Callable[[Path], Mapping[str, Any]]
) -> dict[str, Any]:
    """Builds the folder, unless it has just been built; called by the process of the holder."""
    building = holder.parent
    try:
        manifest = _checked_manifest(folder)
        shutil.rmtree(building, ignore_errors=True)
        return manifest
    except _UnusableError as error:
        if folder.exists():
            logger.warning("cache folder %s is damaged; building it again (%s)", folder, error)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        _clear(building, holder)
        manifest = dict(build(building))
        files = sorted(path for path in building.rglob("*") if path.is_file())
        manifest["files"] = {
            path.relative_to(building).as_posix(): [path.stat().st_size, content_digest(path)]
            for path in files
            if path.name not in (MANIFEST, PROGRESS, holder.name)
        }
        write_whole(building / MANIFEST, json.dumps(manifest, indent=1))
        sync_folder(building)
        _check_held(holder)
        os.replace(building, folder)
    except BaseException as error:
        if isinstance(error, Exception):
            _check_held(holder, error)
        if is_full(error):
            raise _full(folder, building, error) from error
        if isinstance(error, DataError) and not (building / PROGRESS).exists():
            shutil.rmtree(building, ignore_errors=True)
        holder.unlink(missing_ok=True)
        raise
    for name in (PROGRESS, holder.name):
        (folder / name).unlink(missing_ok=True)
    return manifest


def _clear(building: Path, holder: Path) -> None:
    """Removes what killed processes left and is of no use."""
    has_progress = (building / PROGRESS).exists()
    for path in building.iterdir():
        is_rest = not has_progress or path.match(".*.tmp") or path.match(f"{HOLDER}.*")
        if path.is_dir() and not has_progress:
            shutil.rmtree(path)
        elif is_rest and path != holder:
            path.unlink()


def _check_held(holder: Path, error: Exception | None = None) -> None:
    """Raises JobError if another process has taken the folder that is being built."""
    if not holder.exists() or holder.suffix != f".{_newest_holder(holder.parent)}":
        raise JobError(
            f"{holder.parent} was taken over by another process, because this one stood still for "
            "a minute, or was removed; start the same command again"
        ) from error


def _full(folder: Path, building: Path, error: BaseException) -> JobError:
    shutil.rmtree(building, ignore_errors=True)
    instead = "set data.cache or GR_SWEEP_CACHE to a folder on another disk"
    return full_disk(folder, error, instead=instead)


class _UnusableError(Exception):
    """A cache folder that is missing or damaged; names the file."""


def _checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are as they were written."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
        paths = [folder / name for name in files]
        found = digests(paths, folder / CONTENTS, always_below=ALWAYS_READ_BYTES)
        for (name, (_, written)), now in zip(files.items(), found, strict=True):
            if now != written:
                raise _UnusableError(f"{name} does not have the content that was written")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, DataError) as error:
        raise _UnusableError(f"{type(error).__name__}: {error}") from error
    return manifest


def digests(paths: Sequence[Path], memory: Path, *, always_below: int = 0) -> list[str]:
    """The digest of each file, which depends on its content and not on its name.

    A file of `always_below` bytes or more is read again only if its size, time of change or inode
    differs from what the file `memory` says about it.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    remembered: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        remembered = dict(json.loads(memory.read_text()))
    found, is_changed = [], False
    for path in paths:
        try:
            status = path.stat()
            name = os.path.abspath(path)
            stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
            *before, digest = remembered.get(name, [None])
            if before != stamp or status.st_size < always_below:
                digest = content_digest(path)
                if status.st_size >= always_below and time.time() - status.st_mtime > _CLOCK_S:
                    remembered[name] = [*stamp, digest]
                    is_changed = True
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        found.append(digest)
    if is_changed:
        # Remembering only saves time: a folder that cannot be written can still be read.
        with contextlib.suppress(OSError, DataError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_whole(memory, json.dumps(remembered))
    return found
