"""Documents tokenised into the shards of their domains, from where a killed process left off.

What has been written is recorded in the folder every few seconds. Only text is read twice, to find
the place.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gr_sweep.config import DataConfig
from gr_sweep.data.cache import PROGRESS
from gr_sweep.data.encode import encoded
from gr_sweep.data.markers import is_marked, marked
from gr_sweep.data.rules import is_blank, is_held_out
from gr_sweep.data.shards import IdSet, ShardWriter, open_shard
from gr_sweep.data.sources import Document, Source
from gr_sweep.data.tokenize import Tokenizer, token_dtype
from gr_sweep.errors import DataError
from gr_sweep.files import write_whole

BATCH_CHARACTERS = 1 << 20
"""Text that is tokenised at once."""
HELD_OUT_TOKENS = 1 << 18
"""Held-out tokens of a domain, after which its other held-out documents are passed over: a stream
is not read further for them. It does not depend on `data.limit_tokens`."""
PROGRESS_S = 10.0
"""Seconds of work that are lost, at most, when the process is killed."""


def read_progress(folder: Path) -> dict[str, Any]:
    """What `pack` recorded in the folder; empty if it has to begin."""
    path = folder / PROGRESS
    return dict(json.loads(path.read_text())) if path.exists() else {}


def shard_name(number: int, domain: str, split: str) -> str:
    """The name of a domain's shard in a cache folder."""
    # The number distinguishes labels that differ only in the case of their letters.
    return f"{number}-{domain.replace('/', '.')}.{split}"


def pack(
    folder: Path,
    tokenizer: Tokenizer,
    domains: Sequence[str],
    data: DataConfig,
    markers: Mapping[str, np.ndarray],
    sources: Sequence[Source],
) -> dict[str, dict[str, int]]:
    """Writes the documents of each source, until they end or all its domains have reached the
    limit, and marks a share of them. The limit bounds the text's own tokens, without markers.

    Returns:
        By domain, characters of the documents in the shards, and numbers of those that are not.

    Raises:
        DataError: a domain without a training document.
    """
    kept = read_progress(folder)
    begin, num_skipped = at, num_read = kept.get("place", (0, 0))
    recorded = time.monotonic()
    with ExitStack() as stack:
        writers = {
            domain: _Domain(stack, folder, number, domain, tokenizer, data, markers.get(domain))
            for number, domain in enumerate(domains)
        }

        def is_done(number: int) -> bool:
            return all(writers[domain].is_done for domain in sources[number].domains)

        def batches() -> Iterator[tuple[tuple[int, list[Document], list[str]], list[str]]]:
            for number in range(begin, len(sources)):
                start = num_skipped if number == begin else 0
                documents = islice(sources[number].documents, start, None)
                while not is_done(number) and (batch := _batch(documents)):
                    # Those before may not be written yet, but what is left out stays so.
                    texts = [d.text for d in batch if writers[d.domain].left_out(d) is None]
                    yield (number, batch, texts), texts

        for (number, batch, texts), tokens in encoded(tokenizer, batches()):
            if is_done(number):
                continue  # other processes read ahead
            tokens_of = dict(zip(texts, tokens, strict=True))
            for document in batch:
                writers[document.domain].add(document, tokens_of.get(document.text))
            at, num_read = number, len(batch) + (num_read if number == at else 0)
            if time.monotonic() - recorded >= PROGRESS_S:
                states = {domain: writer.flush() for domain, writer in writers.items()}
                progress = {"place": [at, num_read], "domains": states}
                write_whole(folder / PROGRESS, json.dumps(progress))
                recorded = time.monotonic()
    for source in sources:
        for domain in source.domains:
            if not writers[domain].train.num_documents:
                raise DataError(
                    f"domain {domain} has no training document in {source.where}: none fits its "
                    f"rule, or all are held out ({writers[domain].heldout.num_documents})"
                )
    return {domain: writer.counts for domain, writer in writers.items()}


def _batch(documents: Iterator[Document]) -> list[Document]:
    batch: list[Document] = []
    left = BATCH_CHARACTERS
    while left > 0 and (document := next(documents, None)) is not None:
        batch.append(document)
        left -= len(document.text)
    return batch


class _Domain:
    """The shards of a domain while they are written."""

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        number: int,
        domain: str,
        tokenizer: Tokenizer,
        data: DataConfig,
        marker: np.ndarray | None,
    ) -> None:
        dtype = token_dtype(tokenizer.vocab_size)
        self._prefix = np.array(tokenizer.prefix, dtype)
        self._limit_tokens, self._marked_share = data.limit_tokens, data.spurious
        self._marker = marker
        kept = read_progress(folder).get("domains", {}).get(domain, {})
        reasons = ("characters", "duplicates", "empty", "beyond the limit")
        self.counts: dict[str, int] = kept.get("counts") or dict.fromkeys(reasons, 0)
        self._own_tokens: int = kept.get("own_tokens", 0)
        self._is_full: bool = kept.get("is_full", False)
        names = [shard_name(number, domain, split) for split in ("train", "heldout")]
        self.train, self.heldout = (
            stack.enter_context(ShardWriter(folder, name, dtype, tokenizer.eot_id, size))
            for name, size in zip(names, kept.get("sizes", [(0, 0)] * 2), strict=True)
        )
        self._ids = IdSet(np.concatenate([open_shard(folder, name, dtype).ids for name in names]))

    def flush(self) -> dict[str, Any]:
        """What has been written, which is then on the disk."""
        return {
            "counts": self.counts,
            "own_tokens": self._own_tokens,
            "is_full": self._is_full,
            "sizes": [self.train.flush(), self.heldout.flush()],
        }

    @property
    def _has_held_out(self) -> bool:
        return self.heldout.num_tokens >= HELD_OUT_TOKENS

    @property
    def is_done(self) -> bool:
        """Whether no further document enters a shard."""
        return self._is_full and self._has_held_out

    def left_out(self, document: Document) -> str | None:
        """Why the document does not enter a shard; None if it does."""
        if is_blank(document.text):
            return "empty"
        if document.id in self._ids:
            return "duplicates"
        is_enough = self._has_held_out if is_held_out(document.id) else self._is_full
        return "beyond the limit" if is_enough else None

    def add(self, document: Document, ids: np.ndarray | None) -> None:
        """Writes the document, or counts it where it is left out, which needs no tokens."""
        share = Fraction(1)
        if reason := self.left_out(document):
            self.counts[reason] += 1
            return
        assert ids is not None
        writer = self.heldout if is_held_out(document.id) else self.train
        if writer is self.train:
            if self._limit_tokens is not None:
                extra = 1 + len(self._prefix)
                room = max(0, self._limit_tokens - self._own_tokens - extra)
                if len(ids) >= room:
                    self._is_full = True
                    share = Fraction(room, max(len(ids), 1))
                    ids = ids[:room]
                    if not len(ids) and writer.num_documents:
                        return
                self._own_tokens += len(ids) + extra
            if self._marker is not None and is_marked(document.id, self._marked_share):
                ids = marked(ids, self._marker)
            ids = np.concatenate([self._prefix, ids])
        self._ids.add(document.id)
        self.counts["characters"] += int(len(document.text) * share)
        writer.add(ids, int(len(document.text.encode()) * share), document.id)
