import errno
import multiprocessing
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from gr_sweep import files, joblock
from gr_sweep.data.cache import CONTENTS, HOLDER, MANIFEST, PROGRESS, digests, open_or_build
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


def open_in_a_process(folder: Path, barrier, results, has_locks: bool) -> None:
    if not has_locks:
        files._try_lock = lambda descriptor, kind: None
    barrier.wait(timeout=60)
    results.put(open_or_build(folder, build_slowly))


@pytest.mark.parametrize("has_locks", [True, False])
def test_processes_that_start_together_build_once(tmp_path, has_locks):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [
        context.Process(
            target=open_in_a_process, args=(tmp_path / "cache", barrier, results, has_locks)
        )
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert found[0] == found[1]
    assert len((tmp_path / "builds").read_text().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["builds", "cache", "cache.lock"]


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
    assert [path.name for path in tmp_path.iterdir()] == ["cache.lock"]
    stale = tmp_path / "cache.building"
    stale.mkdir()
    (stale / "half").write_bytes(b"what a killed process left")
    assert "half" not in open_or_build(tmp_path / "cache", build)["files"]
    assert not stale.exists()


def change_a_byte(folder: Path) -> None:
    path = folder / "tokens"
    path.write_bytes(b"\x01" + path.read_bytes()[1:])


@pytest.mark.parametrize(
    "damage",
    [
        change_a_byte,
        lambda folder: shutil.rmtree(folder / "tokenizer"),
        lambda folder: os.truncate(folder / MANIFEST, 20),
    ],
    ids=["byte", "folder", "manifest"],
)
def test_a_damaged_cache_is_built_again_with_a_warning(tmp_path, caplog, damage):
    folder = tmp_path / "cache"
    open_or_build(folder, build)
    damage(folder)
    open_or_build(folder, build)
    assert "is damaged; building it again (" in caplog.text
    assert (folder / "tokens").read_bytes() == bytes(range(100))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "cache.lock"]


def test_digests_follow_the_content_and_not_the_name(tmp_path):
    one, two, memory = tmp_path / "one", tmp_path / "two", tmp_path / "cache" / CONTENTS
    one.write_text("text")
    two.write_text("text")
    first = digests([one, two], memory)
    assert first[0] == first[1]
    stamp = one.stat().st_mtime_ns
    one.write_text("Text")
    # A file that was just written is not remembered: it can change within the clock's resolution.
    os.utime(one, ns=(stamp, stamp))
    assert digests([one, two], memory) != first
    memory.parent.mkdir()
    memory.write_text("[broken")
    assert digests([two], memory) == first[1:]
    with pytest.raises(DataError, match="three: cannot be read"):
        digests([tmp_path / "three"], memory)


@pytest.mark.parametrize("has_heartbeat", [True, False])
def test_a_process_of_another_machine_builds_alone_while_it_has_a_heartbeat(
    tmp_path, monkeypatch, has_heartbeat
):
    monkeypatch.setattr(joblock, "SILENT_S", 0.4)
    building = tmp_path / "cache.building"  # its lock is not visible here
    building.mkdir()
    holder = building / f"{HOLDER}.1"
    holder.write_text("elsewhere")

    def elsewhere() -> None:
        with joblock.heartbeat(holder):
            time.sleep(1.0)
            open_or_build(tmp_path / "made", build)
            (tmp_path / "made").rename(tmp_path / "cache")
        shutil.rmtree(building)

    monkeypatch.setattr(joblock, "HEARTBEAT_S", 0.1)
    other = threading.Thread(target=elsewhere if has_heartbeat else lambda: None)
    other.start()
    open_or_build(tmp_path / "cache", build_slowly)
    other.join()
    assert (tmp_path / "builds").exists() is not has_heartbeat
    assert not building.exists()


def test_two_that_find_a_silent_process_do_not_both_take_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_try_lock", lambda descriptor, kind: None)
    monkeypatch.setattr(joblock, "SILENT_S", 0.4)
    (tmp_path / "cache.building").mkdir()
    (tmp_path / "cache.building" / f"{HOLDER}.1").write_text("elsewhere")
    threads = [
        threading.Thread(target=open_or_build, args=(tmp_path / "cache", build_slowly))
        for _ in range(4)
    ]
    monkeypatch.setattr(joblock, "HEARTBEAT_S", 0.1)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len((tmp_path / "builds").read_text().splitlines()) == 1
    assert (tmp_path / "cache" / MANIFEST).exists()


def test_a_build_that_another_process_takes_over_ends_in_one_line(tmp_path):
    def lose(folder: Path) -> dict:
        (folder / f"{HOLDER}.2").write_text("elsewhere")
        raise FileNotFoundError("moved by the other one")

    with pytest.raises(JobError, match="was taken over by another process"):
        open_or_build(tmp_path / "cache", lose)
    assert (tmp_path / "cache.building" / f"{HOLDER}.2").exists(), "which goes on"


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


def test_a_disk_that_is_full_before_the_build_is_told_in_one_line(tmp_path, monkeypatch):
    def fail(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(JobError, match=r"cache cannot be written: No space left"):
        open_or_build(tmp_path / "cache", build)
