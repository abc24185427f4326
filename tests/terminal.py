"""Runs a program on a pseudo-terminal: reads what it shows, and presses keys."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A running program and its output so far."""

    def __init__(self, process: "subprocess.Popen[bytes]", descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self._written = b""

    @property
    def text(self) -> str:
        """The output without colours and cursor movements."""
        return _CONTROL.sub("", self._written.decode(errors="replace"))

    def wait_for(self, text: str, timeout_s: float = 180.0) -> None:
        """Waits until the program writes this text."""
        start, give_up = len(self.text), time.monotonic() + timeout_s
        while text not in self.text[start:]:
            assert time.monotonic() < give_up, f"no {text!r} in {self.text!r}"
            if not self._read():
                assert text in self.text[start:], f"ended without {text!r}: {self.text!r}"

    def press(self, key: bytes) -> None:
        """As if typed: b"\\x03" is Ctrl-C."""
        os.write(self._descriptor, key)

    def wait(self, timeout_s: float = 180.0) -> int:
        """Waits until the program has ended; returns its exit status."""
        give_up = time.monotonic() + timeout_s
        while self._read():
            assert time.monotonic() < give_up, self.text
        return self.process.wait(timeout_s)

    def _read(self) -> bool:
        """Reads what arrives within 0.1 s; returns whether there can be more."""
        if not select.select([self._descriptor], [], [], 0.1)[0]:
            return True
        try:
            piece = os.read(self._descriptor, 1 << 16)
        except OSError:  # all who wrote have ended
            return False
        self._written += piece
        return bool(piece)


def _take_terminal() -> None:
    """Makes this the controlling terminal, so that Ctrl-C arrives even if the tests run in the
    background of a shell, which ignores it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def on_terminal(
    command: Sequence[str | Path],
    *,
    columns: int = 80,
    lines: int = 24,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Terminal]:
    """Runs the program in the repository's folder, and kills it at the end of the block."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=its,
        stdout=its,
        stderr=its,
        cwd=Path(__file__).parents[1],
        env=plain | {"TERM": "xterm-256color"} | dict(environment or {}),
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(its)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)
