"""Runs a program on a pseudo-terminal: reads what it shows, and presses keys."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import subprocess
import termios
import threading
from collections.abc import Sequence
from pathlib import Path

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _take_terminal() -> None:
    """Makes this the controlling terminal, so that Ctrl-C arrives even if the tests run in the
    background of a shell, which ignores it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def on_terminal(command: Sequence[str | Path], awaited: str) -> tuple[int, str]:
    """Runs a program in the repository's folder, on a terminal of 24 lines and 80 columns, and
    presses Ctrl-C where it shows the awaited text; returns its exit status, and its output without
    colours and cursor movements. It is killed after three minutes."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 80))
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=its,
        stdout=its,
        stderr=its,
        cwd=Path(__file__).parents[1],
        env=plain | {"TERM": "xterm-256color"},
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(its)
    end = threading.Timer(180.0, process.kill)
    end.start()
    shown, is_pressed = "", False
    with contextlib.suppress(OSError):  # all who wrote have ended
        while piece := os.read(ours, 1 << 16):
            shown = _CONTROL.sub("", shown + piece.decode("utf-8", "replace"))
            if awaited in shown and not is_pressed:
                is_pressed = os.write(ours, b"\x03") > 0
    end.cancel()
    status = process.wait(180.0)
    os.close(ours)
    return status, shown
