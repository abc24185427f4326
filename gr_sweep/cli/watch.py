"""The verb `watch`: how the jobs of a folder stand, on a live table; and the same table for
launchers that wait.

Reads files, and the queue now and then: jobs do not know that they are watched, and it does not
matter who started them, where.
"""

import argparse
import contextlib
import io
import logging
import os
import re
import select
import shlex
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gr_sweep.arguments import Parser
from gr_sweep.cli import status
from gr_sweep.cli.overview import JobStatus, Overview, sweep_left_s
from gr_sweep.errors import JobError
from gr_sweep.jobdir import State, job_folders

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.text import Text

EVERY_S = 2.0
_LAST_LOOK_S = 10.0
"""How long the table of a launcher may take for its last state, once the jobs are over."""
QUEUE_S = 30.0
"""Seconds between looks at SLURM's queue, which all users of a cluster share."""

PROGRESS_S = 60.0
"""The least between two lines of progress where the output is no terminal."""

logger = logging.getLogger(__name__)

_UNDER_WAY = (State.running, State.waiting)
_BY_INTEREST = (State.running, State.failed, State.stopped, State.done, State.waiting)
"""Which jobs are shown where there is no room for all."""

_GAP = 2
_JOB = 20
"""Characters that a job's name is given before columns are."""
_NOTE = 30
"""A note beside a name has at least so many; a longer one stands below."""
_LINES = 2
"""Of a reason that stands below, at most."""

_EPILOG = """examples:
  gr-sweep watch outputs/my-sweep
  gr-sweep watch outputs/my-sweep --once         one picture, for scripts
  gr-sweep watch outputs/my-sweep > watch.log    a line whenever a job changes its state

Ends by itself when no job runs or waits. Ctrl-C leaves earlier; the jobs go on.

exit status: 0, or 1 where a job has failed, or 2 where DIR holds no job, or 130 after Ctrl-C
"""


def main(argv: Sequence[str]) -> int:
    """Shows the jobs until none runs or waits; 1 where one has failed, 130 after Ctrl-C.

    Raises:
        JobError: the folder does not exist or holds no job.
    """
    parser = Parser(
        prog="gr-sweep watch",
        description="Shows how far the jobs of a sweep are, and goes on showing it. It reads files "
        "alone: the jobs may run here or on a cluster, and do not notice.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder of a sweep, or of one job")
    parser.add_argument(
        "--every",
        metavar="SECONDS",
        type=_seconds,
        default=EVERY_S,
        help=f"how often to look (default {EVERY_S:g})",
    )
    parser.add_argument("--once", action="store_true", help="look once, print, and end")
    arguments = parser.parse_args(list(argv))

    from rich.console import Console

    folder: Path = arguments.dir
    overview = Overview(folder, _queue_of(job_folders(folder)[0].parent))
    console = Console()
    is_live = console.is_terminal and not console.is_dumb_terminal
    if arguments.once:
        jobs = overview.look()
        console.print(Frame(_name(folder), jobs, is_cut=is_live))
        return _exit_status(jobs)
    try:
        show = _show_live if is_live else _tell
        return _exit_status(show(overview, _name(folder), console, arguments.every))
    except KeyboardInterrupt:
        again = f"gr-sweep watch {shlex.quote(str(folder))}"
        print(f"\nthe jobs go on; to see them again: {again}", file=sys.stderr)
        return 130


def _seconds(text: str) -> float:
    """
    Raises:
        argparse.ArgumentTypeError: no number of seconds to wait.
    """
    with contextlib.suppress(ValueError):
        if 0.1 <= float(text) <= 86_400:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 86400")


def _name(folder: Path) -> str:
    return folder.resolve().name


def _exit_status(jobs: Sequence[JobStatus]) -> int:
    return 1 if any(job.state is State.failed for job in jobs) else 0


def _is_over(jobs: Sequence[JobStatus]) -> bool:
    return not any(job.state in _UNDER_WAY for job in jobs)


def _queue_of(sweep: Path) -> Callable[[], Mapping[str, str]]:
    """The jobs in SLURM's queue, which is asked every now and then. While it does not answer they
    are those that it last told of, at first all that were submitted: a job that waits must not be
    taken for one that has ended."""
    found: Mapping[str, str] | None = None
    asked_s = float("-inf")

    def queue() -> Mapping[str, str]:
        nonlocal found, asked_s
        if time.monotonic() - asked_s >= QUEUE_S:
            from gr_sweep.launch.slurm import Submitted, numbers_in_queue

            answer, asked_s = numbers_in_queue(sweep), time.monotonic()
            if answer is not None:
                found = answer
            elif found is None:
                found = Submitted(sweep).read()
        return found or {}

    return queue


def _show_live(
    overview: Overview, name: str, console: "Console", every_s: float
) -> list[JobStatus]:
    """Draws the table anew until the jobs are over, whose last standing it gives back.

    Raises:
        KeyboardInterrupt: Ctrl-C came before that.
    """
    from rich.live import Live

    jobs = overview.look()
    hint = "Ctrl-C leaves; the jobs go on"
    with (
        _ctrl_c() as comes_within,
        Live(Frame(name, jobs, hint), console=console, auto_refresh=False) as live,
    ):
        is_asked = False
        try:
            while not _is_over(jobs) and not is_asked:
                is_asked = comes_within(every_s)
                if not is_asked:
                    jobs = overview.look()
                    live.update(Frame(name, jobs, hint), refresh=True)
        finally:
            # What stays on the screen.
            live.update(Frame(name, jobs))
    if is_asked:
        raise KeyboardInterrupt
    return jobs


@contextlib.contextmanager
def _ctrl_c() -> Iterator[Callable[[float], bool]]:
    """Gives what waits for Ctrl-C so many seconds, and says whether it came. Inside it is no
    exception, which in the middle of a picture would leave a terminal without a cursor, but waits
    until it is asked for."""
    # Not an Event: what handles a signal may run while the same thread holds the Event's lock.
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    woken = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def comes_within(seconds: float) -> bool:
        if not select.select([read], [], [], seconds)[0]:
            return False
        return signal.SIGINT in os.read(read, 4096)

    try:
        yield comes_within
    finally:
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGINT, before)
        os.close(read)
        os.close(write)


def _tell(overview: Overview, name: str, console: "Console", every_s: float) -> list[JobStatus]:
    """Prints a line whenever a job changes its state, and progress at times, until the jobs are
    over, whose last standing it gives back."""
    before: dict[Path, State] = {}
    told_s, told = float("-inf"), ""
    while True:
        jobs = overview.look()
        for job, title in zip(jobs, _titles(jobs), strict=True):
            # At first those alone that say why.
            is_news = job.state is not before.get(job.folder, job.state)
            if is_news or (not before and job.state in (State.failed, State.stopped)):
                print(": ".join(filter(None, (title, job.state.value, status.words(job)))))
        before = {job.folder: job.state for job in jobs}
        is_over = _is_over(jobs)
        line = f"{name}: {_percent(jobs)}{status.totals(jobs)}"
        if line != told and (is_over or time.monotonic() - told_s >= PROGRESS_S):
            print(line)
            told_s, told = time.monotonic(), line
        sys.stdout.flush()
        if is_over:
            return jobs
        time.sleep(every_s)


@contextlib.contextmanager
def shown(folders: Sequence[Path], sweep: Path, hint: str) -> Iterator[bool]:
    """Inside, the jobs of the folders are shown on the terminal that standard error is, by a thread
    beside the caller's; lines that are printed appear above. Gives whether they are: elsewhere
    nothing is shown.

    Args:
        folders: absolute, of the jobs.
        sweep: the folder that they are in.
        hint: what Ctrl-C does, for the last line.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield False
        return
    from rich.live import Live

    overview = Overview(folders, _queue_of(sweep))
    live = Live(Frame(_name(sweep), [], hint), console=console, auto_refresh=False)
    is_over = threading.Event()

    def draw() -> None:
        jobs: list[JobStatus] = []
        try:
            while True:
                is_last = is_over.is_set()
                # A folder that cannot be read at this moment may be at the next.
                with contextlib.suppress(JobError, OSError):
                    jobs = overview.look()
                live.update(Frame(_name(sweep), jobs, "" if is_last else hint), refresh=True)
                if is_last:
                    return
                is_over.wait(EVERY_S)
        except Exception as error:
            # Whatever fails in a picture of the jobs must not end them.
            logger.warning("the table of jobs is not drawn any more: %r", error)

    # Looking takes its time where a queue is asked; what is printed meanwhile does not wait for it.
    thread = threading.Thread(target=draw, daemon=True)
    with live:
        thread.start()
        try:
            yield True
        finally:
            is_over.set()
            thread.join(_LAST_LOOK_S)


class Frame:
    """The jobs at one moment, for rich: a line each, as many as there is room for, and below them
    how the sweep stands."""

    def __init__(
        self,
        name: str,
        jobs: Sequence[JobStatus],
        hint: str = "",
        *,
        is_cut: bool = True,
        now: datetime | None = None,
    ) -> None:
        """`is_cut`: to the height of the terminal; `now`: what ages are told from."""
        self._name = name
        self._jobs = jobs
        self._hint = hint
        self._is_cut = is_cut
        self._now = now or datetime.now(UTC)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        width = options.max_width
        below = self._below(width)
        # The heading, what is left out, and the line in which the cursor stands.
        room = options.size.height - len(below) - 3 if self._is_cut else None
        titles = dict(zip((job.folder for job in self._jobs), _titles(self._jobs), strict=True))
        columns = _Columns.fitting(self._jobs, titles, width)
        kept, lines = _kept(
            self._jobs, lambda job: columns.lines(job, titles[job.folder], console), room
        )
        left_out = Counter(job.state for job in self._jobs if job.folder not in kept)
        yield columns.heading()
        yield from lines
        if left_out:
            counts = ", ".join(
                f"{left_out[state]} {state.value}" for state in _BY_INTEREST if left_out[state]
            )
            yield Text(f"… and {left_out.total()} more ({counts})", style="dim")
        yield from below

    def _below(self, width: int) -> "list[Text]":
        from rich.text import Text

        share = _share(self._jobs)
        first = Text(self._name, style="bold")
        if share is not None:
            size = max(10, min(40, width // 4))
            first = Text.assemble(bar(share, size, "green"), f" {int(100 * share)} %  ", first)
        times = []
        left_s = sweep_left_s(self._jobs)
        if left_s is not None:
            times.append(f"about {status.duration(left_s)} left")
        seen = max((job.seen for job in self._jobs if job.seen is not None), default=None)
        if seen is not None and not _is_over(self._jobs):
            times.append(f"last sign of life {status.age(seen, self._now)} ago")
        lines = [Text(), first, _counts(self._jobs)]
        if times:
            lines.append(Text("; ".join(times)))
        if self._hint:
            lines.append(Text(self._hint, style="dim"))
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return lines


def _counts(jobs: Sequence[JobStatus]) -> "Text":
    from rich.text import Text

    parts = [
        Text(f"{count} {state.value}", style=status.STYLES[state])
        for state, count in status.counts(jobs).items()
        if count
    ]
    return Text(", ").join(parts)


def _percent(jobs: Sequence[JobStatus]) -> str:
    share = _share(jobs)
    return "" if share is None else f"{int(100 * share)} % of all steps, "


def _share(jobs: Sequence[JobStatus]) -> float | None:
    """Of the steps of all jobs, those that are done; a job that has not said how many it has counts
    as one of the mean size. None where no job has said."""
    sizes = [job.num_steps for job in jobs if job.num_steps]
    if not sizes:
        return None
    mean = sum(sizes) / len(sizes)
    done = sum((job.share or 0.0) * (job.num_steps or mean) for job in jobs)
    return done / sum(job.num_steps or mean for job in jobs)


def _kept(
    jobs: Sequence[JobStatus], lines_of: "Callable[[JobStatus], list[Text]]", room: int | None
) -> "tuple[set[Path], list[Text]]":
    """The jobs that there is room for, and their lines: all in their order, or the most interesting
    ones first."""
    every = {job.folder: lines_of(job) for job in jobs}
    # The line that says how many are left out is not needed then.
    if room is None or sum(map(len, every.values())) <= room + 1:
        return set(every), [line for lines in every.values() for line in lines]
    kept: set[Path] = set()
    shown: list[Text] = []
    newest = sorted(jobs, key=lambda job: job.since or "", reverse=True)
    by_interest = [
        job
        for state in _BY_INTEREST
        for job in (newest if state is State.done else jobs)
        if job.state is state
    ]
    for job in by_interest:
        if len(shown) + len(every[job.folder]) > room:
            break
        kept.add(job.folder)
        shown += every[job.folder]
    return kept, shown


def _titles(jobs: Sequence[JobStatus]) -> list[str]:
    """What tells the jobs apart, for people: their overrides, or the names of their folders where
    two would be called the same."""
    times = Counter(job.title for job in jobs)
    return [
        job.title if job.title is not None and times[job.title] == 1 else job.name for job in jobs
    ]


class _Columns:
    """The columns that there is room for, and how wide each is."""

    def __init__(
        self, jobs: Sequence[JobStatus], titles: Mapping[Path, str], width: int, *, names: list[str]
    ) -> None:
        """`names`: of the columns before the job's, in their order."""
        self._width = width
        self._is_wide = width >= 110
        self._bar = 24 if width >= 140 else 16 if self._is_wide else 10
        cells = [self._numbers(job) for job in jobs]
        self._widths = {
            name: max([len(self._title(name)), *(len(row[name]) for row in cells)])
            for name in names
        }
        self.rest = width - sum(self._widths.values()) - _GAP * len(names)
        longest = max(map(len, titles.values()), default=0)
        has_notes = self._is_wide and self.rest - _GAP - longest >= _NOTE
        self._job = longest if has_notes else max(1, min(longest, self.rest))
        self._note = self.rest - longest - _GAP if has_notes else 0

    @classmethod
    def fitting(
        cls, jobs: Sequence[JobStatus], titles: Mapping[Path, str], width: int
    ) -> "_Columns":
        """As many as leave room for names; the first to go is the speed, then the bar."""
        names = ["state", "progress", "step", "loss", "speed", "left"]
        wanted = min(_JOB, max(map(len, titles.values()), default=0))
        found = cls(jobs, titles, width, names=names)
        for gone in ("speed", "progress", "left"):
            if found.rest >= wanted:
                break
            names.remove(gone)
            found = cls(jobs, titles, width, names=names)
        return found

    def heading(self) -> "Text":
        """The line above the jobs."""
        from rich.text import Text

        cells = {name: Text(self._title(name)) for name in self._widths}
        heading = self._line(cells, Text("job"))
        heading.stylize("bold")
        return heading

    def lines(self, job: JobStatus, title: str, console: "Console") -> "list[Text]":
        """The line of a job; below it why it ended, where there is no room for that beside it."""
        from rich.text import Text

        style = status.STYLES[job.state]
        name = Text(_middle_cut(title, self._job))
        quiet = "dim" if job.state in _UNDER_WAY else style.removeprefix("bold ")
        words = Text(status.words(job), style=quiet)
        line = self._line(self._numbers(job), name)
        if len(words) <= self._note:
            line.append(" " * (self._job - len(name) + _GAP)).append_text(words)
            line.rstrip()
            return [line]
        if job.why is None:
            return [line]
        indent = self._widths["state"] + _GAP
        wrapped = list(words.wrap(console, self._width - indent))
        below = wrapped[:_LINES]
        if len(wrapped) > _LINES:
            below[-1].append(" …")
            below[-1].truncate(self._width - indent, overflow="ellipsis")
        for part in below:
            part.pad_left(indent)
        return [line, *below]

    def _title(self, name: str) -> str:
        if name == "progress":
            return "progress".ljust(self._bar)
        if name == "speed":
            return "tokens/s" if self._is_wide else "tok/s"
        return name

    def _numbers(self, job: JobStatus) -> "dict[str, Text]":
        from rich.text import Text

        style = status.STYLES[job.state]
        loss, speed = job.loss_nats, job.tokens_per_second
        return {
            "state": Text(job.state.value, style=style),
            "progress": bar(job.share or 0.0, self._bar, style),
            "step": Text(status.steps(job)),
            "loss": Text("" if loss is None else f"{loss:.3f}"),
            "speed": Text("" if speed is None else status.short(speed)),
            "left": Text(status.left(job)),
        }

    def _line(self, cells: "Mapping[str, Text]", name: "Text") -> "Text":
        from rich.text import Text

        line = Text()
        for column, width in self._widths.items():
            cell = cells[column].copy()
            cell.align("left" if column in ("state", "progress") else "right", width)
            line.append_text(cell).append(" " * _GAP)
        return line.append_text(name)


def bar(share: float, size: int, style: str) -> "Text":
    """A line of `size` characters, `share` of it in the style."""
    from rich.text import Text

    full, half = divmod(int(2 * size * share), 2)
    # Heavy and light lines: they differ where there is no colour too.
    done = "━" * full + "╾" * half
    return Text.assemble((done, style), ("─" * (size - len(done)), "bright_black"))


def _middle_cut(text: str, width: int) -> str:
    """Both ends of a name that is too long: what sets it apart may be in either."""
    if len(text) <= width:
        return text
    front = (width - 1) // 2
    back = width - 1 - front
    return f"{text[:front]}…{text[len(text) - back :]}"


def as_svg(title: str, width: int, *parts: "RenderableType", height: int = 10_000) -> str:
    """What a terminal of so many characters and lines shows of the parts (`Frame`,
    `status.table_of`), as a picture that asks for no font from elsewhere: for pages."""
    from rich.console import Console

    console = Console(
        record=True, width=width, height=height, file=io.StringIO(), force_terminal=True,
        color_system="truecolor", legacy_windows=False, _environ={},
    )  # fmt: skip
    for part in parts:
        console.print(part)
    picture = console.export_svg(title=title, unique_id="terminal")
    return re.sub(r"@font-face \{.*?\}", "", picture, flags=re.S)
