"""Files that appear whole, locks, digests of content, and the error for a full disk.

Standard library alone.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from gr_sweep.errors import GrSweepError, JobError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
_RETRY_S = 0.05
PIECE_BYTES = 64 << 20


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that replaces `path`, synced and in one step, when the block ends; after
    an error `path` is as before. Processes that write the same path at once do not mix.

    Raises:
        OSError: it cannot be written; its `filename` is the path.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        error.filename = str(path)
        raise


def write_whole(path: Path, text: str) -> None:
    """Writes UTF-8 text, with its newlines as they are, so that the file appears whole. The bytes
    of a file's name that are not UTF-8 are escaped."""
    with whole_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def sync_folder(folder: Path) -> None:
    """Flushes a folder and the files in it to the disk."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def lock_file(path: Path, *, timeout_s: float = 0.0) -> Iterator[bool]:
    """Locks a file, made if it is missing; yields whether this process has the lock.

    The lock ends with the block, or with the process, however that ends. On a file system without
    locks every process has it. `timeout_s`: how long to wait for another process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    begun = time.monotonic()
    try:
        while (has_lock := _try_lock(descriptor, fcntl.LOCK_EX)) is False:
            if time.monotonic() - begun >= timeout_s:
                break
            time.sleep(_RETRY_S)
        yield has_lock is not False
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool | None:
    """Whether a process that this machine sees has locked the file; None if unknown."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        has_lock = _try_lock(descriptor, fcntl.LOCK_SH)  # shared: two may ask at once
    finally:
        os.close(descriptor)
    return None if has_lock is None else not has_lock


def _try_lock(descriptor: int, kind: int) -> bool | None:
    """Whether the lock could be taken; None on a file system without locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def is_full(error: BaseException) -> bool:
    """Whether something was not written because a disk, a quota or a limit for files is full."""
    if isinstance(error, GrSweepError):
        return error.__cause__ is not None and is_full(error.__cause__)
    return _number(error) in _FULL


def _number(error: BaseException) -> int | None:
    """The error's number; libraries in Rust, and shutil for a whole folder, give it in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = map(int, re.findall(r"(?:os error|\[Errno) (\d+)", str(error)))
    return next((number for number in said if number in _FULL), None)


def full_disk(path: Path, error: BaseException, instead: str = "") -> JobError:
    """The error where a file or a folder does not fit on the disk, from one for which `is_full`
    holds; `instead` is what the user can do instead of freeing space."""
    number = _number(error) or errno.ENOSPC
    place = path
    while not place.is_dir():
        place = place.parent
    free = f"{shutil.disk_usage(place).free / 2**30:.2f} GiB free on the disk"
    instead = f", or {instead}," if instead else ""
    more = "raise the limit (ulimit -f)" if number == errno.EFBIG else "free some space"
    return JobError(
        f"{path} cannot be written: {os.strerror(number)} ({free}); {more}{instead} and start the "
        "same command again"
    )


def unusable(error: OSError) -> JobError:
    """The error where the file or folder that an OSError names cannot be used."""
    if is_full(error):
        return full_disk(Path(error.filename), error)
    return JobError(f"{error.filename}: {error.strerror}; use another folder, or fix this one")


def content_digest(path: Path) -> str:
    """SHA-256 over the SHA-256s of a file's pieces of 64 MiB, which threads hash at once.

    Raises:
        OSError: the file cannot be read.
    """

    def piece_digest(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(PIECE_BYTES)).digest()

    starts = range(0, max(1, path.stat().st_size), PIECE_BYTES)
    with ThreadPoolExecutor(4) as pool:
        return hashlib.sha256(b"".join(pool.map(piece_digest, starts))).hexdigest()
