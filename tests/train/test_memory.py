import torch
from torch import Tensor

from gr_sweep.train.memory import AllocatedBytes

KIB = 1024


def ones() -> Tensor:
    """A KiB."""
    return torch.ones(256)


def test_current_and_peak_follow_what_is_held_by_hand() -> None:
    with AllocatedBytes() as memory:
        a, b = ones(), ones()
        assert memory.current == 2 * KIB
        c = a + b
        del a, b
        assert (memory.current, memory.peak) == (KIB, 3 * KIB)
        memory.reset_peak()
        d = c * 2
        del d
        assert (memory.current, memory.peak) == (KIB, 2 * KIB)
        part = c[:1]
        del c
        assert memory.current == KIB, "a view holds all of its storage"
        del part
        assert memory.current == 0


def test_tensors_from_outside_count_where_they_are_held() -> None:
    outside, out = ones(), ones()
    with AllocatedBytes() as memory:
        outside.mul_(2.0)
        torch.add(outside, outside, out=out)
        views = [outside[:3], outside.view(16, 16).t(), outside.detach(), torch.Tensor(outside)]
        assert memory.peak == 0 and len(views) == 4
    weight = ones()
    memory.hold([weight, weight[:2]])
    assert memory.current == KIB
    del weight
    assert memory.current == 0


def test_a_storage_that_is_resized_counts_as_large_as_it_is() -> None:
    plain = torch.UntypedStorage.resize_
    with AllocatedBytes() as memory:
        gathered = ones()
        gathered.untyped_storage().resize_(0)
        assert (memory.current, memory.peak) == (0, KIB)
        gathered.untyped_storage().resize_(2 * KIB)
        assert (memory.current, memory.peak) == (2 * KIB, 2 * KIB)
        del gathered
        assert memory.current == 0
    assert torch.UntypedStorage.resize_ is plain
