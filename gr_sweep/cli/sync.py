"""The verb `sync`: uploads what the jobs of a folder logged to W&B offline."""

import argparse
import enum
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from gr_sweep.arguments import Parser
from gr_sweep.errors import TrackingError
from gr_sweep.folder import State, job_folders, standing

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
    """It is running."""
    failed = "failed"


def main(argv: Sequence[str]) -> int:
    """Prints a line a job and one of totals; 1 where something was not uploaded.

    Raises:
        ReportError: the folder does not exist or holds no job.
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
        ReportError: the folder does not exist or holds no job.
        ConfigError: no W&B key is configured.
    """
    from gr_sweep.tracking.wandb_api import Server
    from gr_sweep.tracking.wandb_upload import kept_files, upload_job

    jobs = job_folders(folder)
    running = [job for job in jobs if standing(job).state is State.running]
    waiting = [job for job in jobs if job not in running and kept_files(job)]
    away: list[str] = []
    """Why nothing further is tried: the server was found to be away."""
    if waiting and server is None:
        try:
            server = Server()
        except TrackingError as error:
            away.append(str(error))

    def one(job: Path) -> tuple[Outcome, str]:
        if job in running:
            return Outcome.left, "it is running"
        if job not in waiting:
            has_logged = any(job.glob("wandb/*run-*"))
            return (Outcome.there if has_logged else Outcome.none), ""
        if away:
            return Outcome.failed, away[0]
        assert server is not None
        try:
            num_rows = upload_job(job, server, entity=entity, project=project)
        except TrackingError as error:
            try:
                server.check()
            except TrackingError as gone:
                away.append(str(gone))
            return Outcome.failed, str(error)
        if num_rows is None:
            return Outcome.there, ""
        return Outcome.uploaded, f"{num_rows} row{'s' * (num_rows != 1)}"

    found: Counter[Outcome] = Counter()
    pool = ThreadPoolExecutor(AT_ONCE, "sync")
    try:
        for job, (outcome, words) in zip(jobs, pool.map(one, jobs), strict=True):
            found[outcome] += 1
            say(f"{job.name}: {outcome.value}" + (f", {words}" if words else ""))
    finally:
        # An interrupt waits for the uploads that have begun, not for the others.
        pool.shutdown(cancel_futures=True)
    say(", ".join(f"{found[outcome]} {outcome.value}" for outcome in Outcome if found[outcome]))
    return found
