"""Processes that tokenise: what they answer, and what is said when one ends."""

import os
import signal

import numpy as np
import pytest

from gr_sweep.data import encode
from gr_sweep.data.encode import encoded
from gr_sweep.errors import JobError


class Tokenizer:
    """As many tokens as characters; some texts are orders."""

    def encode(self, texts):
        if "print" in texts:
            print("hello")
        if "raise" in texts:
            raise ValueError("a bug of the tokenizer")
        if "ignore" in texts:
            for number in (signal.SIGINT, signal.SIGUSR2):
                os.kill(os.getpid(), number)
        if "die" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        return [np.zeros(len(text), np.uint16) for text in texts]


@pytest.fixture(autouse=True)
def two_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(encode, "POOL_FROM_CHARACTERS", 1)


def results(*texts):
    batches = ((number, [text]) for number, text in enumerate(("first", *texts)))
    return [(number, len(tokens[0])) for number, tokens in encoded(Tokenizer(), batches)]


def test_what_a_tokenizer_prints_and_signals_to_all_processes_change_nothing():
    expected = [(0, 5), (1, 5), (2, 6), (3, 1), (4, 5), (5, 3), (6, 2), (7, 1)]
    assert results("print", "ignore", "a", "print", "abc", "ab", "a") == expected


@pytest.mark.parametrize(
    ("order", "error", "said"),
    [
        ("raise", ValueError, "a bug of the tokenizer"),
        ("die", JobError, "the system killed it for lack of memory"),
    ],
)
def test_an_error_of_a_process_is_raised(order, error, said):
    with pytest.raises(error, match=said):
        results("a", "b", order, *"cdefghij")
