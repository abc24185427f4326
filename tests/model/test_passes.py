"""What is routed, and as what: recomputation, hooks, models that were changed, copies."""

import copy
import functools
import threading

import pytest
import torch
import transformers
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from gr_sweep.errors import GrSweepError, PlanError
from gr_sweep.model.route import route_model
from gr_sweep.routing.plan import RoutePlan
from tests.model.compare import gradients
from tests.model.tiny import MLP, tiny_ids, tiny_model
from tests.reference import assert_same, loss_sum

pytestmark = pytest.mark.usefixtures("one_thread")

FLAT = ["code", "biology", "creative"]
COUNTS = {"code": 2, "biology": 1, "creative": 1}
IDS = tiny_ids(4)
PLANS = {
    "peers": functools.partial(RoutePlan.peers, domains=FLAT, attn_shared=0.25),
    "forget": functools.partial(RoutePlan.forget, domains=FLAT, forget=["biology"]),
}


def routed_model(kind="forget", family="llama", edges="both"):
    model = tiny_model(family).train()
    model.get_input_embeddings().weight.requires_grad_()
    return model, route_model(model, PLANS[kind](model.config), edges)


def loss_of(model):
    return loss_sum(model(input_ids=IDS, use_cache=False).logits, IDS)


def gradients_of(loss, model, backward=lambda loss: loss.backward()):
    model.zero_grad()
    backward(loss)
    return {name: gradient.clone() for name, gradient in gradients(model).items()}


def expected(model, routed):
    """Gradients of a routed step and of a plain one, without activation checkpointing."""
    with routed.batch(COUNTS):
        routed_ones = gradients_of(loss_of(model), model)
    return routed_ones, gradients_of(loss_of(model), model)


def in_thread(loss):
    """Backward in another thread, as autograd's of a GPU."""
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()


def recompute_layers(model, reentrant):
    """Activation checkpointing of transformers."""
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})


@pytest.mark.parametrize("kind", ["peers", "forget"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputation_is_routed_as_its_forward_pass_whenever_and_wherever_it_runs(
    kind, reentrant
):
    model, routed = routed_model(kind)
    wanted, plain = expected(model, routed)
    recompute_layers(model, reentrant)
    for _ in range(2):
        with routed.batch(COUNTS):
            inside = loss_of(model)
            assert_same(gradients_of(loss_of(model), model), wanted)
            assert_same(gradients_of(loss_of(model), model, in_thread), wanted)
        assert_same(gradients_of(inside, model), wanted)  # as `Trainer.compute_loss` does
        outside = loss_of(model)
        with routed.batch(COUNTS):
            also_inside = loss_of(model)
            assert_same(gradients_of(outside, model), plain)
        with routed.keep(["code"]):
            assert_same(gradients_of(also_inside, model), wanted)
        recompute_layers(model, reentrant)  # again, which replaces the layers' function
    routed.unroute()
    assert_same(gradients_of(loss_of(model), model), plain)


@pytest.mark.parametrize("reentrant", [True, False])
def test_another_checkpointing_is_routed_inside_the_context(reentrant):
    model, routed = routed_model()
    wanted, _ = expected(model, routed)

    def loss():
        hidden = checkpoint(
            lambda ids, _: model.model(ids, use_cache=False).last_hidden_state,
            *(IDS, torch.zeros((), requires_grad=True)),
            use_reentrant=reentrant,
        )
        return loss_sum(model.lm_head(hidden), IDS)

    with routed.batch(COUNTS):
        assert_same(gradients_of(loss(), model), wanted)
        assert_same(gradients_of(loss(), model, in_thread), wanted)
        late = loss()
    with pytest.raises(PlanError, match="call backward in the context"):
        late.backward()


class OtherLinear(torch.nn.Linear):
    pass


def with_other_linear(model, layer):
    layer.mlp.up_proj.__class__ = OtherLinear


def with_other_forward(model, layer):
    layer.mlp.forward = functools.partial(type(layer.mlp).forward, layer.mlp)


def with_one_mlp(model, layer):
    model.model.layers[0].mlp = layer.mlp


def with_one_layer(model, layer):
    del model.model.layers[1]


PEERS = PLANS["peers"]
FORGET = functools.partial(PLANS["forget"], orders={(0, "mlp"): range(MLP)[::-1]})
REFUSED = [
    (with_other_linear, FORGET, {}, r"layers\.1\.mlp\.up_proj.*OtherLinear"),
    (with_other_forward, FORGET, {}, r"layers\.1\.mlp .*replaced"),
    (None, lambda _: PEERS(tiny_model(intermediate_size=12).config), {}, "12 hidden units"),
    (None, PEERS, {"edges": "weights"}, "none, weight, act, both"),
    (None, PEERS, {"foreign_dropout": "half"}, "foreign_dropout"),
]


@pytest.mark.parametrize(("change", "plan_of", "settings", "said"), REFUSED)
def test_a_model_that_cannot_be_routed_is_refused_and_left_as_it_was(
    change, plan_of, settings, said
):
    model = tiny_model()
    if change is not None:
        change(model, model.model.layers[1])
    types = [type(module) for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PlanError, match=said):
        route_model(model, plan_of(model.config), **settings)
    assert [type(module) for module in model.modules()] == types
    assert all(torch.equal(weights[name], w) for name, w in model.state_dict().items())


def test_what_no_plan_fits_is_refused():
    with pytest.raises(PlanError, match="unroute"):
        route_model(routed_model()[0], PEERS(tiny_model().config))
    with pytest.raises(PlanError, match=r"attention.*cannot be split.*attn_shared"):
        route_model(tiny_model("olmo2"), PEERS(tiny_model("olmo2").config))


def test_models_of_other_families_are_refused_and_can_be_dense():
    model = torch.nn.Linear(2, 2)
    config = model.config = transformers.OPTConfig(num_hidden_layers=2)
    with pytest.raises(PlanError, match=r"opt.*llama.*gpt_neox"):
        route_model(model, PEERS(tiny_model().config))
    with route_model(model, RoutePlan.none(config, domains=FLAT)).batch({"code": 1}):
        pass


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_other_linear, r"layers\.1\.mlp\.up_proj.*OtherLinear"),
        (with_one_mlp, r"layers\.0\.mlp"),
        (with_other_forward, r"layers\.1\.mlp .*forward"),
        (with_one_layer, r"layers\.1\..*gone"),
    ],
)
def test_a_model_that_has_changed_since_it_was_routed_enters_no_context(change, said):
    model, routed = routed_model()
    change(model, model.model.layers[1])
    for context in (routed.batch(COUNTS), routed.keep(["code"])):
        with pytest.raises(PlanError, match=said), context:
            pass
    with pytest.raises(PlanError, match=said):
        routed.extract(["code"])


def test_a_layer_in_a_wrapper_is_routed_as_before():
    model, routed = routed_model()
    wanted, _ = expected(model, routed)
    layers = model.model.layers
    for index, layer in enumerate(plain := list(layers)):
        layers[index] = checkpoint_wrapper(torch.compile(layer, backend="eager"))
    model.zero_grad()
    with routed.batch(COUNTS):
        loss_of(model).backward()
    for index, layer in enumerate(plain):
        layers[index] = layer
    assert_same(gradients(model), wanted)


def test_refused_arguments_of_lay_change_nothing_and_another_error_leaves_the_plain_model():
    model = tiny_model()
    plain, plan = model(IDS).logits, FORGET(model.config, adapters={"unembed": 2, "mlp": 1})
    routed = route_model(model, plan)
    torch.nn.init.normal_(model.lm_head.adapter.unembed.B.weight)
    with routed.keep(["code"]):
        kept = model(IDS).logits
    for wrong in ({"edges": "no edges"}, {"foreign_dropout": 2.0}, {"always_off": ["no domain"]}):
        with pytest.raises(GrSweepError):
            routed.lay(plan, **wrong)
    with routed.keep(["code"]):
        assert torch.equal(model(IDS).logits, kept)
    model.model.layers[1].mlp.up_proj.__class__ = type("Quantised", (torch.nn.Linear,), {})
    with pytest.raises(PlanError, match="Quantised"):
        routed.lay(plan)
    assert torch.equal(model(IDS).logits, plain) and "adapter" not in str(model.state_dict().keys())
    with pytest.raises(PlanError, match="lay"), routed.keep(["code"]):
        pass


@pytest.mark.parametrize("part", ["gate_proj", "act_fn"])
def test_hooks_inside_an_mlp_fire_in_contexts_and_change_no_gradient(part):
    model, routed = routed_model()
    wanted, _ = expected(model, routed)
    module, fired = getattr(model.model.layers[1].mlp, part), []
    for register in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
        hook = getattr(module, f"register_{register}_hook")(lambda *_: fired.append(0))
        with routed.batch(COUNTS):
            assert_same(gradients_of(loss_of(model), model), wanted)
        hook.remove()
    assert len(fired) == 4


def test_a_copy_of_a_routed_model_is_not_routed():
    model = tiny_model("gemma3_text")
    routed = route_model(model, FORGET(model.config, adapters={"unembed": 2}))
    torch.nn.init.normal_(model.lm_head.adapter.unembed.B.weight)
    recompute_layers(model.train(), reentrant=False)
    whole = model(input_ids=IDS).logits
    with routed.keep(["code"]):
        kept, other = model(input_ids=IDS).logits, copy.deepcopy(model)
        assert torch.equal(other(input_ids=IDS).logits, whole)
        assert torch.equal(model(input_ids=IDS).logits, kept) and not torch.equal(kept, whole)
