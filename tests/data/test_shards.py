from pathlib import Path

import numpy as np

from gr_sweep.data.heldout import heldout_chunks
from gr_sweep.data.shards import Shard, ShardWriter, join, open_shard
from gr_sweep.data.streams import Stream, read_window

DTYPE = np.dtype(np.uint16)


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


def test_a_shard_comes_back_as_it_was_written(tmp_path):
    with ShardWriter(tmp_path, "a", DTYPE, eot_id=7) as writer:
        writer.add(np.array([1, 2, 3], dtype=DTYPE), 11, 2**63 + 5)
        writer.add(np.array([], dtype=DTYPE), 0, 1)
        writer.add(np.array([4], dtype=DTYPE), 5, 2)
        writer.close()
    shard = open_shard(tmp_path, "a", DTYPE)
    assert documents_of(shard) == [([1, 2, 3, 7], 11, 2**63 + 5), ([7], 0, 1), ([4, 7], 5, 2)]
    assert (shard.num_documents, shard.num_tokens) == (3, 7)
    assert isinstance(shard.arrays[0], np.memmap) and shard.document(0).dtype == DTYPE


def test_a_subset_is_the_documents_with_these_indices_in_this_order(tmp_path):
    shard = written(tmp_path, 1)
    places = [7, 3, 3, 29, 0]
    subset = shard.subset(places)
    all_documents = documents_of(shard)
    assert documents_of(subset) == [all_documents[place] for place in places]
    assert subset.num_tokens == sum(len(all_documents[place][0]) for place in places)
    assert documents_of(subset.subset(np.array([4, 1]))) == [all_documents[0], all_documents[3]]
    assert documents_of(shard.subset([])) == []


def test_joined_shards_are_their_documents_one_shard_after_another(tmp_path):
    one, two, three = (written(tmp_path, seed) for seed in (1, 2, 3))
    joined = join([one, join([two.subset([5, 2]), three]), one.subset([])])
    expected = [
        *documents_of(one), *documents_of(two.subset([5, 2])), *documents_of(three),
    ]  # fmt: skip
    assert documents_of(joined) == expected
    assert documents_of(joined.subset([61, 0, 31])) == [expected[i] for i in (61, 0, 31)]
    assert np.shares_memory(joined.document(0), one.arrays[0]), "no token is copied"


def test_a_stream_and_an_evaluation_read_the_same_from_a_view_and_from_a_copy(tmp_path):
    one, two = written(tmp_path, 1), written(tmp_path, 2)
    view = join([one.subset(np.arange(0, 30, 2)), two.subset(np.arange(29, -1, -1))])
    tokens = np.concatenate([view.document(i) for i in range(45)])
    offsets = np.concatenate([[0], np.cumsum(view.lengths)])
    copy = Shard.packed(tokens, offsets, view.num_bytes, view.ids)
    streams = [Stream([(shard, np.arange(40))], 8, ("key",)) for shard in (view, copy)]
    rows = np.empty((2, 9), np.int64)
    for window in range(2 * streams[0].num_windows):
        for stream, row in zip(streams, rows, strict=True):
            read_window(stream, window, row)
        assert np.array_equal(*rows)
    limits = dict(tokens=400, document_tokens=20, sequence_length=8, eot_id=7)
    ours, theirs = (heldout_chunks(shard, **limits) for shard in (view, copy))
    assert np.array_equal(ours.input_ids, theirs.input_ids)
    assert np.array_equal(ours.targets, theirs.targets) and ours.ids == theirs.ids
