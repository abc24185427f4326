"""metrics.jsonl: one JSON object per line, each with a `step`. Every job writes it, W&B or not.

Each row is one unbuffered append, so a job that is killed leaves at most one torn line, the last,
which the next start drops.
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
from gr_sweep.tracking.base import STEP, Tracker

TAIL_BYTES = 1 << 17
"""Enough for the last few hundred rows, for readers that need no more."""


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The values that a row keeps: finite ones, since JSON has no others."""
    return {key: float(value) for key, value in metrics.items() if math.isfinite(value)}


def read_rows(path: Path, *, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl in order; an empty list if there is no file.

    Lines that are not rows are skipped, such as the last line of a job that is writing or was
    killed.

    Args:
        last_bytes: read only this much of the end of the file.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = 0 if last_bytes is None else max(0, size - last_bytes)
            file.seek(start)
            lines = file.read().split(b"\n")
    except OSError:
        return []
    rows = []
    for line in lines[start > 0 :]:  # the first may be the rest of a longer line
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get(STEP), int):
            rows.append(row)
    return rows


class JsonlTracker(Tracker):
    """Appends rows to one file, and drops those after the checkpoint that a job resumes from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.path, whole)
        self._file: FileIO | None = FileIO(self.path, "ab")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a row.

        Raises:
            JobError: the disk is full; nothing of the row is left in the file.
        """
        if self._file is None:
            return
        line = json.dumps({STEP: step} | finite(metrics), allow_nan=False).encode() + b"\n"
        size_before = os.fstat(self._file.fileno()).st_size
        with self._full_disk_as_error():
            try:
                left = line
                while left:  # a write may take only the first bytes of what it is given
                    left = left[self._file.write(left) :]
            except OSError:
                os.ftruncate(self._file.fileno(), size_before)
                raise

    def cut_back(self, step: int) -> None:
        """Drops the rows after `step`; the file is replaced atomically.

        Raises:
            DataError: a line is not a row.
        """
        assert self._file is not None
        lines = self.path.read_bytes().splitlines(keepends=True)
        try:
            kept = [line for line in lines if json.loads(line)[STEP] <= step]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(
                f"{self.path} is damaged ({error}); remove the job's folder to start over"
            ) from error
        if len(kept) < len(lines):
            with whole_file(self.path) as file:
                file.writelines(kept)
            self._file.close()
            self._file = FileIO(self.path, "ab")

    def sync(self) -> None:
        """Flushes the rows to the disk.

        Raises:
            JobError: the disk is full.
        """
        if self._file is not None:
            with self._full_disk_as_error():
                os.fsync(self._file.fileno())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Closes the file; the summary has a file of its own."""
        self._close()

    def fail(self, message: str) -> None:
        """Closes the file."""
        # The error that ended the job matters more, and may be a full disk itself.
        with contextlib.suppress(OSError, JobError):
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with self._full_disk_as_error(), file:
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def _full_disk_as_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_full(error):
                raise full_disk(self.path, error) from error
            raise
