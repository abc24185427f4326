"""Which documents carry which label, round by round."""

import numpy as np
import pytest

from gr_sweep.assign.labels import HELDOUT, TRAIN, RoundLabels
from gr_sweep.data.prepare import TokenData
from gr_sweep.data.shards import Shard

DOMAINS = ("code", "biology/cells", "biology/virology")


def shard(first: int, documents: int) -> Shard:
    """Documents of two tokens each, the first of which says which document it is."""
    tokens = np.arange(first, first + documents).repeat(2).astype(np.uint16)
    offsets = np.arange(0, 2 * documents + 1, 2)
    ids = np.arange(first, first + documents).astype(np.uint64)
    return Shard.packed(tokens, offsets, np.full(documents, 2), ids)


@pytest.fixture
def data(tmp_path) -> TokenData:
    return TokenData(
        domains=DOMAINS,
        train={d: shard(100 * (place + 1), 4) for place, d in enumerate(DOMAINS)},
        heldout={d: shard(1000 * (place + 1), 2) for place, d in enumerate(DOMAINS)},
        vocab_size=5000,
        eot_id=0,
        prefix=(),
        fingerprint="x",
        markers={},
        tokenizer_dir=tmp_path,
    )


def documents(shards) -> dict[str, list[int]]:
    return {
        label: [int(s.document(index)[0]) for index in range(s.num_documents)]
        for label, s in shards.items()
    }


def test_the_first_round_has_the_text_of_all_leaves_below_a_label(data):
    text = RoundLabels.first(data, ("code", "biology")).divided(data)
    assert text.domains == ("code", "biology")
    assert documents(text.train) == {
        "code": [100, 101, 102, 103],
        "biology": [200, 201, 202, 203, 300, 301, 302, 303],
    }
    assert documents(text.heldout) == {"code": [1000, 1001], "biology": [2000, 2001, 3000, 3001]}


def test_later_rounds_go_down_the_tree_and_by_clusters_where_it_ends(data):
    first = RoundLabels.first(data, ("code", "biology"))
    names = ("code/0", "code/1", "biology/cells", "biology/virology")
    clusters = {(TRAIN, "code"): np.array([1, 0, 0, 1]), (HELDOUT, "code"): np.array([1, 1])}
    second = first.next(names, clusters)
    text = second.divided(data)
    assert documents(text.train) == {
        "code/0": [101, 102],
        "code/1": [100, 103],
        "biology/cells": [200, 201, 202, 203],
        "biology/virology": [300, 301, 302, 303],
    }
    assert documents(text.heldout)["code/0"] == []
    assert documents(text.heldout)["code/1"] == [1000, 1001]
    third = second.next(
        ("code/0/0", "code/0/1", "code/1", "biology/cells", "biology/virology"),
        {(TRAIN, "code"): np.array([0, 1, 0, 0]), (HELDOUT, "code"): np.array([0, 0])},
    )
    assert documents(third.divided(data).train)["code/0/1"] == [101]
    assert documents(third.divided(data).train)["code/1"] == [100, 103]


def test_labels_survive_a_file(data, tmp_path):
    labels = RoundLabels.first(data, ("code", "biology"))
    labels.write(tmp_path / "labels.npz")
    read = RoundLabels.read(tmp_path / "labels.npz", data)
    assert read.names == labels.names
    assert documents(read.divided(data).train) == documents(labels.divided(data).train)
