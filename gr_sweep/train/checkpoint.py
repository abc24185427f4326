"""Checkpoints: written whole or not at all, the newest few kept, the same for any number of
processes.

A checkpoint is a folder in the format of torch.distributed.checkpoint, each process's tensors in a
file of its own, and beside them `run.json` with everything that is no tensor and `checksums.json`
with what stands for the content of all files. It can be read by another number of processes than
wrote it. Reading one runs no code that it might hold.
"""

import contextlib
import functools
import io
import json
import logging
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import (
    FileSystem,
    FileSystemReader,
    FileSystemWriter,
)
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gr_sweep.errors import DataError, GrSweepError, JobError
from gr_sweep.files import content_digest, full_disk, is_full, write_whole
from gr_sweep.jobdir import whole_checkpoints
from gr_sweep.train.distributed import Processes

logger = logging.getLogger(__name__)

_ABOUT = "run.json"
_TABLE = ".metadata"
_CHECKSUMS = "checksums.json"
_FORMAT = 3
_FORMATS = (2, 3)
"""Those that are read; 2 had no checksums."""

_DAMAGED = (
    FileNotFoundError,
    EOFError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    pickle.UnpicklingError,
)
"""What reading a damaged file raises, from JSON to the archive of a tensor."""

_OF_THE_DEVICE = (torch.AcceleratorError, torch.OutOfMemoryError, torch.distributed.DistError)
"""RuntimeErrors that say nothing of a file."""

_DTYPES = [name for name, value in vars(torch).items() if isinstance(value, torch.dtype)]
_CLASSES = {
    "pathlib": ("Path", "PosixPath", "PurePosixPath"),
    # Python 3.13 has its classes of paths here.
    "pathlib._local": ("Path", "PosixPath", "PurePosixPath"),
    "torch": ("Size", *_DTYPES),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    # Without BytesStorageMetadata: what it stands for is read by pickle. Only tensors are saved.
    "torch.distributed.checkpoint.metadata": (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
}
"""Of each module, what the table of a checkpoint is made of."""


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that training changes, by name; the tensors themselves, so that reading fills them.

    A tied parameter appears once. An optimizer that has made no step gets its state, as zeros. Of a
    model that is spread over processes, what is here (`state_dict` drops what is gathered).
    """
    found = _weights_of(model)
    state: Any = get_optimizer_state_dict(model, optimizer)["state"]
    for name, values in state.items():
        found |= {f"optimizer.{name}.{key}": value for key, value in values.items()}
    return found


def _weights_of(model: nn.Module) -> dict[str, Tensor]:
    once = {name for name, _ in model.named_parameters()}
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    return {f"model.{name}": t for name, t in model.state_dict().items() if name not in tied}


class Checkpoints:
    """The checkpoints of one job, in one folder that all its processes see."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        fingerprint: str,
        processes: Processes | None = None,
    ) -> None:
        """`fingerprint` says which run they belong to; others are refused."""
        self._folder = folder
        self._keep = keep
        self._fingerprint = fingerprint
        self._processes = processes or Processes()

    def save(self, step: int, about: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
        """Writes a checkpoint whole or not at all, then drops the oldest ones.

        Args:
            about: what is no tensor, in JSON values.
            tensors: by name; those that are spread over processes as each holds them.

        Raises:
            JobError: there is no room for it; in all processes the same.
        """
        path = self._folder / f"step_{step:08d}"
        beside = self._folder / f".{path.name}.tmp"
        # A tensor that is spread over processes counts as a whole.
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

        def give_up(error: BaseException) -> NoReturn:
            # First, so that what is free then is what can be had.
            shutil.rmtree(beside, ignore_errors=True)
            if is_full(error):
                raise full_disk(path, error, needed) from error
            raise error

        def giving_up(work: Callable[[], None]) -> None:
            try:
                work()
            except OSError as error:
                give_up(error)

        def begin() -> None:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            content = {"format": _FORMAT, "fingerprint": self._fingerprint, **about}
            write_whole(beside / _ABOUT, json.dumps(content) + "\n")

        def end() -> None:
            write_whole(beside / _CHECKSUMS, json.dumps(_checksums(beside), indent=1) + "\n")
            _sync(beside)
            if path.exists():
                shutil.rmtree(path)
            beside.replace(path)
            _sync(self._folder)
            for old in self._paths()[: -self._keep]:
                shutil.rmtree(old)

        try:
            self._processes.from_main(lambda: giving_up(begin))
            with _quiet():
                # Ends when every process has written and synced its file.
                save(
                    tensors,
                    storage_writer=_Writer(beside),
                    no_dist=not self._processes.are_several,
                )
            self._processes.from_main(lambda: giving_up(end))
        except CheckpointException as failure:
            # All processes are here: each has the errors of all.
            error = _first(failure)
            if is_full(error):
                self._processes.from_main(lambda: give_up(error))
            raise error from failure
        finally:
            if self._processes.is_main:
                shutil.rmtree(beside, ignore_errors=True)
        return path

    def load_newest(self, tensors: Callable[[], dict[str, Tensor]]) -> dict[str, Any] | None:
        """What `save` was told about the newest checkpoint that can be read; None without one.

        One that is damaged is named in the log and renamed, and the one before it is taken. What a
        killed process left half written is removed.

        Args:
            tensors: what is there to be filled, of the names and shapes that were saved; called
                when there is something to fill it with.

        Raises:
            DataError: a checkpoint of another run or another format; one that the system does
                not let be read, which stays as it is; no checkpoint that can be read, after one has
                filled some of the tensors.
        """
        self._processes.from_main(self._clean)
        target: dict[str, Tensor] = {}
        while (newest := self._processes.from_main(self._newest)) is not None:
            path, about = newest
            target = target or tensors()
            error = self._read(path, target)
            if error is None:
                return about
            self._processes.from_main(functools.partial(_set_aside, path, error))
        if target:
            raise DataError(
                f"no checkpoint in {self._folder} can be read, all are set aside; "
                "start the command again to train from the beginning"
            )
        return None

    def _read(self, path: Path, target: dict[str, Tensor]) -> Exception | None:
        """Fills the target; gives back what is wrong with the checkpoint, in all processes the
        same."""
        try:
            with _quiet():
                load(
                    target,
                    storage_reader=_Reader(path),
                    no_dist=not self._processes.are_several,
                )
        except CheckpointException as failure:
            # Any other error is one of the exchange itself, and says nothing of the checkpoint.
            error = _first(failure)
            if _is_damage(error):
                return error
            if isinstance(error, OSError):
                raise _not_let(path, error) from failure
            raise error from failure
        return None

    def _newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is as it was written, and what is written about it."""
        for path in reversed(self._paths()):
            try:
                about = _about(path)
                written, fingerprint = about["format"], about["fingerprint"]
                _Reader(path).read_metadata()
            except (*_DAMAGED, OSError) as error:
                if not _is_damage(error):
                    raise _not_let(path, error) from error
                _set_aside(path, error)
                continue
            if written not in _FORMATS:
                raise DataError(
                    f"{path} is in format {written}, which this version does not read (it reads "
                    f"{_FORMAT}); remove the folder or use another"
                )
            if fingerprint != self._fingerprint:
                raise DataError(
                    f"{path} belongs to another run (config or data differ); "
                    "remove the folder or use another"
                )
            return path, about
        return None

    def _clean(self) -> None:
        for left in self._folder.glob(".step_*.tmp"):
            shutil.rmtree(left, ignore_errors=True)

    def _paths(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return [path for _, path in whole_checkpoints(self._folder)]


def _checksums(path: Path) -> dict[str, list[Any]]:
    """Size and digest of every file of a checkpoint, by name."""
    # Not what the folder lists: on a network's file system files of other machines may come late.
    stored = _Reader(path).read_metadata().storage_data or {}
    names = sorted({_ABOUT, _TABLE, *(part.relative_path for part in stored.values())})
    return {name: [(path / name).stat().st_size, content_digest(path / name)] for name in names}


def _about(path: Path) -> dict[str, Any]:
    """What is written about a checkpoint all of whose files are as they were written.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, FileNotFoundError: they are not.
        OSError: the system does not let it be read.
    """
    about: dict[str, Any] = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
    if about["format"] == 2 and not (path / _CHECKSUMS).exists():
        return about
    written = json.loads((path / _CHECKSUMS).read_text(encoding="utf-8"))
    for name, (size, checksum) in written.items():
        found = (path / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found} bytes, {size} were written")
        if content_digest(path / name) != checksum:
            raise ValueError(f"{name} has the size but not the content that was written")
    return about


class _Files(FileSystem):
    """Files whose error is that of the system: torch.save says `unexpected pos` on a full disk."""

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        """See FileSystem."""
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        raw = _NotingFile(path, mode)
        try:
            with io.BufferedWriter(raw) as buffered:
                yield buffered
        except RuntimeError as error:
            if raw.error is None:
                raise
            raise raw.error from error


class _NotingFile(io.FileIO):
    """Remembers why it could not be written to."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


class _Writer(FileSystemWriter):
    """Writes a checkpoint whose errors say what was wrong."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.fs = _Files()


@contextlib.contextmanager
def saying_what_stays(folder: Path) -> Iterator[None]:
    """A disk that is full inside is one line, which says from where the job goes on.

    Args:
        folder: of the checkpoints of the job.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        # A library's error may not say which file: it is one of the job.
        path = Path(getattr(error, "filename", None) or folder.parent)
        said = error if isinstance(error, GrSweepError) else full_disk(path, error)
        whole = whole_checkpoints(folder)
        stays = "there is no checkpoint yet, and it begins anew"
        if whole:
            step, _ = whole[-1]
            stays = f"it goes on from the newest whole checkpoint, of step {step}"
        raise JobError(f"{said}: {stays}") from error


class _Reader(FileSystemReader):
    """Reads a checkpoint whose table may come from anywhere."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The table of tensors.

        Raises:
            pickle.UnpicklingError: it names anything else.
        """
        with open(Path(self.path) / _TABLE, "rb") as file:
            metadata = _TableUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"this is a {type(metadata).__name__}, no table")
        return metadata


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


def _is_damage(error: BaseException) -> TypeGuard[Exception]:
    """Whether reading fails for what a file holds, not for the system or the device."""
    if not isinstance(error, _DAMAGED) or isinstance(error, _OF_THE_DEVICE):
        return False
    # Some of CUDA's errors are plain RuntimeErrors.
    return not (isinstance(error, RuntimeError) and "CUDA" in str(error))


def _not_let(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"{path} cannot be read now ({error}) and stays as it is; mend that and start the command "
        "again, or remove the folder"
    )


def _set_aside(path: Path, error: Exception) -> None:
    """Renames a checkpoint out of the way of `save`, which keeps the newest by name."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    logger.warning(
        "checkpoint %s cannot be read (%s): set aside, trying the one before", path, reason
    )
    aside = path.with_suffix(".unreadable")
    shutil.rmtree(aside, ignore_errors=True)
    path.replace(aside)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without DCP's warning that a process is alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _first(failure: CheckpointException) -> BaseException:
    """The first error of those that DCP collected from all processes."""
    return next(iter(failure.failures.values()))[0]


def _sync(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_newest(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Fills a model's weights from the newest whole checkpoint, and gives back what is written
    about it.

    For who reads beside the job: nothing in the folder is renamed or removed, and the optimizer's
    state is not read.

    Args:
        folder: of the checkpoints of one job.
        model: of the job's shape, in one process.

    Raises:
        DataError: there is none, or the newest cannot be read.
    """
    whole = whole_checkpoints(folder)
    if not whole:
        raise DataError(f"{folder} holds no checkpoint")
    _, path = whole[-1]
    target = _weights_of(model)
    try:
        about = _about(path)
        if about["format"] in _FORMATS:
            with _quiet():
                load(target, storage_reader=_Reader(path), no_dist=True)
            return about
    except (*_DAMAGED, OSError, CheckpointException) as failure:
        error = _first(failure) if isinstance(failure, CheckpointException) else failure
        if not isinstance(error, OSError) and not _is_damage(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be read: {reason}") from failure
    raise DataError(
        f"{path} is in format {about['format']}, which this version does not read (it reads "
        f"{_FORMAT})"
    )
