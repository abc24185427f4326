"""The interface of trackers: rows of metrics while a job runs, and its summary at the end."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

STEP = "step"
"""Column of metrics.jsonl: optimizer steps done."""

STEP_FIELD = "gr_sweep/step"
"""The same in W&B, where it is the x axis of every metric."""

MATRIX_TABLE = "separability/matrix"
"""W&B table: the loss that removing each domain adds on each domain."""

HEAT_MAP = "separability/heat_map"
"""W&B plot of the same matrix."""


class Tracker:
    """Where rows go. `finish` or `fail` closes it; later calls are ignored."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row at `step` optimizer steps done. Several rows may have the same step."""

    def cut_back(self, step: int) -> None:
        """Drops the rows after `step`, where a resumed job continues; -1 drops all rows."""

    def sync(self) -> None:
        """Flushes the rows to the disk; called with every checkpoint."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Records the job's summary (the content of summary.json) and closes."""

    def fail(self, message: str) -> None:
        """Closes a job that did not finish."""


class Trackers(Tracker):
    """Several trackers as one, called in the given order.

    As a context manager it closes them: a block that ends without `finish` counts as failed.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)
        self._is_open = True

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def cut_back(self, step: int) -> None:
        for tracker in self.trackers:
            tracker.cut_back(step)

    def sync(self) -> None:
        for tracker in self.trackers:
            tracker.sync()

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._is_open = False
        for tracker in self.trackers:
            tracker.finish(summary)

    def fail(self, message: str) -> None:
        """Does nothing after `finish`."""
        if self._is_open:
            self._is_open = False
            for tracker in self.trackers:
                tracker.fail(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.fail(f"{kind.__name__}: {error}" if kind else "the job ended without a summary")
