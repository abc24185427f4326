import errno
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from gr_sweep.data import cache
from gr_sweep.data.cache import CONTENTS, MANIFEST, PROGRESS, digests, open_or_build
from gr_sweep.errors import DataError, GrSweepError, JobError


def build(folder: Path) -> dict:
    (folder / "tokens").write_bytes(bytes(range(100)))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    return {"vocab_size": 8}


def build_slowly(folder: Path) -> dict:
    with open(folder.parent / "builds", "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.5)
    return build(folder)


def open_in_a_process(folder: Path, results, silent_s: float) -> None:
    cache.SILENT_S = silent_s
    try:
        results.put(open_or_build(folder, build_slowly))
    except JobError as error:
        results.put(str(error))


def started(folder: Path, number: int, silent_s: float = 60.0):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=open_in_a_process, args=(folder, results, silent_s))
        for _ in range(number)
    ]
    for worker in workers:
        worker.start()
    return workers, results


def test_processes_that_start_together_build_once(tmp_path):
    workers, results = started(tmp_path / "cache", 2)
    found = [results.get(timeout=60) for _ in workers]
    assert found[0] == found[1] == open_or_build(tmp_path / "cache", build)
    assert len((tmp_path / "builds").read_text().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["builds", "cache"]


def test_a_process_that_stands_still_is_replaced_and_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SILENT_S", 1.0)
    [worker], results = started(tmp_path / "cache", 1, silent_s=1.0)
    while not (tmp_path / "builds").exists():
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGSTOP)
    made = open_or_build(tmp_path / "cache", build)
    os.kill(worker.pid, signal.SIGCONT)
    assert "taken over by another process" in results.get(timeout=60)
    assert open_or_build(tmp_path / "cache", build_slowly) == made
    assert len((tmp_path / "builds").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError("line 3 is broken"), "line 3"),
        (OSError(errno.ENOSPC, "full"), r"cache cannot be written: No space left .*data\.cache"),
    ],
    ids=["text", "disk"],
)
def test_a_build_that_fails_leaves_nothing_and_the_next_one_works(tmp_path, error, said):
    def fail(folder: Path) -> dict:
        build(folder)
        raise error

    with pytest.raises(GrSweepError, match=said):
        open_or_build(tmp_path / "cache", fail)
    assert not list(tmp_path.iterdir())
    stale = tmp_path / "cache.building"
    stale.mkdir()
    (stale / "half").write_bytes(b"what a killed process left")
    assert "half" not in open_or_build(tmp_path / "cache", build)["files"]
    assert not stale.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "tokens", 99),
        lambda folder: shutil.rmtree(folder / "tokenizer"),
        lambda folder: os.truncate(folder / MANIFEST, 20),
    ],
    ids=["file", "folder", "manifest"],
)
def test_a_damaged_cache_is_built_again_with_a_warning(tmp_path, caplog, damage):
    folder = tmp_path / "cache"
    open_or_build(folder, build)
    damage(folder)
    open_or_build(folder, build)
    assert "is damaged; building it again" in caplog.text
    assert (folder / "tokens").read_bytes() == bytes(range(100))


def test_a_stray_file_does_no_harm(tmp_path):
    made = open_or_build(tmp_path / "cache", build)
    (tmp_path / "cache" / ".nfs0001").write_text("x")
    assert open_or_build(tmp_path / "cache", build_slowly) == made
    assert not (tmp_path / "builds").exists()


def test_a_disk_that_is_full_before_the_build_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "cache.lock")

    monkeypatch.setattr(cache.SoftFileLease, "acquire", refuse)
    with pytest.raises(JobError, match=r"cache cannot be written: No space left .*data\.cache"):
        open_or_build(tmp_path / "cache", build)


def test_a_script_that_runs_again_in_a_process_it_started_does_not_wait(tmp_path, monkeypatch):
    process = multiprocessing.current_process()
    monkeypatch.setattr(process, "_inheriting", True, raising=False)
    with pytest.raises(JobError, match="the script needs `if __name__"):
        open_or_build(tmp_path / "cache", build)
    monkeypatch.delattr(process, "_inheriting")
    made = open_or_build(tmp_path / "cache", build)
    monkeypatch.setattr(process, "_inheriting", True, raising=False)
    assert open_or_build(tmp_path / "cache", build) == made


def test_digests_follow_the_content_and_not_the_name(tmp_path):
    one, two, memory = tmp_path / "one", tmp_path / "two", tmp_path / "cache" / CONTENTS
    one.write_text("text")
    two.write_text("text")
    first = digests([one, two], memory)
    assert first[0] == first[1]
    stamp = one.stat().st_mtime_ns
    one.write_text("Text")
    os.utime(one, ns=(stamp, stamp))
    assert digests([one, two], memory) != first
    assert digests([two], memory) == first[1:]
    with pytest.raises(DataError, match="three: cannot be read"):
        digests([tmp_path / "three"], memory)


def test_what_is_tokenised_stays_where_the_text_cannot_be_read_on(tmp_path):
    def begin(folder: Path) -> dict:
        (folder / PROGRESS).write_text("{}")
        (folder / "hours").write_text("of work")
        raise DataError("the Hub does not answer")

    def go_on(folder: Path) -> dict:
        assert (folder / "hours").read_text() == "of work"
        return {}

    with pytest.raises(DataError, match="Hub"):
        open_or_build(tmp_path / "cache", begin)
    assert list(open_or_build(tmp_path / "cache", go_on)["files"]) == ["hours"]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["hours", MANIFEST]
