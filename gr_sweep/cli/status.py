"""The verb `status`: the state of the jobs in a folder, once or as a live table.

The jobs may run here or on a cluster; reading their state does not affect them. Launchers show the
same live table.
"""

import contextlib
import dataclasses
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gr_sweep.arguments import Parser
from gr_sweep.cli.job_status import JobReader, JobStatus, sweep_left_s
from gr_sweep.jobdir import State

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

EVERY_S = 2.0
"""Seconds between two readings of the files of running jobs."""

STYLES = {
    State.running: "cyan",
    State.failed: "bold red",
    State.stopped: "yellow",
    State.done: "green",
    State.waiting: "dim",
}
"""Of each state, in the order of a live table, whose end may not fit on the terminal."""

_EPILOG = """examples:
  gr-sweep status outputs/my-sweep
  gr-sweep status outputs/my-sweep --watch       until no job runs or waits; Ctrl-C ends it earlier
  gr-sweep status outputs/my-sweep --json

exit status: 0, or 1 if a job has failed, 2 if DIR holds no job, 130 after Ctrl-C
"""


def main(argv: Sequence[str]) -> int:
    """Prints a table, JSON, or a live table; 1 if a job has failed.

    Raises:
        JobError: the folder does not exist or holds no job.
    """
    parser = Parser(
        prog="gr-sweep status",
        description="Shows the state of each job of a sweep: running (and where), done, waiting, "
        "failed or stopped (and why), its step, last loss (nats a token), speed, and the time "
        "until its last step. Reads files only: the jobs may run here or on a cluster.",
        epilog=_EPILOG,
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder of a sweep, or of one job")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--watch", action="store_true", help="keep the table up to date")
    what.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(list(argv))

    reader = JobReader(arguments.dir)
    jobs = reader.read()
    if arguments.watch:
        try:
            jobs = _watch(reader, jobs)
        except KeyboardInterrupt:
            again = f"gr-sweep status {shlex.quote(str(arguments.dir))} --watch"
            print(f"\nthe jobs keep running; to see them again: {again}", file=sys.stderr)
            return 130
    if arguments.json:
        rows = [dataclasses.asdict(job) | {"state": job.state.value} for job in jobs]
        content = {"jobs": rows, "total": _totals(jobs), "left_s": sweep_left_s(jobs)}
        print(json.dumps(content, indent=1, default=str))
    else:
        output().print(job_table(jobs))
        print(f"\n{summary(jobs)}")
    return 1 if any(job.state is State.failed for job in jobs) else 0


def _totals(jobs: Sequence[JobStatus]) -> dict[str, int]:
    found = Counter(job.state for job in jobs)
    return {state.value: found[state] for state in STYLES}


def summary(jobs: Sequence[JobStatus]) -> str:
    """The number of jobs in each state, and the time left."""
    line = ", ".join(f"{number} {state}" for state, number in _totals(jobs).items() if number)
    left_s = sweep_left_s(jobs)
    return line if left_s is None else f"{line}; about {duration(left_s)} left"


def job_table(jobs: Sequence[JobStatus]) -> "Table":
    """One row per job."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("state", no_wrap=True)
    for name in ("step", "loss", "tokens/s", "left", "since"):
        table.add_column(name, justify="right", no_wrap=True)
    # Last, as it may be long: the numbers stay in place.
    table.add_column("job", overflow="fold")
    now = datetime.now(UTC)
    for job in jobs:
        left = ""
        if job.state is State.running and job.left_s is not None:
            left = duration(job.left_s) if job.left_s > 0 else "evaluating"
        age = ""
        with contextlib.suppress(ValueError, TypeError):  # no time, or a damaged one
            age = duration((now - datetime.fromisoformat(job.since or "")).total_seconds())
        table.add_row(
            Text(job.state.value, style=STYLES[job.state]),
            f"{job.step or 0}/{job.num_steps}" if job.num_steps else "",
            "" if job.loss_nats is None else f"{job.loss_nats:.3f}",
            "" if job.tokens_per_second is None else short_count(job.tokens_per_second),
            left,
            age,
            Text.assemble(
                job.title or job.folder.name, (f"  {job.note}" if job.note else "", "dim")
            ),
        )
    return table


def output() -> "Console":
    """Standard output for tables, with whole lines where it is not a terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=10_000)


def _watch(reader: JobReader, jobs: list[JobStatus]) -> list[JobStatus]:
    """Waits until no job runs or waits."""
    with live_table(reader, "Ctrl-C ends this; the jobs keep running"):
        while any(job.state in (State.running, State.waiting) for job in jobs):
            time.sleep(EVERY_S)
            jobs = reader.read()
    return jobs


@contextlib.contextmanager
def live_table(reader: JobReader, hint: str) -> Iterator[None]:
    """On a terminal, shows the jobs, running ones first, while the caller waits; lines that are
    printed meanwhile stay above.

    Args:
        hint: what Ctrl-C does.
    """
    from rich.console import Console, Group
    from rich.live import Live

    console, order = Console(stderr=True), list(STYLES)
    if not console.is_terminal:
        yield
        return

    def view() -> "RenderableType":
        jobs = sorted(reader.read(), key=lambda job: order.index(job.state))
        return Group(f"{jobs[0].folder.parent.name}: {summary(jobs)}", hint, job_table(jobs))

    every = 1 / EVERY_S
    with Live(get_renderable=view, console=console, refresh_per_second=every, transient=True):
        yield


def short_count(count: float) -> str:
    """12345 -> 12.3k."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """`3 min`, `2.5 h`, `4 d`."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{max(0.0, seconds) / size:.{int(unit == 'h')}f} {unit}"
    return f"{seconds / 86400:.0f} d"
