"""The reference is itself held to plain autograd and to other ways of writing the definition."""

import pytest
import torch
import torch.nn.functional as F

from gr_sweep.routing.plan import Block, RoutePlan, Split
from tests.model.tiny import (
    FAMILIES,
    LAYERS,
    MIXTURES,
    MLP,
    WHOLE_ATTENTION_ONLY,
    tiny_ids,
    tiny_model,
)
from tests.reference import (
    Cut,
    Reference,
    Token,
    assert_same,
    loss_sum,
    tokens_of_labels,
    tokens_of_rows,
)

pytestmark = pytest.mark.usefixtures("exact_norms", "one_thread")

ONE = frozenset({"code"})
TWO = frozenset({"biology"})


def plan_of(splits, blocks=(("core", ONE | TWO), ("code", ONE), ("biology", TWO))):
    """A plan written by hand: names and owners of the blocks, the core first."""
    blocks = [Block(name, owners, is_core=name == "core") for name, owners in blocks]
    return RoutePlan(("code", "biology"), tuple(blocks), splits)


MLP_PLAN = plan_of({(layer, "mlp"): Split((10, 9, 9)) for layer in range(LAYERS)})
FULL_PLAN = plan_of(
    MLP_PLAN.splits | {(layer, "attn"): Split((2, 3, 3)) for layer in range(LAYERS)}
)
FOREIGN_CORE = plan_of(
    {key: Split((split.num_units - 3, 3)) for key, split in FULL_PLAN.splits.items()},
    blocks=(("core", ONE), ("biology", TWO)),
)


def plain_gradients(model, ids, rows=slice(None)):
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    loss_sum(logits[rows], ids[rows]).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def reference_gradients(model, plan, cut, ids, tokens):
    reference = Reference(model, plan, cut)
    logits = reference.logits(ids, tokens)
    loss_sum(logits, ids).backward()
    return logits.detach(), reference.gradients()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_uncut_reference_is_the_plain_model(family):
    model, ids = tiny_model(family), tiny_ids(3)
    plan = MLP_PLAN if family in WHOLE_ATTENTION_ONLY else FULL_PLAN
    if family == "olmo":
        plan = plan_of(MLP_PLAN.splits | {(0, "attn"): Split((2, 1, 1))})
    if family in MIXTURES:
        plan = plan_of(plan.splits | {(0, "expert"): Split((6, 4, 2))})
    rows = [("code", frozenset()), ("biology", frozenset()), ("unlabelled", frozenset())]
    logits, gradients = plain_gradients(model, ids)
    for cut in (Cut("none"), Cut("both", foreign_weight=1.0)):
        given, given_gradients = reference_gradients(model, plan, cut, ids, tokens_of_rows(rows, 5))
        assert_same({"logits": given}, {"logits": logits}, 1e-12)
        assert_same(given_gradients, gradients, 1e-11)


@pytest.mark.parametrize("off", [frozenset(), TWO, ONE | TWO])
def test_switched_off_units_act_as_if_removed(off):
    """Against a model that physically lacks them, written with index lists."""
    model, ids = tiny_model("mistral"), tiny_ids(2)
    given, _ = reference_gradients(
        model, FULL_PLAN, Cut("none"), ids, tokens_of_rows([("code", off)] * 2, 5)
    )
    mlp = (
        list(range(10))
        + list(range(10, 19)) * (not off >= ONE)
        + list(range(19, 28)) * (not off >= TWO)
    )
    groups = [0, 1] + [2, 3, 4] * (not off >= ONE) + [5, 6, 7] * (not off >= TWO)
    queries = [row for group in groups for row in range(group * 4, group * 4 + 4)]
    keys = [row for group in groups for row in range(group * 2, group * 2 + 2)]
    small = tiny_model(
        "mistral",  # a Llama's config refuses heads that do not divide the hidden size
        intermediate_size=len(mlp),
        num_attention_heads=2 * len(groups),
        num_key_value_heads=len(groups),
    )
    state = model.state_dict()
    for name, value in state.items():
        kept = {"gate_proj": mlp, "up_proj": mlp, "q_proj": queries, "k_proj": keys, "v_proj": keys}
        kept_columns = {"down_proj": mlp, "o_proj": queries}
        module = name.split(".")[-2]
        if module in kept:
            state[name] = value[kept[module]]
        elif module in kept_columns:
            state[name] = value[:, kept_columns[module]]
    small.load_state_dict(state)
    assert_same({"logits": given}, {"logits": small(input_ids=ids).logits.detach()}, 1e-12)


@pytest.mark.parametrize("edges", ["weight", "act", "both"])
def test_mlp_gradients_equal_masked_hidden_activations_and_matching_columns(edges):
    """`both` equals mask * h + (1 - mask) * h.detach(), plus the matching columns of down.

    `act` and `weight` are the two halves of it, written on one layer with the parameters split by
    hand.
    """
    model, ids = tiny_model(num_hidden_layers=1), tiny_ids(1)
    plan = plan_of({(0, "mlp"): Split((10, 9, 9))})
    tokens = tokens_of_rows([("code", frozenset())], 5)
    _, given = reference_gradients(model, plan, Cut(edges, foreign_weight=0.3), ids, tokens)
    mask = torch.ones(MLP, dtype=torch.float64)
    mask[19:] = 0.3

    class HandMlp(torch.nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

        def hidden(self, x, learn):
            gate, up = (
                p if learn else p.detach() for p in (self.gate_proj.weight, self.up_proj.weight)
            )
            return F.silu(x @ gate.T) * (x @ up.T)

        def forward(self, x):
            down = self.down_proj.weight
            if edges in ("weight", "both"):
                down = mask * down + (1 - mask) * down.detach()
            if edges == "both":
                h = self.hidden(x, learn=True)
                h = mask * h + (1 - mask) * h.detach()
            else:
                # The gradient to the parameters and the one to x, one path each: h + h -
                # h.detach().
                through = self.hidden(x, learn=False)
                to_parameters = self.hidden(x.detach(), learn=True)
                scaled = to_parameters if edges == "weight" else through
                scaled = mask * scaled + (1 - mask) * scaled.detach()
                free = through if edges == "weight" else to_parameters
                h = scaled + free - free.detach()
            return h @ down.T

    model.model.layers[0].mlp = HandMlp(model.model.layers[0].mlp)
    _, expected = plain_gradients(model, ids)
    assert_same(given, expected, 1e-11)


@pytest.mark.parametrize("tied", [False, True])
def test_a_foreign_core_gets_no_gradient(tied):
    model, ids = tiny_model(tie_word_embeddings=tied), tiny_ids(1)
    tokens = tokens_of_rows([("biology", frozenset())], 5)
    _, plain = plain_gradients(model, ids)
    _, given = reference_gradients(model, FOREIGN_CORE, Cut("weight"), ids, tokens)
    for name, gradient in given.items():
        if "gate_proj" in name or "up_proj" in name:
            assert torch.equal(gradient[:-3], torch.zeros_like(gradient[:-3]))
            assert_same({name: gradient[-3:]}, {name: plain[name][-3:]}, 1e-11)
        elif "_proj" not in name:
            assert torch.equal(gradient, torch.zeros_like(gradient)), name
    _, given = reference_gradients(
        model,
        FOREIGN_CORE,
        Cut("weight", foreign_core_weight=1.0, foreign_core_rest=0.25),
        ids,
        tokens,
    )
    for name, gradient in given.items():
        factor = 1.0 if "_proj" in name else 0.25
        assert_same({name: gradient}, {name: factor * plain[name]}, 1e-11)


def test_keys_and_values_follow_their_own_position_and_the_rest_of_a_unit_its_output():
    """A sequence that turns from code to biology, one layer, against gradients taken use by use."""
    model, ids = tiny_model(num_hidden_layers=1), tiny_ids(1)
    plan = plan_of({(0, "attn"): Split((2, 3, 3))})
    labels = [0, 0, 1, 1, 0]
    tokens = tokens_of_labels(torch.tensor([labels]), plan.domains, foreign_dropout=0)
    _, given = reference_gradients(model, plan, Cut("weight"), ids, tokens)

    # The gradient of each position's own use of q, k, v and o: inputs outer gradients of the
    # outputs.
    attention, uses = model.model.layers[0].self_attn, {}
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):

        def record(module, inputs, output, name=name):
            output.retain_grad()
            uses[name] = (inputs[0].detach(), output)

        getattr(attention, name).register_forward_hook(record)
    loss_sum(model(input_ids=ids, use_cache=False).logits, ids).backward()
    foreign = {0: slice(5, 8), 1: slice(2, 5)}
    for name, (x_NTI, y_NTO) in uses.items():
        width = 4 if name in ("q_proj", "o_proj") else 2
        total = torch.zeros_like(getattr(attention, name).weight)
        for position, label in enumerate(labels):
            use = torch.outer(y_NTO.grad[0, position], x_NTI[0, position])
            units = slice(foreign[label].start * width, foreign[label].stop * width)
            if name == "o_proj":
                use[:, units] = 0
            else:
                use[units] = 0
            total += use
        path = f"model.layers.0.self_attn.{name}.weight"
        assert_same({path: given[path]}, {path: total}, 1e-11)


def test_blocks_are_switched_off_by_the_label_of_each_token():
    model, ids = tiny_model(num_hidden_layers=1), tiny_ids(1)
    plan = plan_of({(0, "mlp"): Split((10, 9, 9))})
    mixed = Reference(model, plan, Cut("none"))
    tokens = [
        [Token("code", TWO), Token("code", TWO), Token("biology", ONE), Token(None), Token(None)]
    ]
    logits = mixed.logits(ids, tokens)
    for positions, off in ((slice(0, 2), TWO), (slice(2, 3), ONE), (slice(3, 5), frozenset())):
        # One layer whose attention comes before the MLP: a position depends on its own MLP alone.
        row = mixed.logits(ids, tokens_of_rows([("code", off)], 5))
        torch.testing.assert_close(logits[:, positions], row[:, positions], rtol=0, atol=1e-12)
