"""The routed linear maps alone: true gradients where nothing is cut, less work where it is."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gr_sweep.routing.edges import route_weights
from gr_sweep.routing.linears import RowRouting, TokenRouting
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.rows import CALL_MULTIPLY_ADDS, row_groups

SHAPE = SimpleNamespace(num_hidden_layers=1, intermediate_size=8, num_attention_heads=8)
PLAN = RoutePlan.peers(SHAPE, domains=["code", "biology", "creative"], mlp_shared=0.25)
UNITS = PLAN.splits[0, "mlp"].slices()
COUNTS = {"code": 2, "biology": 1, "unlabelled": 1}


def tensors(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def routings():
    """Blocks on and off in every way, nothing cut."""
    uncut = route_weights(PLAN, "none")
    for dropout in (0.0, 0.5, 1.0):
        yield (
            f"dropout {dropout}",
            RowRouting.of_groups(PLAN, uncut, row_groups(PLAN, COUNTS, dropout)),
        )
    for count in range(4):
        for off in itertools.combinations((1, 2, 3), count):
            yield f"off {off}", RowRouting.of_blocks_off(PLAN, uncut, off)
    for dropout in (0.0, 1.0):
        labels_NT = torch.tensor([[0, 1], [2, -1], [1, 1], [-1, 0]])
        yield f"tokens, dropout {dropout}", TokenRouting(PLAN, uncut, labels_NT, dropout)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("name", [name for name, _ in routings()])
def test_gradients_are_true_ones_where_nothing_is_cut(name, has_bias):
    routing = dict(routings())[name]
    x, rows, columns, row_bias, column_bias = tensors((4, 2, 3), (8, 3), (3, 8), (8,), (3,))
    if not has_bias:
        row_bias = column_bias = None

    def column(x, weight, bias):
        return routing.column(x, weight, bias, UNITS)

    def row(h, weight, bias):
        return routing.row(h, weight, bias, UNITS)

    assert torch.autograd.gradcheck(column, (x, rows, row_bias))
    (h,) = tensors((4, 2, 8))
    assert torch.autograd.gradcheck(row, (h, columns, column_bias))
    assert torch.autograd.gradcheck(routing.rest, (x, rows, row_bias))


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


def multiplications(edges, dropout, counts, is_whole_mlp):
    """Of one gated MLP, forward and backward."""
    shape = SimpleNamespace(num_hidden_layers=1, intermediate_size=24, num_attention_heads=8)
    plan = RoutePlan.peers(shape, domains=["code", "biology", "creative"], mlp_shared=0.5)
    units = plan.splits[0, "mlp"].slices()
    routing = RowRouting.of_groups(
        plan, route_weights(plan, edges), row_groups(plan, counts, dropout)
    )
    x, *parameters = tensors((sum(counts.values()), 2, 5), (24, 5), (24, 5), (5, 24))
    gate, up, down = (SimpleNamespace(weight=weight, bias=None) for weight in parameters)
    with ProductCounter() as counter:
        if is_whole_mlp:
            y = routing.gated_mlp(x, gate, up, down, units)
        else:
            gated = torch.nn.functional.silu(routing.column(x, gate.weight, None, units))
            hidden = gated * routing.column(x, up.weight, None, units)
            y = routing.row(hidden, down.weight, None, units)
        y.sum().backward()
    return counter.total


@pytest.mark.parametrize("is_whole_mlp", [False, True])
def test_foreign_work_is_skipped_not_multiplied_by_zero(is_whole_mlp, monkeypatch):
    """Counted by hand for equal thirds of rows, a core of 12 units and 3 blocks of 4, rows x units.

    A dense step does 3 products (forward, weight, input) for each of 3 matrices over all 9 x 24.
    Cut weights leave the weight product the core and each domain's own block, 9 x 16; `act` the
    same to the input product of gate and up; and where both are cut, down's input product too.
    """
    monkeypatch.setitem(CALL_MULTIPLY_ADDS, "cpu", 0.0)
    counts = {"code": 3, "biology": 3, "creative": 3}
    per_cell = 5 * 2  # features, positions
    all_cells, own_cells = 9 * 24, 9 * 16
    dense = 9 * all_cells * per_cell
    saved = (all_cells - own_cells) * per_cell
    assert multiplications("none", 0.0, counts, is_whole_mlp) == dense
    assert multiplications("weight", 0.0, counts, is_whole_mlp) == dense - 3 * saved
    assert multiplications("act", 0.0, counts, is_whole_mlp) == dense - 2 * saved
    assert multiplications("both", 0.0, counts, is_whole_mlp) == dense - 6 * saved
    for edges in ("none", "weight", "act", "both"):
        assert multiplications(edges, 1.0, counts, is_whole_mlp) == 9 * own_cells * per_cell


@pytest.mark.parametrize("edges", ["none", "weight", "act", "both"])
def test_where_calls_cost_more_than_they_save_products_are_dense(edges, monkeypatch):
    monkeypatch.setitem(CALL_MULTIPLY_ADDS, "cpu", float("inf"))
    counts = {"code": 3, "biology": 3, "creative": 3}
    assert multiplications(edges, 0.5, counts, True) == 9 * 9 * 24 * 5 * 2


@pytest.mark.parametrize("cost", [0.0, float("inf")])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("name", [name for name, _ in routings()])
def test_a_gated_mlp_has_true_gradients_where_nothing_is_cut(name, has_bias, cost, monkeypatch):
    monkeypatch.setitem(CALL_MULTIPLY_ADDS, "cpu", cost)
    routing = dict(routings())[name]
    x, *weights = tensors((4, 2, 3), (8, 3), (8, 3), (3, 8))
    biases = tensors((8,), (8,), (3,)) if has_bias else [None] * 3

    def mlp(x, gate, up, down, *biases):
        linears = [
            SimpleNamespace(weight=weight, bias=bias)
            for weight, bias in zip((gate, up, down), biases, strict=True)
        ]
        return routing.gated_mlp(x, *linears, UNITS)

    assert torch.autograd.gradcheck(mlp, (x, *weights, *biases))
    # Without a graph less is kept; the values are the same.
    with torch.no_grad():
        unrecorded = mlp(x, *weights, *biases)
    assert torch.equal(unrecorded, mlp(x, *weights, *biases))


def test_a_gated_mlp_saves_less_than_plain_autograd(monkeypatch):
    """Three matrices of hidden size, of which plain autograd saves four, and the input once."""
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    routing = dict(routings())["dropout 0.0"]
    x, *weights = tensors((4, 2, 3), (8, 3), (8, 3), (3, 8))
    linears = [SimpleNamespace(weight=weight, bias=None) for weight in weights]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        routing.gated_mlp(x, *linears, UNITS)
    assert sum(tensor.shape == (8, 8) for tensor in saved) == 3


def test_without_gradients_a_gated_mlp_keeps_nothing_for_them():
    """Two matrices of hidden units, not four: gate and up, which turn into the activation."""

    class Hidden(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.new_empty.default and args[1] == [6, 8]:
                self.count += 1
            return func(*args, **(kwargs or {}))

    gate, up = torch.nn.Linear(4, 8, bias=False), torch.nn.Linear(4, 8, bias=False)
    down = torch.nn.Linear(8, 4, bias=False)
    routing = RowRouting.of_blocks_off(PLAN, route_weights(PLAN, "none"), [1])
    counts = []
    for grad_enabled in (True, False):
        with torch.set_grad_enabled(grad_enabled), Hidden() as hidden:
            routing.gated_mlp(torch.ones(2, 3, 4), gate, up, down, UNITS)
        counts.append(hidden.count)
    assert counts == [4, 2]


def test_units_that_are_off_are_finite_where_a_product_reads_past_its_slice(monkeypatch):
    """In bfloat16 on a CPU with AMX a slice of 23 columns is read to the 24th, times 0."""
    new_empty = torch.Tensor.new_empty

    def filled(*args, **how):
        return new_empty(*args, **how).fill_(float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", filled)
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, float("nan")))
    shape = SimpleNamespace(num_hidden_layers=1, intermediate_size=27, num_attention_heads=8)
    plan = RoutePlan.peers(shape, domains=["code", "biology", "creative"], mlp_shared=0.5)
    routing = RowRouting.of_blocks_off(plan, route_weights(plan, "none"), [3])
    x, *weights = tensors((4, 16, 8), (27, 8), (27, 8), (8, 27))
    x, *weights = (tensor.detach().bfloat16().requires_grad_() for tensor in (x, *weights))
    linears = [SimpleNamespace(weight=weight, bias=None) for weight in weights]
    units = plan.splits[0, "mlp"].slices()
    assert units[3].start % 2, "the last block is off, and those that are on are an odd number"
    with torch.no_grad():
        assert routing.gated_mlp(x, *linears, units).isfinite().all()
    routing.gated_mlp(x, *linears, units).sum().backward()
    for tensor in (x, *weights):
        assert tensor.grad.isfinite().all()
