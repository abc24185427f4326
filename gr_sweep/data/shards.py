"""Packed tokens on disk: a domain's documents one after another, mapped into memory; and views of
them, some documents of a shard or the documents of several.

A cache folder is built under a lock, in a folder of its own that is renamed into place when it is
whole, and checked whenever it is opened. What the tokens stand for is not known here.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from gr_sweep.errors import DataError
from gr_sweep.files import content_digest, full_disk, is_full, write_whole

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_CHECKED = "checked.json"
"""Which large files were read as a whole, by size, time of change and inode."""

_DOCUMENT = np.dtype([("end", "<i8"), ("bytes", "<i8"), ("id", "<u8")])
_WHOLE_BYTES = 64 << 20
_SAMPLED_BLOCKS = 256
_BLOCK_BYTES = 64 << 10
_NOTICE_S = 5.0


class Pieces:
    """Tokens of documents that lie apart, read as if these lay one after another; nothing is copied
    before it is read.

    What `Shard` and `Stream` ask of an array of tokens: its length, its type and slices of it.
    """

    def __init__(
        self,
        arrays: Sequence[np.ndarray],
        array: np.ndarray,
        starts: np.ndarray,
        offsets: np.ndarray,
    ) -> None:
        """
        Args:
            arrays: what the documents lie in.
            array: [documents], which of them a document lies in.
            starts: [documents], where it begins there.
            offsets: [documents + 1], where it begins here.
        """
        self.arrays = tuple(arrays)
        self.array = array
        self.starts = starts
        self.offsets = offsets
        self.dtype = np.result_type(*self.arrays) if self.arrays else np.dtype(np.uint16)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def __getitem__(self, part: slice) -> np.ndarray:
        """Tokens in a row: a view of one document, a copy where there are several."""
        first, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"tokens are read in a row, not in steps of {step}")
        found = []
        document = int(self.offsets.searchsorted(first, side="right")) - 1
        while first < stop:
            end = min(stop, int(self.offsets[document + 1]))
            shift = int(self.starts[document]) - int(self.offsets[document])
            found.append(self.arrays[self.array[document]][first + shift : end + shift])
            first, document = end, document + 1
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.empty(0, self.dtype)


@dataclass(frozen=True, slots=True)
class Shard:
    """Documents as one array of tokens; each document ends with the end-of-text token."""

    tokens: np.ndarray | Pieces
    """[tokens] uint16 or uint32, mapped into memory; `Pieces` where the documents lie apart."""
    offsets: np.ndarray
    """[documents + 1] int64: document i is `tokens[offsets[i]:offsets[i + 1]]`."""
    num_bytes: np.ndarray
    """[documents] int64: UTF-8 bytes of the text that the tokens stand for."""
    ids: np.ndarray
    """[documents] uint64: hash of the text (`heldout.text_id`)."""

    @property
    def num_documents(self) -> int:
        """Documents in the shard."""
        return len(self.ids)

    @property
    def num_tokens(self) -> int:
        """Tokens in the shard, end-of-text tokens among them."""
        return len(self.tokens)

    def document(self, index: int) -> np.ndarray:
        """The tokens of a document with its end-of-text token; a view."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def subset(self, indices: np.ndarray | Sequence[int]) -> "Shard":
        """The documents of these places, in this order; no token is read or copied."""
        indices = np.asarray(indices, dtype=np.int64)
        pieces = self._pieces()
        lengths = np.diff(self.offsets)[indices]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return Shard(
            Pieces(pieces.arrays, pieces.array[indices], pieces.starts[indices], offsets),
            offsets,
            self.num_bytes[indices],
            self.ids[indices],
        )

    def _pieces(self) -> Pieces:
        if isinstance(self.tokens, Pieces):
            return self.tokens
        array = np.zeros(self.num_documents, np.int64)
        return Pieces([self.tokens], array, self.offsets[:-1], self.offsets)


def join(shards: Sequence[Shard]) -> Shard:
    """The documents of several shards, at least one, one shard after another; no token is read or
    copied."""
    if len(shards) == 1:
        return shards[0]
    parts = [shard._pieces() for shard in shards]
    first = np.cumsum([0, *(len(part.arrays) for part in parts)])
    begin = np.cumsum([0, *(shard.num_tokens for shard in shards)])
    offsets = np.concatenate(
        [np.zeros(1, np.int64)]
        + [shard.offsets[1:] + at for shard, at in zip(shards, begin[:-1], strict=True)]
    )
    pieces = Pieces(
        [array for part in parts for array in part.arrays],
        np.concatenate([part.array + at for part, at in zip(parts, first[:-1], strict=True)]),
        np.concatenate([part.starts for part in parts]),
        offsets,
    )
    return Shard(
        pieces,
        offsets,
        np.concatenate([shard.num_bytes for shard in shards]),
        np.concatenate([shard.ids for shard in shards]),
    )


class ShardWriter:
    """Writes a shard, document by document, into two files of a folder."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, eot_id: int) -> None:
        self._tokens = open(folder / f"{name}.tokens", "wb")  # noqa: SIM115 - closed by `close`
        self._documents_path = folder / f"{name}.documents"
        self._rows: list[tuple[int, int, int]] = []
        self._eot = np.array([eot_id], dtype=dtype)
        self.num_tokens = 0

    @property
    def num_documents(self) -> int:
        """Documents written so far."""
        return len(self._rows)

    def add(self, tokens: np.ndarray, num_bytes: int, document_id: int) -> None:
        """Appends a document; the end-of-text token is added here."""
        self._tokens.write(tokens.tobytes())
        self._tokens.write(self._eot.tobytes())
        self.num_tokens += len(tokens) + 1
        self._rows.append((self.num_tokens, num_bytes, document_id))

    def close(self) -> None:
        """Writes the table of documents and leaves both files on the disk."""
        _flush(self._tokens)
        self._tokens.close()
        with open(self._documents_path, "wb") as file:
            file.write(np.array(self._rows, dtype=_DOCUMENT).tobytes())
            _flush(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Where the build failed the whole folder goes; where it did not, `close` has been called.
        self._tokens.close()


def open_shard(folder: Path, name: str, dtype: np.dtype) -> Shard:
    """The shard that a `ShardWriter` of this name and type left in the folder."""
    table = np.fromfile(folder / f"{name}.documents", dtype=_DOCUMENT)
    path = folder / f"{name}.tokens"
    # An empty file cannot be mapped.
    is_empty = os.path.getsize(path) == 0
    tokens = np.empty(0, dtype) if is_empty else np.memmap(path, dtype=dtype, mode="r")
    offsets = np.concatenate([np.zeros(1, np.int64), table["end"]])
    return Shard(tokens, offsets, np.ascontiguousarray(table["bytes"]), table["id"].copy())


def open_or_build(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest of a cache folder, which is built first where it is missing or damaged.

    Processes that ask for the same folder at once wait while one of them builds.

    Args:
        folder: where the cache is to be; its parent holds the lock.
        build: writes the files into the (empty, temporary) folder that it is given and returns what
            the manifest says about them, in JSON values.

    Raises:
        DataError: the parent folder cannot be written.
        JobError: there is no room for it; nothing of it is left.
    """
    with contextlib.suppress(_Unusable):
        return _checked_manifest(folder)
    _make(folder.parent)
    with _locked(folder.with_name(folder.name + ".lock")):
        try:
            return _checked_manifest(folder)
        except _Unusable as error:
            reason = error
        # What a process left that was killed while it built; nobody else builds under this lock.
        for stale in folder.parent.glob(f"{folder.name}.building-*"):
            shutil.rmtree(stale, ignore_errors=True)
        if folder.exists():
            logger.warning("cache folder %s is damaged; building it again (%s)", folder, reason)
            shutil.rmtree(folder)
        building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.building-", dir=folder.parent))
        try:
            # mkdtemp makes folders for one user alone; a cache may be shared by a group.
            building.chmod(0o777 & ~_umask())
            about = dict(build(building))
            files = sorted(path for path in building.rglob("*") if path.is_file())
            about["files"] = {path.relative_to(building).as_posix(): _entry(path) for path in files}
            _remember(building, about["files"])
            with open(building / MANIFEST, "w") as file:
                json.dump(about, file, indent=1)
                _flush(file)
            os.replace(building, folder)
            _sync_folder(folder.parent)
        except BaseException as error:
            written = sum(path.stat().st_size for path in building.rglob("*") if path.is_file())
            # First, so that what is free then is what can be had.
            shutil.rmtree(building, ignore_errors=True)
            if is_full(error):
                instead = "set data.cache or GR_SWEEP_CACHE to a folder on another disk"
                raise full_disk(folder, error, written, is_least=True, instead=instead) from error
            raise
        return about


def _entry(path: Path) -> list[Any]:
    """Size and digest of a file, for the manifest; of a large one that of all its content too."""
    size = path.stat().st_size
    return [size, digest(path), *([content_digest(path)] if size > _WHOLE_BYTES else [])]


def _remember(folder: Path, files: Mapping[str, Sequence[Any]]) -> None:
    """Writes down that the large files are as the manifest says, as they stand."""
    large = {name: _stamp(folder / name) for name, entry in files.items() if len(entry) == 3}
    if large:
        # Remembering saves time alone, and who reads a cache need not be let to write it.
        with contextlib.suppress(OSError):
            write_whole(folder / _CHECKED, json.dumps(large))


def _stamp(path: Path) -> list[int]:
    """What changes when a file is written to or replaced."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def digest(path: Path) -> str:
    """BLAKE2b of a file's size and content; of evenly spaced blocks where it is above 64 MiB.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    state = hashlib.blake2b(str(size).encode() + b"\n", digest_size=16)
    with open(path, "rb") as file:
        if size <= _WHOLE_BYTES:
            while block := file.read(1 << 20):
                state.update(block)
        else:
            for start in np.linspace(0, size - _BLOCK_BYTES, _SAMPLED_BLOCKS).astype(int).tolist():
                file.seek(start)
                state.update(file.read(_BLOCK_BYTES))
    return state.hexdigest()


def content_keys(paths: Sequence[Path], memory: Path) -> list[str]:
    """What stands for each file's content in a fingerprint; not its name, not its place.

    Digests are remembered in the file `memory` by path, size and time of change, so that files
    which did not change are not read again.

    Raises:
        DataError: a file is not there or cannot be read.
    """
    try:
        remembered = json.loads(memory.read_text())
    except (OSError, ValueError):
        remembered = {}
    if not isinstance(remembered, dict):
        remembered = {}
    keys, is_changed = [], False
    for path in paths:
        try:
            status = path.stat()
            stamp = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
            if stamp not in remembered:
                key = digest(path)
                if status.st_size > _WHOLE_BYTES:
                    # Blocks may miss a change in the middle; the time of change does not.
                    key += f"-{status.st_mtime_ns}"
                # A file that is just being written can change again within the clock's resolution.
                if time.time() - status.st_mtime < 2:
                    keys.append(key)
                    continue
                remembered[stamp] = key
                is_changed = True
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        keys.append(remembered[stamp])
    if is_changed:
        # Remembering saves time and nothing else: a cache that cannot be written may still be read.
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_whole(memory, json.dumps(remembered))
    return keys


class _Unusable(Exception):
    """A cache folder that is not there, or not as it was written. Says which file."""


def _checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are as they were written.

    A large file is read as a whole once; after that, as long as nobody has written to it, samples
    of it are.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        remembered = _remembered(folder)
        is_new = False
        for name, (size, checksum, *of_all) in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != size:
                raise _Unusable(f"{name} has {path.stat().st_size} bytes, {size} were written")
            is_right = digest(path) == checksum
            if of_all and remembered.get(name) != _stamp(path):
                is_right = is_right and [content_digest(path)] == of_all
                is_new = True
            if not is_right:
                raise _Unusable(f"{name} has the size but not the content that was written")
        if is_new:
            _remember(folder, manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Unusable(f"{type(error).__name__}: {error}") from error
    return manifest


def _remembered(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _CHECKED).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    start = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=_NOTICE_S)
            break
        except Timeout:
            logger.info(
                "another process is building the token cache; waiting for %.0f s (%s)",
                time.monotonic() - start,
                path,
            )
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cache folder {folder} cannot be made ({error.strerror}); set data.cache or "
            "GR_SWEEP_CACHE to a folder that can be written"
        ) from error
    if not os.access(folder, os.W_OK):
        raise DataError(
            f"cache folder {folder} cannot be written; set data.cache or GR_SWEEP_CACHE"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
