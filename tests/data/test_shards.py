import numpy as np
import pytest

from gr_sweep.data.shards import IdSet, Shard, ShardWriter, open_shard
from gr_sweep.errors import DataError

DTYPE = np.dtype(np.uint16)


def documents_of(shard: Shard) -> list[tuple[list[int], int, int]]:
    return [
        (shard.document(i).tolist(), int(shard.num_bytes[i]), int(shard.ids[i]))
        for i in range(shard.num_documents)
    ]


def test_a_shard_comes_back_as_it_was_written_and_goes_on_from_where_it_was_flushed(tmp_path):
    with ShardWriter(tmp_path, "a", DTYPE, eot_id=7) as writer:
        writer.add(np.array([1, 2, 3], dtype=DTYPE), 11, 2**63 + 5)
        writer.add(np.array([], dtype=DTYPE), 0, 1)
        size = writer.flush()
        writer.add(np.array([3], dtype=DTYPE), 1, 2)
    with ShardWriter(tmp_path, "a", DTYPE, 7, size) as writer:
        writer.add(np.array([4], dtype=DTYPE), 5, 3)
    shard = open_shard(tmp_path, "a", DTYPE)
    assert documents_of(shard) == [([1, 2, 3, 7], 11, 2**63 + 5), ([7], 0, 1), ([4, 7], 5, 3)]
    assert (shard.num_documents, shard.num_tokens) == (3, 7)
    assert isinstance(shard.arrays[0], np.memmap) and shard.document(0).dtype == DTYPE
    with pytest.raises(DataError, match="shorter than recorded"):
        ShardWriter(tmp_path, "a", DTYPE, 7, (8, 3))


def test_a_set_of_ids_has_those_that_were_added_without_sorting_often(monkeypatch):
    sorted_: list[int] = []
    sort = np.sort
    monkeypatch.setattr(np, "sort", lambda array: sorted_.append(len(array)) or sort(array))
    old = np.array([2**64 - 1, 5], dtype=np.uint64)
    ids = IdSet(old)
    for new in range(0, 200_000, 2):
        ids.add(new)
    assert {n for n in (0, 1, 5, 99_998, 99_999, 199_998, 200_000, 2**64 - 1) if n in ids} == {
        *(0, 5, 99_998, 199_998, 2**64 - 1)
    }
    assert 100_000 < sum(sorted_) < 20 * 100_000
