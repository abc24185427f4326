"""A job on its way to a process of its own, and what people are told of many.

Knows folders, not what a job does or who starts it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gr_sweep.config import RunConfig
from gr_sweep.jobdir import Standing, State, standing


@dataclass(frozen=True)
class Work:
    """A job that another process is to run."""

    folder: Path
    title: str
    config: RunConfig
    call: Callable[[], None]
    """Runs it; pickles."""


class Told:
    """Says in a line what becomes of each job, once."""

    def __init__(self, works: Sequence[Work], *, is_shown: bool = False) -> None:
        """`is_shown`: a table beside this shows how the jobs stand, so no line needs to."""
        self._num_works = len(works)
        self._is_shown = is_shown
        self._last: dict[Path, State] = {}
        self._num_ended = 0

    def look(self, work: Work) -> Standing:
        """How the job stands; says so where that is news."""
        now = standing(work.folder)
        before = self._last.get(work.folder)
        self._last[work.folder] = now.state
        if now.state is before:
            return now
        if now.state is State.running:
            self._show(work, f"running, {now.record.holder}" if now.record else "running")
        elif now.state is State.stopped and before is State.running:
            self._show(work, "stopped before its end")
        return now

    def start(self, work: Work, where: str = "") -> None:
        """The job is on its way; `where` is text that goes on with a blank."""
        self._show(work, f"started{where}")

    def end(self, work: Work) -> None:
        """The job has come to an end, whichever."""
        self._num_ended += 1
        now = standing(work.folder)
        said = now.state.value
        if now.state is not State.done and now.record is not None and now.record.error:
            said = f"{said}: {now.record.error}"
        self._show(work, f"{said} ({self._num_ended} of {self._num_works})")

    def _show(self, work: Work, what: str) -> None:
        """A line, of what a table would show."""
        if not self._is_shown:
            self.say(work, what)

    @staticmethod
    def say(work: Work, what: str) -> None:
        """A line on stderr."""
        print(f"{work.title}: {what}", file=sys.stderr, flush=True)
