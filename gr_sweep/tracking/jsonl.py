"""metrics.jsonl: one JSON object a line, `step` in each. Written in every job, W&B or not.

A line is appended by one unbuffered write, so a job killed at any moment leaves at most one torn
line, the last, which the next start drops. It knows nothing of the meaning of the keys.
"""

import json
import math
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from gr_sweep.errors import CheckpointError
from gr_sweep.files import whole_file
from gr_sweep.tracking.base import STEP


class JsonlTracker:
    """Appends rows to one file, and takes back those that a resume makes void."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()
        self._file: FileIO | None = FileIO(self.path, "ab")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a row. Values that are not finite are left out: JSON has no word for them."""
        if self._file is None:
            return
        row = {STEP: step} | {k: float(v) for k, v in metrics.items() if math.isfinite(v)}
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")

    def cut_back(self, step: int) -> None:
        """Drops the rows after `step`; the file is replaced whole.

        Raises:
            CheckpointError: a line that is no row. Names file and line.
        """
        assert self._file is not None
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for number, line in enumerate(lines, 1) if self._step(number, line) <= step]
        if len(kept) == len(lines):
            return
        self._file.close()
        with whole_file(self.path) as file:
            file.writelines(kept)
        self._file = FileIO(self.path, "ab")

    def sync(self) -> None:
        """Brings the rows to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Closes the file; the summary has one of its own."""
        self._close()

    def fail(self, message: str) -> None:
        """Closes the file."""
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None

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
            raise CheckpointError(
                f"{self.path}:{number} is no row of metrics; remove the line, or the job's folder"
                " to start over"
            ) from error
