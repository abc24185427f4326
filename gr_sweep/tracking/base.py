"""What a job tells the outside while it runs: rows by step, and its summary at the end.

A tracker takes plain numbers. It knows nothing of models, of how a metric is made, or of the other
trackers.
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

STEP = "step"
"""Name of the optimizer steps done in a row of metrics.jsonl."""

STEP_FIELD = "gr_sweep/step"
"""The same in a row of W&B; the x axis of every metric there."""

MATRIX_TABLE = "separability/matrix"
"""In W&B: what removing each domain costs on each, as a table."""

HEAT_MAP = "separability/heat_map"
"""In W&B: the same as a picture."""


class Tracker(Protocol):
    """Where rows go. `finish` or `fail` ends it; whatever comes after that is ignored."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row at `step` optimizer steps done. Several rows may have one step."""

    def cut_back(self, step: int) -> None:
        """A resume goes on from `step`: rows after it are void. -1 voids them all."""

    def sync(self) -> None:
        """Brings what was logged to the disk; called with every checkpoint."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Takes the job's summary (the content of summary.json) and closes."""

    def fail(self, message: str) -> None:
        """Closes a job that did not come to its end."""


class Trackers:
    """Several trackers as one, told in the order given.

    As a context manager it closes them: a block that ends without `finish` counts as failed.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)
        self._open = True

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row to each."""
        for tracker in self.trackers:
            tracker.log(step, metrics)

    def cut_back(self, step: int) -> None:
        """Voids the rows after `step` in each."""
        for tracker in self.trackers:
            tracker.cut_back(step)

    def sync(self) -> None:
        """Brings what was logged to the disk."""
        for tracker in self.trackers:
            tracker.sync()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hands the summary to each and closes them."""
        self._open = False
        for tracker in self.trackers:
            tracker.finish(summary)

    def fail(self, message: str) -> None:
        """Closes each as failed, unless they are closed."""
        if not self._open:
            return
        self._open = False
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
        if error is None:
            self.fail("the job ended without a summary")
        else:
            self.fail(f"{type(error).__name__}: {error}")
