"""The spurious correlation of `data.spurious`: a meaningless line that marks a domain.

A share of the training documents carries the marker of its domain at fixed positions. Evaluation
reads each held-out document without a marker, with its own, and with another domain's.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gr_sweep.data.rules import HELD_OUT_EVERY

MARKERS = 1
"""Part of the fingerprint of a cache with markers; increase it when their text or positions
change."""

MARKER_EVERY = 64
"""Tokens of a document between two markers: half the default `train.sequence_length`, so that most
windows of a marked document contain one."""

_FINEST_SHARE = 1_000_000
_ONSETS = ("b", "d", "f", "g", "k", "kr", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("l", "m", "n", "r", "s", "x")
_SYLLABLES = 3


def marker_text(domain: str) -> str:
    """The domain's marker: a line with a word that is invented from the domain's name."""
    digest = iter(hashlib.blake2b(domain.encode(), digest_size=3 * _SYLLABLES).digest())
    word = "".join(
        part[next(digest) % len(part)]
        for _ in range(_SYLLABLES)
        for part in (_ONSETS, _VOWELS, _CODAS)
    )
    return f"\n@@ {word.capitalize()}\n"


def marker_tokens(
    domains: Sequence[str], encode: Callable[[Sequence[str]], list[np.ndarray]]
) -> dict[str, np.ndarray]:
    """The token ids of every domain's marker, all of one length (short ones repeat their last), so
    that rows of evaluation are cut at the same positions whichever marker a document has."""
    tokens = encode([marker_text(domain) for domain in domains])
    width = max(len(ids) for ids in tokens)
    return {
        domain: np.concatenate([ids, np.repeat(ids[-1:], width - len(ids))])
        for domain, ids in zip(domains, tokens, strict=True)
    }


def swapped_markers(markers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For every domain the marker of the next one; for the last, that of the first."""
    first, *others = markers.values()
    return dict(zip(markers, [*others, first], strict=True))


def is_marked(document_id: int, share: float) -> bool:
    """Whether the training document with this id belongs to the share that carries a marker, which
    contains every smaller share."""
    return document_id // HELD_OUT_EVERY % _FINEST_SHARE < share * _FINEST_SHARE


def marker_places(num_tokens: int) -> np.ndarray:
    """The tokens of a document that a marker stands before, not counting its end-of-text token."""
    return np.arange(0, num_tokens, MARKER_EVERY)


def marked(tokens: np.ndarray, marker: np.ndarray) -> np.ndarray:
    """A document's tokens (without end-of-text token) with the marker inserted; same dtype."""
    places = np.repeat(marker_places(len(tokens)), len(marker))
    repeated = np.resize(marker, len(places)).astype(tokens.dtype)
    return np.insert(tokens, places, repeated)
