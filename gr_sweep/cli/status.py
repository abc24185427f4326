"""The verb `status`: how the jobs of a folder stand, now. Reads files and the queue."""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.arguments import Parser
from gr_sweep.cli.overview import JobStatus, read_status, sweep_left_s
from gr_sweep.jobdir import State, job_folders

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = ("step", "", "loss", "tokens/s", "left", "since")
STYLES = {
    State.done: "green",
    State.running: "cyan",
    State.stopped: "yellow",
    State.failed: "bold red",
    State.waiting: "dim",
}
"""Of each state, on a terminal."""
_ORDER = (State.done, State.running, State.failed, State.stopped, State.waiting)
_UNCUT_COLUMNS = 10_000
"""Width where the output is no terminal."""

_EPILOG = """examples:
  gr-sweep status outputs/my-sweep
  gr-sweep status outputs/my-sweep --json

exit status: 0, or 1 where a job has failed, or 2 where DIR holds no job

Jobs of a sweep are listed from its start.
"""


def main(argv: Sequence[str]) -> int:
    """Prints a table, or JSON; 1 where a job has failed.

    Raises:
        JobError: the folder does not exist or holds no job.
    """
    parser = Parser(
        prog="gr-sweep status",
        description="Says of each job of a sweep whether it is done, running (and where), failed "
        "or stopped (and why) or waiting, how far it is, its last loss (nats a token), its speed "
        "and the time until its last step. Changes nothing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder of a sweep, or of one job")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(list(argv))

    jobs = read_jobs(arguments.dir)
    if arguments.json:
        content = {
            "jobs": [_as_json(job) for job in jobs],
            "total": {state.value: count for state, count in counts(jobs).items()},
            "left_s": sweep_left_s(jobs),
        }
        print(json.dumps(content, indent=1))
    else:
        _print(jobs)
    return 1 if any(job.state is State.failed for job in jobs) else 0


def read_jobs(folder: Path) -> list[JobStatus]:
    """How each job of a folder stands, by name, with its number in SLURM's queue.

    Raises:
        JobError: the folder does not exist or holds no job.
    """
    from gr_sweep.launch.slurm import numbers_in_queue

    folders = job_folders(folder)
    queue = numbers_in_queue(folders[0].parent)
    if queue is None:
        print("gr-sweep: SLURM does not answer: which jobs are in its queue is not known",
              file=sys.stderr)  # fmt: skip
        queue = {}
    return [read_status(job, queue) for job in folders]


def counts(jobs: Sequence[JobStatus]) -> dict[State, int]:
    """Of the jobs in each state, 0 included."""
    found = Counter(job.state for job in jobs)
    return {state: found[state] for state in _ORDER}


def totals(jobs: Sequence[JobStatus]) -> str:
    """How many jobs are in each state, and about how long it takes until the last one ends."""
    said = ", ".join(f"{count} {state.value}" for state, count in counts(jobs).items() if count)
    left_s = sweep_left_s(jobs)
    return said if left_s is None else f"{said}; about {duration(left_s)} left"


def _as_json(job: JobStatus) -> dict[str, Any]:
    return dataclasses.asdict(job) | {
        "name": job.name,
        "folder": str(job.folder),
        "state": job.state.value,
        "share": job.share,
    }


def _print(jobs: Sequence[JobStatus]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    total = totals(jobs)
    if console.is_terminal:
        console.print(table_of(jobs))
        console.print(Text(f"\n{total}"))
        return
    console = Console(width=_UNCUT_COLUMNS)
    with console.capture() as captured:
        console.print(table_of(jobs))
    lines = (line.rstrip() for line in captured.get().splitlines())
    sys.stdout.write("\n".join([*lines, "", total, ""]))


def table_of(jobs: Sequence[JobStatus], now: datetime | None = None) -> "Table":
    """A row a job, for a terminal; `now` is the time that ages are told from."""
    from rich.table import Table
    from rich.text import Text

    now = now or datetime.now(UTC)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("state", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    # Last, as they may be long: the numbers stay where the eye finds them.
    table.add_column("job", overflow="fold")
    table.add_column("", overflow="fold")
    for job in jobs:
        table.add_row(
            Text(job.state.value, style=STYLES[job.state]),
            steps(job),
            "" if job.share is None else f"{int(100 * job.share)} %",
            "" if job.loss_nats is None else f"{job.loss_nats:.3f}",
            "" if job.tokens_per_second is None else short(job.tokens_per_second),
            left(job),
            "" if job.since is None else age(job.since, now),
            Text(job.name),
            Text(words(job)),
        )
    return table


def steps(job: JobStatus) -> str:
    """`30/120`."""
    if job.step is None and job.num_steps is None:
        return ""
    return f"{job.step or 0}" + ("" if job.num_steps is None else f"/{job.num_steps}")


def left(job: JobStatus) -> str:
    """Time until the last step of a job that runs; `measures` after it."""
    if job.state is not State.running or job.left_s is None:
        return ""
    return duration(job.left_s) if job.left_s > 0 else "measures"


def words(job: JobStatus) -> str:
    """Who runs it, or why it does not run."""
    said = []
    if job.state is State.running and job.holder is not None:
        said.append(str(job.holder))
    elif job.slurm_job is not None:
        said.append(f"SLURM job {job.slurm_job}")
    if job.why is not None:
        said.append(job.why)
    # A record may hold anything that an error quoted.
    line = "; ".join(said)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def short(count: float) -> str:
    """12345 -> 12.3k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def age(since: str, now: datetime) -> str:
    """Time since then, for people; empty where `since` is no time."""
    try:
        return duration((now - datetime.fromisoformat(since)).total_seconds())
    except (ValueError, TypeError):
        return ""


def duration(seconds: float) -> str:
    """For people: `3 min`, `2.5 h`, `4 d`."""
    seconds = max(0.0, seconds)
    for unit, size, most in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 48 * 3600)):
        if seconds < most:
            number = seconds / size
            return f"{number:.1f} {unit}" if unit == "h" and number < 10 else f"{number:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
