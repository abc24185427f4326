"""Runs command lines of gr-sweep as a user does, in a folder of their own."""

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gr_sweep.cli import app

MODULE = ("-m", "gr_sweep")


class Program:
    """Runs command lines in an empty folder with a blank in its name."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder / "a folder"
        self.folder.mkdir()
        self._settings = {
            "HOME": str(folder),  # whoever runs the tests may be logged in to W&B
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "GR_SWEEP_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
        }

    def start(
        self, *argv: str, by: Sequence[str] = (sys.executable, *MODULE)
    ) -> "subprocess.Popen[str]":
        """In a process of its own, or in those that `by` starts."""
        return subprocess.Popen(
            [*by, *argv],
            cwd=self.folder,
            env={name: of for name, of in os.environ.items() if "WANDB" not in name}
            | self._settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv: str) -> tuple[int, str, str]:
        """In this process, which has torch loaded. Returns exit status, stdout and stderr."""
        out, err, root = io.StringIO(), io.StringIO(), logging.getLogger()
        handlers = list(root.handlers)
        with (
            contextlib.chdir(self.folder),
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            for name in [name for name in os.environ if "WANDB" in name]:
                patch.delenv(name)
            for name, value in self._settings.items():
                patch.setenv(name, value)
            status = app.main(argv)
        root.handlers[:] = handlers
        return status, out.getvalue(), err.getvalue()
