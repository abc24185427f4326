"""A job that runs in another process, and the lines that report on it."""

import sys
from dataclasses import dataclass
from pathlib import Path

from gr_sweep.config import RunConfig
from gr_sweep.jobdir import State, standing


@dataclass(frozen=True, kw_only=True)
class Work:
    """A job that another process runs by calling it; it pickles."""

    folder: Path
    """Absolute."""
    title: str
    config: RunConfig

    def __call__(self) -> None:
        """Runs the job; `gr_sweep.cli.task.JobTask` does."""
        raise NotImplementedError


def say(work: Work, what: str) -> None:
    """Prints what happens to a job on stderr."""
    print(f"{work.title}: {what}", file=sys.stderr, flush=True)


def say_end(work: Work, count: str) -> None:
    """Prints how the job ended, from its files; `count` as in "3 of 6"."""
    now = standing(work.folder)
    said = now.state.value
    if now.state is not State.done and now.error:
        said = f"{said}: {now.error}"
    say(work, f"{said} ({count})")
