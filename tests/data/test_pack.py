"""Text tokenised in several processes, and by one process after another was killed."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from gr_sweep.config import DataConfig
from gr_sweep.data import encode, pack
from gr_sweep.data.prepare import TokenData, prepare_data
from gr_sweep.data.tokenize import TrainedTokenizer
from tests.data.corpus import local, partition, texts, write_lines, write_root

TWO = partition("code", "creative")


def files_of(made: TokenData) -> dict[str, bytes]:
    """The files of the cache."""
    files = [path for path in made.tokenizer_dir.parent.rglob("*") if path.is_file()]
    return {path.name: path.read_bytes() for path in files}


def in_processes(cores: int) -> None:
    """From the second batch on, of which there are many."""
    os.sched_getaffinity = lambda _: set(range(cores))
    encode.POOL_FROM_CHARACTERS = 1
    pack.BATCH_CHARACTERS = 5_000


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", None, raising=False)
    monkeypatch.setattr(encode, "POOL_FROM_CHARACTERS", None)
    monkeypatch.setattr(pack, "BATCH_CHARACTERS", None)
    in_processes(1)


def test_two_processes_leave_the_files_that_one_leaves(tmp_path, monkeypatch, caplog):
    for domain in TWO.domains:  # copies, some near each other
        made = texts(domain, 300)
        records = [{"text": text} for text in (*made[:100], *made[:100], *made[50:])]
        write_lines(tmp_path / "root" / f"{domain}.jsonl", records)
    monkeypatch.setattr(pack, "HELD_OUT_TOKENS", 5_000)

    def prepared(name: str, cores: int) -> dict[str, bytes]:
        in_processes(cores)
        data = local(tmp_path / name, tmp_path / "root", limit_tokens=50_000, spurious=0.5)
        return files_of(prepare_data(data, TWO))

    with caplog.at_level("INFO"):
        one = prepared("one", 1)
        assert "tokenising in" not in caplog.text
        assert prepared("two", 2) == one
    assert "tokenising in 2 processes" in caplog.text


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def prepare_and_die(data: DataConfig, pids: Path) -> None:
    """Prepares text in two processes, and is killed when it has recorded its progress thrice."""
    in_processes(2)
    pack.PROGRESS_S = 0.0
    left = [3]
    write = pack.write_whole

    def write_and_die(path: Path, text: str) -> None:
        write(path, text)
        left[0] -= 1
        if left[0] == 0:
            pids.write_text(json.dumps(children_of(os.getpid())))
            os.kill(os.getpid(), signal.SIGKILL)

    pack.write_whole = write_and_die
    prepare_data(data, TWO)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_killed_process_is_followed_by_one_that_tokenises_the_rest(tmp_path, monkeypatch):
    root = write_root(tmp_path / "root", "code", "creative", documents=200)
    data = local(tmp_path, root, spurious=0.5)
    killed = multiprocessing.get_context("spawn").Process(
        target=prepare_and_die, args=(data, tmp_path / "pids")
    )
    killed.start()
    killed.join(timeout=120)
    assert killed.exitcode == -signal.SIGKILL
    pids = json.loads((tmp_path / "pids").read_text())
    assert len(pids) >= 2
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids)), "they end with the process that started them"

    [building] = (tmp_path / "cache").glob("*.building")
    kept = json.loads((building / pack.PROGRESS).read_text())
    sizes = [size for domain in kept["domains"].values() for size in domain["sizes"]]
    num_kept = sum(documents for _, documents in sizes)
    assert 0 < num_kept < 400
    tokenised: list[str] = []

    def encode_counted(self, texts):
        tokenised.extend(texts)
        return plain(self, texts)

    plain = TrainedTokenizer.encode
    monkeypatch.setattr(TrainedTokenizer, "encode", encode_counted)
    made = files_of(prepare_data(data, TWO))
    markers = 2  # one for each domain, tokenised by both processes
    assert len(tokenised) == 400 - num_kept + markers
    assert files_of(prepare_data(local(tmp_path / "whole", root, spurious=0.5), TWO)) == made
    assert not building.exists()
