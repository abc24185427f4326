"""One job of a command, with all that a process needs to run it: it pickles, and needs no Hydra."""

import contextlib
import functools
import gc
import logging
import logging.config
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.config import RunConfig
from gr_sweep.errors import ConfigError, GrSweepError
from gr_sweep.files import unusable, write_whole
from gr_sweep.fingerprint import Identity, identity_of
from gr_sweep.jobdir import SUMMARY, State, change_record, is_done, standing
from gr_sweep.launch.slurm import await_kill, is_cancelled
from gr_sweep.launch.work import WARNINGS, Work, clear_warnings
from gr_sweep.train.distributed import connect
from gr_sweep.train.signals import Stopped

if TYPE_CHECKING:
    from gr_sweep.cli.compose import Command

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One checked job of a command."""

    config: RunConfig
    """Validated and resolved."""
    lines: list[str]
    """Overrides that it is composed from, without those of the hydra node."""
    folder: Path
    """As the command gives it, usually relative."""
    title: str
    """The overrides in which it differs from the other jobs."""
    number: int
    is_baseline: bool = False
    """Whether it was added for the metrics of other jobs."""
    overruled: list[str]
    """Overrides that have no effect, because the job's method or procedure decides."""

    @functools.cached_property
    def identity(self) -> Identity:
        """Settings, text and code of the job; reads the files of `data=local` where they changed.

        Raises:
            DataError: the text cannot be read.
        """
        from gr_sweep.data.prepare import text_fingerprint

        text = text_fingerprint(self.config.data, self.config.partition, self.config.model)
        return identity_of(self.config, text)

    @functools.cached_property
    def is_done(self) -> bool:
        """Whether its folder held the finished job with the same settings, text and code when this
        was first asked."""
        return (self.folder / SUMMARY).exists() and is_done(self.folder, self.identity)


@dataclass(frozen=True, kw_only=True)
class JobTask(Work):
    """One job, ready to run in this process (`run`) or in another, which calls it."""

    job: Job
    where: str
    """Folder in which the command was typed."""
    place: str
    """Number of the job among all of the command: [2/3]; empty for a single job."""
    sweep: str
    """Name of the sweep's folder."""
    command: str
    """A command line that runs this job alone."""
    files: Mapping[str, str]
    """Files to write, with the config as Hydra composed it, by path within the folder."""
    log_config: Any = field(repr=False)
    """For `logging.config.dictConfig`."""

    def run(self) -> None:
        """Runs the job, in each process of those that run it together.

        Raises:
            GrSweepError: what the user can fix.
            Stopped: a signal stopped the job.
        """
        processes = connect()
        if not processes.is_main:
            # The main process says what all processes see; only a process's own errors are left.
            label = f"[process {processes.rank}] %(message)s"
            logging.basicConfig(level=logging.ERROR, format=label)
        try:
            processes.from_main(self._prepare)
        except GrSweepError as error:
            if processes.is_main and not self.place:  # a sweep prints the errors of its jobs
                print(f"gr-sweep: {error}", file=sys.stderr)
            raise
        from gr_sweep.job import run_job  # imports torch, which takes seconds

        gc.set_threshold(700, 10, 10)  # Python's own: what a job leaves may hold tensors
        try:
            run_job(
                self.config,
                self.folder,
                sweep=self.sweep,
                overrides=[line.lstrip("+") for line in self.job.lines],
                command=self.command,
                title=self.title,
                is_baseline=self.job.is_baseline,
            )
        except BaseException as error:
            _log_end(error)
            raise

    def __call__(self) -> None:
        """Runs the job in this process, one of several if SLURM started several tasks."""
        self.shown.clear()  # this process has a log of its own
        os.chdir(self.where)  # SLURM starts a job elsewhere if a node does not have the folder
        try:
            self.run()
        except Stopped as stopped:
            if stopped.signum == signal.SIGUSR2 and is_cancelled():
                return
            stopped.hand_on()  # the launcher starts this process again, if it can
            if stopped.signum == signal.SIGTERM:
                await_kill()
        except Exception as error:
            is_bug = not isinstance(error, GrSweepError)
            if connect().is_main:
                if standing(self.folder).state is State.waiting:  # before it had the lock
                    said = repr(error) if is_bug else str(error)
                    with contextlib.suppress(OSError):  # the error below says more
                        change_record(self.folder, state=State.failed, error=said, is_bug=is_bug)
                raise
            # The main process says why. A task that fails first could end the others before that.
            if is_bug:
                raise

    def checkpoint(self) -> Any:
        """What submitit submits again after a preemption or a time limit: the same job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _prepare(self) -> None:
        """Writes the config into the job's folder and starts its log."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, text in self.files.items():
                (self.folder / name).parent.mkdir(exist_ok=True)
                write_whole(self.folder / name, text)
        except OSError as error:
            raise unusable(error) from error
        logging.raiseExceptions = False  # a message for a full disk is lost, without a traceback
        try:
            logging.config.dictConfig(self.log_config)
        except ValueError as error:
            raise ConfigError(f"hydra.job_logging: {error}: {error.__cause__}") from error
        root = logging.getLogger()
        for handler in root.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(self._is_new)
        clear_warnings(self.folder)
        # Read by the command, if the job has a process of its own.
        file = logging.FileHandler(self.folder / WARNINGS, delay=True, encoding="utf-8")
        file.addFilter(lambda record: record.levelno == logging.WARNING)
        root.addHandler(file)
        log.info("%s", f"{self.place} {self.title}".strip())
        for line in self.job.overruled:
            names = self.config.method.name.value, self.config.procedure.name.value
            log.info("%s has no effect with method=%s, procedure=%s", line, *names)

    def _is_new(self, record: logging.LogRecord) -> bool:
        """False for a warning that the terminal has shown for an earlier job of the sweep."""
        if record.levelno != logging.WARNING:
            return True
        said = record.getMessage()
        is_new = said not in self.shown
        self.shown.add(said)
        return is_new


def task_of(command: "Command", job: Job, place: str, folder: str) -> JobTask:
    """The task of one of the command's jobs; `place` as [2/3], and its absolute folder."""
    from omegaconf import OmegaConf

    cfg = command.composer.compose(job.lines)
    files = {"config": OmegaConf.to_yaml(cfg)}
    hydra = command.composer.with_hydra(cfg, job.lines, job.number, Path(folder)).hydra
    files["hydra"] = OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, "hydra"))
    files["overrides"] = OmegaConf.to_yaml(hydra.overrides.task)
    return JobTask(
        folder=Path(folder),
        title=job.title,
        config=job.config,
        job=job,
        where=os.getcwd(),
        place=place,
        sweep=command.folder.name,
        command=command.line_of(job),
        files={f".hydra/{name}.yaml": text for name, text in files.items()},
        log_config=OmegaConf.to_container(hydra.job_logging, resolve=True),
        shown=command.shown_warnings,
    )


def _log_end(error: BaseException) -> None:
    """Logs the error that ends a job; not in each process what all of them see."""
    # Of the other processes a bug's traceback is printed anyway.
    if not connect().is_main and getattr(error, "is_shared", True):
        return
    # What ended the job before the signal could.
    cause = error.__cause__ if isinstance(error, Stopped) else error
    if isinstance(cause, GrSweepError):
        log.error("gr-sweep: %s", cause)
    elif isinstance(cause, Exception):
        log.error("gr-sweep: the job failed: %r", cause, exc_info=cause)
