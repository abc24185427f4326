"""The verb `status`: the state of the jobs in a folder, once or as a live table.

The jobs may run here or on a cluster, and do not notice. Launchers show the same live table while
they wait.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
"""Of each state, in the order in which jobs are kept where not all fit on the terminal."""

_HEAD_LINES = 5
"""Lines of a live table that are not jobs."""

_EPILOG = """examples:
  gr-sweep status outputs/my-sweep
  gr-sweep status outputs/my-sweep --watch       until no job runs or waits; Ctrl-C ends it earlier
  gr-sweep status outputs/my-sweep --json

exit status: 0, or 1 if a job has failed, 2 if DIR holds no job, 130 after Ctrl-C
"""

logger = logging.getLogger(__name__)


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
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder of a sweep, or of one job")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--watch", action="store_true", help="keep the table up to date")
    what.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(list(argv))

    reader = JobReader(arguments.dir)
    if arguments.watch:
        try:
            jobs = _watch(reader)
        except KeyboardInterrupt:
            again = f"gr-sweep status {shlex.quote(str(arguments.dir))} --watch"
            print(f"\nthe jobs keep running; to see them again: {again}", file=sys.stderr)
            return 130
    else:
        jobs = reader.read()
        if not reader.is_queue_known:
            print("gr-sweep: SLURM does not answer: its queue is not known", file=sys.stderr)
        if arguments.json:
            print(json.dumps(_as_json(jobs), indent=1))
        else:
            _print(jobs)
    return 1 if any(job.state is State.failed for job in jobs) else 0


def totals(jobs: Sequence[JobStatus]) -> str:
    """The number of jobs in each state, the fraction of all steps that is done, the time left."""
    found = Counter(job.state for job in jobs)
    parts = [", ".join(f"{found[state]} {state.value}" for state in STYLES if found[state])]
    sizes = [job.num_steps for job in jobs if job.num_steps]
    if sizes:
        mean = sum(sizes) / len(sizes)
        done = sum((job.share or 0.0) * (job.num_steps or mean) for job in jobs)
        whole = sum(job.num_steps or mean for job in jobs)
        parts.append(f"{int(100 * done / whole)} % of all steps")
    left_s = sweep_left_s(jobs)
    if left_s is not None:
        parts.append(f"about {duration(left_s)} left")
    return "; ".join(parts)


def _as_json(jobs: Sequence[JobStatus]) -> dict[str, Any]:
    rows = [
        dataclasses.asdict(job)
        | {"folder": str(job.folder), "name": job.folder.name, "state": job.state.value}
        | {"share": job.share}
        for job in jobs
    ]
    found = Counter(job.state for job in jobs)
    total = {state.value: found[state] for state in STYLES}
    return {"jobs": rows, "total": total, "left_s": sweep_left_s(jobs)}


def job_table(jobs: Sequence[JobStatus], *, note_below: bool = True) -> "Table":
    """One row per job; `note_below` puts its note under its name, for terminals."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("state", no_wrap=True)
    for name in ("step", "", "loss", "tokens/s", "left", "since"):
        table.add_column(name, justify="right", no_wrap=True)
    # Last, as it may be long: the numbers stay in place.
    table.add_column("job", overflow="fold")
    now = datetime.now(UTC)
    for job in jobs:
        title = Text(job.folder.name)
        if job.note:
            title.append("\n" if note_below else "  ").append(job.note, "dim")
        steps = "" if job.step is None and job.num_steps is None else f"{job.step or 0}"
        left = ""
        if job.state is State.running and job.left_s is not None:
            left = duration(job.left_s) if job.left_s > 0 else "evaluating"
        table.add_row(
            Text(job.state.value, style=STYLES[job.state]),
            steps if job.num_steps is None else f"{steps}/{job.num_steps}",
            "" if job.share is None else f"{int(100 * job.share)} %",
            "" if job.loss_nats is None else f"{job.loss_nats:.3f}",
            "" if job.tokens_per_second is None else short_count(job.tokens_per_second),
            left,
            "" if job.since is None else _age(job.since, now),
            title,
        )
    return table


def live_view(
    jobs: Sequence[JobStatus], name: str, height: int, hint: str = ""
) -> "RenderableType":
    """The totals, and below them as many jobs as fit into `height` lines.

    Args:
        name: of the sweep.
        hint: a line on what Ctrl-C does.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text.assemble((name, "bold"), f": {totals(jobs)}")]
    if hint:
        parts.append(Text(hint, style="dim"))
    room, kept = max(1, height - _HEAD_LINES), list(jobs)
    if len(jobs) > room:
        order = list(STYLES)
        newest_first = sorted(jobs, key=lambda job: job.since or "", reverse=True)
        kept = sorted(newest_first, key=lambda job: order.index(job.state))[:room]
        missing = Counter(job.state for job in jobs) - Counter(job.state for job in kept)
        words = ", ".join(f"{count} {state.value}" for state, count in missing.items())
        parts.append(Text(f"... and {missing.total()} more ({words})", style="dim"))
    return Group(*parts, job_table(kept))


def _print(jobs: Sequence[JobStatus]) -> None:
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(job_table(jobs))
    else:  # whole lines, for grep
        console = Console(width=100_000)
        with console.capture() as captured:
            console.print(job_table(jobs, note_below=False))
        print(*(line.rstrip() for line in captured.get().splitlines()), sep="\n")
    print(f"\n{totals(jobs)}")


def _watch(reader: JobReader) -> list[JobStatus]:
    """Shows the jobs until none runs or waits: on a terminal a table, elsewhere a line for each
    change of state."""
    from rich.console import Console

    states: dict[Path, State] = {}
    jobs = reader.read()
    name, hint = jobs[0].folder.parent.name, "Ctrl-C ends this; the jobs keep running"
    with _live(Console(), lambda: jobs, name, hint) as is_shown:
        while True:
            changed = [job for job in jobs if states.get(job.folder) is not job.state]
            if changed and not is_shown:
                for job in changed:
                    print(": ".join(filter(None, (job.folder.name, job.state.value, job.note))))
                print(totals(jobs), flush=True)
            states = {job.folder: job.state for job in jobs}
            if not any(job.state in (State.running, State.waiting) for job in jobs):
                return jobs
            time.sleep(EVERY_S)
            jobs = reader.read()


@contextlib.contextmanager
def live_table(folders: Sequence[Path], sweep: Path, hint: str) -> Iterator[bool]:
    """Shows the jobs on standard error while the caller waits for them; printed lines appear above.

    Yields whether they are shown: only on a terminal.

    Args:
        folders: of the jobs, absolute.
        sweep: the folder of the sweep.
        hint: a line on what Ctrl-C does.
    """
    from rich.console import Console

    reader = JobReader(folders)
    with _live(Console(stderr=True), reader.read, sweep.resolve().name, hint) as is_shown:
        yield is_shown


@contextlib.contextmanager
def _live(
    console: "Console", read: Callable[[], list[JobStatus]], name: str, hint: str
) -> Iterator[bool]:
    """Draws the table again and again, and at the end without the hint."""
    from rich.live import Live

    if not console.is_terminal or console.is_dumb_terminal:
        yield False
        return
    view: RenderableType = ""

    def draw() -> "RenderableType":
        nonlocal view
        try:
            view = live_view(read(), name, console.height, hint)
        except Exception as error:  # an error of the table must not end the jobs
            logger.warning("the table of jobs could not be drawn: %r", error)
        return view

    with Live(get_renderable=draw, console=console, refresh_per_second=1 / EVERY_S):
        try:
            yield True
        finally:
            hint = ""


def short_count(count: float) -> str:
    """12345 -> 12.3k."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """`3 min`, `2.5 h`, `4 d`."""
    seconds = max(0.0, seconds)
    for unit, size, most in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 48 * 3600)):
        if seconds < most:
            number = seconds / size
            return f"{number:.1f} {unit}" if unit == "h" and number < 10 else f"{number:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def _age(since: str, now: datetime) -> str:
    try:
        return duration((now - datetime.fromisoformat(since)).total_seconds())
    except (ValueError, TypeError):
        return ""
