"""Mixture-of-experts checkpoints: units are whole experts. Their gradients are those of the
definition: tests/model/test_families.py."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from gr_sweep.errors import PlanError
from gr_sweep.model.route import route_model
from gr_sweep.routing import experts
from gr_sweep.routing.plan import RoutePlan
from tests.model.compare import FLAT, PLANS, assert_follows_the_definition, gradients, route
from tests.model.tiny import EXPERTS, MIXTURES, tiny_ids, tiny_model
from tests.reference import Cut, assert_same, loss_sum

pytestmark = pytest.mark.usefixtures("exact_norms", "one_thread")


def kept_logits(routed, keep, ids):
    with torch.no_grad(), routed.keep(keep):
        return {"logits": routed.model(input_ids=ids).logits}


def logits_of(model, ids):
    return {"logits": model(input_ids=ids).logits.detach()}


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("keep", [("biology",), ("code", "creative")])
def test_an_extracted_model_has_fewer_experts_and_loads_without_our_code(family, keep, tmp_path):
    model, ids = tiny_model(family), tiny_ids(3)
    routed = route_model(model, PLANS["peers"](model.config))
    small = routed.extract(keep)
    left = EXPERTS // 2 + 2 * len(keep)
    assert small.config.num_experts == left
    assert small.model.layers[0].mlp.experts.down_proj.shape[0] == left
    assert small.model.layers[0].mlp.gate.weight.shape[0] == left
    assert_same(logits_of(small, ids), kept_logits(routed, keep, ids))
    small.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, experts_implementation="eager"
    )
    # Its rotary embedding, which no file holds, has another rounding.
    assert_same(logits_of(loaded, ids), kept_logits(routed, keep, ids), 1e-6)


@pytest.mark.parametrize(("mlp_shared", "left"), [(2 / 12, 2), (0.0, 1)])
def test_fewer_experts_than_a_position_chooses(mlp_shared, left):
    """`keep(["code"])` of `forget` leaves the core alone; with no core nothing is left, and a
    checkpoint has one expert of zeros."""
    model, ids = tiny_model("mixtral"), tiny_ids(3)
    routed = route_model(model, PLANS["forget"](model.config, mlp_shared=mlp_shared))
    small = routed.extract(["code"])
    assert (small.config.num_experts, small.config.num_experts_per_tok) == (left, left)
    assert_same(logits_of(small, ids), kept_logits(routed, ["code"], ids))


def test_experts_that_are_off_are_not_computed(monkeypatch):
    """Rows never enter an expert that is off for them, and what is cut has no backward pass."""
    model = tiny_model("olmoe")
    plan = RoutePlan.peers(model.config, domains=FLAT, mlp_shared=0.0)
    routed = route_model(model, plan, "both", foreign_dropout=1.0)
    read = []
    linear = experts._linear

    def counted(x_MI, weight_OI, factor):
        read.append((len(x_MI), factor))
        return linear(x_MI, weight_OI, factor)

    monkeypatch.setattr(experts, "_linear", counted)
    with routed.batch({"code": 2, "biology": 1}):
        model(input_ids=tiny_ids(3), use_cache=False)
    pairs = 3 * 5 * model.config.num_experts_per_tok * len(model.model.layers)
    assert sum(rows for rows, _ in read) == 2 * pairs  # two products
    assert {factor for _, factor in read} == {1.0}


@pytest.mark.parametrize("frozen", [False, True])
def test_experts_of_a_foreign_core_and_of_layers_that_are_not_split(frozen):
    """They belong to the rest, as the router does."""
    model, plain = tiny_model("qwen3_moe"), tiny_model("qwen3_moe")
    cut = Cut("both", foreign_core_rest=0.25, foreign_outputs=0.5, core_frozen=frozen)
    plan = PLANS["forget"](model.config, layers=[1])
    routed = route(model, plan, cut, 0.5)
    steps = [{"code": 2, "biology": 2, "unlabelled": 1}]
    if not frozen:
        assert_follows_the_definition(routed, plain, cut, steps, num_micro=2)
        return
    with routed.batch(steps[0]):
        loss_sum(model(input_ids=tiny_ids(5)).logits, tiny_ids(5)).backward()
    found = {name for name, gradient in gradients(model).items() if gradient.any()}
    assert found == {f"model.layers.1.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")}


@pytest.mark.parametrize(
    ("family", "config", "shares", "message"),
    [
        ("qwen3_moe", {"mlp_only_layers": [1]}, {}, "layer 1 12 experts"),
        ("mixtral", {"output_router_logits": True}, {}, "output_router_logits=True"),
        ("mixtral", {"router_jitter_noise": 0.1}, {}, "router_jitter_noise=0.1"),
        ("olmoe", {}, {"attn_shared": 0.5}, "plan.attn_shared=1"),
        ("olmoe", {}, {"adapters": {"mlp": 1}}, "plan.adapters.mlp=0"),
    ],
)
def test_what_is_refused(family, config, shares, message):
    model = tiny_model(family, **config)
    with pytest.raises(PlanError, match=message):
        route_model(model, PLANS["forget"](model.config, **shares))


def test_layers_that_keep_different_numbers_of_experts_cannot_be_extracted():
    model = tiny_model("mixtral")
    routed = route_model(model, PLANS["peers"](model.config, layers=[1]))
    with pytest.raises(PlanError, match="layers keep 12, 8 experts"):
        routed.extract(["code"])


def test_a_model_with_dense_layers_between_is_extracted(tmp_path):
    model, ids = tiny_model("qwen3_moe", mlp_only_layers=[0]), tiny_ids(3)
    routed = route_model(model, PLANS["peers"](model.config, layers=[1]))
    small = routed.extract(["code"])
    small.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float64, experts_implementation="eager"
    )
    assert loaded.config.num_experts == 8
    assert_same(logits_of(loaded, ids), kept_logits(routed, ["code"], ids), 1e-6)


def test_a_step_on_fake_tensors():
    """`estimate` counts the memory of one, in which nothing chooses experts."""
    model = tiny_model("mixtral")
    mixture, x_PD = model.model.layers[0].mlp, torch.randn(7, 16, dtype=torch.float64)
    _, weights_Pk, indices_Pk = mixture.gate(x_PD)
    found = experts.plain_experts(mixture.experts, x_PD, indices_Pk, weights_Pk)
    expected = mixture.experts(x_PD, indices_Pk, weights_Pk)
    assert_same({"": found.detach()}, {"": expected.detach()})
    ALL_EXPERTS_FUNCTIONS.register("plain", experts.plain_experts)
    with FakeTensorMode():
        fake = type(model)(model.config)
        fake.set_experts_implementation("plain")
        routed = route_model(fake, PLANS["peers"](fake.config), foreign_dropout=1.0)
        ids = torch.zeros(3, 5, dtype=torch.int64)
        fake(input_ids=ids)
        with routed.batch({"code": 2, "biology": 1}):
            fake(input_ids=ids).logits.sum().backward()
    assert fake.model.layers[0].mlp.experts.down_proj.grad.shape == (EXPERTS, 16, 8)
