from pathlib import Path

import numpy as np

from gr_sweep.data.shards import Shard, ShardWriter, join, open_shard

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
    return open_shard(folder, str(seed), DTYPE)


def test_a_shard_comes_back_as_it_was_written(tmp_path):
    with ShardWriter(tmp_path, "a", DTYPE, eot_id=7) as writer:
        writer.add(np.array([1, 2, 3], dtype=DTYPE), 11, 2**63 + 5)
        writer.add(np.array([], dtype=DTYPE), 0, 1)
        writer.add(np.array([4], dtype=DTYPE), 5, 2)
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
