"""Files that appear whole: whoever reads one finds what was there before, or all of what is new.

Also what stands for a file's content, and what is said where there is no room to write one.
Standard library alone.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from gr_sweep.errors import FullDiskError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PIECE_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20


@contextlib.contextmanager
def whole_file(path: Path, num_bytes: int | None = None) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends without an error.

    It is written beside its place, synced to the disk, and moved there in one step; after an error
    nothing is left of it, and `path` is as it was. Processes that write the same path at once do
    not mix.

    Args:
        num_bytes: what will be written, where it is known.

    Raises:
        FullDiskError: there is no room for it.
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
        if is_full(error):
            raise full_disk(path, error, num_bytes) from error
        raise


def write_whole(path: Path, text: str) -> None:
    """Writes UTF-8 text, newlines as they are, so that the file appears whole."""
    content = text.encode()
    with whole_file(path, len(content)) as file:
        file.write(content)


def is_full(error: BaseException) -> bool:
    """Whether something was not written because a disk or a quota is full."""
    if isinstance(error, FullDiskError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    # Libraries in Rust, and shutil about a whole folder, say it in words alone.
    said = str(error)
    return any(f"(os error {n})" in said or f"[Errno {n}]" in said for n in _FULL)


def full_disk(
    path: Path,
    error: BaseException,
    needed: int | None = None,
    *,
    is_least: bool = False,
    instead: str = "",
) -> FullDiskError:
    """What is said where there is no room for a file or a folder.

    Args:
        error: for which `is_full` holds.
        needed: bytes, where it is known.
        is_least: `needed` is what there was room for.
        instead: what else can be done than to free space.
    """
    if isinstance(error, FullDiskError) and error.__cause__ is not None:
        error = error.__cause__  # of a file within the folder
    number = getattr(error, "errno", None)
    reason = os.strerror(number if number in _FULL else errno.ENOSPC)
    place = path
    while not place.is_dir():
        place = place.parent
    room = f"{_size(shutil.disk_usage(place).free)} free on the disk"
    if needed is not None:
        room = f"{'more than ' if is_least else ''}{_size(needed)} needed, {room}"
    instead = f", or {instead}," if instead else ""
    return FullDiskError(
        f"{path} cannot be written: {reason} ({room}); free some space{instead} and start the same "
        "command again"
    )


def _size(num_bytes: int) -> str:
    """For people: `1.5 GiB`."""
    size = float(num_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{num_bytes} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def content_digest(path: Path) -> str:
    """SHA-256 over the SHA-256s of a file's pieces of 64 MiB: all of its content.

    Pieces are read by several threads, which hash at once: hashlib lets go of the interpreter.

    Raises:
        OSError: the file cannot be read.
    """
    # The file system knows the size; a file that shrinks meanwhile gives another digest.
    starts = range(0, path.stat().st_size, _PIECE_BYTES)
    if len(starts) <= 1:
        pieces = [_piece_digest(path, 0)]
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "digest") as pool:
            pieces = list(pool.map(lambda start: _piece_digest(path, start), starts))
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def _piece_digest(path: Path, start: int) -> bytes:
    state = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK_BYTES))
    left = _PIECE_BYTES
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while left and (count := file.readinto(block[:left])):
            state.update(block[:count])
            left -= count
    return state.digest()
