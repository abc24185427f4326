"""Extracted models: ordinary Hugging Face models with the logits of `keep`."""

import pytest
import torch

from gr_sweep.model.route import route_model
from gr_sweep.routing.kinds import units_per_layer
from tests.model.compare import PLANS, route
from tests.model.tiny import FAMILIES, MIXTURES, WHOLE_ATTENTION_ONLY, tiny_ids, tiny_model
from tests.pairwise import crossed
from tests.reference import Cut, assert_same

pytestmark = pytest.mark.usefixtures("exact_norms", "one_thread")


def head_share(family):
    """Attention is split where the family allows it; 4 groups are enough for `peers`."""
    return 1.0 if family in WHOLE_ATTENTION_ONLY else 0.25


def assert_has_logits(small, routed, keep):
    ids = tiny_ids(3)
    with torch.no_grad(), routed.keep(keep):
        wanted = routed.model(input_ids=ids).logits
    assert_same({"logits": small(input_ids=ids).logits.detach()}, {"logits": wanted})


@pytest.mark.parametrize("plan", ["tree", "lattice"])
def test_extraction_takes_out_just_the_units_of_blocks_that_are_off(plan):
    model = tiny_model("mistral")
    routed = route_model(model, PLANS[plan](model.config, attn_shared=0.25))
    small = routed.extract(keep=["code"])
    sizes = {
        kind: sum(
            size
            for size, block in zip(
                routed.plan.splits[0, kind].sizes, routed.plan.blocks, strict=True
            )
            if block.is_core or "code" in block.owners
        )
        for kind in ("mlp", "attn")
    }
    assert small.config.intermediate_size == sizes["mlp"]
    assert small.config.num_key_value_heads == sizes["attn"]
    assert small.config.num_attention_heads == 2 * sizes["attn"]
    assert small.model.layers[0].mlp.down_proj.weight.shape == (16, sizes["mlp"])
    assert_has_logits(small, routed, ["code"])


@pytest.mark.parametrize(
    ("family", "vocabulary", "keep"),
    crossed(FAMILIES, [3, "full"], [("biology",), ("code", "creative")]),
)
def test_adapters_of_kept_blocks_are_merged(family, vocabulary, keep):
    model, ids = tiny_model(family, tie_word_embeddings=family == "llama"), tiny_ids(3)
    names, before = set(model.state_dict()), model(input_ids=ids).logits.detach()
    adapters = {"embed": vocabulary, "unembed": vocabulary, "attn": 2}
    adapters["mlp"] = 0 if family in MIXTURES else 1
    plan = PLANS["peers"](model.config, attn_shared=head_share(family), adapters=adapters)
    new = route_model(model, plan)
    assert_same({"logits": model(input_ids=ids).logits.detach()}, {"logits": before})
    routed = route(new.unroute(), plan, Cut())
    small = routed.extract(keep=keep)
    assert set(small.state_dict()) == names
    assert_has_logits(small, routed, keep)


def test_an_output_bias_is_a_parameter_of_the_extracted_model():
    model = tiny_model()
    plan = PLANS["forget"](model.config, adapters={"bias": True})
    routed = route(model, plan, Cut())
    for keep, has_bias in ((["biology"], True), (["code"], False)):
        small = routed.extract(keep=keep)
        assert (small.lm_head.bias is not None) is has_bias
        assert_has_logits(small, routed, keep)


@pytest.mark.parametrize("family", ["qwen3", "phi3", "gpt2"])
def test_a_plan_that_splits_some_layers_is_extracted_at_the_width_of_the_others(family):
    model = tiny_model(family)
    plan = PLANS["peers"](model.config, attn_shared=head_share(family), layers=[1])
    routed = route_model(model, plan)
    small = routed.extract(keep=["biology"])
    assert units_per_layer(small.config) == units_per_layer(model.config)
    assert_has_logits(small, routed, ["biology"])


def test_extraction_leaves_the_routed_model_and_the_random_state_alone():
    model = tiny_model()
    routed = route_model(model, PLANS["peers"](model.config))
    config, state = model.config.to_dict(), torch.get_rng_state()
    with torch.no_grad():
        for parameter in routed.extract(keep=["code"]).parameters():
            parameter.zero_()
    assert torch.equal(torch.get_rng_state(), state) and model.config.to_dict() == config
    assert all(parameter.all() for parameter in model.parameters())


@pytest.mark.parametrize(("kind", "width"), [("peers", 10), ("forget", 1)])
def test_an_empty_core_keeps_a_network_of_the_others_units_or_of_zeros(kind, width):
    model = tiny_model()
    routed = route_model(model, PLANS[kind](model.config, mlp_shared=0.0))
    small = routed.extract(keep=["code"])
    assert small.config.intermediate_size == width
    assert_has_logits(small, routed, ["code"])


def test_adapters_are_merged_inside_a_context_too():
    model = tiny_model()
    routed = route_model(
        model, PLANS["peers"](model.config, attn_shared=0.25, adapters={"embed": 3})
    )
    with routed.keep(["creative"]):
        small = routed.extract(keep=["code"])
    assert_has_logits(small, routed, ["code"])
