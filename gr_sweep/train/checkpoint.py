"""Checkpoints: written whole or not at all, the newest few kept, independent of the number of
processes.

A checkpoint is a folder in the format of torch.distributed.checkpoint (DCP) with two more files:
`run.json` with everything that is not a tensor, and `checksums.json` with the size and digest of
every file. Reading a checkpoint runs no code that it may contain.
"""

import contextlib
import json
import logging
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gr_sweep.errors import DataError, GrSweepError
from gr_sweep.files import content_digest, full_disk, is_full, sync_folder, write_whole
from gr_sweep.jobdir import whole_checkpoints
from gr_sweep.train.distributed import Processes

logger = logging.getLogger(__name__)

_ABOUT = "run.json"
_TABLE = ".metadata"
_CHECKSUMS = "checksums.json"
_FORMAT = 3

_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, FileNotFoundError)
"""What reading a damaged `run.json` or `checksums.json` raises, and `_verify`."""

_TABLE_NAMES = {
    *("torch.Size", "torch.serialization._get_layout"),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    # Without BytesStorageMetadata, whose content DCP unpickles: only tensors are saved.
    *(
        f"torch.distributed.checkpoint.metadata.{name}"
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "ChunkStorageMetadata"),
            *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
        )
    ),
    *("pathlib.Path", "pathlib.PosixPath", "pathlib._local.Path", "pathlib._local.PosixPath"),
}
"""What DCP's table of tensors, a pickle, may name beside torch's dtypes."""


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that training changes, by name: the tensors themselves, which loading fills; of a
    sharded model the local shards. A tied parameter appears once. An optimizer without state gets
    it, as zeros."""
    found = _weights_of(model)
    state: Any = get_optimizer_state_dict(model, optimizer)["state"]
    for name, values in state.items():
        found |= {f"optimizer.{name}.{key}": value for key, value in values.items()}
    return found


def _weights_of(model: nn.Module) -> dict[str, Tensor]:
    once = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    return {f"model.{name}": t for name, t in model.state_dict().items() if name not in tied}


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one job, in a folder that all its processes see; each method is called by
    all of them."""

    folder: Path
    keep: int
    """Number of checkpoints that are kept."""
    fingerprint: str
    """Identifies the run; checkpoints of another run are refused."""
    processes: Processes = field(default_factory=Processes)

    def save(self, step: int, about: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
        """Writes a checkpoint whole or not at all, then removes the oldest ones.

        Args:
            about: JSON values.
            tensors: by name; sharded ones as each process holds them.

        Raises:
            OSError: the disk is full; in the process that finds it so, and with DCP in all.
        """
        path = self.folder / f"step_{step:08d}"
        partial = self.folder / f".{path.name}.tmp"

        def begin() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            content = {"format": _FORMAT, "fingerprint": self.fingerprint, **about}
            write_whole(partial / _ABOUT, json.dumps(content) + "\n")

        def end() -> None:
            write_whole(partial / _CHECKSUMS, json.dumps(_checksums(partial), indent=1) + "\n")
            sync_folder(partial)
            if path.exists():
                shutil.rmtree(path)
            partial.replace(path)
            sync_folder(self.folder)
            for _, old in whole_checkpoints(self.folder)[: -self.keep]:
                shutil.rmtree(old)

        try:
            self.processes.from_main(begin)
            # Returns when every process has written and synced its file.
            with _dcp():
                save(
                    tensors,
                    storage_writer=FileSystemWriter(partial),
                    no_dist=not self.processes.are_several,
                )
            self.processes.from_main(end)
        finally:
            if self.processes.is_main:
                shutil.rmtree(partial, ignore_errors=True)
        return path

    def load_newest(
        self, tensors: Callable[[dict[str, Any]], dict[str, Tensor]]
    ) -> dict[str, Any] | None:
        """Loads the newest undamaged checkpoint; returns the `about` of `save`, None without one.

        A damaged one is reported in the log and renamed, and the one before it is loaded. What a
        killed process left half written is removed.

        Args:
            tensors: gives the tensors to fill, with the names and shapes that were saved, for the
                `about`; called only if there is a checkpoint.

        Raises:
            DataError: a checkpoint of another run or format; it stays as it is.
        """
        newest = self.processes.from_main(self._newest)
        if newest is None:
            return None
        path, about = newest
        with _dcp():
            load(
                tensors(about), storage_reader=_Reader(path), no_dist=not self.processes.are_several
            )
        return about

    def _newest(self) -> tuple[Path, dict[str, Any]] | None:
        for partial in self.folder.glob(".step_*.tmp"):
            shutil.rmtree(partial, ignore_errors=True)
        for _, path in reversed(whole_checkpoints(self.folder)):
            try:
                about = _verify(path)
            except _DAMAGE as error:
                logger.warning(
                    f"checkpoint {path} is damaged ({error!r}): renamed, trying the one before"
                )
                # Or else `save` would keep it: it has the highest step.
                aside = path.with_suffix(".unreadable")
                shutil.rmtree(aside, ignore_errors=True)
                path.replace(aside)
                continue
            if about["fingerprint"] != self.fingerprint:
                raise DataError(
                    f"{path} belongs to another run (config or data differ); remove the folder or "
                    "use another"
                )
            return path, about
        return None


def read_newest(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Loads a model's weights from the newest checkpoint, in one process, and returns what was
    saved with them. For readers other than the job itself: changes nothing in the folder.

    Raises:
        DataError: there is no checkpoint, or the newest cannot be read.
    """
    if not (whole := whole_checkpoints(folder)):
        raise DataError(f"{folder} contains no checkpoint")
    _, path = whole[-1]
    try:
        about = _verify(path)
        with _dcp():
            load(_weights_of(model), storage_reader=_Reader(path), no_dist=True)
    except (*_DAMAGE, OSError, RuntimeError) as error:  # RuntimeError: a parameter is missing
        raise DataError(f"{path} cannot be read: {error}") from error
    return about


@contextlib.contextmanager
def report_full_disk(folder: Path) -> Iterator[None]:
    """Turns the error of a library that finds the job's disk full into a JobError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, GrSweepError) or not is_full(error):
            raise
        raise full_disk(Path(getattr(error, "filename", None) or folder), error) from error


def _checksums(path: Path) -> dict[str, list[Any]]:
    """Size and digest of every file of a checkpoint, by name."""
    # Not those that are listed: a network file system adds its own, and shows others late.
    stored = _Reader(path).read_metadata().storage_data or {}
    names = sorted({_ABOUT, _TABLE, *(part.relative_path for part in stored.values())})
    return {name: [(path / name).stat().st_size, content_digest(path / name)] for name in names}


def _verify(path: Path) -> dict[str, Any]:
    """The content of `run.json`; one of _DAMAGE if a file is missing or differs."""
    for name, (_, digest) in json.loads((path / _CHECKSUMS).read_text("utf-8")).items():
        if content_digest(path / name) != digest:
            raise ValueError(f"the content of {name} differs from what was written")
    _Reader(path).read_metadata()  # DCP would log its error as a traceback
    about: dict[str, Any] = json.loads((path / _ABOUT).read_text("utf-8"))
    if about["format"] != _FORMAT:
        raise DataError(
            f"{path} is in format {about['format']}; this version reads format {_FORMAT}; remove "
            "the folder or use another"
        )
    return about


class _Reader(FileSystemReader):
    """Reads a checkpoint without running code that its table may name."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / _TABLE, "rb") as file:
            metadata: Metadata = _TableUnpickler(file).load()
        return metadata


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or f"{module}.{name}" in _TABLE_NAMES:
            return super().find_class(module, name)
        raise DataError(f"{module}.{name} is not allowed in a checkpoint, which may be malicious")


@contextlib.contextmanager
def _dcp() -> Iterator[None]:
    """Raises the first error that DCP collected from the processes; hides its warning if alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as failure:
            error: BaseException = next(iter(failure.failures.values()))[0]
            # torch.save says `unexpected pos` where the system finds the disk full.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise (cause or error) from failure
