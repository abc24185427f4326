"""Texts tokenised in several processes, with the results in the order of the texts.

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
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from gr_sweep.errors import JobError

logger = logging.getLogger(__name__)

POOL_FROM_CHARACTERS = 32 << 20
"""Text that is tokenised before other processes start, which takes some seconds."""
_MAX_PROCESSES = 16
"""One process reads for all, and each takes memory, about 0.1 GB."""
_AHEAD = 2
"""Batches a process that are read before they are needed."""

Batch = TypeVar("Batch")


class _Encodes(Protocol):
    """A tokenizer of `tokenize`; it must pickle."""

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...


def num_processes() -> int:
    """Processes that tokenise much text."""
    return min(usable_cores(), _MAX_PROCESSES)


def usable_cores() -> int:
    """Cores that this process may use; in a SLURM job fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Encoders:
    """Tokenises batches of texts, in this process at first and then in others, one a core.

    The tokens do not depend on the number of processes.
    """

    def __init__(self, tokenizer: _Encodes) -> None:
        self._tokenizer = tokenizer
        self._num_processes = num_processes()
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

        An error comes in the place of its batch, as with one process: no batch after it does.

        Raises:
            JobError: a process was killed.
        """
        pending: deque[tuple[Batch, Future[list[np.ndarray]]]] = deque()
        for item in self._submitted(batches):
            pending.append(item)
            while len(pending) > (_AHEAD * self._num_processes if self._threads else 0):
                batch, tokens = pending.popleft()
                yield batch, tokens.result()
        yield from ((batch, tokens.result()) for batch, tokens in pending)

    def _submitted(self, batches: Iterable[tuple[Batch, list[str]]]) -> Iterator[tuple[Any, Any]]:
        try:
            for batch, texts in batches:
                yield batch, self._submit(texts)
        except Exception as error:  # of reading
            failed: Future[Any] = Future()
            failed.set_exception(error)
            yield None, failed

    def _submit(self, texts: list[str]) -> Future[list[np.ndarray]]:
        self._characters += sum(map(len, texts))
        is_much = self._characters >= POOL_FROM_CHARACTERS
        if self._threads is None and self._num_processes > 1 and is_much:
            logger.info("tokenising in %d processes", self._num_processes)
            self._threads = ThreadPoolExecutor(self._num_processes)
        if self._threads is not None:
            return self._threads.submit(self._elsewhere, texts)
        done: Future[list[np.ndarray]] = Future()
        done.set_result(self._tokenizer.encode(texts))
        return done

    def _elsewhere(self, texts: list[str]) -> list[np.ndarray]:
        """Tokenises in this thread's process."""
        is_new = not hasattr(self._of_thread, "process")
        if is_new:
            self._of_thread.process = _started()
            self._processes.append(self._of_thread.process)
        process = self._of_thread.process
        try:
            if is_new:
                _send(self._tokenizer, process.stdin)
            _send(texts, process.stdin)
            answer: list[np.ndarray] | Exception = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            status = process.wait()
            ended = f"ended with status {status}; the lines above say why"
            if status < 0:
                ended = (
                    "was killed, as the system does where memory is short; start the same command "
                    "again, it goes on with what is tokenised"
                )
            raise JobError(f"a process that tokenised text {ended}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def _started() -> "subprocess.Popen[bytes]":
    # Signals go to all processes of a terminal or of a SLURM job; the main one decides. What a
    # thread blocks is blocked in the processes that it starts.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2))
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
    """Reads a tokenizer and then texts, and writes their tokens or the error, until its input
    ends."""
    read, write = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a tokenizer prints is not an answer
    with contextlib.suppress(EOFError, BrokenPipeError, pickle.UnpicklingError):
        tokenizer = pickle.load(read)
        while True:
            texts = pickle.load(read)
            answer: list[np.ndarray] | Exception
            try:
                answer = tokenizer.encode(texts)
            except Exception as error:
                error.add_note(traceback.format_exc())
                answer = error
            _send(answer, write)


if __name__ == "__main__":
    _serve()
