"""torch.compile of what a training step computes: one graph for each list of foreign dropout.

The default run traces one routing and compares it with the eager step; the others, and code that is
really compiled, are slow.
"""

import functools

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import route_model
from gr_sweep.routing.cover import CALL_MULTIPLY_ADDS
from gr_sweep.routing.plan import RoutePlan
from tests.model import compare
from tests.model.compare import FLAT, gradients
from tests.model.tiny import tiny_ids, tiny_model
from tests.pairwise import pairwise
from tests.reference import assert_same

pytestmark = pytest.mark.usefixtures("exact_norms", "one_thread")

PLANS = compare.PLANS | {"none": functools.partial(RoutePlan.none, domains=FLAT)}
EDGES = ["none", "weight", "act", "both"]
ADAPTERS = {"embed": 3, "unembed": 2, "bias": True, "mlp": 1, "attn": 1}
SLICED, DENSE = 0.0, float("inf")
"""The cost of a call: at this size no slice pays by itself."""


@pytest.fixture(autouse=True)
def nothing_compiled_yet(monkeypatch):
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setitem(CALL_MULTIPLY_ADDS, "cpu", SLICED)
    yield
    torch._dynamo.reset()


def counts_of(routed):
    first, second, third = routed.plan.domains
    return {first: 3, second: 2, third: 2, "unlabelled": 1}


def step(routed, forward, ids_NS, number=0):
    with routed.batch(counts_of(routed), step=number):
        loss_sum, _ = forward(ids_NS)
        loss_sum.backward()


def routed_model(plan, edges, foreign_dropout, family="llama", **units):
    model = tiny_model(family, num_hidden_layers=1)
    route_plan = PLANS[plan](model.config, **({} if plan == "none" else units))
    return route_model(model, route_plan, edges, foreign_dropout=foreign_dropout)


def assert_compiled_once(routed):
    forward = torch.compile(TokenLosses(routed), backend="eager", fullgraph=True, dynamic=False)
    num_lists = len(routed.cycle(counts_of(routed)))
    graphs = []
    for number in range(3 * num_lists):
        step(routed, forward, tiny_ids(8, 6, seed=number), number)
        graphs.append(counters["stats"]["unique_graphs"])
    # Lists that differ only in domains without a block share a graph.
    assert graphs[0] == 1 and graphs[num_lists - 1] == graphs[-1] <= num_lists
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "edges", "foreign_dropout"),
    [("none", "none", 0.0), *pairwise([*PLANS][:-1], EDGES, (0.0, 0.5, 0.75, 1.0))],
)
def test_each_step_of_a_cycle_is_one_graph_that_is_compiled_once(plan, edges, foreign_dropout):
    # Half of the cases split attention too.
    split = {"attn_shared": 0.125} if edges in ("weight", "both") else {}
    assert_compiled_once(routed_model(plan, edges, foreign_dropout, **split))


@pytest.mark.parametrize(
    ("backend", "plan", "edges", "foreign_dropout", "attn_shared", "cost", "adapters"),
    [
        ("eager", "peers", "both", 1.0, 1.0, SLICED, None),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("aot_eager", "peers", "both", 0.5, 1.0, SLICED, ADAPTERS),
                ("aot_eager", "forget", "weight", 1.0, 0.25, SLICED, None),
                ("aot_eager", "lattice", "act", 0.0, 0.125, SLICED, None),
                ("aot_eager", "peers", "weight", 0.5, 0.25, DENSE, None),
                ("inductor", "peers", "weight", 0.5, 1.0, SLICED, None),
                ("inductor", "peers", "both", 0.5, 1.0, SLICED, None),
            ]
        ),
    ],
)
def test_a_compiled_step_has_the_gradients_of_the_eager_step(
    backend, plan, edges, foreign_dropout, attn_shared, cost, adapters, monkeypatch
):
    monkeypatch.setitem(CALL_MULTIPLY_ADDS, "cpu", cost)
    # Rotary angles are float32 in a float64 model too; compiled code rounds them in another order.
    tolerance = 1e-6 if backend == "inductor" else 1e-10
    units = {"mlp_shared": 0.3, "attn_shared": attn_shared, "adapters": adapters}
    found, losses = [], []
    for is_compiled in (False, True):
        routed = routed_model(plan, edges, foreign_dropout, **units)
        forward = TokenLosses(routed)
        if is_compiled:
            forward = torch.compile(forward, backend=backend, fullgraph=True, dynamic=False)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for seed in range(2):  # two micro-batches
                step(routed, forward, tiny_ids(8, 6, seed=seed))
        found.append(gradients(routed.model))
        with torch.no_grad(), routed.keep(["code"]):
            losses.append({"losses": TokenLosses(routed)(tiny_ids(2, 6))[1]})
    assert_same(found[1], found[0], tolerance)
    assert_same(losses[1], losses[0], tolerance)
