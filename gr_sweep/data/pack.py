"""Documents tokenised into the shards of their domains, from where a killed process left off.

What has been written is recorded in the folder every few seconds. Only text is read twice, to find
the place.
"""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from gr_sweep.config import DataConfig
from gr_sweep.data.cache import PROGRESS
from gr_sweep.data.encode import Encoders
from gr_sweep.data.markers import is_marked, marked
from gr_sweep.data.rules import is_blank, is_held_out
from gr_sweep.data.shards import IdSet, ShardWriter, document_ids, has_size
from gr_sweep.data.sources import Document, Source
from gr_sweep.data.tokenize import PretrainedTokenizer, TrainedTokenizer, token_dtype
from gr_sweep.errors import DataError
from gr_sweep.files import write_whole

BYTES_A_TOKEN = 3
"""A low estimate, so that reading ahead does not overshoot a limit in tokens by much."""
BATCH_BYTES = 1 << 20
"""Text that is tokenised at once."""
HELD_OUT_TOKENS = 1 << 18
"""Held-out tokens of a domain, after which its other held-out documents are passed over: a stream
is not read further for them. It does not depend on `data.limit_tokens`."""
PROGRESS_S = 10.0
"""Seconds of work that are lost, at most, when the process is killed."""


def read_progress(folder: Path) -> dict[str, Any]:
    """What `Packer` recorded in the folder; empty if it has to begin."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((folder / PROGRESS).read_text()))
    return {}


class Packer:
    """Tokenises documents into the shards of their domains and marks a share of them.

    A limit bounds the text's own tokens, so that the text is the same with and without markers.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: TrainedTokenizer | PretrainedTokenizer,
        domains: Sequence[str],
        data: DataConfig,
        markers: Mapping[str, np.ndarray],
        stack: ExitStack,
    ) -> None:
        """`stack` finishes the shards and ends the processes that tokenise."""
        self._folder = folder
        self._encoders = stack.enter_context(Encoders(tokenizer))
        self._limit_tokens = data.limit_tokens
        self._markers = markers
        self._marked_share = data.spurious
        dtype = token_dtype(tokenizer.vocab_size)
        self._prefix = np.array(tokenizer.prefix, dtype)
        names = ("characters", "duplicates", "empty", "beyond the limit")
        kept = read_progress(folder)
        sizes = kept.get("shards", {})
        if not all(has_size(folder, name, dtype, size) for name, size in sizes.items()):
            kept = sizes = {}
        self._source: int = kept.get("source", 0)
        self._num_read: int = kept.get("num_read", 0)
        """Documents of the source that are in the shards or were left out."""
        self._own_tokens = Counter[str](kept.get("own_tokens", {}))
        self._full = set[str](kept.get("full", ()))
        self.counts: dict[str, dict[str, int]] = kept.get("counts") or {
            domain: dict.fromkeys(names, 0) for domain in domains
        }
        """Characters of the documents in the shards, and numbers of those that are not, by domain;
        a document beyond the limit was read to find held-out ones."""
        self._ids = {domain: IdSet() for domain in domains}
        self._writers: dict[str, ShardWriter] = {}
        for number, domain in enumerate(domains):
            for split in ("train", "heldout"):
                name = shard_name(number, domain, split)
                writer = ShardWriter(folder, name, dtype, tokenizer.eot_id, sizes.get(name, (0, 0)))
                self._writers[name] = stack.enter_context(writer)
                if kept:
                    self._ids[domain].update(document_ids(folder, name))
        self.train, self.heldout = (
            {d: self._writers[shard_name(n, d, split)] for n, d in enumerate(domains)}
            for split in ("train", "heldout")
        )
        self._recorded = time.monotonic()

    def pack(self, sources: Sequence[Source], streams: Sequence[Iterator[Document]]) -> None:
        """Writes the documents of each source, until they end or all its domains have reached the
        limit.

        Args:
            streams: the documents of each source, from its first.

        Raises:
            DataError: a domain without a training document.
        """
        begin = self._source
        for number, (source, stream) in enumerate(zip(sources, streams, strict=True)):
            if number < begin:
                continue
            if number > begin:
                self._source, self._num_read = number, 0
            self._pack(islice(stream, self._num_read, None), source.domains)
            for domain in source.domains:
                if not self.train[domain].num_documents:
                    raise DataError(
                        f"domain {domain} has no training document in {source.where}: none fits "
                        f"its rule, or all are held out ({self.heldout[domain].num_documents})"
                    )

    def _pack(self, documents: Iterator[Document], domains: Sequence[str]) -> None:
        max_bytes = BATCH_BYTES
        if self._limit_tokens is not None:
            max_bytes = min(max_bytes, self._limit_tokens * BYTES_A_TOKEN)
        batches = ((batch, self._wanted(batch)) for batch in _batched(documents, max_bytes))
        texts = ((item, [document.text for document in item[1]]) for item in batches)
        for (batch, wanted), tokens in self._encoders.encoded(texts):
            found = dict(zip(map(id, wanted), tokens, strict=True))
            for document in batch:
                self._add(document, found.get(id(document)))
            self._num_read += len(batch)
            if all(domain in self._full and self._has_held_out(domain) for domain in domains):
                break
            if time.monotonic() - self._recorded >= PROGRESS_S:
                self._record()

    def _record(self) -> None:
        kept = {
            "source": self._source,
            "num_read": self._num_read,
            "own_tokens": self._own_tokens,
            "full": sorted(self._full),
            "counts": self.counts,
            "shards": {name: writer.flush() for name, writer in self._writers.items()},
        }
        write_whole(self._folder / PROGRESS, json.dumps(kept))
        self._recorded = time.monotonic()

    def _has_held_out(self, domain: str) -> bool:
        return self.heldout[domain].num_tokens >= HELD_OUT_TOKENS

    def _left_out(self, document: Document) -> str | None:
        """Why the document does not enter a shard. A reason stays one, whatever is written."""
        domain = document.domain
        if is_blank(document.text):
            return "empty"
        if document.id in self._ids[domain]:
            return "duplicates"
        is_full = self._has_held_out(domain) if is_held_out(document.id) else domain in self._full
        return "beyond the limit" if is_full else None

    def _wanted(self, batch: Sequence[Document]) -> list[Document]:
        """Documents that are worth tokenising; batches before this one may not be written yet."""
        return [document for document in batch if self._left_out(document) is None]

    def _add(self, document: Document, ids: np.ndarray | None) -> None:
        """Writes the document, or counts it where it is left out."""
        domain, share = document.domain, Fraction(1)
        if reason := self._left_out(document):
            self.counts[domain][reason] += 1
            return
        assert ids is not None
        if is_held_out(document.id):
            writer = self.heldout[domain]
        else:
            writer = self.train[domain]
            if self._limit_tokens is not None:
                extra = 1 + len(self._prefix)
                room = max(0, self._limit_tokens - self._own_tokens[domain] - extra)
                if len(ids) >= room:
                    self._full.add(domain)
                    share = Fraction(room, max(len(ids), 1))
                    ids = ids[:room]
                    if not len(ids) and writer.num_documents:
                        return
                self._own_tokens[domain] += len(ids) + extra
            if self._markers and is_marked(document.id, self._marked_share):
                ids = marked(ids, self._markers[domain])
            ids = np.concatenate([self._prefix, ids])
        self._ids[domain].add(document.id)
        self.counts[domain]["characters"] += int(len(document.text) * share)
        writer.add(ids, int(len(document.text.encode()) * share), document.id)


def _batched(documents: Iterator[Document], max_bytes: int) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= max_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def shard_name(number: int, domain: str, split: str) -> str:
    """The name of a domain's shard in a cache folder."""
    # The number distinguishes labels that differ only in the case of their letters.
    return f"{number}-{domain.replace('/', '.')}.{split}"
