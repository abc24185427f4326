"""A line that goes with a domain and says nothing: the spurious correlation of `data.spurious`.

A share of the training documents carries its domain's marker at fixed places; evaluation reads each
held-out document without a marker, with its own and with another domain's. Knows nothing of files
or models.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gr_sweep.data.heldout import HELD_OUT_EVERY

MARKERS = 1
"""Goes into the fingerprint of a cache with markers; raise it when their text or places change."""

MARKER_EVERY = 64
"""Tokens of a document between two markers: half the default `train.sequence_length`, so that most
windows of a marked document hold one, wherever they are cut."""

_FINEST_SHARE = 1_000_000
_ONSETS = ("b", "d", "f", "g", "k", "kr", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("l", "m", "n", "r", "s", "x")
_SYLLABLES = 3


def marker_text(domain: str) -> str:
    """The domain's marker: a line with a word that is invented from the name alone."""
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
    """Every domain's marker as token ids, all of one length.

    The shorter ones repeat their last token. Rows of evaluation are then cut at the same places
    whichever marker a document has, and a difference in loss is the marker's alone.
    """
    tokens = encode([marker_text(domain) for domain in domains])
    width = max(len(ids) for ids in tokens)
    return {
        domain: np.concatenate([ids, np.repeat(ids[-1:], width - len(ids))])
        for domain, ids in zip(domains, tokens, strict=True)
    }


def swapped_markers(markers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For every domain the marker of the next one; for the last, that of the first."""
    domains = list(markers)
    return {
        domain: markers[other]
        for domain, other in zip(domains, domains[1:] + domains[:1], strict=True)
    }


def is_marked(document_id: int, share: float) -> bool:
    """Whether the training document of this id is one of the share that carries a marker.

    It follows from the text, as being held out does, and is independent of that. A document that is
    marked at one share is marked at every larger one.
    """
    return document_id // HELD_OUT_EVERY % _FINEST_SHARE < share * _FINEST_SHARE


def marker_places(num_tokens: int) -> np.ndarray:
    """Before which tokens of a document a marker stands; its end-of-text token does not count."""
    return np.arange(0, num_tokens, MARKER_EVERY)


def marked(tokens: np.ndarray, marker: np.ndarray) -> np.ndarray:
    """A document's tokens (no end-of-text token) with the marker at its places; of their type."""
    places = np.repeat(marker_places(len(tokens)), len(marker))
    repeated = np.resize(marker, len(places)).astype(tokens.dtype)
    return np.insert(tokens, places, repeated)
