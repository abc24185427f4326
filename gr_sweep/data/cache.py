"""Cache folders that are built once, and digests of files.

A folder is built next to its place, and renamed into place when it is complete. What it contains is
not known here.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout

from gr_sweep.errors import DataError, JobError
from gr_sweep.files import content_digest, full_disk, is_full, sync_folder, write_whole

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CONTENTS = "contents.json"
"""Remembered digests of files, by path."""
PROGRESS = "progress.json"
"""In a folder that is being built: what a later process needs to go on after this one is killed."""

SILENT_S = 60.0
"""Without a heartbeat for so long, a process of another machine no longer builds a folder."""
_WAIT_S = 1.0


def open_or_build(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest of a cache folder, which is built first if it is missing or damaged. Processes
    that ask for it at once wait while one of them builds.

    Args:
        build: writes the files into the temporary folder that it is given and returns the manifest
            in JSON values. The folder is empty, or as a killed process left it with a `PROGRESS`.

    Raises:
        DataError: the parent folder cannot be written.
        JobError: the disk is full: nothing is left. Or this process stood still, and another one
            has taken its place. Or a script without `if __name__ == "__main__"` runs once more, in
            a process that it has started, which would wait for the script itself.
    """
    if (manifest := _manifest(folder)) is not None:
        return manifest
    # multiprocessing sets this while a process that it has started imports the script.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise JobError('the script needs `if __name__ == "__main__":` around what it runs')
    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(folder.parent, os.W_OK):
        raise DataError(
            f"cache folder {folder.parent} cannot be written; set data.cache or GR_SWEEP_CACHE to "
            "a folder that can be written"
        )
    logger.info("building the token cache %s, or waiting for the process that does", folder)
    # Not a lock of the file system, which other machines may not see.
    lease = SoftFileLease(f"{folder}.lock", lease_duration=SILENT_S)
    while manifest is None:
        try:
            with contextlib.suppress(Timeout), lease.acquire(timeout=0):
                return _manifest(folder) or _built(folder, build, lease)
        except OSError as error:
            if is_full(error):
                raise _full(folder, error) from error
            raise
        time.sleep(_WAIT_S)
        manifest = _manifest(folder)  # without the lock: many may wait
    return manifest


def _built(
    folder: Path, build: Callable[[Path], Mapping[str, Any]], lease: SoftFileLease
) -> dict[str, Any]:
    building = folder.with_name(folder.name + ".building")
    progress = building / PROGRESS
    try:
        shutil.rmtree(folder, ignore_errors=True)
        if not progress.exists():
            shutil.rmtree(building, ignore_errors=True)
        building.mkdir(exist_ok=True)
        manifest = dict(build(building))
        for rest in building.glob(".*.tmp"):  # of killed processes
            rest.unlink()
        manifest["files"] = _sizes(building)
        write_whole(building / MANIFEST, json.dumps(manifest, indent=1))
        sync_folder(building)
        _check_held(lease)
        os.replace(building, folder)
        (folder / PROGRESS).unlink(missing_ok=True)
    except BaseException as error:
        _check_held(lease, error)
        if is_full(error) or not progress.exists():
            shutil.rmtree(building, ignore_errors=True)
        if is_full(error):
            raise _full(folder, error) from error
        raise
    return manifest


def _full(folder: Path, error: BaseException) -> JobError:
    instead = "set data.cache or GR_SWEEP_CACHE to a folder on another disk"
    return full_disk(folder, error, instead=instead)


def _check_held(lease: SoftFileLease, error: BaseException | None = None) -> None:
    with contextlib.suppress(OSError):
        if str(lease.token) in Path(lease.lock_file).read_text():
            return
    raise JobError(
        f"{lease.lock_file} was removed, or taken over by another process while this one stood "
        "still; start the same command again"
    ) from error


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest; None if the folder, or a file of it, is missing or of another size."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        sizes = _sizes(folder)
        if all(sizes.get(name) == size for name, size in manifest["files"].items()):
            return manifest
    except (OSError, ValueError, LookupError):
        if not folder.exists():
            return None
    logger.warning("cache folder %s is damaged; building it again", folder)
    return None


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of a cache folder, by name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return {name: size for name, size in sizes.items() if name not in (MANIFEST, PROGRESS)}


def digests(paths: Sequence[Path], memory: Path) -> list[str]:
    """The digest of each file, which depends on its content and not on its name.

    A file is read again only if its size, time of change or inode differs from what the file
    `memory` says about it.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    remembered: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        remembered = json.loads(memory.read_text())
    found, is_changed = [], False
    for path in paths:
        try:
            status = path.stat()
            name = os.path.abspath(path)
            stamp = [status.st_size, status.st_ctime_ns, status.st_ino]
            *before, digest = remembered.get(name, [None])
            if before != stamp:
                digest = content_digest(path)
                remembered[name] = [*stamp, digest]
                is_changed = True
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        found.append(digest)
    if is_changed:
        # Remembering only saves time: a folder that cannot be written can still be read.
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_whole(memory, json.dumps(remembered))
    return found
