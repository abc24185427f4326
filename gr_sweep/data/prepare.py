"""From a config to token shards: reads, divides, tokenises and caches, or finds the cache.

Hidden and swapped labels come later and are not part of the cache.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gr_sweep.config import DataConfig, DataKind, ModelConfig, PartitionConfig
from gr_sweep.data.cache import CONTENTS, digests, open_or_build
from gr_sweep.data.markers import MARKERS, marker_tokens
from gr_sweep.data.pack import pack, read_progress, shard_name
from gr_sweep.data.rules import Rules, is_blank, is_held_out
from gr_sweep.data.shards import Shard, open_shard
from gr_sweep.data.sources import Document, Source, sources_of
from gr_sweep.data.tokenize import (
    Tokenizer,
    TrainedTokenizer,
    load_tokenizer,
    token_dtype,
    tokenizer_files,
    train_tokenizer,
)
from gr_sweep.errors import DataError
from gr_sweep.files import sync_folder

logger = logging.getLogger(__name__)

_FORMAT = 3
"""Increase it when the same settings give other tokens or other files."""

SAMPLE_BYTES = 6 << 20
"""Text that a tokenizer is trained on, for all domains together: a few seconds."""
READ_AHEAD_BYTES = 256 << 20
"""Text that is kept in memory while the tokenizer's sample is collected."""
_BYTES_A_TOKEN = 3
"""A low estimate, so that a limit in tokens is read and not much more."""


@dataclass(frozen=True, slots=True)
class TokenData:
    """Everything a job reads: tokens by true domain, and what they mean."""

    domains: tuple[str, ...]
    """In the order of the partition."""
    train: dict[str, Shard]
    """Training documents by true domain."""
    heldout: dict[str, Shard]
    """Held-out documents by true domain, each text once."""
    vocab_size: int
    """Every token id is below it."""
    eot_id: int
    """The token that ends every document."""
    prefix: tuple[int, ...]
    """Tokens that the tokenizer puts before a text, such as Llama's begin-of-text token: training
    documents are stored with them, held-out documents without."""
    fingerprint: str
    """Of sources, rules, settings and tokenizer; equal fingerprints mean equal tokens."""
    markers: dict[str, np.ndarray]
    """Token ids of every domain's spurious marker, all of one length; empty without markers."""
    tokenizer_dir: Path
    """Folder that `AutoTokenizer.from_pretrained` loads, whichever tokenizer it is."""

    @property
    def begin(self) -> tuple[int, ...]:
        """Tokens that the first token of a text is predicted from."""
        return self.prefix or (self.eot_id,)


def cache_folder(data: DataConfig) -> Path:
    """The folder of the token caches: `data.cache`, $GR_SWEEP_CACHE, or the user's cache folder."""
    given = data.cache or os.environ.get("GR_SWEEP_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user).expanduser() / "gr-sweep"


class _Text:
    """The text and tokenizer of a partition, before anything is read."""

    def __init__(self, data: DataConfig, partition: PartitionConfig, model: ModelConfig) -> None:
        digests_of = partial(digests, memory=cache_folder(data) / CONTENTS)
        self.rules = Rules(partition)
        self.sources = sources_of(data, self.rules)
        self.tokenizer = data.tokenizer or model.path
        self.gguf_file = model.gguf_file if data.tokenizer is None else None
        tokenizer_key: list[Any] = ["trained", data.vocab_size]
        if self.tokenizer is not None:
            files = tokenizer_files(self.tokenizer, self.gguf_file)
            tokenizer_key = [self.gguf_file, digests_of(files) if files else self.tokenizer]
        key = [
            _FORMAT,
            self.rules.domains,
            [[source.key, digests_of(source.files)] for source in self.sources],
            data.limit_tokens,
            tokenizer_key,
            [MARKERS, data.spurious] if data.spurious else None,
        ]
        self.fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def text_fingerprint(
    data: DataConfig, partition: PartitionConfig, model: ModelConfig | None = None
) -> str:
    """The `TokenData.fingerprint` that `prepare_data` would give for the same arguments.

    No document is read. A file is read once to hash its content and again only after it changed.

    Raises:
        DataError: a source that is missing or cannot be read.
    """
    return _Text(data, partition, model or ModelConfig()).fingerprint


def prepare_data(
    data: DataConfig, partition: PartitionConfig, model: ModelConfig | None = None
) -> TokenData:
    """The tokens of a partition, from the cache if they are there already.

    The tokenizer is `data.tokenizer`, else that of the pretrained model, else one that is trained
    on the partition's training documents.

    Raises:
        DataError: text or a tokenizer is missing, cannot be read or is too short; names the file
            and line. Nothing is left in the cache.
    """
    text = _Text(data, partition, model or ModelConfig())
    domains = text.rules.domains
    folder = cache_folder(data) / text.fingerprint
    manifest = open_or_build(folder, partial(_build, text=text, data=data))
    dtype = token_dtype(manifest["vocab_size"])
    train, heldout = (
        {
            domain: open_shard(folder, shard_name(number, domain, split), dtype)
            for number, domain in enumerate(domains)
        }
        for split in ("train", "heldout")
    )
    found = TokenData(
        domains=domains,
        train=train,
        heldout=heldout,
        vocab_size=manifest["vocab_size"],
        eot_id=manifest["eot_id"],
        prefix=tuple(manifest["prefix"]),
        fingerprint=text.fingerprint,
        markers={domain: np.array(ids, np.int64) for domain, ids in manifest["markers"].items()},
        tokenizer_dir=folder / "tokenizer",
    )
    for domain, counts in manifest["counts"].items():
        sizes = {
            "documents": train[domain].num_documents,
            "tokens": train[domain].num_tokens,
            "held-out documents": heldout[domain].num_documents,
            "held-out tokens": heldout[domain].num_tokens,
        }
        found_in = ", ".join(f"{number:,} {name}" for name, number in (sizes | counts).items())
        logger.info("%s: %s", domain, found_in)
    return found


def check_held_out(data: TokenData, min_documents: int, kind: DataKind) -> None:
    """Raises DataError if a domain has fewer held-out documents, and says what would give more."""
    found = {d: (data.heldout[d].num_documents, data.train[d].num_documents) for d in data.domains}
    few = [f"{d} has {n} of {n + others}" for d, (n, others) in found.items() if n < min_documents]
    if few:
        more = "add text, or divide documents (data.split=paragraphs)"
        more = "raise data.documents" if kind is DataKind.synthetic else more
        raise DataError(
            f"too few held-out documents: {', '.join(few)}, and eval.min_documents={min_documents};"
            f" a twentieth is held out: {more}, or lower eval.min_documents"
        )


def _build(folder: Path, text: _Text, data: DataConfig) -> dict[str, Any]:
    """Writes tokenizer and shards; each source is read once, and no further than needed."""
    domains, sources = text.rules.domains, text.sources
    tokenizer: Tokenizer
    is_begun = bool(read_progress(folder))
    if text.tokenizer is not None:
        tokenizer = load_tokenizer(text.tokenizer, text.gguf_file)
    elif is_begun:
        tokenizer = TrainedTokenizer.load(folder / "tokenizer")
    else:
        ahead = [_read_ahead(source, data.limit_tokens, len(domains)) for source in sources]
        sample = tokenizer_sample(chain(*ahead), domains, SAMPLE_BYTES // len(domains))
        tokenizer = train_tokenizer(sample, data.vocab_size)
        sources = [
            replace(source, documents=chain(documents, source.documents))
            for source, documents in zip(sources, ahead, strict=True)
        ]
    if not is_begun:
        tokenizer.save(folder / "tokenizer")
        sync_folder(folder / "tokenizer")
    markers = marker_tokens(domains, tokenizer.encode) if data.spurious else {}
    return {
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "prefix": tokenizer.prefix,
        "markers": {domain: ids.tolist() for domain, ids in markers.items()},
        "counts": pack(folder, tokenizer, domains, data, markers, sources),
    }


def _read_ahead(source: Source, limit_tokens: int | None, num_domains: int) -> list[Document]:
    """Documents for the tokenizer's sample, until each domain has enough or memory is full."""
    enough = READ_AHEAD_BYTES // num_domains
    if limit_tokens is not None:
        enough = min(enough, limit_tokens * _BYTES_A_TOKEN)
    size: Counter[str] = Counter()
    documents = []
    for document in source.documents:
        documents.append(document)
        # Characters stand for bytes: the bound on memory need not be exact.
        size[document.domain] += len(document.text)
        has_enough = all(size[domain] >= enough for domain in source.domains)
        if has_enough or size.total() >= READ_AHEAD_BYTES:
            break
    return documents


def tokenizer_sample(
    documents: Iterable[Document], domains: Sequence[str], num_bytes: int
) -> list[str]:
    """Training text for the tokenizer: about `num_bytes` of each domain, chosen by hash."""
    left = dict.fromkeys(domains, num_bytes)
    found: dict[str, list[str]] = {domain: [] for domain in domains}
    for domain, text, document_id in sorted(documents, key=lambda document: document.id):
        if left[domain] > 0 and not is_held_out(document_id) and not is_blank(text):
            found[domain].append(text[: left[domain]])
            left[domain] -= len(found[domain][-1])
    return [text for texts in found.values() for text in texts]
