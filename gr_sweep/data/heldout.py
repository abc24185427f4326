"""Held-out documents cut into windows for a model. T tokens that a window predicts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gr_sweep.data.markers import marker_places
from gr_sweep.data.shards import Shard

IGNORED = -100
"""Target that no loss counts."""


class HeldoutDocument(NamedTuple):
    """A held-out document, cut into windows."""

    id: str
    """16 hexadecimal digits."""
    num_tokens: int
    """Tokens that are predicted."""
    num_bytes: float
    """Bytes of text that these tokens stand for."""
    windows: list[tuple[np.ndarray, np.ndarray]]
    """Inputs and targets of each, int64 [T]: a target is the token that follows the input, -100
    where none is predicted, and the last one is predicted."""


def first_documents(shard: Shard, *, tokens: int, document_tokens: int) -> np.ndarray:
    """Indices of the held-out documents that `heldout_documents` reads, in its order."""
    order = np.argsort(shard.ids, kind="stable")
    lengths = np.minimum(shard.lengths[order], document_tokens)
    return order[: np.searchsorted(np.cumsum(lengths), tokens) + 1]


def heldout_documents(
    shard: Shard,
    *,
    tokens: int,
    document_tokens: int,
    sequence_length: int,
    begin: Sequence[int],
    marker: np.ndarray | None = None,
) -> list[HeldoutDocument]:
    """Held-out documents in the order of their ids, until they have `tokens` tokens, cut into
    windows.

    Ids are hashes of the text, so the order is the same in every job. A document is read up to
    `document_tokens`, in windows of at most `sequence_length` inputs. Its first token is predicted
    from `begin`, the first token of a later window from the token before it, and its own
    end-of-text token is predicted too, as in training. The bytes of a document that is cut are
    scaled by the share of its tokens that is read.

    Args:
        tokens, document_tokens: of the documents' own; a marker's do not count.
        begin: as `TokenData.begin`; not predicted.
        marker: token ids that are inserted in every document at the positions where a marked
            training document has them. They are read but not predicted.
    """
    if marker is None:
        marker = np.empty(0, np.int64)
    documents = []
    for index in first_documents(shard, tokens=tokens, document_tokens=document_tokens).tolist():
        document = shard.document(index)
        own = document[:document_tokens].astype(np.int64)
        places = marker_places(len(document) - 1)
        places = np.repeat(places[places < len(own)], len(marker))
        follows = np.insert(own, places, np.resize(marker, len(places)))
        inputs = np.concatenate([begin, follows[:-1]]).astype(np.int64)
        targets = np.insert(own, places, IGNORED)
        targets = np.insert(targets, 0, np.full(len(begin) - 1, IGNORED))
        windows = []
        for start in range(0, len(targets), sequence_length):
            part = targets[start : start + sequence_length]
            if len(predicted := np.flatnonzero(part != IGNORED)):
                stop = start + int(predicted[-1]) + 1
                windows.append((inputs[start:stop], targets[start:stop]))
        num_bytes = int(shard.num_bytes[index]) * len(own) / len(document)
        name = f"{int(shard.ids[index]):016x}"
        documents.append(HeldoutDocument(name, len(own), num_bytes, windows))
    return documents
