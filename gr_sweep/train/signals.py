"""Signals that ask a run to stop: a training run finishes its step and saves a checkpoint first.

SLURM sends SIGTERM and SIGUSR2 before it takes a node away; Ctrl-C is SIGINT. Standard library
only.
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
    """The run was told to stop, and everything it needs to resume is on disk.

    Not an Exception, so that no handler takes it for a failure.
    """

    def __init__(self, signum: int, hand_on: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.signum: int = signum
        self.hand_on = hand_on or (lambda: None)
        """Calls the handler that was replaced: that of submitit starts the job again."""

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


class StopSignals:
    """Whether a signal has asked this process to stop."""

    def __init__(self) -> None:
        self._stop: Stopped | None = None
        self._is_deferred = False
        self._replaced: dict[int, Any] = {}

    @property
    def are_there(self) -> bool:
        """Whether a signal has come."""
        return self._stop is not None

    def obey(self) -> None:
        """Raises Stopped; with SIGTERM if only another process has received a signal."""
        self._stop = self._stop or Stopped(signal.SIGTERM)
        raise self._stop

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, a signal stops the run. Does nothing in a thread other than the main one.

        Raises:
            Stopped: a signal came; when the block ends at the latest, and instead of an Exception
                that the block ends with, so that the next job of a sweep does not start.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._stop = None
        found = {number: signal.getsignal(number) for number in SIGNALS}
        # Ignored signals stay ignored (Ctrl-C, for a script in the background), and handlers that
        # were not set from Python, which could not be put back.
        stay = (None, signal.SIG_IGN)
        self._replaced = {number: of for number, of in found.items() if of not in stay}
        try:
            for number in self._replaced:
                signal.signal(number, self._handle)
            yield
        except Exception as error:
            if self._stop is not None:
                raise self._stop from error
            raise
        finally:
            for number, handler in self._replaced.items():
                signal.signal(number, handler)
        if self._stop is not None:
            raise self._stop  # Python drops what a handler raises within a destructor

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal waits for `obey` or the end of the block; a second Ctrl-C does not."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self._stop is not None:
            raise self._stop

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        replaced = self._replaced.get(signum)

        def hand_on() -> None:
            if callable(replaced) and replaced is not signal.default_int_handler:
                replaced(signum, frame)

        if self._stop is None:
            self._stop = Stopped(signum, hand_on)
            if not self._is_deferred:
                raise self._stop
            if signum == signal.SIGINT:
                # Logging may be in the middle of a line.
                os.write(2, b"\nsaving before the stop; Ctrl-C again stops at once\n")
        elif signum == signal.SIGINT:
            raise self._stop
        elif signum == signal.SIGUSR2:
            # SLURM sends SIGTERM first, then the signal that submitit waits for.
            self._stop.signum, self._stop.hand_on = signum, hand_on
