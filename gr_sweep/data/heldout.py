"""Which documents are held out: a matter of their text alone, the same in every job.

Standard library alone.
"""

import hashlib

HELD_OUT_EVERY = 20
"""A document is held out where its id is a multiple of this (DESIGN: metrics)."""

FEW_DOCUMENTS = 20
"""Fewer held-out documents than this in a domain are worth a warning."""


def text_id(text: str) -> int:
    """The 64-bit id of a text: the first 8 bytes of BLAKE2b of its UTF-8, big-endian."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def is_held_out(document_id: int) -> bool:
    """Whether the document of this id is kept out of training, in every domain and partition.

    A text that occurs twice has one id, so that a copy of a held-out text is never trained on.
    """
    return document_id % HELD_OUT_EVERY == 0
