"""Packed tokens on disk, one shard a domain: its documents one after another, mapped into memory.

Knows nothing of what the tokens stand for.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from gr_sweep.errors import DataError

_DOCUMENT = np.dtype([("end", "<i8"), ("bytes", "<i8"), ("id", "<u8")])
DOCUMENT_BYTES = _DOCUMENT.itemsize
"""Bytes of the row of a document in the table of a shard."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Documents of tokens, each of which ends with the end-of-text token. They may lie anywhere in
    any of the arrays, so subsets and joins of shards copy no tokens."""

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

    def __init__(
        self, folder: Path, name: str, dtype: np.dtype, eot_id: int, size: Sequence[int] = (0, 0)
    ) -> None:
        """`size`: as an earlier writer's `flush` returned it; the rest that it wrote is lost."""
        self.num_tokens, self.num_documents = size
        self._tokens = _open_cut(folder / f"{name}.tokens", self.num_tokens * dtype.itemsize)
        self._documents = _open_cut(
            folder / f"{name}.documents", self.num_documents * DOCUMENT_BYTES
        )
        self._eot = np.array([eot_id], dtype=dtype)

    def add(self, tokens: np.ndarray, num_bytes: int, document_id: int) -> None:
        """Appends a document and the end-of-text token."""
        self._tokens.write(tokens.tobytes() + self._eot.tobytes())
        self.num_tokens += len(tokens) + 1
        self.num_documents += 1
        row = np.array((self.num_tokens, num_bytes, document_id), _DOCUMENT)
        self._documents.write(row.tobytes())

    def flush(self) -> tuple[int, int]:
        """The tokens and documents so far, which are on the disk."""
        for file in (self._tokens, self._documents):
            file.flush()
            os.fsync(file.fileno())
        return self.num_tokens, self.num_documents

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tokens.close()
        self._documents.close()


def _open_cut(path: Path, size: int) -> BinaryIO:
    """The file, made if it is missing and cut to so many bytes, to append to."""
    file = path.open("ab")
    if file.tell() < size:
        raise DataError(f"{path} is shorter than recorded; remove {path.parent}")
    file.truncate(size)
    return file


def open_shard(folder: Path, name: str, dtype: np.dtype) -> Shard:
    """The shard that a `ShardWriter` of this name and dtype left in the folder."""
    table = np.fromfile(folder / f"{name}.documents", dtype=_DOCUMENT)
    path = folder / f"{name}.tokens"
    # An empty file cannot be mapped.
    is_empty = os.path.getsize(path) == 0
    tokens = np.empty(0, dtype) if is_empty else np.memmap(path, dtype=dtype, mode="r")
    offsets = np.concatenate([np.zeros(1, np.int64), table["end"]])
    return Shard.packed(tokens, offsets, table["bytes"].copy(), table["id"].copy())


class IdSet:
    """A set of document ids in about 20 bytes each, where a `set` takes a hundred."""

    def __init__(self, ids: np.ndarray) -> None:
        """`ids`: uint64."""
        self._sorted = np.sort(ids)
        self._recent: set[int] = set()

    def __contains__(self, wanted: int) -> bool:
        place = np.searchsorted(self._sorted, np.uint64(wanted))
        is_sorted_in = place < len(self._sorted) and int(self._sorted[place]) == wanted
        return is_sorted_in or wanted in self._recent

    def add(self, new: int) -> None:
        """Adds an id."""
        self._recent.add(new)
        # A fixed share, so that sorting does not take the square of the size.
        if len(self._recent) > max(1 << 14, len(self._sorted) // 8):
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent.clear()
