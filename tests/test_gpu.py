"""What only a GPU can show. Skipped elsewhere: `pytest -m gpu` on a machine that has one."""

from dataclasses import replace

import pytest
import torch

from gr_sweep.components import lay_plan, named_config
from gr_sweep.config import Edges, PlanConfig, PlanKind, RouteConfig, RunConfig, TrainConfig
from gr_sweep.data.rows import step_rows
from gr_sweep.launch.estimate import Target, estimate_job
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import route_model
from gr_sweep.model.sizes import random_model
from gr_sweep.routing.cover import CALL_MULTIPLY_ADDS
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.step import JobStep
from tests.launch.jobs import make_config
from tests.model.compare import gradients
from tests.model.tiny import tiny_ids, tiny_model
from tests.reference import assert_same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DOMAINS = ["code", "biology", "creative"]
TRAIN = TrainConfig(steps=5, batch_sequences=12, sequence_length=128)
EDGES = ["none", "weight", "act", "both"]


def job_config(edges: str, **train) -> RunConfig:
    return make_config(
        "nano",
        edges=Edges(edges),
        plan=PlanConfig(kind=PlanKind.peers),
        route=RouteConfig(foreign_dropout=0.5),
        train=replace(TRAIN, **train),
    )


def job_step(config: RunConfig) -> JobStep:
    device = torch.device("cuda")
    model = random_model(named_config(config, vocab_size=400, eot_id=0), seed=0).to(device)
    return JobStep(lay_plan(model, config), config.train, step_rows(config), device)


@pytest.mark.parametrize("cost", [0.0, float("inf")], ids=["sliced", "dense"])
@pytest.mark.parametrize("edges", EDGES)
@pytest.mark.parametrize("kind", ["peers", "forget"])
def test_gradients_on_a_gpu_are_those_of_the_cpu(kind, edges, cost, monkeypatch):
    found = []
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(CALL_MULTIPLY_ADDS, device, cost)
        model = tiny_model().to(device)
        plan = RoutePlan.make(
            kind, model.config, domains=DOMAINS, forget=["biology"], attn_shared=0.25
        )
        routed = route_model(model, plan, edges, foreign_dropout=0.5)
        with routed.batch({"code": 3, "biology": 2, "creative": 2, "unlabelled": 1}):
            loss_sum, _ = TokenLosses(routed)(tiny_ids(8, 6).to(device))
            loss_sum.backward()
        found.append({name: gradient.cpu() for name, gradient in gradients(model).items()})
    # Norms and rotary angles are float32 in a float64 model too.
    assert_same(found[1], found[0], 1e-5)


@pytest.mark.parametrize("edges", EDGES)
def test_a_training_step_makes_the_host_wait_for_nothing(edges):
    step = job_step(job_config(edges))
    step.run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_compiled_step_trains_as_an_eager_one():
    weights = []
    for compiles in (False, True):
        step = job_step(job_config("both", compile=compiles))
        for _ in range(3):
            step.run()
        weights.append(torch.cat([p.detach().flatten() for p in step.routed.model.parameters()]))
    assert torch.allclose(weights[1], weights[0], atol=2e-3)


@pytest.mark.parametrize("recomputes", [False, True])
def test_the_estimated_peak_is_within_15_percent_of_the_device_s(recomputes):
    config = job_config("both", activation_checkpointing=recomputes)
    step = job_step(config)
    step.run()
    torch.cuda.reset_peak_memory_stats()
    step.run()
    torch.cuda.synchronize()
    estimate = estimate_job(config, Target.gpu("h100", utilisation=0.4))
    measured = torch.cuda.max_memory_allocated()
    assert estimate.step_peak_bytes == pytest.approx(measured, rel=0.15)
