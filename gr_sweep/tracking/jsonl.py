"""metrics.jsonl: one JSON object per line, each with a `step`. Every job writes it, W&B or not.

A job that is killed, or whose disk is full, leaves at most one torn line, the last, which the next
start drops.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from gr_sweep.files import whole_file
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
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get(STEP), int)]


def _line(row: Mapping[str, float]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


class JsonlTracker(Tracker):
    """Appends rows to one file, and drops those after the checkpoint that a job resumes from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO | None = self.path.open("ab")
        self._file.truncate(self.path.read_bytes().rfind(b"\n") + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a row."""
        if self._file is not None:
            self._file.write(_line({STEP: step} | finite(metrics)))
            self._file.flush()

    def cut_back(self, step: int) -> None:
        """Drops the rows after `step`, and lines that are not rows; the file is replaced
        atomically."""
        assert self._file is not None
        with whole_file(self.path) as file:
            file.writelines(_line(row) for row in read_rows(self.path) if row[STEP] <= step)
        self._file.close()
        self._file = self.path.open("ab")

    def sync(self) -> None:
        """Flushes the rows to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Closes the file; the summary has a file of its own."""
        self.sync()
        self._close()

    def fail(self, message: str) -> None:
        """Closes the file."""
        # The error that ended the job matters more, and may be a full disk itself.
        with contextlib.suppress(OSError):
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
