"""How the jobs of a sweep are started: here one after the other, side by side, or on SLURM.

The parts of Hydra that this needs; queues and slots are `gr_sweep.launch`'s business. Jobs in other
processes are judged by what they leave in their folders.
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.config import RunConfig
from gr_sweep.errors import ConfigError, GrSweepError, JobLockedError
from gr_sweep.jobdir import State, standing
from gr_sweep.joblock import note_end
from gr_sweep.launch.local import LocalParallelConfig, check_local, run_side_by_side
from gr_sweep.launch.resources import Resources, check_given, resources_of
from gr_sweep.launch.slurm import SlurmConfig, await_kill, check_slurm, has_ended, run_on_slurm
from gr_sweep.launch.work import Work
from gr_sweep.train.distributed import connect
from gr_sweep.train.signals import Stopped

if TYPE_CHECKING:
    from hydra.core.singleton import Singleton
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext
    from omegaconf import DictConfig

    from gr_sweep.cli.app import JobTask
    from gr_sweep.cli.compose import Command, Job


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job that was launched."""

    state: State
    error: str | None = None
    is_bug: bool = False


@dataclass
class SweepJob:
    """One job of a sweep as Hydra composes it, for another process: it pickles."""

    context: "HydraContext"
    config: "DictConfig"
    """Of the sweep."""
    task: "JobTask"
    overrides: list[str]
    number: int
    singletons: "dict[type, Singleton]"
    folder: Path
    """The job's, absolute."""
    where: str
    """Folder in which the command was typed."""

    def __call__(self) -> None:
        """Runs the job in this process, one of several where SLURM started more than one task."""
        from hydra.core.singleton import Singleton
        from hydra.core.utils import run_job, setup_globals
        from omegaconf import open_dict

        # SLURM puts a job elsewhere where a node does not have the folder.
        os.chdir(self.where)
        Singleton.set_state(self.singletons)
        setup_globals()
        config = self.context.config_loader.load_sweep_config(self.config, self.overrides)
        with open_dict(config):
            config.hydra.job.id = str(self.number)
            config.hydra.job.num = self.number
        try:
            if not connect().is_main:
                # Hydra's files are the main process's, and so is saying why a job fails: a task
                # that fails first may take it down before it has.
                with contextlib.suppress(GrSweepError):
                    self.task.follow(config)
                return
            done = run_job(
                hydra_context=self.context,
                task_function=self.task,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        except Stopped as stopped:
            self._hand_on(stopped)
            return
        error = error_of(done)
        if error is not None:
            raise error

    def _hand_on(self, stopped: Stopped) -> None:
        """Lets whoever started this process start it again, where there is a way."""
        if stopped.signum == signal.SIGUSR2 and has_ended():
            return
        try:
            stopped.hand_on()
        except RuntimeError as error:
            if type(error).__name__ != "UncompletedJobError":
                raise
            note_end(
                self.folder,
                State.failed,
                "its time limit was reached more than hydra.launcher.max_num_timeout times; the "
                "same command goes on from there",
            )
            raise
        if stopped.signum == signal.SIGTERM:
            await_kill()

    def checkpoint(self) -> Any:
        """What submitit starts again after a preemption or a time limit: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def launch(command: "Command", jobs: "Sequence[Job]", task: "JobTask") -> list[Outcome]:
    """Runs the jobs with the launcher that the command names, and says what became of each.

    Raises:
        GrSweepError: what keeps the launcher from running any.
    """
    config = _own_config(command)
    if config is None:
        return _launch_by_hydra(command, jobs, task)
    works = _works(command, jobs, task)
    if isinstance(config, SlurmConfig):
        needs = {job.folder: needs_of(job.config, config) for job in jobs}
        with _shown(command, "Ctrl-C leaves; the jobs stay in the queue") as is_shown:
            run_on_slurm(works, config, needs, command.folder, is_shown=is_shown)
    else:
        with _shown(command, "Ctrl-C stops the jobs; each saves first") as is_shown:
            run_side_by_side(works, config, is_shown=is_shown)
    return [outcome_of(job.folder) for job in jobs]


def _shown(command: "Command", hint: str) -> contextlib.AbstractContextManager[bool]:
    """The live table of `status` with all jobs of the command, while a launcher waits."""
    from gr_sweep.cli.status import live_table

    folders = [Path(os.path.abspath(job.folder)) for job in command.jobs]
    return live_table(folders, command.folder, hint)


def check_launcher(command: "Command") -> None:
    """Whether the launcher can do what is asked, as far as that is known before any job.

    Raises:
        ConfigError: it cannot.
    """
    config = _own_config(command)
    if config is not None and not command.is_multirun:
        raise ConfigError("hydra/launcher is for the jobs of a sweep: add -m")
    if isinstance(config, SlurmConfig):
        check_slurm(config)
        check_given(config)
        for job in command.jobs:
            if not job.is_done:
                needs_of(job.config, config)
    elif config is not None:
        check_local(config, [job.config for job in command.jobs if not job.is_done])


_known_needs: dict[tuple[str, str], Resources] = {}


def needs_of(config: RunConfig, given: SlurmConfig) -> Resources:
    """What the job asks SLURM for; jobs that cost the same are estimated once."""
    from gr_sweep.launch.estimate import cost_key

    key = (cost_key(config), repr(given))
    if key not in _known_needs:
        _known_needs[key] = resources_of(config, given)
    return _known_needs[key]


def _own_config(command: "Command") -> SlurmConfig | LocalParallelConfig | None:
    """The settings of a launcher of gr-sweep; None for one of Hydra's."""
    from omegaconf import OmegaConf

    node = command.hydra_config.hydra.launcher
    kinds = {kind._target_: kind for kind in (SlurmConfig, LocalParallelConfig)}
    if node.get("_target_") not in kinds:
        return None
    content = OmegaConf.to_container(node, resolve=True)
    assert isinstance(content, dict)
    return kinds[node._target_](**{str(key): value for key, value in content.items()})


def _works(command: "Command", jobs: "Sequence[Job]", task: "JobTask") -> list[Work]:
    from hydra._internal.callbacks import Callbacks
    from hydra.core.singleton import Singleton
    from hydra.types import HydraContext

    config = command.hydra_config
    context = HydraContext(command.loader, Callbacks(config))
    return [
        Work(
            job.folder,
            job.title,
            job.config,
            SweepJob(
                context,
                config,
                task,
                [*job.overrides, job.folder_override(command.folder)],
                number,
                Singleton.get_state(),
                Path(os.path.abspath(job.folder)),
                os.getcwd(),
            ),
        )
        for number, job in enumerate(jobs)
    ]


def _launch_by_hydra(command: "Command", jobs: "Sequence[Job]", task: "JobTask") -> list[Outcome]:
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    config = command.hydra_config
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=HydraContext(command.loader, Callbacks(config)),
        task_function=task,
        config=config,
    )
    # Hydra's sweeper would compose the list again, and would raise what the first failed job
    # raised: a launcher gives back the outcome of every job.
    size = config.hydra.sweeper.max_batch_size or len(jobs)
    outcomes: list[JobReturn] = []
    for start in range(0, len(jobs), size):
        batch = jobs[start : start + size]
        launched = [[*job.overrides, job.folder_override(command.folder)] for job in batch]
        with logging_errors():
            outcomes.extend(launcher.launch(launched, initial_job_idx=start))
    return [_outcome(error_of(done)) for done in outcomes]


@contextlib.contextmanager
def logging_errors() -> Iterator[None]:
    """Python's complaint about hydra.job_logging, which Hydra sets up before a job, as one line."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Unable to configure"):
            raise
        raise ConfigError(
            f"hydra.job_logging: {str(error)[0].lower()}{str(error)[1:]} ({error.__cause__})"
        ) from error


def _outcome(error: Exception | None) -> Outcome:
    if error is None:
        return Outcome(State.done)
    if isinstance(error, JobLockedError):
        return Outcome(State.running, str(error))
    is_mendable = isinstance(error, GrSweepError)
    return Outcome(State.failed, str(error) if is_mendable else repr(error), not is_mendable)


def outcome_of(folder: Path) -> Outcome:
    """What became of a job that ran in a process of its own, from its files."""
    now = standing(folder)
    if now.state is State.done:
        return Outcome(State.done)
    record = now.record
    error = None if record is None else record.error
    return Outcome(
        now.state,
        error or f"ended without a word ({now.state.value})",
        bool(record and record.is_bug),
    )


def error_of(done: "JobReturn") -> Exception | None:
    """What a job raised that Hydra ran."""
    from hydra.core.utils import JobStatus

    # Reading `return_value` of a failed job raises the job's error, with a line of Hydra's before.
    error: Any = done._return_value
    return error if done.status is JobStatus.FAILED else None


def status_of(outcomes: Sequence[Outcome]) -> int:
    """Exit status of a command: 1 where a job met a bug, 2 where one is not done for other
    reasons."""
    missing = [outcome for outcome in outcomes if outcome.state is not State.done]
    if any(outcome.is_bug for outcome in missing):
        return 1
    return 2 if missing else 0
