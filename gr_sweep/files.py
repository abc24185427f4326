"""Files that appear whole, digests of content, and the error for a full disk.

Standard library alone.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from gr_sweep.errors import GrSweepError, JobError

PIECE_BYTES = 64 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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


def is_full(error: BaseException) -> bool:
    """Whether something was not written because a disk, a quota or a limit for files is full."""
    return _full_number(error) is not None


def _full_number(error: BaseException | None) -> int | None:
    if isinstance(error, GrSweepError):
        return _full_number(error.__cause__)
    # Libraries in Rust, and shutil for a whole folder, give the number in words.
    said = map(int, re.findall(r"(?:os error|\[Errno) (\d+)", str(error)))
    return next((n for n in (getattr(error, "errno", None), *said) if n in _FULL), None)


def full_disk(path: Path, error: BaseException, instead: str = "") -> JobError:
    """The error where a file or a folder does not fit on the disk, from one for which `is_full`
    holds; `instead` is what the user can do instead of freeing space."""
    why = os.strerror(_full_number(error) or errno.ENOSPC)
    instead = f", or {instead}," if instead else ""
    return JobError(
        f"{path} cannot be written: {why}; free some space{instead} and start the same command "
        "again"
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
