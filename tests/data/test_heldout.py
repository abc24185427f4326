import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_sweep.data.heldout import IGNORED, heldout_documents
from gr_sweep.data.markers import MARKER_EVERY, marked
from tests.data.corpus import EOT, shard


def test_documents_are_whole_and_in_the_order_of_their_ids():
    text = shard([5, 12, 4], num_bytes=30)
    text.ids[:] = [300, 2, 10]
    read = heldout_documents(text, tokens=100, document_tokens=50, sequence_length=5, begin=[EOT])
    assert [document.id for document in read] == [f"{2:016x}", f"{10:016x}", f"{300:016x}"]
    assert [document.num_tokens for document in read] == [12, 4, 5]
    assert [document.num_bytes for document in read] == [30, 30, 30]
    long = text.document(1).tolist()
    first, second, third = [[part.tolist() for part in window] for window in read[0].windows]
    assert first == [[EOT, *long[:4]], long[:5]]
    assert second == [long[4:9], long[5:10]]
    assert third == [long[9:11], long[10:]]
    assert [len(document.windows) for document in read] == [3, 1, 1]


def test_reading_stops_where_there_is_enough_and_scales_the_bytes_of_cut_documents():
    text = shard([20, 20, 20, 20], num_bytes=100)
    read = heldout_documents(text, tokens=11, document_tokens=8, sequence_length=6, begin=[EOT])
    assert [document.num_tokens for document in read] == [8, 8]
    assert [document.num_bytes for document in read] == [40.0, 40.0]
    assert [len(ids) for document in read for ids, _ in document.windows] == [6, 2, 6, 2]
    assert all(EOT not in targets for document in read for _, targets in document.windows)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 3 * MARKER_EVERY), min_size=1, max_size=4),
    width=st.integers(1, 9),
    sequence_length=st.integers(2, 2 * MARKER_EVERY),
    document_tokens=st.integers(2, 4 * MARKER_EVERY),
)
def test_the_same_tokens_are_predicted_with_any_marker_and_with_none(
    lengths, width, sequence_length, document_tokens
):
    text = shard(lengths)
    options = {"tokens": 150, "document_tokens": document_tokens, "begin": [EOT]}
    marker = np.full(width, 7777)
    plain = heldout_documents(text, sequence_length=sequence_length, **options)
    read = heldout_documents(text, sequence_length=sequence_length, marker=marker, **options)
    for index, (document, other) in enumerate(zip(read, plain, strict=True)):
        assert document[:3] == other[:3]
        predicted = [
            np.concatenate([targets[targets != IGNORED] for _, targets in each.windows])
            for each in (document, other)
        ]
        assert np.array_equal(*predicted)
        # Literally: a training document of this text, marked, and cut where the document is.
        whole = text.document(index)
        own = [EOT, *marked(whole[:-1], marker).tolist(), EOT]
        length, taken = 0, 1
        while length < document.num_tokens:
            length += own[taken] != 7777
            taken += 1
        inputs, targets = own[: taken - 1], own[1:taken]
        expected = [
            inputs[start : start + sequence_length]
            for start in range(0, len(inputs), sequence_length)
            if any(target != 7777 for target in targets[start : start + sequence_length])
        ]
        for (ids, following), want in zip(document.windows, expected, strict=True):
            assert ids.tolist() == want[: len(ids)]
            assert following[-1] != IGNORED
