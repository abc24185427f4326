"""Signals that ask a run to stop: where it trains it ends its step and saves first, elsewhere it
leaves at once.

SIGTERM and SIGUSR2 are what SLURM sends before it takes a node away, SIGINT is Ctrl-C. Standard
library alone.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Stopped(BaseException):
    """The run was told to stop, and all that it can go on from is on the disk.

    No Exception: nothing that handles failures may take it for one.
    """

    def __init__(self, signum: int, hand_on: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.signum: int = signum
        self.hand_on = hand_on or (lambda: None)
        """Does what the signal did before somebody listened: a launcher may start the job again."""

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


class StopSignals:
    """Whether a signal has asked this process to stop."""

    def __init__(self) -> None:
        self._asked: Stopped | None = None
        self._is_raised = False
        self._is_deferred = False
        self._is_quiet = False
        self._before: dict[int, Any] = {}

    @property
    def are_there(self) -> bool:
        """Whether one has come that is put off."""
        return self._asked is not None

    def obey(self) -> None:
        """Ends the run. Whoever had no signal was told of another process's.

        Raises:
            Stopped: always.
        """
        self._is_raised = True
        self._asked = self._asked or Stopped(signal.SIGTERM)
        raise self._asked

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the signals stop the run. In a thread that is not the main one they cannot be
        heard, and nothing changes.

        Raises:
            Stopped: at the latest when the block ends, in place of an Exception that it ends with.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._asked, self._is_raised = None, False
        found = {number: signal.getsignal(number) for number in SIGNALS}
        # What is ignored stays so: Ctrl-C is not meant for a job in the background of a script. A
        # handler that is not Python's (None) could not be put back.
        self._before = {
            number: handler
            for number, handler in found.items()
            if handler is not None and handler is not signal.SIG_IGN
        }
        try:
            for number in self._before:
                signal.signal(number, self._take)
            yield
        except Exception as error:
            # It may not stand in the way: the next job would begin.
            if self._asked is not None:
                raise self._asked from error
            raise
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        if self._asked is not None:
            # Python drops what is raised in a destructor, and a signal comes at any moment.
            raise self._asked

    @contextlib.contextmanager
    def deferred(self, *, is_quiet: bool = False) -> Iterator[None]:
        """Inside, signals wait for `obey`; a second Ctrl-C does not. `is_quiet`: whoever obeys says
        that one has come.

        Raises:
            Stopped: at the end of the block, for one that nobody has obeyed.
        """
        self._is_deferred, self._is_quiet = True, is_quiet
        try:
            yield
        finally:
            self._is_deferred = False
        if self._asked is not None and not self._is_raised:
            self.obey()

    def _take(self, signum: int, frame: FrameType | None) -> None:
        before = self._before.get(signum)

        def hand_on() -> None:
            if callable(before) and before is not signal.default_int_handler:
                before(signum, frame)

        if self._asked is None:
            self._asked = Stopped(signum, hand_on)
            if self._is_deferred:
                if signum == signal.SIGINT and not self._is_quiet:
                    # Not through logging, which may be at work right now.
                    os.write(2, b"\nending this step, then saving; Ctrl-C again leaves at once\n")
                return
        elif signum != signal.SIGINT:
            # SLURM sends SIGTERM, then the one that the launcher waits for.
            if signum == signal.SIGUSR2:
                self._asked.signum, self._asked.hand_on = signum, hand_on
            return
        if not self._is_raised or signum == signal.SIGINT:
            self._is_raised = True
            raise self._asked
