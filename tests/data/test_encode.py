"""Processes that tokenise: what they answer, and what is said when one ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

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


UNGUARDED = """
import sys
from pathlib import Path
from gr_sweep.data import encode
from gr_sweep.data.cache import open_or_build

class Tokenizer:
    words = "x" * 1_000_000  # more than a pipe holds
    def __init__(self): self.mine = self.words
    def encode(self, texts): return texts

encode.POOL_FROM_CHARACTERS = 1
encode.usable_cores = lambda: 2
batches = ((number, ["text"]) for number in range(9))
open_or_build(Path(sys.argv[1]), lambda _: dict(encode.encoded(Tokenizer(), batches)))
"""


@pytest.mark.slow
def test_a_script_without_a_guard_ends_and_says_so(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "cache")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert "JobError: the script needs `if __name__" in done.stderr
    assert "as for a script without `if __name__" in done.stderr.splitlines()[-1]
