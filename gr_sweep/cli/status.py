"""The verb `status`: the state of the jobs in a folder, once or as a live table.

It is read from their files and from SLURM's queue, wherever the jobs run; that changes nothing.
Launchers show the same live table. Without torch, numpy and pandas.
"""

import contextlib
import dataclasses
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gr_sweep.arguments import Parser
from gr_sweep.config import is_number
from gr_sweep.jobdir import METRICS, State, job_folders, standing
from gr_sweep.metrics import registry
from gr_sweep.tracking.base import STEP
from gr_sweep.tracking.jsonl import TAIL_BYTES, read_rows

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

EVERY_S = 2.0
"""Seconds between two readings of the files of running jobs."""

QUEUE_S = 30.0
"""Seconds between two questions to SLURM's queue, which all users of a cluster share."""

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


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """The state of one job, as its files tell it; what is not known is None."""

    folder: Path
    state: State
    title: str = ""
    """Its short name, as the report has it; empty if its record has none."""
    since: str | None = None
    """When it entered this state, UTC, ISO 8601."""
    step: int | None = None
    """Of its last row of training, as are loss, speed and time."""
    num_steps: int | None = None
    """Of the whole run."""
    loss_nats: float | None = None
    """Nats per token."""
    tokens_per_second: float | None = None
    elapsed_s: float | None = None
    """Training so far, with evaluations, over all resumes."""
    left_s: float | None = None
    """Until the last step, at the mean pace so far."""
    note: str = ""
    """Which process runs it, or why it does not run; one line."""


def main(argv: Sequence[str]) -> int:
    """Prints a table, JSON, or a live table; 1 if a job has failed."""
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
            with live_table(reader, "Ctrl-C ends this; the jobs keep running"):
                while any(job.state in (State.running, State.waiting) for job in jobs):
                    time.sleep(EVERY_S)
                    jobs = reader.read()
        except KeyboardInterrupt:
            again = f"gr-sweep status {shlex.quote(str(arguments.dir))} --watch"
            print(f"\nthe jobs keep running; to see them again: {again}", file=sys.stderr)
            return 130
    if arguments.json:
        rows = [dataclasses.asdict(job) | {"state": job.state.value} for job in jobs]
        content = {"jobs": rows, "total": _totals(jobs), "left_s": sweep_left_s(jobs)}
        print(json.dumps(content, indent=1, default=str))
    else:
        output().print(_table(jobs))
        print(f"\n{_summary(jobs)}")
    return 1 if any(job.state is State.failed for job in jobs) else 0


class JobReader:
    """Reads the same jobs again and again; those that are done only once."""

    def __init__(self, where: Path | Sequence[Path]) -> None:
        """`where`: the folder whose jobs are read, or the folders of the jobs themselves."""
        self._where = where
        self._done: dict[Path, JobStatus] = {}
        self._queue: set[str] = set()
        self._asked_s = float("-inf")

    def read(self) -> list[JobStatus]:
        """The status of each job, by name or in the order that was given.

        Raises:
            JobError: the folder does not exist or holds no job.
        """
        where = self._where
        jobs = job_folders(where) if isinstance(where, Path) else where
        found = [self._done.get(job) or _read(job, self._in_queue) for job in jobs]
        self._done = {job.folder: job for job in found if job.state is State.done}
        return found

    def _in_queue(self, number: str) -> bool:
        if time.monotonic() - self._asked_s >= QUEUE_S:
            from gr_sweep.launch.slurm import queue_of_user

            # While SLURM does not answer, its last answer is used.
            queue, self._asked_s = queue_of_user(), time.monotonic()
            self._queue = self._queue if queue is None else queue
        return number in self._queue


def _read(folder: Path, in_queue: Callable[[str], bool]) -> JobStatus:
    """Reads the files of one job; `in_queue` says whether SLURM has a number in its queue."""
    record = standing(folder)
    state, notes = record.state, []
    if record.slurm_job and state is not State.done and in_queue(record.slurm_job):
        notes = [f"SLURM job {record.slurm_job}"]
    if state is State.running and record.holder is not None:
        notes = [str(record.holder)]
    if state in (State.failed, State.stopped):
        if state is State.stopped and notes:
            state = State.waiting  # SLURM starts it again
        notes.append(record.error or f"killed ({record.holder} does not respond)")
    rows = read_rows(folder / METRICS, last_bytes=TAIL_BYTES)
    trained = [row for row in rows if registry.TRAIN_LOSS.key in row]
    row = trained[-1] if trained else {}
    step, loss, speed, elapsed_s = (
        float(row[key]) if is_number(row.get(key)) else None
        for key in (
            STEP,
            registry.TRAIN_LOSS.key,
            registry.TRAIN_TOKENS_PER_SECOND.key,
            registry.TIME_S.key,
        )
    )
    left_s = None
    if step and elapsed_s is not None and record.num_steps and state is not State.done:
        left_s = max(0.0, record.num_steps - step) * elapsed_s / step
    return JobStatus(
        folder=folder,
        state=state,
        title=str(record.title or ""),
        since=record.since or None,
        step=None if step is None else int(step),
        num_steps=record.num_steps,
        loss_nats=loss,
        tokens_per_second=speed,
        elapsed_s=elapsed_s,
        left_s=left_s,
        note="; ".join(notes),
    )


def sweep_left_s(jobs: Sequence[JobStatus]) -> float | None:
    """Estimated seconds until the last job ends; None if that is not known for any running job.

    Assumes that as many jobs run at once as run now, and that a waiting one takes as long as those
    do on average. Jobs that stopped or failed are not counted.
    """
    running = [job for job in jobs if job.state is State.running and job.left_s is not None]
    if not running:
        return None
    left = [job.left_s or 0.0 for job in running]
    length = sum(left) + sum(job.elapsed_s or 0.0 for job in running)
    num_waiting = sum(job.state is State.waiting for job in jobs)
    return max(*left, (sum(left) + num_waiting * length / len(running)) / len(running))


def _totals(jobs: Sequence[JobStatus]) -> dict[str, int]:
    found = Counter(job.state for job in jobs)
    return {state.value: found[state] for state in STYLES}


def _summary(jobs: Sequence[JobStatus]) -> str:
    """The number of jobs in each state, and the time left."""
    line = ", ".join(f"{number} {state}" for state, number in _totals(jobs).items() if number)
    left_s = sweep_left_s(jobs)
    return line if left_s is None else f"{line}; about {duration(left_s)} left"


def _table(jobs: Sequence[JobStatus]) -> "Table":
    """One row per job."""
    from rich.text import Text

    table = new_table("state", "step", "loss", "tokens/s", "left", "since")
    now = datetime.now(UTC)
    for job in jobs:
        left = ""
        if job.state is State.running and job.left_s is not None:
            left = duration(job.left_s) if job.left_s > 0 else "evaluating"
        age = ""
        with contextlib.suppress(ValueError, TypeError):  # no time, or a damaged one
            age = duration((now - datetime.fromisoformat(job.since or "")).total_seconds())
        name = job.title or job.folder.name
        table.add_row(
            Text(job.state.value, style=STYLES[job.state]),
            f"{job.step or 0}/{job.num_steps}" if job.num_steps else "",
            "" if job.loss_nats is None else f"{job.loss_nats:.3f}",
            "" if job.tokens_per_second is None else short_count(job.tokens_per_second),
            left,
            age,
            Text.assemble(name, (f"  {job.note}" if job.note else "", "dim")),
        )
    return table


@contextlib.contextmanager
def live_table(reader: JobReader, hint: str) -> Iterator[None]:
    """On a terminal, shows the jobs, running ones first, while the caller waits; lines that are
    printed meanwhile stay above. `hint` says what Ctrl-C does."""
    from rich.console import Console, Group
    from rich.live import Live

    console, order = Console(stderr=True), list(STYLES)
    if not console.is_terminal:
        yield
        return

    def view() -> "RenderableType":
        jobs = sorted(reader.read(), key=lambda job: order.index(job.state))
        return Group(f"{jobs[0].folder.parent.name}: {_summary(jobs)}", hint, _table(jobs))

    every = 1 / EVERY_S
    with Live(get_renderable=view, console=console, refresh_per_second=every, transient=True):
        yield


def new_table(*names: str) -> "Table":
    """A table with these columns and, last because it may be long, the job."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    table.add_column("job", overflow="fold")
    return table


def output() -> "Console":
    """Standard output for tables, with whole lines where it is not a terminal."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=10_000)


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
