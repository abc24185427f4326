"""Texts tokenised in one process a core, with the results in the order of the texts.

Not by `multiprocessing`: it would import the script of a user who calls this, and leave processes
behind when this one is killed. These end with their standard input.
"""

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from gr_sweep.errors import JobError

logger = logging.getLogger(__name__)

POOL_FROM_CHARACTERS = 32 << 20
"""Text that is tokenised before other processes start, which takes some seconds."""
_AHEAD = 2
"""Batches a process that are read before they are needed."""

Batch = TypeVar("Batch")


class _Encodes(Protocol):
    """A tokenizer of `tokenize`; it must pickle."""

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...


def usable_cores() -> int:
    """Cores that this process may use; in a SLURM job fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Encoders:
    """Tokenises batches of texts, in this process at first and then in one process a core.

    The tokens do not depend on the number of processes.
    """

    def __init__(self, tokenizer: _Encodes) -> None:
        self._tokenizer = tokenizer
        self._cores = usable_cores()
        self._threads: ThreadPoolExecutor | None = None
        """Each thread waits for a process of its own."""
        self._of_thread = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._characters = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            with contextlib.suppress(OSError):  # it was killed, and did not read all
                process.communicate()

    def encoded(
        self, batches: Iterable[tuple[Batch, list[str]]]
    ) -> Iterator[tuple[Batch, list[np.ndarray]]]:
        """Each batch with the tokens of its texts, in order.

        An error of `batches` comes after the batches before it, as with one process.

        Raises:
            JobError: a process was killed.
        """
        pending: deque[tuple[Batch, Future[list[np.ndarray]]]] = deque()
        try:
            for batch, texts in batches:
                pending.append((batch, self._submit(texts)))
                while len(pending) > (_AHEAD * self._cores if self._threads else 0):
                    batch, tokens = pending.popleft()
                    yield batch, tokens.result()
        except Exception:
            yield from ((batch, tokens.result()) for batch, tokens in pending)
            raise
        yield from ((batch, tokens.result()) for batch, tokens in pending)

    def _submit(self, texts: list[str]) -> Future[list[np.ndarray]]:
        self._characters += sum(map(len, texts))
        is_much = self._characters >= POOL_FROM_CHARACTERS
        if self._threads is None and self._cores > 1 and is_much:
            logger.info("tokenising in %d processes", self._cores)
            self._threads = ThreadPoolExecutor(self._cores)
        if self._threads is not None:
            return self._threads.submit(self._elsewhere, texts)
        done: Future[list[np.ndarray]] = Future()
        done.set_result(self._tokenizer.encode(texts))
        return done

    def _elsewhere(self, texts: list[str]) -> list[np.ndarray]:
        """Tokenises in this thread's process."""
        try:
            if not hasattr(self._of_thread, "process"):
                self._of_thread.process = process = _started()
                self._processes.append(process)
                _send(self._tokenizer, process.stdin)
            process = self._of_thread.process
            _send(texts, process.stdin)
            tokens: list[np.ndarray] = pickle.load(process.stdout)
            return tokens
        except (OSError, EOFError) as error:
            raise JobError(
                "a process that tokenised text was killed, as the system does where memory is "
                "short; start the same command again, it goes on with what is tokenised"
            ) from error


def _started() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},  # no threads beside the processes
    )


def _send(value: Any, to: Any) -> None:
    pickle.dump(value, to, protocol=pickle.HIGHEST_PROTOCOL)
    to.flush()


def _serve() -> None:
    """Reads a tokenizer and then texts, and writes their tokens, until its input ends."""
    # Signals go to all processes of a terminal or of a SLURM job; the main one decides.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    read, write = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(EOFError, BrokenPipeError, pickle.UnpicklingError):
        tokenizer = pickle.load(read)
        while True:
            _send(tokenizer.encode(pickle.load(read)), write)


if __name__ == "__main__":
    _serve()
