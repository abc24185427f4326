"""Starts the two tasks of a SLURM step, which nobody ends for each other."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

BEGIN = """
import os, sys
import gr_sweep.job  # before the fork: it takes longer than the work

other = os.fork()
os.environ["SLURM_PROCID"] = os.environ["SLURM_LOCALID"] = "0" if other else "1"
if other:
    open("other", "w").write(str(other))
"""

COMMAND = """
from gr_sweep.cli.app import main
sys.exit(main(sys.argv[1:]))
"""


def start_two(
    folder: Path, *words: str, program: str = COMMAND, **environment: str
) -> "subprocess.Popen[str]":
    """Runs a program, by default the command, in two processes in the folder.

    Returns:
        The process of rank 0. Both write to its stderr.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "2", "MASTER_PORT": str(port)}
    here = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + program, *words],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if "WANDB" not in name}
        | {"GR_SWEEP_CACHE": str(folder / "cache")} | here | slurm | environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def kill_other(folder: Path) -> None:
    """Kills the process of rank 1, if it has not ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(int((folder / "other").read_text()), signal.SIGKILL)
