"""Assertions on command lines that are refused, for tests of bad input."""

import contextlib
import hashlib
import signal
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from gr_sweep.cli import app

LIMIT_S = 120  # a busy machine is no failure


def contents(folder: Path) -> dict[str, str]:
    """The content of a folder: a hash of each file, or its kind, by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = oct(stat.S_IFMT(mode))
    return found


@contextlib.contextmanager
def within(seconds: float = LIMIT_S) -> Iterator[None]:
    """Fails the test if the block takes longer than that."""

    def stop(*_: object) -> None:
        pytest.fail(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_one_line(text: str) -> bool:
    """Whether it is one line without control characters."""
    return bool(text) and text.isprintable()


def assert_refused(
    argv: Sequence[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asserts status 2, one line on stderr that contains `expected`, and an unchanged folder."""
    before = contents(folder)
    capsys.readouterr()
    with within():
        status = app.main(argv)
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, ""), printed
    line, end, rest = printed.err.partition("\n")
    assert line.startswith("gr-sweep: ") and is_one_line(line) and end and not rest, printed.err
    assert expected in line, line
    assert contents(folder) == before
