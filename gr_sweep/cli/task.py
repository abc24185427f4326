"""One job of a command, with all that a process needs to run it: it pickles, and needs no Hydra."""

import contextlib
import logging
import logging.config
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gr_sweep.config import RunConfig
from gr_sweep.errors import ConfigError, GrSweepError, JobError
from gr_sweep.files import full_disk, is_full, write_whole
from gr_sweep.startup import rare_collections
from gr_sweep.train.distributed import connect
from gr_sweep.train.signals import Stopped

if TYPE_CHECKING:
    from gr_sweep.cli.compose import Command, Job

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JobTask:
    """One job, ready to run in this process or in another."""

    config: RunConfig
    folder: Path
    """Absolute."""
    title: str
    place: str
    """Number of the job among all of the command: [2/3]; empty for a single job."""
    sweep: str
    """Name of the sweep's folder."""
    overrides: list[str]
    command: str
    """A command line that runs this job alone."""
    is_baseline: bool
    overruled: tuple[str, ...]
    """Sentences about settings that were typed and have no effect."""
    files: Mapping[str, str]
    """Files to write, with the config as Hydra composed it, by path within the folder."""
    log_config: dict[str, Any] = field(repr=False)
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
        with rare_collections():
            from gr_sweep.job import run_job  # imports torch, which takes seconds

        logged = self._logged() if processes.is_main else contextlib.nullcontext()
        with logged:
            run_job(
                self.config,
                self.folder,
                sweep=self.sweep,
                overrides=self.overrides,
                command=self.command,
                title=self.title,
                is_baseline=self.is_baseline,
            )

    def _prepare(self) -> None:
        """Writes the config into the job's folder and starts its log."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, text in self.files.items():
                (self.folder / name).parent.mkdir(exist_ok=True)
                write_whole(self.folder / name, text)
        except OSError as error:
            if is_full(error):
                raise full_disk(self.folder, error) from error
            raise JobError(f"{error.filename}: {error.strerror}; use another folder") from error
        try:
            logging.config.dictConfig(self.log_config)
        except (ValueError, TypeError, AttributeError) as error:
            reason = error.__cause__ or error
            raise ConfigError(f"hydra.job_logging cannot be used: {reason}") from error
        log.info("%s", f"{self.place} {self.title}".strip())
        for sentence in self.overruled:
            log.info("%s", sentence)

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        """Writes an error that ends the job to the job's log."""
        try:
            yield
        except BaseException as error:
            # What ended the job before the signal could.
            cause = error.__cause__ if isinstance(error, Stopped) else error
            if isinstance(cause, GrSweepError) and not wants_tracebacks():
                log.error("gr-sweep: %s", cause)
            elif isinstance(cause, Exception):
                log.error("gr-sweep: the job failed: %r", cause, exc_info=cause)
            raise


def task_of(command: "Command", job: "Job", place: str, folder: str) -> JobTask:
    """The task of one of the command's jobs; `place` as [2/3], and its absolute folder."""
    from omegaconf import OmegaConf

    cfg = command.config_of(job, Path(folder))
    hydra = cfg.hydra
    files = {}
    if hydra.output_subdir is not None:
        task = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        parts = {
            "config": OmegaConf.to_yaml(task),
            "hydra": OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, "hydra")),
            "overrides": OmegaConf.to_yaml(hydra.overrides.task),
        }
        files = {f"{hydra.output_subdir}/{name}.yaml": text for name, text in parts.items()}
    return JobTask(
        config=job.config,
        folder=Path(folder),
        title=job.title,
        place=place,
        sweep=command.folder.name,
        overrides=job.overrides,
        command=command.line_of(job),
        is_baseline=job.is_baseline,
        overruled=job.overruled,
        files=files,
        log_config=logging_config(hydra),
    )


def logging_config(hydra: Any, name: str = "job_logging") -> dict[str, Any]:
    """Settings for `logging.config.dictConfig` from a hydra node, with `hydra.verbose` applied."""
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(hydra[name], resolve=True)
    verbose = hydra.verbose
    if verbose is True:
        config["root"] = (config.get("root") or {}) | {"level": "DEBUG"}
    elif verbose:
        names = [verbose] if isinstance(verbose, str) else list(verbose)
        loggers = config.setdefault("loggers", {})
        loggers |= {name: (loggers.get(name) or {}) | {"level": "DEBUG"} for name in names}
    return config


def wants_tracebacks() -> bool:
    """Whether errors of the user are shown with their traceback too."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1"
