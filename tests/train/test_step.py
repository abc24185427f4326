"""The precision of products, a frozen core, the optimizer and its learning rate."""

import itertools
from contextlib import nullcontext

import pytest
import torch

from gr_sweep.config import Precision, Schedule, TrainConfig
from gr_sweep.errors import PlanError
from gr_sweep.model.route import route_model
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.step import (
    JobStep,
    cpu_has_bfloat16,
    is_bfloat16,
    lr_factor,
    make_optimizer,
    update,
)
from tests.model.tiny import tiny_model


def test_precision_auto_is_bfloat16_on_cuda_and_on_a_cpu_that_has_products_in_it():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert is_bfloat16(cuda, Precision.auto)
    assert is_bfloat16(cpu, Precision.auto) is cpu_has_bfloat16()
    for device in (cpu, cuda):
        assert is_bfloat16(device, Precision.bfloat16)
        assert not is_bfloat16(device, Precision.float32)


def test_layers_are_recomputed_with_the_kernel_of_attention_that_they_were_computed_with():
    """On a CPU that of short sequences in bfloat16 is another one than torch would take."""
    routed = route_model(tiny_model().float(), RoutePlan.none(domains=["code"]))
    train = TrainConfig(
        precision=Precision.bfloat16,
        activation_checkpointing=True,
        batch_sequences=2,
        sequence_length=8,
    )
    JobStep(routed, train, {"code": 2}, torch.device("cpu")).run()


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


def test_warm_up_rises_to_the_peak_and_cosine_ends_near_the_final_rate():
    config = TrainConfig(warmup=0.1, final_lr=0.1, schedule=Schedule.cosine)
    factors = [lr_factor(step, 100, config) for step in range(100)]
    assert factors[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert factors[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[55] == pytest.approx(0.55)  # half way between the peak and the final rate
    assert 0.1 < factors[-1] < 0.102


def test_wsd_is_flat_until_its_decay_and_then_linear():
    config = TrainConfig(warmup=0.0, decay=0.2, final_lr=0.0, schedule=Schedule.wsd)
    factors = [lr_factor(step, 100, config) for step in range(100)]
    assert set(factors[:80]) == {1.0}
    assert factors[80:] == [pytest.approx(left / 20) for left in range(20, 0, -1)]


def test_vectors_have_no_weight_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    decayed, plain = make_optimizer(model, TrainConfig(weight_decay=0.3)).param_groups
    assert [p.dim() for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.3
    assert [p.dim() for p in plain["params"]] == [1, 1, 1] and plain["weight_decay"] == 0.0


def test_of_adapters_all_but_output_biases_have_weight_decay():
    model, adapters = tiny_model(), {"unembed": 2, "mlp": 1, "bias": 1}
    plan = RoutePlan.peers(model.config, domains=["code", "biology"], adapters=adapters)
    route_model(model, plan)
    decayed, plain = make_optimizer(model, TrainConfig()).param_groups
    biases = {id(model.lm_head.adapter.bias.B.weight)}
    assert {id(p) for p in plain["params"] if p.dim() == 2} == biases
    in_adapters = {id(p) for name, p in model.named_parameters() if "adapter" in name}
    assert {id(p) for p in decayed["params"]} >= in_adapters - biases


def test_units_of_blocks_have_their_own_learning_rate_after_a_new_plan_too():
    config = TrainConfig(lr=0.01, weight_decay=0.3)
    model = tiny_model(mlp_bias=True)
    domains = ["code", "biology"]
    plans = [
        RoutePlan.forget(model.config, domains=domains, forget=["biology"], attn_shared=0.5),
        RoutePlan.peers(model.config, domains=domains, mlp_shared=0.25, layers=[1]),
    ]
    routed = route_model(model, plans[0])
    optimizer = make_optimizer(model, config)
    generator = torch.Generator().manual_seed(0)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in weights.items()}
    for step in range(1, 5):
        if step == 3:
            routed.lay(plans[1])
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            first, second = moments[name]
            first.lerp_(parameter.grad, 1 - config.beta1)
            second.lerp_(parameter.grad.square(), 1 - config.beta2)
            size = (second / (1 - config.beta2**step)).sqrt() + 1e-8
            decay = config.weight_decay * weights[name] if parameter.dim() == 2 else 0.0
            change = config.lr * (first / (1 - config.beta1**step) / size + decay)
            rate = torch.ones_like(change)
            for linear in routed.unit_linears:
                if any(parameter is held for held in linear.parameters):
                    core, *blocks = linear.units
                    dim = linear.dim(parameter)
                    rate.narrow(dim, core.stop, blocks[-1].stop - core.stop).fill_(2.5)
            weights[name] -= rate * change
        update(optimizer, routed, 2.5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-12, atol=1e-14)


def test_an_estimate_for_a_gpu_takes_its_kernel_of_attention(monkeypatch):
    taken = []
    monkeypatch.setattr(
        "gr_sweep.train.step.sdpa_kernel", lambda kernel: taken.append(kernel) or nullcontext()
    )
    routed = route_model(tiny_model().float(), RoutePlan.none(domains=["code"]))
    train = TrainConfig(precision=Precision.bfloat16, batch_sequences=2, sequence_length=8)
    JobStep(routed, train, {"code": 2}, torch.device("cpu"), device_type="cuda").run()
    assert not taken
    JobStep(routed, train, {"code": 2}, torch.device("cpu")).run()
    assert taken
