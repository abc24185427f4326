"""Bytes of the tensors that code allocates, on real tensors or on fake ones; knows no models.

On CUDA `torch.cuda.max_memory_allocated` says what a real run held. On the CPU, and on fake tensors
(`FakeTensorMode`: shapes without data), `AllocatedBytes` does. torch has a tracker too
(`torch.distributed._tools.MemTracker`), but it is private, hooks into modules and optimizers to
attribute each byte, and refuses a second forward pass, so a second micro-batch.
"""

import contextlib
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    is_traceable_wrapper_subclass,
    is_traceable_wrapper_subclass_type,
)
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from gr_sweep.errors import JobError


class AllocatedBytes(TorchDispatchMode):
    """Follows every storage that an operation inside returns until nobody holds it any more.

    Storages are counted once, whatever views there are of them; operations that write into a tensor
    they were given allocate nothing. What a kernel allocates and frees within itself is not seen.
    Tensors from outside count where `hold` was told of them.
    """

    current: int
    """Bytes alive."""
    peak: int
    """The most bytes that were alive at once, since the start or `reset_peak`."""

    def __init__(self, round_to: int = 1) -> None:
        """`round_to`: bytes that an allocation is rounded up to; CUDA's allocator deals in 512."""
        super().__init__()
        self.current = self.peak = 0
        self._round_to = round_to
        self._followed: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """Storage to its bytes, in a list that its weak reference holds too."""
        self._resize = torch.UntypedStorage.resize_

    def __enter__(self) -> Self:
        # FSDP empties gathered weights by resizing their storage, which is no operation on tensors.
        def resize_(storage: torch.UntypedStorage, size: int) -> None:
            self._resize(storage, size)
            if storage in self._followed:
                self._count(self._followed[storage][0], storage.nbytes())

        torch.UntypedStorage.resize_ = resize_  # type: ignore[assignment, method-assign]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that were there before."""
        for tensor in tensors:
            for storage in _storages(tensor):
                self._follow(storage)

    def reset_peak(self) -> None:
        """From here on `peak` is that of what follows."""
        self.peak = self.current

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(is_traceable_wrapper_subclass_type(kind) for kind in types):
            return NotImplemented  # a DTensor first becomes operations on its local part
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        new = {
            id(storage): storage
            for tensor in tree_leaves(result)
            if isinstance(tensor, Tensor)
            for storage in _storages(tensor)
            if storage not in self._followed
        }
        if new:
            given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            outside = {id(storage) for tensor in given for storage in _storages(tensor)}
            for key, storage in new.items():
                if key not in outside:
                    self._follow(storage)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage in self._followed:
            return
        held = [0]
        end = weakref.ref(storage, lambda _: self._count(held, 0))
        self._followed[storage] = held, end
        self._count(held, storage.nbytes())

    def _count(self, held: list[int], num_bytes: int) -> None:
        """`held`, the bytes of one storage, becomes `num_bytes`, rounded up."""
        rounded = -(-num_bytes // self._round_to) * self._round_to
        self.current += rounded - held[0]
        self.peak = max(self.peak, self.current)
        held[0] = rounded


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of `tensors`, each counted once."""
    counter = AllocatedBytes()
    counter.hold(tensors)
    return counter.current


def _storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        # A DTensor counts its mesh among its parts.
        parts = [part for name in names if isinstance(part := getattr(tensor, name), Tensor)]
        return [storage for part in parts for storage in _storages(part)]
    return [tensor.untyped_storage()]


@contextlib.contextmanager
def report_out_of_memory(advice: Callable[[], str]) -> Iterator[None]:
    """Turns an error of the GPU's or the machine's memory into a JobError that gives advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = not isinstance(error, RuntimeError) or (
            isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        )
        if not is_memory:
            raise
        [message, *_] = str(error).strip().splitlines() or [type(error).__name__]
        # The advice builds a model of its own: that of the job must be gone by then.
        traceback.clear_frames(error.__traceback__)
        raise JobError(f"out of memory ({message.rstrip('.')}); {advice()}") from error
