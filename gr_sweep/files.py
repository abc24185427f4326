"""Files that appear whole: whoever reads one finds what was there before, or all of what is new.

Standard library alone.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` when the block ends without an error.

    It is written beside its place, synced to the disk, and moved there in one step; after an error
    nothing is left of it, and `path` is as it was. Processes that write the same path at once do
    not mix.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes UTF-8 text, newlines as they are, so that the file appears whole."""
    with whole_file(path) as file:
        file.write(text.encode())
