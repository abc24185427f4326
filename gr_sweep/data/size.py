"""How much text there is and what preparing it takes, from file sizes and a sample.

Nothing is downloaded, and nothing is left on the disk.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from gr_sweep.config import DataConfig, DataKind, ModelConfig, PartitionConfig
from gr_sweep.data.cache import MANIFEST
from gr_sweep.data.encode import num_processes
from gr_sweep.data.formats import COMPRESSED
from gr_sweep.data.prepare import cache_folder, text_fingerprint
from gr_sweep.data.rules import Rules
from gr_sweep.data.shards import DOCUMENT_BYTES
from gr_sweep.data.sources import sources_of
from gr_sweep.data.synthetic import generate
from gr_sweep.data.tokenize import Tokenizer, load_tokenizer, token_dtype, train_tokenizer
from gr_sweep.errors import DataError

_SAMPLE_DOCUMENTS = 200
"""Of each source, read and tokenised."""
_PACKED = 3
"""Bytes of text in a byte of a compressed file, of which Parquet is one."""


@dataclass(frozen=True)
class TextSize:
    """What a text needs before a job trains on it, estimated."""

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


def text_size(data: DataConfig, partition: PartitionConfig, model: ModelConfig) -> TextSize | None:
    """What a text needs; None if it is in the cache, is generated, or comes from the Hub without a
    limit, which is of unknown size. Of JSON and tables, all fields are taken for text.

    Raises:
        DataError: text or a tokenizer is missing or cannot be read.
    """
    folder = cache_folder(data) / text_fingerprint(data, partition, model)
    is_hub, limit_tokens = data.kind is DataKind.hub, data.limit_tokens or math.inf
    if data.kind is DataKind.synthetic or (folder / MANIFEST).exists():
        return None
    if is_hub and data.limit_tokens is None:
        return None
    sources = sources_of(data, Rules(partition))
    texts = generate(["any"], documents=_SAMPLE_DOCUMENTS, overlap=0.0)["any"] if is_hub else []
    begun = time.perf_counter()
    for source in () if is_hub else sources:
        texts += [document.text for document in islice(source.documents, _SAMPLE_DOCUMENTS)]
    if not any(texts):
        raise DataError(f"{sources[0].where}: no document fits a rule of the partition")
    reading = (time.perf_counter() - begun) / _num_bytes(texts)
    tokenizer: Tokenizer
    if name := data.tokenizer or model.path:
        gguf_file = None if data.tokenizer else model.gguf_file
        tokenizer = load_tokenizer(name, gguf_file, may_download=False)
    else:
        tokenizer = train_tokenizer(texts, data.vocab_size)
    tokenizer.encode(texts[::2])  # remembers words, as it does after the start of a large text
    texts = texts[1::2] or texts
    begun = time.perf_counter()
    num_tokens = sum(len(ids) + 1 for ids in tokenizer.encode(texts))
    tokenising = (time.perf_counter() - begun) / _num_bytes(texts)

    tokens = 0.0
    for source in sources:
        sizes = (
            path.stat().st_size * (_PACKED if path.suffix in (*COMPRESSED, ".parquet") else 1)
            for path in source.files
        )
        found = math.inf if is_hub else sum(sizes) * num_tokens / _num_bytes(texts)
        tokens += min(found, limit_tokens * len(source.domains))
    text_bytes, num_documents = (tokens * n / num_tokens for n in (_num_bytes(texts), len(texts)))
    token_bytes = token_dtype(tokenizer.vocab_size).itemsize
    return TextSize(
        text_bytes=text_bytes,
        tokens=tokens,
        disk_bytes=tokens * token_bytes + num_documents * DOCUMENT_BYTES,
        processes=num_processes(),
        process_bytes_per_second=1 / (reading + tokenising),
        # One process reads for all.
        hours=text_bytes * max(reading, (reading + tokenising) / num_processes()) / 3600,
    )


def _num_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)
