"""metrics.jsonl: one JSON object a line, `step` in each. Written in every job, W&B or not.

A line is appended by one unbuffered write, so a job killed at any moment leaves at most one torn
line, the last, which the next start drops. A line for which there is no room is taken back, and the
job is told. It knows nothing of the meaning of the keys.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from gr_sweep.errors import DataError, JobError
from gr_sweep.files import full_disk, is_full, whole_file
from gr_sweep.tracking.base import STEP

_TAIL_BYTES = 1 << 14
"""Read first from a file's end: some rows."""


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a row keeps. Values that are not finite are left out: JSON has no word for them."""
    return {key: float(value) for key, value in metrics.items() if math.isfinite(value)}


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a file that a `JsonlTracker` has opened; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class JsonlTracker:
    """Appends rows to one file, and takes back those that a resume makes void."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        self._file: FileIO | None = FileIO(self.path, "ab")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a row.

        Raises:
            JobError: there is no room for it; nothing of it is left.
        """
        if self._file is None:
            return
        row = {STEP: step} | finite(metrics)
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        whole = os.fstat(self._file.fileno()).st_size
        with self._room(len(line)):
            try:
                # Fewer bytes than asked are written where there is room for some.
                done = 0
                while done < len(line):
                    done += self._file.write(line[done:])
            except OSError:
                os.ftruncate(self._file.fileno(), whole)
                raise

    def cut_back(self, step: int) -> None:
        """Drops the rows after `step`; the file is replaced whole.

        Raises:
            DataError: a line that is no row. Names file and line.
        """
        assert self._file is not None
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for number, line in enumerate(lines, 1) if self._step(number, line) <= step]
        if len(kept) == len(lines):
            return
        with whole_file(self.path) as file:
            file.writelines(kept)
        self._file.close()
        self._file = FileIO(self.path, "ab")

    def sync(self) -> None:
        """Brings the rows to the disk.

        Raises:
            JobError: there is no room for them.
        """
        if self._file is not None:
            with self._room():
                os.fsync(self._file.fileno())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Closes the file; the summary has one of its own."""
        self._close()

    def fail(self, message: str) -> None:
        """Closes the file."""
        # What ended the job is what matters, and it may be the disk.
        with contextlib.suppress(OSError, JobError):
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with self._room(), file:
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def _room(self, num_bytes: int | None = None) -> Iterator[None]:
        """A full disk inside is a JobError."""
        try:
            yield
        except OSError as error:
            if is_full(error):
                raise full_disk(self.path, error, num_bytes) from error
            raise

    def _drop_torn_line(self) -> None:
        # Rows are short and files small, so the whole file is read; truncating at a line's end
        # leaves no moment in which a whole row is missing.
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)

    def _step(self, number: int, line: bytes) -> int:
        try:
            return int(json.loads(line)[STEP])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path}:{number} is no row of metrics; remove the line, or the job's folder"
                " to start over"
            ) from error


def rows_from_the_end(path: Path) -> Iterator[dict[str, Any]]:
    """Whole rows, the last first; none where there is no file. A torn line, of a job that writes or
    was killed, is none. Of a long file as much is read as is asked for."""
    try:
        with path.open("rb") as file:
            start = file.seek(0, 2)
            rest, size = b"", _TAIL_BYTES
            is_end = True
            while start > 0:
                begin = max(0, start - size)
                file.seek(begin)
                lines = (file.read(start - begin) + rest).split(b"\n")
                if is_end:
                    # What follows the last line break, which may be further up.
                    lines.pop()
                    is_end = not lines
                # The first may begin before this piece.
                rest = lines.pop(0) if begin > 0 and lines else b""
                start, size = begin, 2 * size
                for line in reversed(lines):
                    try:
                        row = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(row, dict) and STEP in row:
                        yield row
    except OSError:
        return
