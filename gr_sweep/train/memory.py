"""Counts the bytes of tensors that code allocates, and reports when memory runs out.

`torch.cuda.max_memory_allocated` covers real runs on CUDA; `AllocatedBytes` covers the CPU and fake
tensors (`FakeTensorMode`: shapes without data). torch's own `torch.distributed._tools.MemTracker`
is private and refuses a second forward pass, so a second micro-batch.
"""

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    is_traceable_wrapper_subclass,
    is_traceable_wrapper_subclass_type,
)
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from gr_sweep.errors import JobError


class AllocatedBytes(TorchDispatchMode):
    """Counts every storage that an operation inside returns, until it is freed.

    A storage is counted once, however many views it has; operations that write into an argument
    allocate nothing. Not seen: temporary memory within a kernel, and tensors from outside that were
    not passed to `hold`.
    """

    current: int
    """Bytes allocated now."""
    peak: int
    """Maximum of `current` since the start, or since it was set."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._followed: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """Maps each storage to a one-item list with its size; the weakref callback shares it."""
        self._resize = torch.UntypedStorage.resize_

    def __enter__(self) -> Self:
        # FSDP frees gathered weights by resizing their storage, which is not a tensor operation.
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
        """Counts tensors that were allocated before."""
        for storage in _storages(list(tensors)):
            self._follow(storage)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(is_traceable_wrapper_subclass_type(kind) for kind in types):
            return NotImplemented  # a DTensor first becomes operations on its local part
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # every slice asks for it, several times
        result = func(*args, **(kwargs or {}))
        given = {id(storage) for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if id(storage) not in given:
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
        """Sets `held`, the bytes of one storage."""
        self.current += num_bytes - held[0]
        self.peak = max(self.peak, self.current)
        held[0] = num_bytes


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    """Those of all tensors in a tree of containers, and of the parts of DTensors."""
    for leaf in tree_leaves(tree):
        if is_traceable_wrapper_subclass(leaf):
            yield from _storages([getattr(leaf, name) for name in leaf.__tensor_flatten__()[0]])
        elif isinstance(leaf, Tensor):
            yield leaf.untyped_storage()


@contextlib.contextmanager
def report_out_of_memory() -> Iterator[None]:
    """Turns an error of the GPU's or the machine's memory into a JobError that gives advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if isinstance(error, RuntimeError) and not on_gpu and "can't allocate" not in str(error):
            raise
        [message, *_] = str(error).strip().splitlines() or [type(error).__name__]
        raise JobError(
            f"out of memory ({message.rstrip('.')}); try train.activation_checkpointing=true or "
            "fewer train.micro_batch_sequences; `gr-sweep estimate` shows what a job needs"
        ) from error
