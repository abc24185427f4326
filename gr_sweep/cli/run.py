"""Runs the jobs of a command that are not done: here, side by side, or on SLURM.

`gr_sweep.launch` handles queues and slots. The files in a job's folder tell how it ended.
"""

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gr_sweep.cli.compose import Command
from gr_sweep.cli.report import main_numbers, show
from gr_sweep.cli.schema import LAUNCHERS
from gr_sweep.cli.status import JobReader, live_table
from gr_sweep.cli.task import Job, JobTask, task_of
from gr_sweep.config import Resume
from gr_sweep.errors import ConfigError, GrSweepError, JobLockedError
from gr_sweep.jobdir import (
    Record,
    State,
    change_record,
    differences,
    different_job,
    read_finished,
    replace_job,
    set_summary_aside,
    standing,
)
from gr_sweep.launch.local import run_side_by_side, slots_of
from gr_sweep.launch.resources import SlurmConfig
from gr_sweep.launch.slurm import check_slurm, run_on_slurm
from gr_sweep.tracking import report_to_agent
from gr_sweep.train.distributed import connect


def run(command: Command, *, is_quiet: bool = False) -> int:
    """Runs the jobs that are not done, prints the results, and returns the exit status.

    Raises:
        ConfigError: the launcher cannot run the jobs.
        JobError: a folder holds a different job, and `resume` does not say what to do with it.
        Stopped: a signal stopped the command.
    """
    run_jobs = functools.partial(_run_jobs, is_quiet=is_quiet)
    if command.search is None:
        outcomes = run_jobs(command)
    else:
        command, outcomes = command.search.run(command, run_jobs)
    if connect().is_main:
        _print_results(command)
    return status_of(outcomes)


def _run_jobs(command: Command, *, is_quiet: bool) -> list[Record]:
    """Runs the jobs that are not done, and tells how they ended."""
    processes = connect()
    # Only the main process looks at folders: their names may hold the time, and files change.
    missing = processes.from_main(functools.partial(_missing, command))
    jobs = [job for job in command.jobs if job.number in missing]
    launcher = _launcher(command)
    checked = processes.from_main(functools.partial(_check, launcher, command, jobs))
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
    outcomes = _launch(command, tasks, launcher, checked) if tasks else []
    for job, outcome in zip(jobs, outcomes, strict=True) if processes.is_main else ():
        if outcome.state is State.running:
            print(f"gr-sweep: {job.title} not run here: {outcome.error}", file=sys.stderr)
        elif outcome.state is not State.done and command.is_multirun:
            said = f"{job.title} {outcome.state.value}: {outcome.error} ({job.folder})"
            print(f"gr-sweep: {said}", file=sys.stderr)
    return outcomes


def _missing(command: Command) -> dict[int, str]:
    """Absolute folders of the jobs that are not done, by number. `resume` decides about those that
    hold a different job: an error, moved away, or without their summary."""
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
            set_summary_aside(job.folder)  # nothing shows it as a result of this command
    return {job.number: os.path.abspath(job.folder) for job in missing}


def _launcher(command: Command) -> Any:
    """Settings of the launcher; None for the one that runs jobs in this process."""
    content: Any = OmegaConf.to_container(command.hydra_config.hydra.launcher, resolve=True)
    kinds = [kind for kind in LAUNCHERS.values() if kind._target_ == content["_target_"]]
    return kinds[0](**content) if kinds else None


def _check(launcher: Any, command: Command, missing: Sequence[Job]) -> Any:
    """What the launcher needs to run the jobs; a ConfigError if it cannot run them."""
    if launcher is None:
        return None
    if connect().are_several:
        raise ConfigError(
            "several processes (torchrun, srun) run the jobs of a sweep together, one after the "
            "other; use hydra/launcher=basic, or start one process"
        )
    if not command.is_multirun:
        raise ConfigError("hydra/launcher is for the jobs of a sweep: add -m")
    check = check_slurm if isinstance(launcher, SlurmConfig) else slots_of
    return check(launcher, [job.config for job in missing])


def _launch(
    command: Command, tasks: Sequence[JobTask], launcher: Any, checked: Any
) -> list[Record]:
    """Runs the tasks; returns how each ended. `checked` is from `_check`."""
    if launcher is None:
        return [_run_here(task) for task in tasks]
    reader = JobReader([task.folder for task in tasks])
    if isinstance(launcher, SlurmConfig):
        with live_table(reader, "Ctrl-C leaves; the jobs stay in the queue"):
            run_on_slurm(tasks, launcher, checked, command.folder)
    else:
        with live_table(reader, "Ctrl-C stops the jobs; each saves first"):
            run_side_by_side(tasks, checked)
    return [outcome_of(task.folder) for task in tasks]


def _run_here(task: JobTask) -> Record:
    """Runs a task in this process, or in each of several processes that run it together."""
    try:
        task.run()
    except JobLockedError as error:
        return Record(State.running, error=str(error))
    except GrSweepError as error:
        return Record(State.failed, error=str(error))
    except Exception as error:
        if not connect().is_main:
            raise
        return Record(State.failed, error=repr(error), is_bug=True)
    return Record(State.done)


def outcome_of(folder: Path) -> Record:
    """How a job in another process ended, from its files."""
    now = standing(folder)
    now.error = now.error or f"ended without a message ({now.state.value})"
    return now


def status_of(outcomes: Sequence[Record]) -> int:
    """Exit status of a command: 1 if a job met a bug, 2 if one is not done for another reason."""
    missing = [outcome for outcome in outcomes if outcome.state is not State.done]
    if any(outcome.is_bug for outcome in missing):
        return 1
    return 2 if missing else 0


def _print_results(command: Command) -> None:
    """The report of a sweep, or the losses of a single job. Only jobs of this command are shown."""
    folders = [job.folder for job in command.jobs]
    if command.is_multirun:
        if any(read_finished(folder) for folder in folders):
            show(command.folder, folders)
        return
    if summary := read_finished(folders[0]):
        print(main_numbers(summary))
    print(folders[0])
