import errno

import numpy as np
import pytest

from gr_sweep.data.shards import IdSet, Shard, ShardWriter, open_shard

DTYPE = np.dtype(np.uint16)


def documents_of(shard: Shard) -> list[tuple[list[int], int, int]]:
    return [
        (shard.document(i).tolist(), int(shard.num_bytes[i]), int(shard.ids[i]))
        for i in range(shard.num_documents)
    ]


def test_a_shard_comes_back_as_it_was_written(tmp_path):
    with ShardWriter(tmp_path, "a", DTYPE, eot_id=7) as writer:
        writer.add(np.array([1, 2, 3], dtype=DTYPE), 11, 2**63 + 5)
        writer.add(np.array([], dtype=DTYPE), 0, 1)
        writer.add(np.array([4], dtype=DTYPE), 5, 2)
    shard = open_shard(tmp_path, "a", DTYPE)
    assert documents_of(shard) == [([1, 2, 3, 7], 11, 2**63 + 5), ([7], 0, 1), ([4, 7], 5, 2)]
    assert (shard.num_documents, shard.num_tokens) == (3, 7)
    assert isinstance(shard.arrays[0], np.memmap) and shard.document(0).dtype == DTYPE


def test_a_full_disk_is_an_error_of_the_table_of_documents_too(tmp_path):
    (tmp_path / "a.documents").symlink_to("/dev/full")
    with pytest.raises(OSError) as full, ShardWriter(tmp_path, "a", DTYPE, eot_id=7) as writer:
        writer.add(np.array([1], dtype=DTYPE), 1, 1)
    assert full.value.errno == errno.ENOSPC


def test_a_shard_goes_on_from_where_it_was_flushed(tmp_path):
    with ShardWriter(tmp_path, "a", DTYPE, eot_id=7) as writer:
        writer.add(np.array([1, 2], dtype=DTYPE), 2, 1)
        size = writer.flush()
        writer.add(np.array([3], dtype=DTYPE), 1, 2)
    with ShardWriter(tmp_path, "a", DTYPE, 7, size) as writer:
        writer.add(np.array([4], dtype=DTYPE), 1, 3)
    assert documents_of(open_shard(tmp_path, "a", DTYPE)) == [([1, 2, 7], 2, 1), ([4, 7], 1, 3)]


def test_a_set_of_ids_has_those_that_were_added():
    ids = IdSet(most_recent=3)
    ids.update(np.array([2**64 - 1, 5], dtype=np.uint64))
    for new in (0, 9, 2**63, 7, 9):
        ids.add(new)
    assert {n for n in (0, 1, 5, 7, 8, 9, 2**63, 2**64 - 2, 2**64 - 1) if n in ids} == {
        *(0, 5, 7, 9, 2**63, 2**64 - 1)
    }


def test_sorting_a_set_of_ids_does_not_take_the_square_of_its_size(monkeypatch):
    lengths = []
    sort = np.sort
    monkeypatch.setattr(np, "sort", lambda array: lengths.append(len(array)) or sort(array))
    ids = IdSet(most_recent=10)
    for new in range(10_000):
        ids.add(new)
    assert sum(lengths) < 20 * 10_000
    assert 0 in ids and 9_999 in ids and 10_000 not in ids
