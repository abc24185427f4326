"""Small corpora and the config of a partition, for the tests of the data package."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gr_sweep.config import DataConfig, DataKind, DomainConfig, PartitionConfig
from gr_sweep.data.shards import Shard
from gr_sweep.data.synthetic import generate

EOT = 0


def partition(*domains: str, **rules: DomainConfig) -> PartitionConfig:
    """The domains in order, with a rule where one is given."""
    return PartitionConfig(domains={name: rules.get(name, DomainConfig()) for name in domains})


def texts(domain: str, documents: int = 60) -> list[str]:
    """Invented text that is the domain's own."""
    return generate([domain], documents=documents, overlap=0.0)[domain]


def write_lines(path: Path, records: Sequence[object]) -> Path:
    """JSON lines, packed where the name ends in .gz or .zst."""
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed(content, path.suffix.removeprefix(".")))
    return path


def packed(content: bytes, suffix: str) -> bytes:
    """The content compressed as a file of this suffix is."""
    import pyarrow

    file = pyarrow.BufferOutputStream()
    kind = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}.get(suffix)
    with pyarrow.output_stream(file, compression=kind) as stream:
        stream.write(content)
    return bytes(file.getvalue())


def write_root(root: Path, *domains: str, documents: int = 60) -> Path:
    """A folder with `<domain>.jsonl` of invented text for each domain."""
    for domain in domains:
        write_lines(root / f"{domain}.jsonl", [{"text": text} for text in texts(domain, documents)])
    return root


def local(tmp_path: Path, root: Path, **settings: object) -> DataConfig:
    """`data=local` with a cache of the test's own."""
    return DataConfig(
        kind=DataKind.local,
        root=str(root),
        cache=str(tmp_path / "cache"),
        **{"vocab_size": 400, **settings},
    )


def shard(lengths: Sequence[int], first: int = 1, num_bytes: int = 10) -> Shard:
    """Documents of these lengths (end-of-text token included) with tokens first, first + 1, ..."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.arange(first, first + offsets[-1]).astype(np.uint32)
    tokens[offsets[1:] - 1] = EOT
    return Shard.packed(
        tokens,
        offsets,
        np.full(len(lengths), num_bytes),
        np.arange(len(lengths), dtype=np.uint64) + np.uint64(first),
    )


def tokens_of(shard: Shard) -> np.ndarray:
    """All tokens of the shard, one document after another."""
    documents = [shard.document(index) for index in range(shard.num_documents)]
    return np.concatenate([shard.arrays[0][:0], *documents])
