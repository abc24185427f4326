"""Processes that tokenise: what they answer, and what is said when one ends."""

import os
import pickle
import signal

import numpy as np
import pytest

from gr_sweep.data import encode
from gr_sweep.data.encode import Encoders, num_processes
from gr_sweep.errors import JobError


class Tokenizer:
    """As many tokens as characters; some texts are orders."""

    def encode(self, texts):
        if "print" in texts:
            print("hello")
            os.write(1, b"hello")
        if "raise" in texts:
            raise ValueError("a bug of the tokenizer")
        if "exit" in texts:
            os._exit(3)
        if "ignore" in texts:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
                os.kill(os.getpid(), number)
        if "die" in texts:  # while it answers
            links = {int(fd.name): os.readlink(fd.path) for fd in os.scandir("/proc/self/fd")}
            [to] = {link for link in links.values() if "pipe:" in link} - {links[0], links[2]}
            begun = pickle.dumps(b"x" * 255)[:40]
            os.write(next(fd for fd, link in links.items() if link == to), begun)
            os.kill(os.getpid(), signal.SIGKILL)
        return [np.zeros(len(text), np.uint16) for text in texts]


@pytest.fixture
def encoders(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(encode, "POOL_FROM_CHARACTERS", 0)
    with Encoders(Tokenizer()) as made:
        yield made


def results(encoders, *texts):
    return [
        (number, len(tokens[0]))
        for number, tokens in encoders.encoded((n, [text]) for n, text in enumerate(texts))
    ]


def test_what_a_tokenizer_prints_and_signals_to_all_processes_change_nothing(encoders):
    assert results(encoders, "print", "ignore", "a", "print") == [(0, 5), (1, 6), (2, 1), (3, 5)]


@pytest.mark.parametrize(
    ("order", "error", "said"),
    [
        ("raise", ValueError, "a bug of the tokenizer"),
        ("exit", JobError, "ended with status 3"),
        ("die", JobError, "was killed, as the system does where memory is short"),
    ],
)
def test_an_error_of_a_process_is_raised_in_its_place_and_nothing_comes_after_it(
    encoders, order, error, said
):
    found = []
    with pytest.raises(error, match=said):
        for number, _ in encoders.encoded(
            (n, [t]) for n, t in enumerate(["a", "b", order, *"cdefghij"])
        ):
            found.append(number)
        pytest.fail("no error")
    assert found == [0, 1]


def test_an_error_of_reading_comes_after_the_batches_before_it(encoders):
    def batches():
        yield from ((n, ["text"]) for n in range(3))
        raise ValueError("line 4 is broken")

    found = []
    with pytest.raises(ValueError, match="line 4"):
        for number, _ in encoders.encoded(batches()):
            found.append(number)
    assert found == [0, 1, 2]


def test_a_machine_with_many_cores_does_not_start_one_process_each(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(192)), raising=False)
    assert num_processes() == 16
