"""The routed linear maps alone: less work where gradients are cut or blocks are off."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gr_sweep.routing.cover import CALL_MULTIPLY_ADDS
from gr_sweep.routing.edges import RouteWeights
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.row_routing import RowRouting
from gr_sweep.routing.rows import row_groups

DOMAINS = ["code", "biology", "creative"]
THIRDS = {"code": 3, "biology": 3, "creative": 3}


def tensors(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


NO_BIASES = (None, None, None)


class ProductCounter(TorchDispatchMode):
    """Multiplications of all matrix products; torch's own counter leaves out in-place ones."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            a, b = args[:2] if name == "mm" else args[1:3]
            self.total += a.shape[0] * a.shape[1] * b.shape[1]
        else:
            assert not any(word in name for word in ("mm", "einsum", "matmul", "dot")), name
        return func(*args, **(kwargs or {}))


def multiplications(edges, dropout, is_whole_mlp):
    """Of one gated MLP with equal thirds of rows, forward and backward."""
    shape = SimpleNamespace(num_hidden_layers=1, intermediate_size=24, num_attention_heads=8)
    plan = RoutePlan.peers(shape, domains=DOMAINS, mlp_shared=0.5)
    units = plan.splits[0, "mlp"].slices()
    groups = row_groups(plan, THIRDS, dropout)[0]
    routing = RowRouting.of_groups(plan, RouteWeights(edges), groups)
    x, gate, up, down = tensors((9, 2, 5), (24, 5), (24, 5), (5, 24))
    with ProductCounter() as counter:
        if is_whole_mlp:
            y = routing.gated_mlp(x, (gate, up, down, *NO_BIASES), units)
        else:
            gated = torch.nn.functional.silu(routing.linear("column", x, gate, None, units))
            hidden = gated * routing.linear("column", x, up, None, units)
            y = routing.linear("row", hidden, down, None, units)
        y.sum().backward()
    return counter.total


@pytest.mark.parametrize("is_whole_mlp", [False, True])
def test_foreign_rows_are_not_computed(is_whole_mlp, monkeypatch):
    """Counted by hand for a core of 12 units and 3 blocks of 4, rows x units.

    A dense step does 3 products (forward, weight, input) for each of 3 matrices over all 9 x 24.
    Cut weights leave the weight product the core and each domain's own block, 9 x 16; `act` the
    same to the input product of gate and up; and where both are cut, down's input product too.
    """
    monkeypatch.setitem(CALL_MULTIPLY_ADDS, "cpu", 0.0)
    per_cell = 5 * 2  # features, positions
    all_cells, own_cells = 9 * 24, 9 * 16
    dense = 9 * all_cells * per_cell
    saved = (all_cells - own_cells) * per_cell
    for edges, products in (("none", 0), ("weight", 3), ("act", 2), ("both", 6)):
        assert multiplications(edges, 0.0, is_whole_mlp) == dense - products * saved
        assert multiplications(edges, 1.0, is_whole_mlp) == 9 * own_cells * per_cell
        if is_whole_mlp:  # where calls cost more than they save, products are dense
            with monkeypatch.context() as patch:
                patch.setitem(CALL_MULTIPLY_ADDS, "cpu", float("inf"))
                assert multiplications(edges, 0.5, True) == dense


def test_units_that_are_off_are_finite_where_a_product_reads_past_its_slice(monkeypatch):
    """In bfloat16 on a CPU with AMX a slice of 23 columns is read to the 24th, times 0."""
    new_empty = torch.Tensor.new_empty

    def filled(*args, **how):
        return new_empty(*args, **how).fill_(float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, float("nan")))
    shape = SimpleNamespace(num_hidden_layers=1, intermediate_size=27, num_attention_heads=8)
    plan = RoutePlan.peers(shape, domains=DOMAINS, mlp_shared=0.5)
    x, *weights = tensors((4, 16, 8), (27, 8), (27, 8), (8, 27))
    x, *weights = (tensor.detach().bfloat16().requires_grad_() for tensor in (x, *weights))
    units = plan.splits[0, "mlp"].slices()
    assert units[3].start % 2, "the last block is off, and those that are on are an odd number"
    with torch.no_grad():
        assert (
            RowRouting.without(plan, [3])
            .gated_mlp(x, (*weights, *NO_BIASES), units)
            .isfinite()
            .all()
        )
    RowRouting.without(plan, [3]).gated_mlp(x, (*weights, *NO_BIASES), units).sum().backward()
    for tensor in (x, *weights):
        assert tensor.grad.isfinite().all()
