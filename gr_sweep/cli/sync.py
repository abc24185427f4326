"""The verb `sync`: uploads what the jobs of a folder logged to W&B offline."""

import argparse
import contextlib
import enum
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from gr_sweep.arguments import Parser
from gr_sweep.errors import JobError, JobLockedError
from gr_sweep.jobdir import State, job_folders, standing
from gr_sweep.train.stop import Stopped

if TYPE_CHECKING:
    from gr_sweep.tracking.wandb_api import Server

AT_ONCE = 4
"""Jobs that are uploaded side by side: most of the time goes into waiting."""

_EPILOG = """example:
  gr-sweep sync outputs/my-sweep

exit status: 0, or 1 where something was not uploaded, or 2 where nothing can be
"""


class Outcome(enum.Enum):
    """What became of a job."""

    uploaded = "uploaded"
    there = "there already"
    none = "without W&B"
    """It logged nothing there."""
    left = "left"
    """It is running, or somebody else uploads it."""
    failed = "failed"


def main(argv: Sequence[str]) -> int:
    """Prints a line a job and one of totals; 1 where something was not uploaded.

    Raises:
        JobError: the folder does not exist or holds no job.
        ConfigError: no W&B key is configured.
    """
    parser = Parser(
        prog="gr-sweep sync",
        description="Upload to W&B what the jobs of a sweep logged offline, and what a server "
        "lacks of those that logged online. What was uploaded is passed over; so are jobs that "
        "are running.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", metavar="DIR", type=Path, help="folder of a sweep, or of one job")
    parser.add_argument("--entity", help="user or team, in place of that which the jobs name")
    parser.add_argument("--project", help="project, in place of that which the jobs name")
    arguments = parser.parse_args(list(argv))
    found = sync(arguments.dir, entity=arguments.entity, project=arguments.project, say=print)
    return 1 if found[Outcome.failed] else 0


def sync(
    folder: Path,
    *,
    entity: str | None,
    project: str | None,
    say: Callable[[str], None],
    server: "Server | None" = None,
) -> Counter[Outcome]:
    """Uploads what the jobs of a folder have and W&B lacks.

    Args:
        entity, project: in place of those that the jobs name.
        say: gets a line a job, and one of totals.
        server: one that is logged in; None: logs in where there is something to upload.

    Raises:
        JobError: the folder does not exist or holds no job.
        ConfigError: no W&B key is configured.
    """
    from gr_sweep.tracking.wandb_api import Server
    from gr_sweep.tracking.wandb_upload import Uploads, kept_files, upload_job

    jobs = job_folders(folder)
    is_elsewhere = entity is not None or project is not None

    def is_waiting(job: Path) -> bool:
        return bool(kept_files(job, with_marked=is_elsewhere))

    away: list[str] = []
    """Why nothing further is tried: the server was found to be away."""
    if server is None and any(
        is_waiting(job) for job in jobs if standing(job).state is not State.running
    ):
        try:
            server = Server()
        except JobError as error:
            away.append(str(error))

    uploads = Uploads()
    at_work: set[Path] = set()

    def one(job: Path) -> tuple[Outcome, str]:
        # Now, not when the command began: hours may lie between.
        if standing(job).state is State.running:
            return Outcome.left, "it is running"
        if not is_waiting(job):
            has_logged = any(job.glob("wandb/*run-*"))
            return (Outcome.there if has_logged else Outcome.none), ""
        if away:
            return Outcome.failed, away[0]
        if server is None:
            return Outcome.left, "it has just ended"
        at_work.add(job)
        try:
            num_rows = upload_job(job, server, uploads, entity=entity, project=project)
        except JobLockedError as error:
            return Outcome.left, str(error)
        except JobError as error:
            try:
                if not uploads.are_over:
                    server.check()
            except JobError as gone:
                away.append(str(gone))
            return Outcome.failed, str(error)
        finally:
            at_work.remove(job)
        if num_rows is None:
            return Outcome.there, ""
        return Outcome.uploaded, f"{num_rows} row{'s' * (num_rows != 1)}"

    found: Counter[Outcome] = Counter()
    pool = ThreadPoolExecutor(AT_ONCE, "sync")
    with _stopping():
        try:
            try:
                for job, (outcome, words) in zip(jobs, pool.map(one, jobs), strict=True):
                    found[outcome] += 1
                    say(f"{job.name}: {outcome.value}" + (f", {words}" if words else ""))
            except KeyboardInterrupt:
                if num := len(at_work):
                    said = f"waiting for {num} upload{'s' * (num != 1)}; Ctrl-C again ends them"
                    print(f"gr-sweep: {said}", file=sys.stderr)
                pool.shutdown(cancel_futures=True)
                raise
        except BaseException:
            uploads.end()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    say(", ".join(f"{found[outcome]} {outcome.value}" for outcome in Outcome if found[outcome]))
    return found


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """SIGTERM, and SIGHUP where it is not ignored, raise `Stopped` inside: what runs is ended."""
    signals = [signal.SIGTERM, signal.SIGHUP]
    if threading.current_thread() is not threading.main_thread():
        signals = []  # which alone may say so

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    before = {number: signal.getsignal(number) for number in signals}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
