"""Texts tokenised in several processes, with the results in the order of the texts."""

import logging
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

import numpy as np

from gr_sweep.data.tokenize import Tokenizer
from gr_sweep.errors import JobError

logger = logging.getLogger(__name__)

POOL_FROM_CHARACTERS = 32 << 20
"""Text that is tokenised before other processes start, which takes some seconds."""
_MAX_PROCESSES = 16
"""One process reads for all, and each takes memory, about 0.1 GB."""
_AHEAD = 2
"""Batches a process that are read before they are needed."""

Batch = TypeVar("Batch")


def num_processes() -> int:
    """Processes that tokenise much text."""
    return min(usable_cores(), _MAX_PROCESSES)


def usable_cores() -> int:
    """Cores that this process may use; in a SLURM job fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encoded(
    tokenizer: Tokenizer, batches: Iterable[tuple[Batch, list[str]]]
) -> Iterator[tuple[Batch, list[np.ndarray]]]:
    """Each batch with the tokens of its texts, in order: from this process, and where there is much
    text from others, one a core. The tokens do not depend on their number.

    Raises:
        JobError: a process was killed.
    """
    batches, num_characters = iter(batches), 0
    for batch, texts in batches:
        yield batch, tokenizer.encode(texts)
        num_characters += sum(map(len, texts))
        if num_characters >= POOL_FROM_CHARACTERS and num_processes() > 1:
            break
    else:
        return
    logger.info("tokenising in %d processes", num_processes())
    # In a file, since to start a process with much data never ends if that process ends early.
    with tempfile.NamedTemporaryFile() as file:
        file.write(pickle.dumps(tokenizer))
        file.flush()
        yield from _encoded_by_others(file.name, batches)


def _encoded_by_others(
    tokenizer: str, batches: Iterator[tuple[Batch, list[str]]]
) -> Iterator[tuple[Batch, list[np.ndarray]]]:
    """As `encoded`, with the path of a pickled tokenizer."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes(), context, _begin, (tokenizer,))
    pending: deque[tuple[Batch, Future[list[np.ndarray]]]] = deque()
    try:
        for batch, texts in batches:
            pending.append((batch, pool.submit(_encode, texts)))
            if len(pending) > _AHEAD * num_processes():
                first, tokens = pending.popleft()
                yield first, tokens.result()
        for batch, tokens in pending:
            yield batch, tokens.result()
    except BrokenProcessPool as error:
        raise JobError(
            "a process that tokenised text ended: the lines above say why, as for a script without "
            '`if __name__ == "__main__":`, or the system killed it for lack of memory; start the '
            "same command again, it goes on with what is tokenised"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(tokenizer: str) -> None:
    """Prepares a process that tokenises."""
    global _tokenizer
    _tokenizer = pickle.loads(Path(tokenizer).read_bytes())
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # no threads beside the processes
    # Signals go to all processes of a terminal or of a SLURM job; the main one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode(texts: list[str]) -> list[np.ndarray]:
    return _tokenizer.encode(texts)


_tokenizer: Tokenizer
