"""Starts the jobs of a command: one after the other in this process, side by side, or on SLURM.

`gr_sweep.launch` handles queues and slots. The files in a job's folder tell how it ended.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gr_sweep.cli.job_status import JobReader
from gr_sweep.cli.schema import LAUNCHERS
from gr_sweep.cli.status import live_table
from gr_sweep.cli.task import Job, JobTask
from gr_sweep.config import RunConfig
from gr_sweep.errors import ConfigError, GrSweepError, JobLockedError
from gr_sweep.jobdir import Record, State, standing
from gr_sweep.launch.local import LocalParallelConfig, run_side_by_side, slots_of
from gr_sweep.launch.resources import SlurmConfig
from gr_sweep.launch.slurm import check_slurm, run_on_slurm
from gr_sweep.launch.work import Work
from gr_sweep.train.distributed import connect

if TYPE_CHECKING:
    from gr_sweep.cli.compose import Command


class _Launcher(NamedTuple):
    check: Callable[[Any, list[RunConfig]], Any]
    """From the settings and jobs to what `run` needs; raises ConfigError if they cannot run."""
    run: Callable[[Sequence[Work], Any, Any, Path], None]
    """Runs all works and returns when they have ended; the files in their folders say how. Takes
    the works, the settings, what `check` returned, and the sweep's folder."""
    on_interrupt: str
    """What Ctrl-C does."""


_LAUNCHERS: dict[type, _Launcher] = {
    SlurmConfig: _Launcher(check_slurm, run_on_slurm, "Ctrl-C leaves; the jobs stay in the queue"),
    LocalParallelConfig: _Launcher(
        slots_of,
        lambda works, _, slots, __: run_side_by_side(works, slots),
        "Ctrl-C stops the jobs; each saves first",
    ),
}
"""By their settings, which `gr_sweep.cli.schema.LAUNCHERS` names."""


def launch(command: "Command", tasks: Sequence[JobTask], checked: Any) -> list[Record]:
    """Runs the tasks with the command's launcher; returns how each ended.

    Args:
        checked: from `check_launcher`, of the jobs of these tasks.

    Raises:
        GrSweepError: the launcher cannot run any.
        Stopped: a signal stopped the command.
    """
    config = _launcher_config(command)
    if config is None:
        return [_run_here(task) for task in tasks]
    launcher = _LAUNCHERS[type(config)]
    with live_table(JobReader([task.folder for task in tasks]), launcher.on_interrupt):
        launcher.run(tasks, config, checked, command.folder)
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


def check_launcher(command: "Command", missing: Sequence[Job]) -> Any:
    """Checks whether the launcher can run the jobs that are not done, before it starts any.

    Returns:
        What `launch` needs to know of it.

    Raises:
        ConfigError: it cannot.
    """
    config = _launcher_config(command)
    if config is None:
        return None
    if connect().are_several:
        raise ConfigError(
            "several processes (torchrun, srun) run the jobs of a sweep together, one after the "
            "other; use hydra/launcher=basic, or start one process"
        )
    if not command.is_multirun:
        raise ConfigError("hydra/launcher is for the jobs of a sweep: add -m")
    return _LAUNCHERS[type(config)].check(config, [job.config for job in missing])


def _launcher_config(command: "Command") -> Any:
    """Settings of the launcher; None for the one that runs jobs in this process."""
    from omegaconf import OmegaConf

    content: Any = OmegaConf.to_container(command.hydra_config.hydra.launcher, resolve=True)
    for kind in LAUNCHERS.values():
        if content["_target_"] == kind._target_:
            return kind(**content)
    return None


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
