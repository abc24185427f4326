import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_sweep.data.heldout import IGNORED, heldout_chunks
from gr_sweep.data.markers import MARKER_EVERY, marked
from tests.data.corpus import EOT, shard


def test_chunks_are_whole_documents_in_the_order_of_their_ids():
    documents = shard([5, 12, 4], num_bytes=30)
    documents.ids[:] = [300, 2, 10]
    chunks = heldout_chunks(
        documents, tokens=100, document_tokens=50, sequence_length=5, begin=[EOT]
    )
    assert chunks.ids == (f"{2:016x}", f"{10:016x}", f"{300:016x}")
    assert chunks.num_tokens.tolist() == [12, 4, 5]
    assert chunks.num_bytes.tolist() == [30, 30, 30]
    assert chunks.rows.tolist() == [0, 0, 0, 1, 2]
    long = documents.document(1).tolist()
    assert chunks.targets[0].tolist() == long[:5]
    assert chunks.input_ids[0].tolist() == [EOT, *long[:4]]
    assert chunks.input_ids[1].tolist() == long[4:9]
    assert chunks.targets[2].tolist() == [*long[10:], IGNORED, IGNORED, IGNORED]
    assert chunks.input_ids[2].tolist() == [*long[9:11], EOT, EOT, EOT]
    assert (chunks.targets != IGNORED).sum() == 21


def test_chunks_stop_when_they_have_enough_and_scale_the_bytes_of_cut_documents():
    documents = shard([20, 20, 20, 20], num_bytes=100)
    chunks = heldout_chunks(documents, tokens=11, document_tokens=8, sequence_length=6, begin=[EOT])
    assert chunks.num_tokens.tolist() == [8, 8]
    assert chunks.num_bytes.tolist() == [40.0, 40.0]
    # No wider than what is read: padding would be computed.
    assert chunks.input_ids.shape == chunks.targets.shape == (4, 6)
    assert EOT not in chunks.targets


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
    documents = shard(lengths)
    options = {"tokens": 150, "document_tokens": document_tokens, "begin": [EOT]}
    marker = np.full(width, 7777)
    plain = heldout_chunks(documents, sequence_length=sequence_length, **options)
    read = heldout_chunks(documents, sequence_length=sequence_length, marker=marker, **options)
    assert read.ids == plain.ids
    assert read.num_tokens.tolist() == plain.num_tokens.tolist()
    assert read.num_bytes.tolist() == plain.num_bytes.tolist()
    assert read.input_ids.shape[1] <= sequence_length
    for index in range(len(plain.ids)):
        predicted = [
            chunks.targets[chunks.rows == index][chunks.targets[chunks.rows == index] != IGNORED]
            for chunks in (plain, read)
        ]
        assert np.array_equal(*predicted)
        # Literally: a training document of this text, marked, and cut where the document is.
        text = documents.document(index)
        own = [EOT, *marked(text[:-1], marker).tolist(), EOT]
        length, taken = 0, 1
        while length < read.num_tokens[index]:
            length += own[taken] != 7777
            taken += 1
        inputs, targets = own[: taken - 1], own[1:taken]
        expected = [
            inputs[start : start + sequence_length]
            for start in range(0, len(inputs), sequence_length)
            if any(target != 7777 for target in targets[start : start + sequence_length])
        ]
        found = read.input_ids[read.rows == index].tolist()
        assert [row[: len(want)] for row, want in zip(found, expected, strict=True)] == expected
    assert (read.targets != IGNORED).any(axis=1).all()
