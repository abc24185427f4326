import errno
import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gr_sweep.data import shards
from gr_sweep.data.batches import Stream, heldout_chunks
from gr_sweep.data.shards import (
    MANIFEST,
    Pieces,
    Shard,
    ShardWriter,
    content_keys,
    digest,
    join,
    open_or_build,
    open_shard,
)
from gr_sweep.errors import DataError, JobError

DTYPE = np.dtype(np.uint16)


def build_three(folder: Path) -> dict:
    with ShardWriter(folder, "0-a.train", DTYPE, eot_id=7) as writer:
        writer.add(np.array([1, 2, 3], dtype=DTYPE), 11, 2**63 + 5)
        writer.add(np.array([], dtype=DTYPE), 0, 1)
        writer.add(np.array([4], dtype=DTYPE), 5, 2)
        writer.close()
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    return {"vocab_size": 8}


def build_and_note(folder: Path) -> dict:
    with open(folder.parent / "builds", "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(0.5)
    return build_three(folder)


def open_in_a_process(folder: Path, barrier, results) -> None:
    barrier.wait(timeout=60)
    open_or_build(folder, build_and_note)
    results.put(open_shard(folder, "0-a.train", DTYPE).tokens.tolist())


def test_a_shard_comes_back_as_it_was_written(tmp_path):
    build_three(tmp_path)
    shard = open_shard(tmp_path, "0-a.train", DTYPE)
    assert shard.tokens.tolist() == [1, 2, 3, 7, 7, 4, 7]
    assert isinstance(shard.tokens, np.memmap)
    assert shard.offsets.tolist() == [0, 4, 5, 7]
    assert shard.num_bytes.tolist() == [11, 0, 5]
    assert shard.ids.tolist() == [2**63 + 5, 1, 2]
    assert shard.document(2).tolist() == [4, 7]
    assert (shard.num_documents, shard.num_tokens) == (3, 7)


def test_an_empty_shard_can_be_opened(tmp_path):
    with ShardWriter(tmp_path, "e", DTYPE, eot_id=0) as writer:
        writer.close()
    shard = open_shard(tmp_path, "e", DTYPE)
    assert (shard.num_documents, shard.num_tokens, shard.offsets.tolist()) == (0, 0, [0])


def documents_of(shard: Shard) -> list[tuple[list[int], int, int]]:
    return [
        (shard.document(i).tolist(), int(shard.num_bytes[i]), int(shard.ids[i]))
        for i in range(shard.num_documents)
    ]


def written(folder: Path, seed: int, num_documents: int = 30) -> Shard:
    """A shard of random documents, mapped into memory."""
    random = np.random.default_rng(seed)
    with ShardWriter(folder, str(seed), DTYPE, eot_id=7) as writer:
        for number in range(num_documents):
            tokens = random.integers(10, 1000, random.integers(0, 40)).astype(DTYPE)
            writer.add(tokens, int(random.integers(100)), 1000 * seed + number)
        writer.close()
    return open_shard(folder, str(seed), DTYPE)


def test_a_subset_is_the_documents_of_these_places_in_this_order(tmp_path):
    shard = written(tmp_path, 1)
    places = [7, 3, 3, 29, 0]
    subset = shard.subset(places)
    all_documents = documents_of(shard)
    assert documents_of(subset) == [all_documents[place] for place in places]
    assert subset.num_documents == 5
    assert subset.num_tokens == sum(len(all_documents[place][0]) for place in places)
    again = subset.subset(np.array([4, 1]))
    assert documents_of(again) == [all_documents[0], all_documents[3]]
    empty = shard.subset([])
    assert (empty.num_documents, empty.num_tokens, empty.offsets.tolist()) == (0, 0, [0])
    assert documents_of(shard.subset(np.arange(30))) == all_documents


def test_joined_shards_are_their_documents_one_shard_after_another(tmp_path):
    one, two, three = (written(tmp_path, seed) for seed in (1, 2, 3))
    joined = join([one, join([two.subset([5, 2]), three]), one.subset([])])
    expected = [
        *documents_of(one), *documents_of(two.subset([5, 2])), *documents_of(three),
    ]  # fmt: skip
    assert documents_of(joined) == expected
    assert joined.num_tokens == sum(len(tokens) for tokens, _, _ in expected)
    places = [61, 0, 31]
    assert documents_of(joined.subset(places)) == [expected[place] for place in places]
    assert join([one]) is one


def test_views_do_not_copy_tokens(tmp_path):
    one, two = written(tmp_path, 1), written(tmp_path, 2)
    view = join([one.subset([4, 9]), two])
    assert isinstance(view.tokens, Pieces)
    assert np.shares_memory(view.document(0), one.tokens)
    assert np.shares_memory(view.document(5), two.tokens)
    assert view.tokens.dtype == DTYPE


def test_pieces_are_sliced_as_an_array_is(tmp_path):
    one, two = written(tmp_path, 1), written(tmp_path, 2)
    view = join([one.subset([4, 9, 2]), two.subset([8])])
    flat = np.concatenate([view.document(i) for i in range(4)])
    assert len(view.tokens) == len(flat)
    for start in range(len(flat) + 1):
        for stop in range(start, len(flat) + 1):
            assert np.array_equal(view.tokens[start:stop], flat[start:stop])
    assert np.array_equal(view.tokens[:], flat)
    with pytest.raises(ValueError, match="in steps of 2"):
        view.tokens[::2]


def test_a_stream_and_an_evaluation_read_of_views_what_they_read_of_copies(tmp_path):
    one, two = written(tmp_path, 1), written(tmp_path, 2)
    view = join([one.subset(np.arange(0, 30, 2)), two.subset(np.arange(29, -1, -1))])
    copy = Shard(view.tokens[:], view.offsets, view.num_bytes, view.ids)
    chosen = np.arange(40)
    streams = [Stream([(shard, chosen)], 8, ("key",)) for shard in (view, copy)]
    assert streams[0].num_tokens == streams[1].num_tokens
    rows = np.empty((2, 9), np.int64)
    for window in range(2 * streams[0].num_windows):
        for stream, row in zip(streams, rows, strict=True):
            stream.read(window, row)
        assert np.array_equal(*rows)
    limits = dict(tokens=400, document_tokens=20, sequence_length=8, eot_id=7)
    ours, theirs = (heldout_chunks(shard, **limits) for shard in (view, copy))
    for mine, other in ((ours.input_ids, theirs.input_ids), (ours.targets, theirs.targets)):
        assert np.array_equal(mine, other)
    assert ours.ids == theirs.ids


def test_a_cache_is_built_once_and_then_opened(tmp_path):
    folder = tmp_path / "deep" / "cache"
    about = open_or_build(folder, build_three)
    assert about["vocab_size"] == 8
    assert set(about["files"]) == {
        "0-a.train.tokens", "0-a.train.documents", "tokenizer/tokenizer.json",
    }  # fmt: skip

    def not_again(_: Path) -> dict:
        raise AssertionError("a warm cache was built again")

    assert open_or_build(folder, not_again) == about


def test_processes_that_start_together_build_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=open_in_a_process, args=(tmp_path / "cache", barrier, results))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert found == [[1, 2, 3, 7, 7, 4, 7]] * 3
    assert len((tmp_path / "builds").read_text().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["builds", "cache", "cache.lock"]


def test_a_build_that_fails_leaves_nothing_and_the_next_one_works(tmp_path):
    def fail(folder: Path) -> dict:
        (folder / "half").write_text("written")
        raise DataError("line 3 is broken")

    with pytest.raises(DataError, match="line 3"):
        open_or_build(tmp_path / "cache", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.lock"]
    assert open_or_build(tmp_path / "cache", build_three)["vocab_size"] == 8


def test_what_a_killed_build_left_is_removed(tmp_path):
    stale = tmp_path / "cache.building-abc"
    stale.mkdir()
    (stale / "0-a.train.tokens").write_bytes(b"half")
    open_or_build(tmp_path / "cache", build_three)
    assert not stale.exists()


def delete_a_file(folder: Path) -> None:
    (folder / "0-a.train.documents").unlink()


def truncate_a_file(folder: Path) -> None:
    os.truncate(folder / "0-a.train.tokens", 5)


def change_a_byte(folder: Path) -> None:
    path = folder / "0-a.train.tokens"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def delete_the_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def truncate_the_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 20)


def delete_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


@pytest.mark.parametrize(
    "damage",
    [
        delete_a_file,
        truncate_a_file,
        change_a_byte,
        delete_the_tokenizer,
        truncate_the_manifest,
        delete_the_manifest,
    ],
)
def test_a_damaged_cache_is_built_again_with_a_warning(tmp_path, caplog, damage):
    folder = tmp_path / "cache"
    open_or_build(folder, build_three)
    damage(folder)
    with caplog.at_level(logging.WARNING):
        open_or_build(folder, build_three)
    assert "is damaged; building it again (" in caplog.text
    assert open_shard(folder, "0-a.train", DTYPE).tokens.tolist() == [1, 2, 3, 7, 7, 4, 7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "cache.lock"]


def flip(path: Path, place: int) -> None:
    """One bit; the file's time of change stays, as where a disk loses one."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def large_cache(tmp_path, monkeypatch) -> Path:
    """A cache with a large file, of which the first and last bytes alone are sampled."""
    monkeypatch.setattr(shards, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(shards, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(shards, "_SAMPLED_BLOCKS", 2)
    open_or_build(tmp_path / "cache", build_large)
    return tmp_path / "cache"


def build_large(folder: Path) -> dict:
    (folder / "large").write_bytes(bytes(10_000))
    (folder / "small").write_bytes(b"text")
    return {}


def test_a_large_file_that_was_copied_is_read_as_a_whole(large_cache, caplog):
    """Copied anew it is another file: what was lost on the way is found wherever it is."""
    copied = large_cache.with_name("copied")
    shutil.copytree(large_cache, copied)
    open_or_build(copied, build_large)
    assert not caplog.text
    again = large_cache.with_name("again")
    shutil.copytree(large_cache, again)
    flip(again / "large", 5_000)
    open_or_build(again, build_large)
    assert "damaged; building it again (large has the size but not the content" in caplog.text
    assert not any((again / "large").read_bytes())


def test_a_large_file_is_read_as_a_whole_once(large_cache, monkeypatch):
    read = []
    whole = shards.content_digest
    monkeypatch.setattr(shards, "content_digest", lambda path: (read.append(path), whole(path))[1])
    open_or_build(large_cache, build_large)
    assert not read, "who builds it has read it"
    copied = large_cache.with_name("copied")
    shutil.copytree(large_cache, copied)
    for _ in range(3):
        open_or_build(copied, build_large)
    assert read == [copied / "large"]
    os.utime(copied / "large")
    open_or_build(copied, build_large)
    assert read == [copied / "large"] * 2, "somebody has written to it"


def test_of_a_large_file_that_was_read_samples_are_checked(large_cache, caplog):
    flip(large_cache / "large", 50)
    open_or_build(large_cache, build_large)
    assert "building it again (large has the size but not the content" in caplog.text


def test_a_cache_of_a_version_that_sampled_large_files_alone_is_used(large_cache):
    manifest = json.loads((large_cache / MANIFEST).read_text())
    manifest["files"]["large"].pop()
    (large_cache / MANIFEST).write_text(json.dumps(manifest))
    (large_cache / "checked.json").unlink()
    assert open_or_build(large_cache, delete_a_file) == manifest


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        Exception("No space left on device (os error 28)"),
    ],
    ids=["disk", "quota", "tokenizers"],
)
def test_a_disk_that_is_full_while_a_cache_is_built_is_one_line_and_leaves_nothing(tmp_path, error):
    def fills(folder: Path) -> dict:
        build_three(folder)
        (folder / "large").write_bytes(bytes(5000))
        raise error

    with pytest.raises(JobError) as caught:
        open_or_build(tmp_path / "cache", fills)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'cache'} cannot be written: ")
    assert "(more than 5.0 KiB needed, " in said
    assert "or set data.cache or GR_SWEEP_CACHE to a folder on another disk" in said
    assert [path.name for path in tmp_path.iterdir()] == ["cache.lock"]
    assert open_or_build(tmp_path / "cache", build_three)["vocab_size"] == 8


def test_who_waits_for_another_build_says_so(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(shards, "_NOTICE_S", 0.05)
    is_building, may_finish = threading.Event(), threading.Event()

    def slow(folder: Path) -> dict:
        is_building.set()
        assert may_finish.wait(30)
        return build_three(folder)

    builder = threading.Thread(target=open_or_build, args=(tmp_path / "cache", slow))
    builder.start()
    assert is_building.wait(30)
    with caplog.at_level(logging.INFO):
        waiter = threading.Thread(target=open_or_build, args=(tmp_path / "cache", build_three))
        waiter.start()
        deadline = time.monotonic() + 30
        while "waiting for" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
        may_finish.set()
        builder.join(30)
        waiter.join(30)
    assert "another process is building the token cache; waiting for" in caplog.text
    assert (tmp_path / "cache" / MANIFEST).exists()


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cache folder .*file/x cannot be made .*data\.cache"):
        open_or_build(tmp_path / "file" / "x" / "cache", build_three)


def test_content_keys_follow_the_content_and_not_the_name(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("text")
    two.write_text("text")
    memory = tmp_path / "cache" / "contents.json"
    first = content_keys([one, two], memory)
    assert first[0] == first[1]
    one.write_text("Text")
    assert content_keys([one, two], memory) != first
    with pytest.raises(DataError, match="three: cannot be read"):
        content_keys([tmp_path / "three"], memory)


def test_content_is_read_once_unless_size_or_time_change(tmp_path, monkeypatch):
    path, memory = tmp_path / "one", tmp_path / "cache" / "contents.json"
    path.write_text("text")
    old = time.time() - 100
    os.utime(path, (old, old))
    read = []
    monkeypatch.setattr(shards, "digest", lambda file: (read.append(file), digest(file))[1])
    first = content_keys([path], memory)
    assert content_keys([path], memory) == first and len(read) == 1
    os.utime(path, (old + 1, old + 1))
    assert content_keys([path], memory) == first and len(read) == 2
    memory.write_text("[broken")
    assert content_keys([path], memory) == first


def test_a_file_that_was_just_written_is_not_remembered(tmp_path):
    path, memory = tmp_path / "one", tmp_path / "contents.json"
    path.write_text("text")
    first = content_keys([path], memory)
    stamp = path.stat().st_mtime_ns
    path.write_text("TEXT")
    os.utime(path, ns=(stamp, stamp))
    assert content_keys([path], memory) != first


def test_large_files_are_sampled_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(shards, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(shards, "_SAMPLED_BLOCKS", 5)
    path = tmp_path / "large"
    content = bytearray(10_000)
    path.write_bytes(content)
    found = {digest(path)}
    for place in (0, 5000, 9_999):
        content[place] = 1
        path.write_bytes(content)
        found.add(digest(path))
    path.write_bytes(content + b"\0")
    found.add(digest(path))
    assert len(found) == 5
