"""A job that runs in another process, and the lines that report on it."""

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

from gr_sweep.config import RunConfig
from gr_sweep.jobdir import State, standing

WARNINGS = "warnings.log"
"""In a job's folder: its warnings, for the terminal of its sweep."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A job that another process runs by calling it; it pickles."""

    folder: Path
    """Absolute."""
    title: str
    config: RunConfig
    shown: set[str] = field(default_factory=set, repr=False, compare=False)
    """Warnings that the terminal of the command has shown. All works of a sweep share it."""

    def __call__(self) -> None:
        """Runs the job; `gr_sweep.cli.task.JobTask` does."""
        raise NotImplementedError


def say(work: Work, what: str) -> None:
    """Prints what happens to a job on stderr."""
    print(f"{work.title}: {what}", file=sys.stderr, flush=True)


def clear_warnings(folder: Path) -> None:
    """Removes the warnings of an earlier attempt at the job, unless it is running."""
    if standing(folder).state is not State.running:
        (folder / WARNINGS).unlink(missing_ok=True)


def say_warnings(work: Work) -> None:
    """Prints the warnings of a job in another process that no job of its sweep had before."""
    with contextlib.suppress(OSError):
        for line in (work.folder / WARNINGS).read_text(errors="replace").splitlines():
            if line not in work.shown:
                work.shown.add(line)
                say(work, f"warning: {line}")


def say_end(work: Work, count: str) -> None:
    """Prints how the job ended, from its files, after its warnings; `count` as in "3 of 6"."""
    say_warnings(work)
    now = standing(work.folder)
    said = now.state.value
    if now.state is not State.done and now.error:
        said = f"{said}: {now.error}"
    say(work, f"{said} ({count})")
