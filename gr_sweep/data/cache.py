"""Cache folders that are built once and checked whenever they are opened, and digests of files.

A folder is built under a lock, next to its place, and renamed into place when it is complete. What
it contains is not known here.
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

from gr_sweep.errors import DataError
from gr_sweep.files import content_digest, full_disk, is_full, lock_file, sync_folder, write_whole
from gr_sweep.joblock import has_heartbeat, heartbeat

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CONTENTS = "contents.json"
"""Remembered digests of files, by path."""
PROGRESS = "progress.json"
"""In a folder that is being built: what a later process needs to go on after this one is killed."""
HOLDER = "host"
"""In a folder that is being built: the name of the machine."""

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
        JobError: the disk is full. Nothing is left.
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
    while True:
        with lock_file(folder.with_name(folder.name + ".lock")) as has_lock:
            if has_lock and not _is_built_elsewhere(_building(folder)):
                return _built(folder, build)
        time.sleep(_WAIT_S)
        with contextlib.suppress(_UnusableError):  # without the lock: many may wait
            return _checked_manifest(folder)


def _is_built_elsewhere(building: Path) -> bool:
    """Whether a process of another machine is at work there: its lock may not be visible here, but
    its heartbeat is."""
    try:
        host = (building / HOLDER).read_text()
        return host != socket.gethostname() and has_heartbeat(building)
    except OSError:  # there is none, or it has just ended
        return False


def _built(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Builds the folder, unless it has just been built; called with the lock."""
    try:
        return _checked_manifest(folder)
    except _UnusableError as error:
        if folder.exists():
            logger.warning("cache folder %s is damaged; building it again (%s)", folder, error)
    building = _building(folder)
    shutil.rmtree(folder, ignore_errors=True)
    if not (building / PROGRESS).exists():  # left by a process that was killed early
        shutil.rmtree(building, ignore_errors=True)
    building.mkdir(exist_ok=True)
    (building / HOLDER).write_text(socket.gethostname())
    for left in building.glob(".*.tmp"):  # by `write_whole`
        left.unlink()
    try:
        with heartbeat(building):
            manifest = dict(build(building))
            files = sorted(path for path in building.rglob("*") if path.is_file())
            manifest["files"] = {
                path.relative_to(building).as_posix(): [path.stat().st_size, content_digest(path)]
                for path in files
                if path.name not in (MANIFEST, PROGRESS, HOLDER)
            }
            write_whole(building / MANIFEST, json.dumps(manifest, indent=1))
            sync_folder(building)
            for name in (PROGRESS, HOLDER):
                (building / name).unlink(missing_ok=True)
            os.replace(building, folder)
    except BaseException as error:
        if is_full(error) or (isinstance(error, DataError) and not _is_of_network(error)):
            shutil.rmtree(building, ignore_errors=True)
        if is_full(error):
            instead = "set data.cache or GR_SWEEP_CACHE to a folder on another disk"
            raise full_disk(folder, error, instead=instead) from error
        raise
    return manifest


def _building(folder: Path) -> Path:
    return folder.with_name(folder.name + ".building")


def _is_of_network(error: DataError) -> bool:
    return isinstance(error.__cause__, ConnectionError | TimeoutError)


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
