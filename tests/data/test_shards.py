import errno

import numpy as np
import pytest

from gr_sweep.data.shards import Shard, ShardWriter, open_shard

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
