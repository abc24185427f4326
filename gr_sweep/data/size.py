"""How much text there is and what preparing it takes, from file sizes and a sample.

Nothing is downloaded, and nothing is left on the disk.
"""

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from gr_sweep.config import DataConfig, DataKind, ModelConfig, PartitionConfig
from gr_sweep.data.cache import MANIFEST
from gr_sweep.data.encode import num_processes
from gr_sweep.data.prepare import cache_folder, text_fingerprint
from gr_sweep.data.rules import Rules, text_id
from gr_sweep.data.shards import DOCUMENT_BYTES
from gr_sweep.data.sources import Document, Source, sources_of
from gr_sweep.data.synthetic import generate
from gr_sweep.data.tokenize import (
    PretrainedTokenizer,
    TrainedTokenizer,
    load_tokenizer,
    token_dtype,
    train_tokenizer,
)
from gr_sweep.errors import DataError

SAMPLE_BYTES = 2 << 20
"""Start of the files of each source that is read and tokenised."""
_SAMPLE_DOCUMENTS = 1000
"""Where the start of a file cannot be read alone, as of Parquet, and for the Hub."""
_TOKEN_LENGTH = 4.0
"""Bytes of a token of a data set of the Hub, of which no text is here: English, 30,000 tokens."""


@dataclass(frozen=True)
class TextSize:
    """What a text needs before a job trains on it; all but `file_bytes` is estimated."""

    file_bytes: int
    """Size of the files on this machine."""
    text_bytes: float
    """UTF-8 text that is tokenised."""
    tokens: float
    """Of training and held-out documents."""
    disk_bytes: float
    """Of the cache, which is never larger while it is built."""
    processes: int
    """Cores of this machine."""
    process_bytes_per_second: float
    """Text that one process reads and tokenises, measured on the sample."""
    hours: float
    """In so many processes, without downloads."""


@dataclass(frozen=True)
class _Sample:
    """Documents from the start of a source, and how much text the whole has."""

    documents: Sequence[Document]
    seconds: float
    """To read them."""
    file_bytes: int
    text_bytes: float
    """Infinite if it is not known."""


def text_size(data: DataConfig, partition: PartitionConfig, model: ModelConfig) -> TextSize | None:
    """What a text needs; None if it is in the cache, is generated, or comes from the Hub without a
    limit, which is of unknown size.

    Raises:
        DataError: text or a tokenizer is missing or cannot be read.
    """
    folder = cache_folder(data) / text_fingerprint(data, partition, model)
    if data.kind is DataKind.synthetic or (folder / MANIFEST).exists():
        return None
    samples = _samples(data, Rules(partition))
    texts = [document.text for sample in samples for document in sample.documents]
    tokenizer: PretrainedTokenizer | TrainedTokenizer
    if name := data.tokenizer or model.path:
        gguf_file = None if data.tokenizer else model.gguf_file
        tokenizer = load_tokenizer(name, gguf_file, may_download=False)
    else:
        tokenizer = train_tokenizer(texts, data.vocab_size)
    tokenizer.encode(texts[::2])  # remembers words, as it does after the start of a large text
    begun = time.perf_counter()
    num_tokens = sum(len(ids) + 1 for text in texts[1::2] for ids in tokenizer.encode([text]))
    tokenised = _num_bytes(texts[1::2])
    tokenising = (time.perf_counter() - begun) / tokenised
    token_length = tokenised / num_tokens
    if data.kind is DataKind.hub:
        token_length = _TOKEN_LENGTH
    reading = sum(sample.seconds for sample in samples) / _num_bytes(texts)
    text_bytes = num_documents = 0.0
    limit = (data.limit_tokens or math.inf) * token_length
    for sample in samples:
        by_domain: dict[str, list[str]] = {}
        for document in sample.documents:
            by_domain.setdefault(document.domain, []).append(document.text)
        for found in by_domain.values():
            share = _num_bytes(found) / sum(map(_num_bytes, by_domain.values()))
            wanted = min(limit, sample.text_bytes * share)
            text_bytes += wanted
            num_documents += wanted * len(found) / _num_bytes(found)
    if not math.isfinite(text_bytes):
        return None
    tokens, processes = text_bytes / token_length, num_processes()
    token_bytes = token_dtype(tokenizer.vocab_size).itemsize
    return TextSize(
        file_bytes=sum(sample.file_bytes for sample in samples),
        text_bytes=text_bytes,
        tokens=tokens,
        disk_bytes=tokens * token_bytes + num_documents * DOCUMENT_BYTES,
        processes=processes,
        process_bytes_per_second=1 / (reading + tokenising),
        # One process reads for all.
        hours=text_bytes * max(reading, (reading + tokenising) / processes) / 3600,
    )


def _num_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _samples(data: DataConfig, rules: Rules) -> list[_Sample]:
    """A sample of each source."""

    def without_digests(files: Sequence[Path]) -> list[str]:
        return [""] * len(files)

    sources = sources_of(data, rules, without_digests)
    if data.kind is DataKind.hub:
        return [_generated(source) for source in sources]
    with tempfile.TemporaryDirectory() as folder:
        starts = {name: Path(folder, str(number)) for number, name in enumerate(rules.sources)}
        copied = [
            _copy_start(s.files, starts[n]) for n, s in zip(rules.sources, sources, strict=True)
        ]
        paths = {name: str(start) for name, start in starts.items()}
        short = sources_of(replace(data, root=None, paths=paths), rules, without_digests)
        return [_sample(*of_source) for of_source in zip(sources, short, copied, strict=True)]


def _copy_start(files: Sequence[Path], folder: Path) -> int:
    """Copies the first `SAMPLE_BYTES` of the files, of which the last may be cut off."""
    folder.mkdir()
    left = SAMPLE_BYTES
    for number, path in enumerate(files):
        with path.open("rb") as file:
            start = file.read(left)
        (folder / f"{number:09}-{path.name}").write_bytes(start)
        left -= len(start)
        if not left:
            break
    return SAMPLE_BYTES - left


def _sample(source: Source, short: Source, copied: int) -> _Sample:
    begun = time.perf_counter()
    documents = list(_readable(short.documents()))
    file_bytes = sum(path.stat().st_size for path in source.files)
    read_bytes = float(copied)
    if not documents:  # the index of a table is at its end
        documents = list(islice(source.documents(), _SAMPLE_DOCUMENTS))
        num_rows = sum(map(_num_rows, source.files))
        read_bytes = file_bytes * len(documents) / max(num_rows, len(documents))
    seconds = time.perf_counter() - begun
    num_bytes = _num_bytes([document.text for document in documents])
    if not num_bytes:
        raise DataError(f"{source.where}: no document of its start fits a rule of the partition")
    return _Sample(documents, seconds, file_bytes, file_bytes * num_bytes / read_bytes)


def _readable(documents: Iterator[Document]) -> Iterator[Document]:
    """Those before the end of a file that is cut off."""
    try:
        yield from documents
    except DataError:
        return


def _num_rows(path: Path) -> int:
    """Rows of a Parquet file; 0 for others."""
    import pyarrow
    import pyarrow.parquet

    try:
        return int(pyarrow.parquet.read_metadata(path).num_rows)
    except pyarrow.ArrowException:
        return 0


def _generated(source: Source) -> _Sample:
    """Generated text in place of a data set's, to measure the rate; files are taken for text."""
    domains = list(source.domains)
    texts = generate(["text"], documents=_SAMPLE_DOCUMENTS, overlap=0.0)["text"]
    documents = [
        Document(domains[number % len(domains)], text, text_id(text))
        for number, text in enumerate(texts)
    ]
    file_bytes = sum(path.stat().st_size for path in source.files)
    return _Sample(documents, 0.0, file_bytes, file_bytes or math.inf)
