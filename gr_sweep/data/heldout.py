"""Held-out documents cut into rows for a model.

M rows of an evaluation, T tokens that a row predicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gr_sweep.data.markers import marker_places
from gr_sweep.data.shards import Shard

IGNORED = -100
"""Target that no loss counts."""


@dataclass(frozen=True, slots=True)
class HeldoutChunks:
    """Held-out documents of one domain, cut into rows for a model."""

    input_ids: np.ndarray
    """[M, T] int64; padded with the last token of `begin`."""
    targets: np.ndarray
    """[M, T] int64: the token that follows each input; -100 where there is none."""
    rows: np.ndarray
    """[M] int64: which document (place in the tables below) a row belongs to."""
    ids: tuple[str, ...]
    """Each document's id as 16 hexadecimal digits."""
    num_tokens: np.ndarray
    """[documents] int64: tokens that are predicted."""
    num_bytes: np.ndarray
    """[documents] float64: bytes of text that these tokens stand for."""


def first_documents(shard: Shard, *, tokens: int, document_tokens: int) -> np.ndarray:
    """Indices of the held-out documents that `heldout_chunks` reads, in its order."""
    order = np.argsort(shard.ids, kind="stable")
    lengths = np.minimum(shard.lengths[order], document_tokens)
    return order[: np.searchsorted(np.cumsum(lengths), tokens) + 1]


def heldout_chunks(
    shard: Shard,
    *,
    tokens: int,
    document_tokens: int,
    sequence_length: int,
    begin: Sequence[int],
    marker: np.ndarray | None = None,
) -> HeldoutChunks:
    """Held-out documents in the order of their ids, until they have `tokens` tokens, cut into rows.

    Ids are hashes of the text, so the order is the same in every job. A document is read up to
    `document_tokens`, in rows of at most `sequence_length` inputs. Its first token is predicted
    from `begin`, the first token of a later row from the token before it, and its own end-of-text
    token is predicted too, as in training. The bytes of a document that is cut are scaled by the
    share of its tokens that is read.

    Args:
        tokens, document_tokens: of the documents' own; a marker's do not count.
        begin: as `TokenData.begin`; not predicted.
        marker: token ids that are inserted in every document at the positions where a marked
            training document has them. They are read but not predicted.
    """
    if marker is None:
        marker = np.empty(0, np.int64)
    rows: list[tuple[int, np.ndarray, np.ndarray]] = []
    ids: list[str] = []
    lengths: list[int] = []
    num_bytes: list[float] = []
    for index in first_documents(shard, tokens=tokens, document_tokens=document_tokens).tolist():
        document = shard.document(index)
        own = document[:document_tokens].astype(np.int64)
        places = marker_places(len(document) - 1)
        places = np.repeat(places[places < len(own)], len(marker))
        follows = np.insert(own, places, np.resize(marker, len(places)))
        inputs = np.concatenate([begin, follows[:-1]]).astype(np.int64)
        targets = np.insert(own, places, IGNORED)
        targets = np.insert(targets, 0, np.full(len(begin) - 1, IGNORED))
        for start in range(0, len(targets), sequence_length):
            part = slice(start, start + sequence_length)
            if (targets[part] != IGNORED).any():
                rows.append((len(ids), inputs[part], targets[part]))
        ids.append(f"{int(shard.ids[index]):016x}")
        lengths.append(len(own))
        num_bytes.append(int(shard.num_bytes[index]) * len(own) / len(document))
    width = max((len(inputs) for _, inputs, _ in rows), default=0)
    input_ids_MT = np.full((len(rows), width), begin[-1], dtype=np.int64)
    targets_MT = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for row, (_, inputs, targets) in enumerate(rows):
        input_ids_MT[row, : len(inputs)] = inputs
        targets_MT[row, : len(targets)] = targets
    return HeldoutChunks(
        input_ids_MT,
        targets_MT,
        np.array([document for document, _, _ in rows], dtype=np.int64),
        tuple(ids),
        np.array(lengths, dtype=np.int64),
        np.array(num_bytes, dtype=np.float64),
    )
