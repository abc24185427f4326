"""The command `gr-sweep`: a verb, or a Hydra command line whose jobs are checked, run and reported.

Knows in which order things happen, what is printed, and the exit status: 0 done, 1 a bug, 2 what
the user can mend, 130 interrupted. How a job works is `gr_sweep.job`'s business.
"""

import argparse
import contextlib
import functools
import importlib
import io
import logging
import os
import select
import shlex
import signal
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from gr_sweep import __version__
from gr_sweep.arguments import Parser
from gr_sweep.config import Resume, RunConfig
from gr_sweep.errors import ConfigError, GrSweepError, JobError
from gr_sweep.files import full_disk, is_full
from gr_sweep.jobdir import SUMMARY, State, code_fingerprint
from gr_sweep.joblock import announce
from gr_sweep.startup import rare_collections
from gr_sweep.train.distributed import connect, is_main
from gr_sweep.train.signals import Stopped

if TYPE_CHECKING:
    # Imported where it is used: a verb and --version need no Hydra.
    from omegaconf import DictConfig

    from gr_sweep.cli.compose import Command, Job

VERBS = {
    "report": "gr_sweep.cli.report",
    "export": "gr_sweep.cli.export",
    "estimate": "gr_sweep.cli.estimate",
    "bench": "gr_sweep.cli.bench",
    "status": "gr_sweep.cli.status",
    "dashboard": "gr_sweep.cli.dashboard",
    "doctor": "gr_sweep.cli.doctor",
}
"""First argument to the module whose main(argv) runs."""

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status.

    A GrSweepError is one line on stderr and status 2, unless HYDRA_FULL_ERROR=1 asks for more.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a sign shows another; nothing ends for it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except GrSweepError as error:
        if _wants_tracebacks():
            raise
        if is_main():  # what ends several processes is said once
            print(f"gr-sweep: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        if not _nobody_reads(sys.stdout):
            raise
        # As `| head` does when it has enough. Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        # Where no part of a job could say it: Hydra makes folders and files too.
        if error.filename is None or _wants_tracebacks():
            raise
        said: object = f"{error.filename}: {error.strerror}; use another folder, or mend that"
        if is_full(error):
            said = full_disk(Path(error.filename), error)
        if is_main():
            print(f"gr-sweep: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if is_main():
            print("gr-sweep: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except Stopped as stopped:
        if is_main():
            print(f"gr-sweep: {stopped}; the same command goes on from here", file=sys.stderr)
        return 128 + stopped.signum


def _nobody_reads(stream: TextIO) -> bool:
    """Whether the other end of a pipe is closed."""
    poll = select.poll()
    poll.register(stream, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in VERBS:
        with rare_collections():
            verb = importlib.import_module(VERBS[argv[0]])
        return int(verb.main(argv[1:]))
    if "--version" in argv:
        print(f"gr-sweep {__version__}")
        return 0
    if "--help" in argv or "-h" in argv:
        from gr_sweep.cli.help import help_text
        from gr_sweep.cli.schema import conf_dir

        print(help_text(conf_dir()))
        return 0
    flags = parse_flags(argv)
    if flags.shell_completion and len(flags.overrides) != 1:
        raise ConfigError(
            "--shell-completion wants one of install=SHELL, uninstall=SHELL and query=SHELL"
        )
    if flags.info or flags.hydra_help or flags.shell_completion:
        return _show(argv)

    with rare_collections():
        from gr_sweep.cli.compose import compose
        from gr_sweep.cli.launchers import check_launcher

        processes = connect()
        command = processes.main_first(
            functools.partial(
                compose,
                flags.overrides,
                multirun=flags.multirun,
                config_name=flags.config_name or "config",
                config_path=flags.config_path,
                config_dir=flags.config_dir,
            )
        )
    if flags.cfg:
        from gr_sweep.cli.overrides import completed

        words = [completed(word) if word in flags.overrides else word for word in argv]
        return _show(words) if processes.is_main else 0
    line = shlex.join(["gr-sweep", *argv])
    # A folder named by the time is another one in each process: that of the main one counts.
    folders = processes.from_main(lambda: [os.path.abspath(job.folder) for job in command.jobs])
    if not processes.is_main:
        return _follow(dict(zip(folders, command.jobs, strict=True)), command.folder.name, line)
    try:
        if processes.are_several:
            _check_one_launcher(command)
        else:
            check_launcher(command)
        return _run_sweep(command, line) if command.is_multirun else _run_alone(command, line)
    finally:
        with contextlib.suppress(GrSweepError):
            processes.from_main(_no_job)


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Hydra's own flags, wherever they stand between the overrides.

    Raises:
        ConfigError: a flag that Hydra does not know, or a word that may be a misspelt verb.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.prog = "gr-sweep"
    parser.__class__ = Parser  # complains in one line
    flags, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise ConfigError(f"unknown flag {unknown[0]}; gr-sweep --help lists what there is")
    if flags.experimental_rerun is not None:
        raise ConfigError(
            "--experimental-rerun is not supported; type the command of the job again"
        )
    if argv and argv[0].isalpha():
        raise ConfigError(
            f"unknown verb {argv[0]!r}; verbs are {', '.join(VERBS)}, settings are key=value"
        )
    return flags


def _show(argv: list[str]) -> int:
    """Lets Hydra print what --cfg, --info and the like ask for."""
    import hydra

    from gr_sweep.cli.schema import conf_dir

    sys.argv = ["gr-sweep", *argv]
    decorate = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    try:
        decorate(JobTask("", ""))()
    except SystemExit as end:
        return 2 if end.code else 0  # Hydra has said why
    return 0


@dataclass(frozen=True)
class JobTask:
    """What a launcher runs for every job: importable and made of text, so that it pickles."""

    command: str
    """The whole command line."""
    sweep: str
    """Name of the sweep's folder."""
    titles: "tuple[tuple[str, str], ...]" = ()
    """Absolute folder of each job, and what people call it."""
    places: "tuple[tuple[str, str], ...]" = ()
    """Absolute folder of each job, and its number among all: `[2/3]`."""
    baselines: tuple[str, ...] = ()
    """Absolute folders of the jobs that are there for the metrics of others."""

    def __call__(self, cfg: "DictConfig") -> None:
        from hydra.core.hydra_config import HydraConfig

        from gr_sweep.cli.compose import to_run_config
        from gr_sweep.config import effective

        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        processes = connect()
        with _FailureLog():
            config = effective(to_run_config(cfg))
            # Other processes run the job whose folder they are told.
            processes.from_main(lambda: str(folder))
            title = dict(self.titles).get(str(folder), folder.name)
            log.info("%s", " ".join([*dict(self.places).get(str(folder), "").split(), title]))
            _run_job()(
                config,
                folder,
                sweep=self.sweep,
                overrides=[override.lstrip("+") for override in hydra_config.overrides.task],
                command=self.command,
                title=title,
                is_baseline=str(folder) in self.baselines,
                memory_advice=_memory_advice,
            )

    def follow(self, cfg: "DictConfig") -> None:
        """The part of a process beside the main one, where a launcher started several."""
        from gr_sweep.cli.compose import to_run_config
        from gr_sweep.config import effective

        _log_own_errors()
        folder = Path(connect().from_main(_no_job) or "")
        _run_job()(
            effective(to_run_config(cfg)),
            folder,
            sweep=self.sweep,
            overrides=[],
            command=self.command,
            is_baseline=str(folder) in self.baselines,
            memory_advice=_memory_advice,
        )


def _follow(jobs: "Mapping[str, Job]", sweep: str, line: str) -> int:
    """What a process beside the main one does: its part of each job, and nothing else.

    Args:
        jobs: by the absolute folder in which the main process runs them.
        sweep: name of the sweep's folder.
        line: the whole command line.
    """
    processes = connect()
    _log_own_errors()
    status = 0
    while (folder := processes.from_main(_no_job)) is not None:
        job = jobs[folder]
        try:
            _run_job()(
                job.config,
                Path(folder),
                sweep=sweep,
                overrides=job.overrides,
                command=line,
                is_baseline=job.is_baseline,
                memory_advice=_memory_advice,
            )
        except GrSweepError as error:
            _let_go(error)
            status = 2  # the main process says why
    return status


def _run_job() -> Callable[..., None]:
    """`gr_sweep.job.run_job`, which needs torch: seconds, which a command with nothing left to run
    does not spend."""
    with rare_collections():
        from gr_sweep.job import run_job
    return run_job


def _log_own_errors() -> None:
    """What all can see the main process says: only what is this one's own is left."""
    logging.basicConfig(level=logging.ERROR, format=f"[process {connect().rank}] %(message)s")


def _memory_advice(config: RunConfig, world_size: int) -> str:
    from gr_sweep.launch.estimate import after_out_of_memory

    return after_out_of_memory(config, world_size)


def _no_job() -> str | None:
    """What the main process tells the others when there is no further job."""
    return None


def _check_one_launcher(command: "Command") -> None:
    """Raises ConfigError where a launcher would run the jobs elsewhere: these processes are to."""
    target = str(command.hydra_config.hydra.launcher._target_)
    if command.is_multirun and not target.endswith(".BasicLauncher"):
        raise ConfigError(
            "several processes (torchrun, srun) run the jobs of a sweep together, one after the "
            "other; use hydra/launcher=basic, or start one process"
        )


class _FailureLog:
    """Writes an error that leaves a job to the job's log, and frees what the job held."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if isinstance(error, Stopped):
            error = error.__cause__  # what ended the job before the signal could
        if isinstance(error, GrSweepError) and not _wants_tracebacks():
            log.error("gr-sweep: %s", error)
        elif isinstance(error, Exception):
            log.error("gr-sweep: the job failed: %r", error, exc_info=error)
        if isinstance(error, Exception):
            _let_go(error)


def _let_go(error: BaseException | None) -> None:
    """Drops the local variables of the frames that an error and its causes came through.

    They hold a job's model and its gradients, and Hydra holds the error to the end of the sweep.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _run_alone(command: "Command", line: str) -> int:
    from hydra._internal.callbacks import Callbacks
    from hydra.core.utils import run_job
    from hydra.types import HydraContext

    from gr_sweep.cli.launchers import error_of, logging_errors

    [job] = command.jobs
    status = 0
    if job.is_done:
        print(f"{job.title}: done already", file=sys.stderr)
    else:
        title = ((os.path.abspath(job.folder), job.title),)
        with logging_errors():
            done = run_job(
                task_function=JobTask(line, command.folder.name, title),
                config=command.hydra_config,
                job_dir_key="hydra.run.dir",
                job_subdir_key=None,
                hydra_context=HydraContext(command.loader, Callbacks(command.hydra_config)),
            )
        error = error_of(done)
        if error is not None:
            status = 2 if isinstance(error, GrSweepError) else 1
    if job.is_done:
        print("\n".join(_main_numbers(job.folder / SUMMARY)))
    print(job.folder)
    return status


def _run_sweep(command: "Command", line: str) -> int:
    from hydra.core.utils import configure_log

    from gr_sweep.cli.launchers import launch, status_of

    config = command.hydra_config
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    missing, places = [], []
    for number, job in enumerate(command.jobs, start=1):
        place = f"[{number}/{len(command.jobs)}]"
        if job.is_done:
            print(f"{place} {job.title}: done already", file=sys.stderr)
        else:
            missing.append(job)
            places.append((os.path.abspath(job.folder), place))

    status = 0
    if missing:
        _check_same_code(command.jobs)
        task = JobTask(
            line,
            command.folder.name,
            tuple((os.path.abspath(job.folder), job.title) for job in missing),
            tuple(places),
            tuple(os.path.abspath(job.folder) for job in missing if job.is_baseline),
        )
        for job in missing:
            announce(job.folder, job.title)
        outcomes = launch(command, missing, task)
        status = status_of(outcomes)
        for job, outcome in zip(missing, outcomes, strict=True):
            if outcome.state is State.running:
                print(f"gr-sweep: {job.title} not run here: {outcome.error}", file=sys.stderr)
            elif outcome.state is not State.done:
                said = f"{job.title} {outcome.state.value}: {outcome.error} ({job.folder})"
                print(f"gr-sweep: {said}", file=sys.stderr)
    if any(job.is_done for job in command.jobs):
        importlib.import_module(VERBS["report"]).main([str(command.folder)])
    return status


def _check_same_code(jobs: "Sequence[Job]") -> None:
    """Jobs that are put side by side come from the same code.

    Raises:
        JobError: a job that is done does not, and nobody said that it does not matter.
    """
    if any(job.config.resume is Resume.force for job in jobs):
        return
    from gr_sweep.jobdir import read_summary

    code = code_fingerprint()
    summaries = [(job, read_summary(job.folder / SUMMARY)) for job in jobs if job.is_done]
    codes = [(job, summary.get("fingerprints", {}).get("code")) for job, summary in summaries]
    others = [job for job, of_job in codes if of_job not in (None, code)]
    if others:
        raise JobError(
            f"{len(others)} of the jobs in {others[0].folder.parent} were run by other code than "
            "this; use another folder (hydra.sweep.dir=DIR), or go on all the same with "
            "resume=force"
        )


def _main_numbers(summary: Path) -> list[str]:
    """A table of the losses and of what removal does, from a job's summary.json."""
    from gr_sweep.jobdir import read_summary
    from gr_sweep.metrics import registry

    content = read_summary(summary)
    metrics, domains = content["metrics"], content["domains"]
    rows = [
        ("loss, full model (nats a token)", [registry.LOSS_FULL(d) for d in domains]),
        ("loss, own expert kept alone", [registry.LOSS_KEPT(d, d) for d in domains]),
        ("removing it adds to its loss", [registry.MATRIX(d, d) for d in domains]),
        ("selectivity of its removal", [registry.SELECTIVITY(d) for d in domains]),
    ]
    widths = [max(len(domain), 7) for domain in domains]
    lines = [" " * 32 + "".join(f"  {d:>{w}}" for d, w in zip(domains, widths, strict=True))]
    for label, cells_of in rows:
        if any(key in metrics for key in cells_of):
            cells = (
                f"  {f'{metrics[key]:.3f}' if key in metrics else '-':>{width}}"
                for key, width in zip(cells_of, widths, strict=True)
            )
            lines.append(f"{label:<32}" + "".join(cells))
    return lines


def _wants_tracebacks() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


if __name__ == "__main__":
    sys.exit(main())
