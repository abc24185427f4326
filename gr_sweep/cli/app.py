"""The command `gr-sweep`: a verb, or a Hydra command line whose jobs are checked, run and reported.

Exit status: 0 all done, 1 a bug, 2 an error that the user can fix, 130 interrupted.
"""

import argparse
import contextlib
import functools
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO, cast

from gr_sweep import __version__
from gr_sweep.arguments import Parser
from gr_sweep.cli.task import unusable, wants_tracebacks
from gr_sweep.config import Resume
from gr_sweep.errors import ConfigError, GrSweepError
from gr_sweep.startup import rare_collections
from gr_sweep.train.distributed import connect, is_main
from gr_sweep.train.signals import Stopped

if TYPE_CHECKING:
    # Hydra takes half a second to import, and a verb does without.
    from gr_sweep.cli.compose import Command

VERBS = ("report", "export", "estimate", "bench", "status", "dashboard", "doctor")
"""Each is a module of `gr_sweep.cli` with a `main(argv)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status.

    A GrSweepError is printed as one line; HYDRA_FULL_ERROR=1 shows its traceback. Messages that
    standard error does not take are lost, and end no job.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: no file of a job may get its number
            null = os.open(os.devnull, os.O_RDONLY)
            setattr(sys, name, os.fdopen(null, "r" if name == "stdin" else "w"))
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # for terminals that lack a character
    stream, messages = sys.stderr, cast(Any, _Messages(sys.stderr))
    with contextlib.redirect_stderr(messages):
        status = _status_of(arguments)
    _lost(stream)
    return status


class _Messages:
    """A text stream that drops what cannot be written, because its disk is full or it is closed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _lost(stream: TextIO, text: str = "") -> OSError | None:
    """Why the text cannot be written, after which the stream takes anything; None if it can."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        # Python would complain again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


def _status_of(arguments: list[str]) -> int:
    """The exit status of a command line, after its error was printed."""
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except (GrSweepError, OSError, RuntimeError) as error:
        said: object = error
        if not isinstance(error, GrSweepError):
            said = _explained(error)
        if isinstance(said, BrokenPipeError):  # `| head` has read enough
            return 128 + signal.SIGPIPE
        if said is None or wants_tracebacks():
            raise
        status = 2
    except KeyboardInterrupt:
        said, status = "interrupted; the same command resumes from here", 130
    except Stopped as stopped:
        said = f"{stopped}; the same command resumes from here"
        status = 128 + stopped.signum
    if is_main():  # of several processes, one prints it
        print(f"gr-sweep: {said}", file=sys.stderr)
    return status


def _explained(error: OSError | RuntimeError) -> object:
    """What to say about an error that no part of a job could report; None if it is a bug."""
    if isinstance(error, RuntimeError):
        if "home directory" not in str(error):
            return None
        return (
            "this user has no home folder (neither HOME nor an entry in passwd); set HOME, or give "
            "data.cache=FOLDER and tracking=off"
        )
    if error.filename is not None:
        return unusable(error)
    lost = _lost(sys.stdout, "\n")
    if lost is None or isinstance(lost, BrokenPipeError):
        return lost
    return (
        f"standard output cannot be written: {lost.strerror}; jobs that are done stay done, and "
        "the same command shows their results"
    )


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in VERBS:
        with rare_collections():
            verb = importlib.import_module(f"gr_sweep.cli.{argv[0]}")
        return int(verb.main(argv[1:]))
    if "--version" in argv:
        print(f"gr-sweep {__version__}")
        return 0
    if "--help" in argv or "-h" in argv:
        from gr_sweep.cli.help import help_text

        print(help_text())
        return 0
    flags = parse_flags(argv)
    if flags.info or flags.hydra_help or flags.shell_completion:
        return _show(flags)
    processes = connect()
    with rare_collections():
        command = processes.main_first(functools.partial(compose_flags, flags))
    if not flags.cfg:
        return run(command)
    if command.is_multirun:
        raise ConfigError(
            f"--cfg prints the settings of one job, and this command has {len(command.jobs)}; "
            "leave out -m and give one value of each setting, or add hydra.mode=RUN to a study"
        )
    if processes.is_main:
        print_config(command, flags.cfg, flags.package, resolve=flags.resolve)
    return 0


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Parses Hydra's flags, wherever they are among the overrides.

    Raises:
        ConfigError: a flag is unknown, or the first word looks like a misspelt verb.
    """
    parser = Parser("gr-sweep")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    parser.add_argument("--config-name", "-cn", default="config")
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--package", "-p")
    parser.add_argument("--resolve", action="store_true")
    infos = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=infos)
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    flags, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        raise ConfigError(f"unknown flag {unknown[0]}; gr-sweep --help lists the flags")
    if argv and argv[0].isalpha():
        raise ConfigError(
            f"unknown verb {argv[0]!r}; verbs are {', '.join(VERBS)}, settings are key=value"
        )
    words = " ".join(flags.overrides)
    if flags.shell_completion and not re.fullmatch(r"((un)?install|query)=(bash|zsh|fish)", words):
        raise ConfigError("--shell-completion takes one word, such as install=bash")
    return flags


def compose_flags(flags: argparse.Namespace) -> "Command":
    """Composes the jobs of a command line that `parse_flags` has parsed."""
    from gr_sweep.cli.compose import compose

    return compose(
        flags.overrides,
        multirun=flags.multirun,
        config_name=flags.config_name,
        config_path=flags.config_path,
        config_dir=flags.config_dir,
    )


def print_config(command: "Command", part: str, package: str | None, *, resolve: bool) -> None:
    """Prints the settings of the command's one job, or of their `package`, as YAML: those of the
    job, of hydra, or all.

    Raises:
        ConfigError: the package does not exist, or a value cannot be resolved.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from gr_sweep.cli.composer import without_hydra
    from gr_sweep.cli.overrides import explain

    [job] = command.jobs
    cfg = command.config_of(job, job.folder.absolute())
    if part != "all":
        cfg = without_hydra(cfg) if part == "job" else OmegaConf.masked_copy(cfg, "hydra")
    try:
        node = OmegaConf.select(cfg, package) if package else cfg
        if node is None:
            raise ConfigError(f"--package={package}: the config has no such package")
        is_leaf = not OmegaConf.is_config(node)
        print(node if is_leaf else OmegaConf.to_yaml(node, resolve=resolve).rstrip())
    except OmegaConfBaseException as error:
        raise explain(error) from error


def _show(flags: argparse.Namespace) -> int:
    """Lets Hydra print what --info and the like ask for.

    Raises:
        ConfigError: it is asked for several jobs, or for settings that do not exist.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from gr_sweep.cli.composer import composing
    from gr_sweep.cli.overrides import explain
    from gr_sweep.cli.schema import conf_dir

    if flags.multirun or flags.run or flags.cfg:
        raise ConfigError("--info and the like stand alone: leave out -m, --run and --cfg")
    with composing(flags.overrides, flags.config_name, flags.config_path, flags.config_dir):
        pass  # the folders exist
    words = ["--hydra-help"] * flags.hydra_help + ["--shell-completion"] * flags.shell_completion
    for name in ("config_name", "config_path", "config_dir", "info"):
        if value := getattr(flags, name):
            words.append(f"--{name.replace('_', '-')}={value}")
    sys.argv = ["gr-sweep", *words, *flags.overrides]  # Hydra wants flags first
    decorate = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    try:
        decorate(lambda _: None)()
    except SystemExit as end:
        return 2 if end.code else 0  # Hydra has printed why
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
    return 0


def run(command: "Command") -> int:
    """Runs the jobs that are not done, prints the results, and returns the exit status.

    Raises:
        JobError: a folder holds a different job, and `resume` does not say what to do with it.
    """
    from hydra.core.utils import configure_log

    from gr_sweep.cli.launchers import check_launcher, launch, status_of
    from gr_sweep.cli.task import task_of
    from gr_sweep.jobdir import State
    from gr_sweep.joblock import announce

    processes = connect()
    # Only the main process looks at folders: their names may hold the time, and files change.
    missing = processes.from_main(functools.partial(_missing, command))
    jobs = [job for job in command.jobs if job.number in missing]
    checked = processes.from_main(functools.partial(check_launcher, command, jobs))
    if processes.is_main:
        hydra = command.hydra_config.hydra
        configure_log(hydra.hydra_logging, hydra.verbose)
    tasks = []
    for position, job in enumerate(command.jobs, start=1):
        place = f"[{position}/{len(command.jobs)}]" if command.is_multirun else ""
        if job.number in missing:
            tasks.append(task_of(command, job, place, missing[job.number]))
        elif processes.is_main:
            print(f"{place} {job.title}: done already".strip(), file=sys.stderr)
    for job in jobs if processes.is_main and command.is_multirun else ():
        announce(job.folder, job.title)
    outcomes = launch(command, tasks, checked) if tasks else []
    if not processes.is_main:
        return status_of(outcomes)
    for job, outcome in zip(jobs, outcomes, strict=True):
        if outcome.state is State.running:
            print(f"gr-sweep: {job.title} not run here: {outcome.error}", file=sys.stderr)
        elif outcome.state is not State.done and command.is_multirun:
            said = f"{job.title} {outcome.state.value}: {outcome.error} ({job.folder})"
            print(f"gr-sweep: {said}", file=sys.stderr)
    _print_results(command)
    return status_of(outcomes)


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
            show(command.folder, folders)
        return
    if summary := read_finished(folders[0]):
        print("\n".join(main_numbers(summary)))
    print(folders[0])


if __name__ == "__main__":
    sys.exit(main())
