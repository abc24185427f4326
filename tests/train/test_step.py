"""The precision of products, and a frozen core."""

import pytest
import torch

from gr_sweep.config import Precision, TrainConfig
from gr_sweep.errors import PlanError
from gr_sweep.model.route import route_model
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.step import JobStep, cpu_has_bfloat16, is_bfloat16
from tests.model.tiny import tiny_model


def test_precision_auto_is_bfloat16_on_cuda_and_on_a_cpu_that_has_products_in_it():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert is_bfloat16(cuda, Precision.auto)
    assert is_bfloat16(cpu, Precision.auto) is cpu_has_bfloat16()
    for device in (cpu, cuda):
        assert is_bfloat16(device, Precision.bfloat16)
        assert not is_bfloat16(device, Precision.float32)


@pytest.mark.parametrize("edges", ["none", "both"])
def test_a_frozen_core_stays_bit_for_bit_without_gradient_moments_or_decay(edges):
    model = tiny_model("qwen3", tie_word_embeddings=True)
    domains = ["code", "biology"]
    plan = RoutePlan.peers(model.config, domains=domains, attn_shared=0.25, layers=[1])
    routed = route_model(model, plan, edges, foreign_dropout=0.5, core_frozen=True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train = TrainConfig(
        lr=0.1,
        weight_decay=0.5,
        batch_sequences=6,
        sequence_length=8,
        precision=Precision.float32,  # the model is float64
    )
    counts = {"code": 2, "biology": 2, "unlabelled": 2}
    step = JobStep(routed, train, counts, torch.device("cpu"))
    for _ in range(2):
        step.run()
    mixed = {id(p): linear for linear in routed.unit_linears for p in linear.parameters}
    for name, parameter in model.named_parameters():
        if id(parameter) not in mixed:
            assert torch.equal(parameter, before[name]), name
            assert not parameter.requires_grad and parameter not in step.optimizer.state
            continue
        linear, moment = mixed[id(parameter)], step.optimizer.state[parameter]["exp_avg"]
        core, *blocks = linear.units
        dim = linear.dim(parameter)
        for unchanged in (parameter == before[name], moment == 0):
            assert unchanged.narrow(dim, 0, core.stop).all(), name
            of_blocks = unchanged.narrow(dim, core.stop, blocks[-1].stop - core.stop)
            assert not of_blocks.any(), name
    routed.unroute()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_core_alone_is_refused():
    model = tiny_model()
    with pytest.raises(PlanError, match="the plan gives blocks no units"):
        route_model(model, RoutePlan.none(domains=["code", "biology"]), core_frozen=True)
    assert all(parameter.requires_grad for parameter in model.parameters())
