"""The command `gr-sweep`: a verb, or a Hydra command line whose jobs are checked, run and reported.

Exit status: 0 all done, 1 a bug, 2 an error that the user can fix, 130 interrupted.
"""

import argparse
import contextlib
import functools
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gr_sweep import __version__
from gr_sweep.arguments import Parser
from gr_sweep.cli.task import fewer_collections, unusable, wants_tracebacks
from gr_sweep.config import Resume
from gr_sweep.errors import ConfigError, GrSweepError
from gr_sweep.files import is_full
from gr_sweep.train.distributed import connect, is_main
from gr_sweep.train.signals import Stopped

if TYPE_CHECKING:
    # Hydra takes half a second to import, and a verb does without.
    from gr_sweep.cli.compose import Command
    from gr_sweep.jobdir import Record

VERBS = ("report", "export", "estimate", "bench", "status", "dashboard", "doctor")
"""Each is a module of `gr_sweep.cli` with a `main(argv)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status.

    A GrSweepError is printed as one line; HYDRA_FULL_ERROR=1 shows its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for terminals that lack a character
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:  # closed by the shell
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor does Python at exit
        return 128 + signal.SIGPIPE
    except GrSweepError as error:
        if wants_tracebacks():
            raise
        said, status = str(error), 2
    except OSError as error:
        if wants_tracebacks() or (error.filename is None and not is_full(error)):  # a bug
            raise
        status = 2
        if error.filename is None:  # of printing
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            said = f"the output cannot be written: {error.strerror}; jobs that are done stay done"
        else:
            said = str(unusable(error))
    except KeyboardInterrupt:
        said, status = "interrupted; the same command resumes from here", 130
    except Stopped as stopped:
        said = f"{stopped}; the same command resumes from here"
        status = 128 + stopped.signum
    if is_main():  # of several processes, one prints it
        with contextlib.suppress(OSError):
            print(f"gr-sweep: {said}", file=sys.stderr)
    return status


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in VERBS:
        verb = importlib.import_module(f"gr_sweep.cli.{argv[0]}")
        with fewer_collections():
            return int(verb.main(argv[1:]))
    if "--version" in argv:
        print(f"gr-sweep {__version__}")
        return 0
    if argv[:1] == ["-sc"]:
        from gr_sweep.cli.completion import complete

        complete("".join(argv[1:]), VERBS)
        return 0
    if "--help" in argv or "-h" in argv:
        from gr_sweep.cli.help import help_text

        print(help_text())
        return 0
    flags = parse_flags(argv)
    processes = connect()
    command = processes.main_first(functools.partial(compose_flags, flags))
    if not flags.cfg:
        return run(command, is_quiet=flags.quiet)
    if processes.is_main:
        print_configs(command, flags.cfg)
    return 0


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Parses Hydra's flags, wherever they are among the overrides.

    Raises:
        ConfigError: a flag is unknown, or the first word looks like a misspelt verb.
    """
    parser = Parser("gr-sweep")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--quiet", "-q", action="store_true")
    flags, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise ConfigError(f"unknown flag {unknown[0]}; gr-sweep --help lists the flags")
    if argv and argv[0].isalpha():
        raise ConfigError(
            f"unknown verb {argv[0]!r}; verbs are {', '.join(VERBS)}, settings are key=value"
        )
    return flags


def compose_flags(flags: argparse.Namespace) -> "Command":
    """Composes the jobs of a command line that `parse_flags` has parsed."""
    from gr_sweep.cli.compose import compose

    return compose(flags.overrides, multirun=flags.multirun, config_dir=flags.config_dir)


def print_configs(command: "Command", part: str) -> None:
    """Prints the settings of each job as a YAML document: those of the job, of hydra, or all."""
    from omegaconf import OmegaConf

    from gr_sweep.cli.composer import without_hydra

    for job in command.jobs:
        cfg = command.config_of(job, job.folder.absolute())
        if part != "all":
            cfg = without_hydra(cfg) if part == "job" else OmegaConf.masked_copy(cfg, "hydra")
        if command.is_multirun:
            print(f"---\n# {job.title}")
        print(OmegaConf.to_yaml(cfg).rstrip())


def run(command: "Command", *, is_quiet: bool = False) -> int:
    """Runs the jobs that are not done, prints the results, and returns the exit status.

    Raises:
        JobError: a folder holds a different job, and `resume` does not say what to do with it.
    """
    from gr_sweep.cli.launchers import status_of

    run_jobs = functools.partial(_run_jobs, is_quiet=is_quiet)
    if command.search is None:
        outcomes = run_jobs(command)
    else:
        command, outcomes = command.search.run(command, run_jobs)
    if connect().is_main:
        _print_results(command)
    return status_of(outcomes)


def _run_jobs(command: "Command", *, is_quiet: bool) -> "list[Record]":
    """Runs the jobs that are not done, and tells how they ended."""
    from hydra.core.utils import configure_log

    from gr_sweep.cli.launchers import check_launcher, launch
    from gr_sweep.cli.task import task_of
    from gr_sweep.jobdir import State
    from gr_sweep.joblock import change_record
    from gr_sweep.tracking import report_to_agent

    processes = connect()
    # Only the main process looks at folders: their names may hold the time, and files change.
    missing = processes.from_main(functools.partial(_missing, command))
    jobs = [job for job in command.jobs if job.number in missing]
    checked = processes.from_main(functools.partial(check_launcher, command, jobs))
    if processes.is_main:
        hydra = command.hydra_config.hydra
        try:
            configure_log(hydra.hydra_logging, hydra.verbose)
        except ValueError as error:
            raise ConfigError(f"hydra.hydra_logging: {error}: {error.__cause__}") from error
    tasks = []
    for position, job in enumerate(command.jobs, start=1):
        place = f"[{position}/{len(command.jobs)}]" if command.is_multirun else ""
        if job.number in missing:
            task = task_of(command, job, place, missing[job.number])
            if is_quiet and "console" in task.log_config.get("handlers", {}):
                task.log_config["handlers"]["console"]["level"] = "WARNING"
            tasks.append(task)
        elif processes.is_main:
            print(f"{place} {job.title}: done already".strip(), file=sys.stderr)
            report_to_agent(job.config.tracking, job.folder, job.title)
    for job in jobs if processes.is_main and command.is_multirun else ():
        change_record(job.folder, state=State.waiting, title=job.title, holder=None, error=None)
    outcomes = launch(command, tasks, checked) if tasks else []
    for job, outcome in zip(jobs, outcomes, strict=True) if processes.is_main else ():
        if outcome.state is State.running:
            print(f"gr-sweep: {job.title} not run here: {outcome.error}", file=sys.stderr)
        elif outcome.state is not State.done and command.is_multirun:
            said = f"{job.title} {outcome.state.value}: {outcome.error} ({job.folder})"
            print(f"gr-sweep: {said}", file=sys.stderr)
    return outcomes


def _missing(command: "Command") -> dict[int, str]:
    """Absolute folders of the jobs that are not done, by number.

    A folder with a different job is moved away for resume=fresh; for resume=force its summary is
    set aside, so that nothing shows it as the result of this command.

    Raises:
        JobError: a folder holds a different job and resume=same, or files that are not a job's.
    """
    from gr_sweep.jobdir import differences, different_job
    from gr_sweep.joblock import replace_job, set_summary_aside

    missing = [job for job in command.jobs if not job.is_done]
    different = []
    for job in missing:
        if changes := differences(job.folder, job.identity):
            if job.config.resume is Resume.same:
                raise different_job(job.folder, changes)
            different.append(job)
    for job in different:
        if job.config.resume is Resume.fresh:
            replace_job(job.folder)
        else:
            set_summary_aside(job.folder)
    return {job.number: os.path.abspath(job.folder) for job in missing}


def _print_results(command: "Command") -> None:
    """The report of a sweep, or the losses of a single job. Only jobs of this command are shown."""
    from gr_sweep.cli.report import main_numbers, show
    from gr_sweep.jobdir import read_finished

    folders = [job.folder for job in command.jobs]
    if command.is_multirun:
        if any(read_finished(folder) for folder in folders):
            with fewer_collections():
                show(command.folder, folders)
        return
    if summary := read_finished(folders[0]):
        print("\n".join(main_numbers(summary)))
    print(folders[0])


if __name__ == "__main__":
    sys.exit(main())
