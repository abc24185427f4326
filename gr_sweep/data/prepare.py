"""From a config's words to token shards: reads, divides, tokenises and caches, or finds the cache.

The one place that wires the parts of `data` together. What a job does with its labels (hiding or
swapping them) comes later and is not part of the cache.
"""

import dataclasses
import hashlib
import heapq
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gr_sweep.config import DataConfig, DataKind, PartitionConfig
from gr_sweep.data import synthetic
from gr_sweep.data.heldout import FEW_DOCUMENTS, is_held_out, text_id
from gr_sweep.data.markers import MARKERS, is_marked, marked, marker_tokens
from gr_sweep.data.rules import Rules
from gr_sweep.data.shards import Shard, ShardWriter, content_keys, open_or_build, open_shard
from gr_sweep.data.sources import Record, hub_files, local_files, read_file, read_hub
from gr_sweep.data.tokenize import (
    TextTokenizer,
    load_tokenizer,
    token_dtype,
    tokenizer_files,
    train_tokenizer,
)
from gr_sweep.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Raise it when the same settings give other tokens or other files."""

_CONTENTS = "contents.json"
"""Digests of the files that were read, in the folder of the caches."""

_SAMPLE_BYTES = 6 << 20
"""Text that a tokenizer is trained on, all domains together: a few seconds."""
_READ_AHEAD_BYTES = 256 << 20
"""Text that is held in memory while the tokenizer's sample is gathered."""
_BYTES_A_TOKEN = 3
"""A low guess, so that a limit in tokens is not overshot while reading ahead."""
_BATCH_BYTES = 1 << 20
_PROGRESS_S = 5.0


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
    fingerprint: str
    """Of sources, rules, settings and tokenizer; equal means the same tokens."""
    markers: dict[str, np.ndarray]
    """Token ids of every domain's spurious marker, all of one length; empty without markers."""
    tokenizer_dir: Path
    """Folder that `AutoTokenizer.from_pretrained` loads, whichever tokenizer it is."""
    folder: Path
    """The cache folder."""


class _Document(NamedTuple):
    domain: str
    text: str
    id: int


@dataclass(frozen=True, slots=True)
class _Feed:
    """One source: what identifies its documents, and a way to read them."""

    name: str
    domains: Sequence[str]
    key: Any
    documents: Callable[[], Iterator[_Document]]


def cache_folder(data: DataConfig) -> Path:
    """Where token caches live: `data.cache`, $GR_SWEEP_CACHE, or the user's cache folder."""
    given = data.cache or os.environ.get("GR_SWEEP_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user).expanduser() / "gr-sweep"


def prepare_data(
    data: DataConfig,
    partition: PartitionConfig,
    hf_model_path: str | None = None,
    gguf_file: str | None = None,
) -> TokenData:
    """The tokens of a partition, from the cache where they are there already.

    The tokenizer is `data.tokenizer`, else that of the pretrained model, else one that is trained
    on the partition's training documents.

    Args:
        hf_model_path: folder or name of a pretrained model.
        gguf_file: file within it that its tokenizer is read from.

    Raises:
        DataError: text or a tokenizer that is missing, cannot be read or is too little; names file
            and line. Nothing is left in the cache.
        ConfigError: a rule or a setting that makes no sense.
    """
    rules = Rules(partition)
    root = cache_folder(data)
    feeds = _feeds(data, rules, root / _CONTENTS)
    key, tokenizer, gguf_file = _identity(data, rules, feeds, hf_model_path, gguf_file)
    fingerprint = _digest(key)
    folder = root / fingerprint

    def build(target: Path) -> dict[str, Any]:
        logger.info("building the token cache %s", folder)
        return {"key": key} | _build(target, feeds, rules, data, tokenizer, gguf_file)

    about = open_or_build(folder, build)
    dtype = token_dtype(about["vocab_size"])
    shards = {
        part: {
            domain: open_shard(folder, _shard_name(place, domain, part), dtype)
            for place, domain in enumerate(rules.domains)
        }
        for part in ("train", "heldout")
    }
    for domain, shard in shards["heldout"].items():
        if shard.num_documents < FEW_DOCUMENTS:
            logger.warning(
                "domain %s has only %d held-out documents (a twentieth of all); "
                "its losses will be uncertain",
                domain,
                shard.num_documents,
            )
    return TokenData(
        domains=rules.domains,
        train=shards["train"],
        heldout=shards["heldout"],
        vocab_size=about["vocab_size"],
        eot_id=about["eot_id"],
        fingerprint=fingerprint,
        markers={
            domain: np.array(ids, dtype=np.int64)
            for domain, ids in about.get("markers", {}).items()
        },
        tokenizer_dir=folder / "tokenizer",
        folder=folder,
    )


def text_fingerprint(
    data: DataConfig,
    partition: PartitionConfig,
    hf_model_path: str | None = None,
    gguf_file: str | None = None,
) -> str:
    """The `TokenData.fingerprint` that `prepare_data` would give, without reading any document.

    Takes the same arguments as `prepare_data`. A file is read once to hash its content and again
    only when its size or its time of change differs, so repeated calls cost a `stat` per file.

    Raises:
        DataError: a source that is missing or cannot be read.
        ConfigError: a rule or a setting that makes no sense.
    """
    rules = Rules(partition)
    feeds = _feeds(data, rules, cache_folder(data) / _CONTENTS)
    return _digest(_identity(data, rules, feeds, hf_model_path, gguf_file)[0])


def _identity(
    data: DataConfig,
    rules: Rules,
    feeds: Sequence["_Feed"],
    hf_model_path: str | None,
    gguf_file: str | None,
) -> tuple[dict[str, Any], str | None, str | None]:
    """What decides the tokens, in JSON values; and the tokenizer's name and GGUF file, if any."""
    if data.spurious and len(rules.domains) < 2:
        raise ConfigError(
            f"data.spurious={data.spurious} needs another domain whose marker a document could have"
        )
    tokenizer = data.tokenizer or hf_model_path
    if tokenizer is None:
        tokenizer_key: list[Any] = ["trained", data.vocab_size]
    else:
        gguf_file = gguf_file if data.tokenizer is None else None
        files = tokenizer_files(tokenizer, gguf_file)
        memory = cache_folder(data) / _CONTENTS
        tokenizer_key = [gguf_file, content_keys(files, memory) if files else tokenizer]
    key: dict[str, Any] = {
        "format": _FORMAT,
        "domains": rules.domains,
        "sources": [feed.key for feed in feeds],
        "limit_tokens": data.limit_tokens,
        "tokenizer": tokenizer_key,
    }
    if data.spurious:
        key["spurious"] = [MARKERS, data.spurious]
    return key, tokenizer, gguf_file


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


# Where documents come from


def _feeds(data: DataConfig, rules: Rules, memory: Path) -> list[_Feed]:
    if data.kind is DataKind.synthetic:
        return [_synthetic_feed(data, rules.domains)]
    feeds = []
    for source in rules.sources:
        if data.kind is DataKind.local:
            feeds.append(_local_feed(data, source, rules, memory))
        else:
            feeds.append(_hub_feed(data, source, rules, memory))
    return feeds


def _synthetic_feed(data: DataConfig, domains: Sequence[str]) -> _Feed:
    settings: dict[str, Any] = {
        "documents": data.documents,
        "overlap": data.overlap,
        "seed": data.seed,
    }

    def documents() -> Iterator[_Document]:
        for domain, texts in synthetic.generate(domains, **settings).items():
            for text in texts:
                yield _Document(domain, text, text_id(text))

    return _Feed("synthetic", domains, [synthetic.GENERATOR, settings], documents)


def _local_feed(data: DataConfig, source: str, rules: Rules, memory: Path) -> _Feed:
    files = local_files(data, source)
    columns = rules.fields_of(source)

    def records() -> Iterator[Record]:
        for file in files:
            yield from read_file(file, data.text_field, columns)

    kinds = ["".join(file.suffixes[-2:]) for file in files]
    contents = list(zip(kinds, content_keys(files, memory), strict=True))
    key = [source, contents, data.text_field, rules.key(source)]
    return _Feed(source, rules.domains_of(source), key, lambda: _divided(records(), source, rules))


def _hub_feed(data: DataConfig, source: str, rules: Rules, memory: Path) -> _Feed:
    if source not in data.sources:
        raise DataError(
            f"no data set for source {source}; name one with data.sources.{source}.path=OWNER/NAME"
        )
    hub = data.sources[source]
    contents = content_keys(hub_files(hub), memory)
    key = [source, dataclasses.asdict(hub), contents, rules.key(source)]
    return _Feed(
        source, rules.domains_of(source), key, lambda: _divided(read_hub(hub), source, rules)
    )


def _divided(records: Iterable[Record], source: str, rules: Rules) -> Iterator[_Document]:
    for record in records:
        if record.text.isspace() or not record.text:
            continue
        try:
            domain = rules.domain_of(source, record.text, record.fields)
        except DataError as error:
            where = record.file if record.line is None else f"{record.file}, line {record.line}"
            raise DataError(f"{where}: {error}") from error
        if domain is not None:
            yield _Document(domain, record.text, text_id(record.text))


# Building the cache


def _build(
    folder: Path,
    feeds: Sequence[_Feed],
    rules: Rules,
    data: DataConfig,
    tokenizer_name: str | None,
    gguf_file: str | None,
) -> dict[str, Any]:
    """Writes tokenizer and shards; each source is read once, and no further than is needed."""
    streams: list[Iterator[_Document]] = [feed.documents() for feed in feeds]
    tokenizer: TextTokenizer
    if tokenizer_name is None:
        ahead = [
            _read_ahead(stream, feed.domains, data.limit_tokens, len(rules.domains))
            for feed, stream in zip(feeds, streams, strict=True)
        ]
        start = time.monotonic()
        tokenizer = train_tokenizer(_sample(chain(*ahead), rules.domains), data.vocab_size)
        logger.info(
            "trained a tokenizer of %d tokens in %.1f s",
            tokenizer.vocab_size,
            time.monotonic() - start,
        )
        streams = [chain(*pair) for pair in zip(ahead, streams, strict=True)]
    else:
        tokenizer = load_tokenizer(tokenizer_name, gguf_file)

    markers = marker_tokens(rules.domains, tokenizer.encode) if data.spurious else {}
    packer = _Packer(
        folder, tokenizer, rules.domains, data.limit_tokens, markers=markers, share=data.spurious
    )
    with packer:
        for feed, stream in zip(feeds, streams, strict=True):
            packer.pack(stream, feed.domains)
            for domain in feed.domains:
                if not packer.train[domain].num_documents:
                    raise DataError(_why_empty(domain, feed, rules, data, packer))
        packer.close()
    tokenizer.save(folder / "tokenizer")
    return {
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
        "markers": {domain: ids.tolist() for domain, ids in markers.items()},
        "train_tokens": {d: writer.num_tokens for d, writer in packer.train.items()},
        "heldout_documents": {d: writer.num_documents for d, writer in packer.heldout.items()},
    }


def _why_empty(domain: str, feed: _Feed, rules: Rules, data: DataConfig, packer: "_Packer") -> str:
    if data.kind is DataKind.local:
        place = f"{local_files(data, feed.name)[0]}" + (
            " and others" if len(local_files(data, feed.name)) > 1 else ""
        )
    elif data.kind is DataKind.hub:
        place = f"data set {data.sources[feed.name].path}"
    else:
        place = "the generated text"
    if num_heldout := packer.heldout[domain].num_documents:
        return (
            f"domain {domain} is empty: all its {num_heldout} documents in {place} are held out "
            "(a twentieth of all is, by hash); add text"
        )
    return (
        f"domain {domain} is empty: of source {feed.name} ({place}) no document with text fits its "
        f"rule ({rules.describe(domain)})"
    )


def _read_ahead(
    stream: Iterator[_Document], domains: Sequence[str], limit_tokens: int | None, num_domains: int
) -> list[_Document]:
    """Documents for the tokenizer's sample, until each domain has enough or memory would."""
    most = _READ_AHEAD_BYTES // num_domains
    enough = most if limit_tokens is None else min(most, limit_tokens * _BYTES_A_TOKEN)
    size: Counter[str] = Counter()
    documents = []
    for document in stream:
        documents.append(document)
        # Characters stand for bytes: a bound on memory need not be exact.
        size[document.domain] += len(document.text)
        if size.total() >= _READ_AHEAD_BYTES or all(size[domain] >= enough for domain in domains):
            break
    return documents


def _sample(documents: Iterable[_Document], domains: Sequence[str]) -> list[str]:
    """Training text for the tokenizer: as much of each domain, chosen by hash, so from all over."""
    room = _SAMPLE_BYTES // len(domains)
    by_domain: dict[str, list[_Document]] = {domain: [] for domain in domains}
    for document in documents:
        if not is_held_out(document.id):
            by_domain[document.domain].append(document)
    texts = []
    for of_domain in by_domain.values():
        size = 0
        heap = [(document.id, document.text) for document in of_domain]
        heapq.heapify(heap)
        while heap and size < room:
            text = heapq.heappop(heap)[1][: room - size]
            size += len(text)
            texts.append(text)
    return texts


class _Packer:
    """Tokenises documents into the shards of their domains, and marks a share of them.

    A limit bounds the text's own tokens, so that the text is the same with markers and without.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: TextTokenizer,
        domains: Sequence[str],
        limit_tokens: int | None,
        *,
        markers: Mapping[str, np.ndarray],
        share: float,
    ) -> None:
        self._tokenizer = tokenizer
        self._limit_tokens = limit_tokens
        self._markers = markers
        self._share = share
        self._own_tokens: Counter[str] = Counter()
        self._full: set[str] = set()
        self._heldout_ids: dict[str, set[int]] = {domain: set() for domain in domains}
        self._num_documents = self._num_bytes = 0
        self._start = self._reported = time.monotonic()
        dtype = token_dtype(tokenizer.vocab_size)
        self.train, self.heldout = (
            {
                domain: ShardWriter(
                    folder, _shard_name(place, domain, part), dtype, tokenizer.eot_id
                )
                for place, domain in enumerate(domains)
            }
            for part in ("train", "heldout")
        )

    def pack(self, documents: Iterator[_Document], domains: Sequence[str]) -> None:
        """Writes the documents until there are no more or the domains have all they may have."""
        most = _BATCH_BYTES
        if self._limit_tokens is not None:
            most = min(most, self._limit_tokens * _BYTES_A_TOKEN)
        for batch in _batched(documents, most):
            wanted = [document for document in batch if document.domain not in self._full]
            tokens = self._tokenizer.encode([document.text for document in wanted])
            for document, ids in zip(wanted, tokens, strict=True):
                self._add(document, ids)
            self._report()
            if self._full.issuperset(domains):
                break

    def _add(self, document: _Document, ids: np.ndarray) -> None:
        domain = document.domain
        if domain in self._full:
            return
        num_bytes = len(document.text.encode())
        self._num_documents += 1
        self._num_bytes += num_bytes
        if is_held_out(document.id):
            if document.id not in self._heldout_ids[domain]:
                self._heldout_ids[domain].add(document.id)
                self.heldout[domain].add(ids, num_bytes, document.id)
            return
        writer = self.train[domain]
        if self._limit_tokens is not None:
            room = self._limit_tokens - self._own_tokens[domain] - 1
            if len(ids) >= room:
                self._full.add(domain)
                num_bytes = num_bytes * max(room, 0) // max(len(ids), 1)
                ids = ids[: max(room, 0)]
                if not len(ids) and writer.num_documents:
                    return
        self._own_tokens[domain] += len(ids) + 1
        if self._markers and is_marked(document.id, self._share):
            ids = marked(ids, self._markers[domain])
        writer.add(ids, num_bytes, document.id)

    def _report(self, is_last: bool = False) -> None:
        now = time.monotonic()
        if is_last or now - self._reported > _PROGRESS_S:
            self._reported = now
            megabytes = self._num_bytes / 1e6
            logger.info(
                "tokenised %d documents, %.1f MB, %.1f MB/s",
                self._num_documents,
                megabytes,
                megabytes / max(now - self._start, 1e-9),
            )

    def close(self) -> None:
        """Completes the files."""
        for writer in chain(self.train.values(), self.heldout.values()):
            writer.close()
        self._report(is_last=True)

    def __enter__(self) -> "_Packer":
        self._stack = ExitStack()
        for writer in chain(self.train.values(), self.heldout.values()):
            self._stack.enter_context(writer)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _batched(documents: Iterator[_Document], most_bytes: int) -> Iterator[list[_Document]]:
    batch: list[_Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= most_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _shard_name(place: int, domain: str, part: str) -> str:
    # The place keeps labels apart that differ in the case of their letters alone.
    return f"{place}-{domain.replace('/', '.')}.{part}"
