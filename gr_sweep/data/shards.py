"""Packed tokens on disk, one shard a domain: its documents one after another, mapped into memory.

Knows nothing of what the tokens stand for.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

_DOCUMENT = np.dtype([("end", "<i8"), ("bytes", "<i8"), ("id", "<u8")])


@dataclass(frozen=True, slots=True)
class Shard:
    """Documents of tokens, each of which ends with the end-of-text token.

    A shard is a view: documents may lie anywhere in any of the arrays, so subsets and joins of
    shards copy no tokens.
    """

    arrays: tuple[np.ndarray, ...]
    """Token arrays, uint16 or uint32, mapped into memory."""
    array: np.ndarray
    """[documents] int64: index of the array that contains the document."""
    starts: np.ndarray
    """[documents] int64: index of its first token in that array."""
    lengths: np.ndarray
    """[documents] int64: number of its tokens, with the end-of-text token."""
    num_bytes: np.ndarray
    """[documents] int64: UTF-8 bytes of the text that the tokens stand for."""
    ids: np.ndarray
    """[documents] uint64: hash of the text (`rules.text_id`)."""

    @classmethod
    def packed(
        cls, tokens: np.ndarray, offsets: np.ndarray, num_bytes: np.ndarray, ids: np.ndarray
    ) -> Self:
        """Documents one after another: document i is `tokens[offsets[i]:offsets[i + 1]]`."""
        array = np.zeros(len(ids), np.int64)
        return cls((tokens,), array, offsets[:-1], np.diff(offsets), num_bytes, ids)

    @property
    def num_documents(self) -> int:
        """Documents in the shard."""
        return len(self.ids)

    @property
    def num_tokens(self) -> int:
        """Tokens in the shard, including end-of-text tokens."""
        return int(self.lengths.sum())

    def document(self, index: int) -> np.ndarray:
        """The tokens of a document with its end-of-text token; a view."""
        start = int(self.starts[index])
        return self.arrays[self.array[index]][start : start + int(self.lengths[index])]

    def subset(self, indices: np.ndarray | Sequence[int]) -> "Shard":
        """The documents with these indices, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Shard(
            self.arrays,
            self.array[chosen],
            self.starts[chosen],
            self.lengths[chosen],
            self.num_bytes[chosen],
            self.ids[chosen],
        )


def join(shards: Sequence[Shard]) -> Shard:
    """The documents of one or more shards, one shard after another."""
    first = np.cumsum([0, *(len(shard.arrays) for shard in shards)])
    return Shard(
        tuple(array for shard in shards for array in shard.arrays),
        np.concatenate([shard.array + n for shard, n in zip(shards, first[:-1], strict=True)]),
        np.concatenate([shard.starts for shard in shards]),
        np.concatenate([shard.lengths for shard in shards]),
        np.concatenate([shard.num_bytes for shard in shards]),
        np.concatenate([shard.ids for shard in shards]),
    )


class ShardWriter:
    """Writes a shard into two files of a folder, document by document."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, eot_id: int) -> None:
        self._tokens = open(folder / f"{name}.tokens", "wb")  # noqa: SIM115 - closed at the end
        self._documents_path = folder / f"{name}.documents"
        self._rows: list[tuple[int, int, int]] = []
        self._eot = np.array([eot_id], dtype=dtype)
        self.num_tokens = 0

    @property
    def num_documents(self) -> int:
        """Documents written so far."""
        return len(self._rows)

    def add(self, tokens: np.ndarray, num_bytes: int, document_id: int) -> None:
        """Appends a document and the end-of-text token."""
        self._tokens.write(tokens.tobytes())
        self._tokens.write(self._eot.tobytes())
        self.num_tokens += len(tokens) + 1
        self._rows.append((self.num_tokens, num_bytes, document_id))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Writes the table of documents; not after an error, where the whole folder is deleted."""
        self._tokens.close()
        if kind is None:
            # Not `tofile`, which ignores a full disk.
            self._documents_path.write_bytes(np.array(self._rows, dtype=_DOCUMENT).tobytes())


def open_shard(folder: Path, name: str, dtype: np.dtype) -> Shard:
    """The shard that a `ShardWriter` of this name and dtype left in the folder."""
    table = np.fromfile(folder / f"{name}.documents", dtype=_DOCUMENT)
    path = folder / f"{name}.tokens"
    # An empty file cannot be mapped.
    is_empty = os.path.getsize(path) == 0
    tokens = np.empty(0, dtype) if is_empty else np.memmap(path, dtype=dtype, mode="r")
    offsets = np.concatenate([np.zeros(1, np.int64), table["end"]])
    return Shard.packed(tokens, offsets, table["bytes"].copy(), table["id"].copy())
