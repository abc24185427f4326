"""The command `gr-sweep`: a verb, or a Hydra command line whose jobs are checked, run and reported.

Exit status: 0 all done, 1 a bug, 2 an error that the user can fix, 130 interrupted.
"""

import argparse
import contextlib
import functools
import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gr_sweep import __version__
from gr_sweep.arguments import Parser
from gr_sweep.errors import ConfigError, GrSweepError
from gr_sweep.files import unusable
from gr_sweep.train.distributed import connect, is_main
from gr_sweep.train.signals import Stopped

if TYPE_CHECKING:
    # Hydra takes half a second to import, and a verb does without.
    from gr_sweep.cli.compose import Command

VERBS = ("report", "export", "estimate", "bench", "status", "dashboard", "doctor")
"""Each is a module of `gr_sweep.cli` with a `main(argv)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status.

    A GrSweepError is printed as one line; HYDRA_FULL_ERROR=1 shows its traceback.
    """
    # Imports and reports make millions of objects that stay, and looking through them for
    # unreachable ones as often as by default takes a fifth of the time.
    gc.set_threshold(100_000)
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        status = _dispatch(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:  # closed by the shell
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor does Python at exit
        return 128 + signal.SIGPIPE
    except GrSweepError as error:
        if wants_traceback:
            raise
        said, status = str(error), 2
    except OSError as error:
        if wants_traceback or error.filename is None:  # a bug
            raise
        said, status = str(unusable(error)), 2
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
        from gr_sweep.cli.run import run

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

    for job in command.jobs:
        cfg = command.composer.compose(job.lines)
        if part != "job":
            command.composer.with_hydra(cfg, job.lines, job.number, job.folder.absolute())
        if part == "hydra":
            cfg = OmegaConf.masked_copy(cfg, "hydra")
        if command.is_multirun:
            print(f"---\n# {job.title}")
        print(OmegaConf.to_yaml(cfg).rstrip())


if __name__ == "__main__":
    sys.exit(main())
