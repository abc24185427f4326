"""The interface of trackers: rows of metrics while a job runs, and its summary at the end."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

STEP = "step"
"""Column of metrics.jsonl: optimizer steps done."""

STEP_FIELD = "gr_sweep/step"
"""The same in W&B, where it is the x axis of every metric."""

HEAT_MAP = "separability/heat_map"
"""W&B plot of the loss that removing each domain adds on each domain."""


RUN_ID = Path("wandb", "run_id")
"""In a job's folder: the id of its W&B run."""


def read_run_id(folder: Path) -> str | None:
    """The id of a job's W&B run; None if it has none."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / RUN_ID).read_text(encoding="utf-8").strip()
    return None


AGENTS_SWEEP = "WANDB_SWEEP_ID"
"""Variable that `wandb agent` sets for the programs it starts."""


def agents_run_id() -> str | None:
    """The id of the W&B run for which `wandb agent` started this process; None if it did not.

    A program in between may log to that run itself: wandb sets WANDB_SERVICE in it, which an agent
    removes. Then the run is not this process's.
    """
    if AGENTS_SWEEP not in os.environ or "WANDB_SERVICE" in os.environ:
        return None
    return os.environ.get("WANDB_RUN_ID")


class Tracker:
    """Receives the rows of a job. This base class drops them, for ranks that do not log.

    `finish` or `fail` closes it; later calls are ignored. As a context manager it calls `fail` if
    the block ends without `finish`.
    """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row at `step` optimizer steps done. Several rows may have the same step."""

    def cut_back(self, step: int) -> None:
        """Drops the rows after `step`, from which a resumed job continues; -1 drops all rows."""

    def sync(self) -> None:
        """Flushes the rows to the disk; called with every checkpoint."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Records the job's summary (the content of summary.json) and closes."""

    def fail(self, message: str) -> None:
        """Closes a job that did not finish."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.fail(f"{kind.__name__}: {error}" if kind else "the job ended without a summary")
