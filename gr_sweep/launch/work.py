"""A job that runs in another process, and the lines that report on many of them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gr_sweep.config import RunConfig
from gr_sweep.jobdir import State, standing


@dataclass(frozen=True)
class Work:
    """A job that another process is to run."""

    folder: Path
    title: str
    config: RunConfig
    call: Callable[[], None]
    """Runs the job; it pickles."""


class Reporter:
    """Prints a line on stderr when a job starts and when it ends."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._num_works = len(works)
        self._num_ended = 0

    def started(self, work: Work, where: str) -> None:
        """Prints that the job was started, or is waited for; `where` says how."""
        print(f"{work.title}: {where}", file=sys.stderr, flush=True)

    def ended(self, work: Work) -> None:
        """Prints how the job ended, from its files."""
        self._num_ended += 1
        now = standing(work.folder)
        said = now.state.value
        if now.state is not State.done and now.error:
            said = f"{said}: {now.error}"
        count = f"{self._num_ended} of {self._num_works}"
        print(f"{work.title}: {said} ({count})", file=sys.stderr, flush=True)
