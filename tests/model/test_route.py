"""A routed model's life: contexts, keep and remove, clipping, order of units, and the way back."""

import functools
from dataclasses import replace

import pytest
import torch

from gr_sweep.errors import ConfigError, PlanError
from gr_sweep.model.route import route_model
from gr_sweep.routing.kinds import ADAPTERS
from gr_sweep.routing.plan import RoutePlan, Split
from tests.model import compare
from tests.model.compare import FLAT, gradients, reference_of, route
from tests.model.tiny import (
    KV_HEADS,
    LAYERS,
    MLP,
    tiny_ids,
    tiny_model,
)
from tests.pairwise import crossed
from tests.reference import Cut, assert_same, loss_sum, tokens_of_rows

pytestmark = pytest.mark.usefixtures("exact_norms", "one_thread")


PLANS = compare.PLANS | {
    "forget": functools.partial(RoutePlan.forget, domains=FLAT, forget=["biology", "code"])
}


def plain_gradients(model, ids):
    model.zero_grad()
    loss_sum(model(input_ids=ids).logits, ids).backward()
    return {name: gradient.clone() for name, gradient in gradients(model).items()}


def routed_model(family="llama", kind="forget", **changes):
    model = tiny_model(family, **changes)
    return model, route_model(
        model, PLANS[kind](model.config, attn_shared=0.25), "both", foreign_dropout=0.5
    )


@pytest.mark.parametrize(("plan", "family"), crossed(list(PLANS), ["llama", "qwen3"]))
def test_keep_and_remove_compute_the_reference_with_blocks_switched_off(plan, family):
    model, routed = routed_model(family, plan)
    reference = reference_of(routed, tiny_model(family), Cut("none"))
    ids, domains = tiny_ids(2), routed.plan.domains

    cases = [(routed.keep(domains), []), (routed.remove([]), [])]
    for domain in domains:
        # "A domain of the tree stands for all that lies under it."
        under = {label for label in domains if (label + "/").startswith(domain + "/")}
        cases += [(routed.keep([domain]), {*domains} - under), (routed.remove([domain]), under)]
    for context, off in cases:
        rows = tokens_of_rows([("unlabelled", frozenset(off))] * 2, 5)
        with torch.no_grad(), context:
            found = model(input_ids=ids).logits
        assert_same({"logits": found}, {"logits": reference.logits(ids, rows).detach()})


@pytest.mark.parametrize(("plan", "family"), [("forget", "llama"), ("lattice", "qwen3")])
def test_outside_any_context_the_model_is_the_plain_one_with_plain_gradients(plan, family):
    tied = {"tie_word_embeddings": family == "llama"}
    model, routed = routed_model(family, plan, **tied)
    plain, ids = tiny_model(family, **tied), tiny_ids(3)
    assert routed.model is model and isinstance(model, type(plain))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is (family == "llama")
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    given, wanted = plain_gradients(model, ids), plain_gradients(plain, ids)
    for name, gradient in wanted.items():
        assert torch.equal(given[name], gradient), name


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_an_order_moves_units_and_leaves_the_function_as_it_was(family):
    generator = torch.Generator().manual_seed(3)
    orders = {
        (layer, kind): torch.randperm(units, generator=generator).tolist()
        for layer in range(LAYERS)
        for kind, units in (("mlp", MLP), ("attn", KV_HEADS))
    }
    model, plain, ids = tiny_model(family), tiny_model(family), tiny_ids(3)
    route_model(model, PLANS["peers"](model.config, attn_shared=0.25, orders=orders))
    logits = {"logits": model(input_ids=ids).logits.detach()}
    assert_same(logits, {"logits": plain(input_ids=ids).logits.detach()}, 1e-12)
    before, after = plain.model.layers[1], model.model.layers[1]
    order = orders[1, "mlp"]
    assert torch.equal(after.mlp.down_proj.weight, before.mlp.down_proj.weight[:, order])
    rows = [2 * group + row for group in orders[1, "attn"] for row in range(2)]
    assert torch.equal(after.self_attn.k_proj.weight, before.self_attn.k_proj.weight[rows])


def test_unroute_gives_the_plain_model_back():
    model, routed = routed_model("qwen3")
    assert routed.unroute() is model
    for module, other in zip(model.modules(), tiny_model("qwen3").modules(), strict=True):
        assert type(module) is type(other) and set(vars(module)) == set(vars(other))


def test_an_invalid_batch_is_refused():
    model, routed = routed_model(kind="peers")
    labels_NT = torch.zeros(2, 5, dtype=torch.long)
    for context, said in (
        (routed.batch({"chemistry": 1}), "chemistry"),
        (routed.batch(), "counts"),
        (routed.batch({"code": 1}), "2 steps .* step=step"),  # 0.5 of one sequence
        (routed.batch(labels_NT=labels_NT), "foreign_dropout"),  # it is 0.5
    ):
        with pytest.raises(PlanError, match=said), context:
            pass
    with pytest.raises(ConfigError, match="chemistry"):
        routed.keep(["chemistry"])
    said = r"7 sequences.* given 8"
    with pytest.raises(PlanError, match=said), routed.batch({"code": 7}, step=0):
        model(input_ids=tiny_ids(8))
    routed.lay(PLANS["peers"](model.config), "both")
    with pytest.raises(PlanError, match="labels_NT"), routed.batch(labels_NT=labels_NT + 3):
        pass
    with pytest.raises(PlanError, match=r"\(2, 5\).*\(3, 5\)"), routed.batch(labels_NT=labels_NT):
        model(input_ids=tiny_ids(3))


def test_contexts_do_not_nest_and_an_error_inside_ends_them():
    model, routed = routed_model()
    with pytest.raises(PlanError, match="nested"), routed.batch({"code": 2}), routed.keep(["code"]):
        pass
    with pytest.raises(ZeroDivisionError), routed.keep(["code"]):
        _ = 1 // 0
    plain = tiny_model()(input_ids=tiny_ids(2)).logits
    assert torch.equal(model(input_ids=tiny_ids(2)).logits, plain)


@pytest.mark.parametrize(
    ("plan", "edges"),
    [("peers", "none"), ("forget", "weight"), ("tree", "act"), ("lattice", "both")],
)
def test_gradients_are_clipped_per_owner_set_where_weights_are_cut_and_globally_elsewhere(
    plan, edges
):
    model = tiny_model(tie_word_embeddings=True)
    routed = route(
        model, PLANS[plan](model.config, attn_shared=0.25), Cut(edges, foreign_weight=0.3)
    )
    first, second, third = routed.plan.domains
    ids = tiny_ids(6)
    with routed.batch({first: 3, second: 2, third: 1}):
        loss_sum(model(input_ids=ids).logits, ids).backward()
    before = {name: gradient.clone() for name, gradient in gradients(model).items()}

    # Which block every single entry belongs to, from the reference's own map of units to blocks.
    reference = reference_of(routed, tiny_model(tie_word_embeddings=True), Cut(edges))
    block_of = {path: torch.zeros(g.shape, dtype=torch.long) for path, g in before.items()}
    for layer in range(LAYERS):
        mlp, groups = (reference.block_of_unit(layer, kind) for kind in ("mlp", "attn"))
        queries, keys = groups.repeat_interleave(4), groups.repeat_interleave(2)
        of_rows = {"mlp.gate": mlp, "mlp.up": mlp}
        of_rows |= {"self_attn.q": queries, "self_attn.k": keys, "self_attn.v": keys}
        for name, blocks in of_rows.items():
            block_of[f"model.layers.{layer}.{name}_proj.weight"] += blocks[:, None]
        for name, blocks in {"mlp.down": mlp, "self_attn.o": queries}.items():
            block_of[f"model.layers.{layer}.{name}_proj.weight"] += blocks
    names = [block.name for block in routed.plan.blocks]
    if edges in ("none", "act"):
        names, block_of = ["all"], {path: 0 * blocks for path, blocks in block_of.items()}
    norms = {
        name: torch.sqrt(sum((before[path][block_of[path] == index] ** 2).sum() for path in before))
        for index, name in enumerate(names)
    }
    assert len(set(map(float, norms.values()))) == len(norms)

    assert_same(routed.clip_grad_norm_(None), norms)
    assert all(torch.equal(gradient, before[name]) for name, gradient in gradients(model).items())
    max_norm = float(sorted(norms.values())[len(norms) // 2]) * 0.9
    given = routed.clip_grad_norm_(max_norm)
    assert_same(given, norms)
    factors = torch.stack([(max_norm / (norm + 1e-6)).clamp(max=1.0) for norm in norms.values()])
    assert_same(gradients(model), {path: before[path] * factors[block_of[path]] for path in before})


@pytest.mark.parametrize(
    ("family", "counts"),
    [("qwen3", {"biology": 2}), ("gpt_neox", {"biology": 2}), ("llama", {"code": 1, "biology": 2})],
)
def test_every_parameter_gets_a_gradient_whoever_the_rows_belong_to(family, counts):
    """Processes that share a micro-batch add up gradients: none may lack one that another has."""
    model = tiny_model(family)
    plan = RoutePlan.forget(model.config, domains=["code", "biology"], forget=["biology"])
    routed = route_model(model, plan, "weight", foreign_dropout=1.0)
    ids = tiny_ids(sum(counts.values()))
    with routed.batch(counts):
        loss_sum(model(input_ids=ids).logits, ids).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight.grad
    assert embedding.any() == ("code" in counts)


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gpt_neox", "mixtral"])
def test_units_that_change_places_in_training_leave_it_as_it_is(family):
    """Two steps of AdamW, a new plan with an order, two more: as four without, in float64."""
    shares = {"mlp_shared": 0.25, "attn_shared": 0.25}
    shares["adapters"] = {"embed": 2, "unembed": 2, "attn": 2}
    shares["adapters"]["mlp"] = 0 if family == "mixtral" else 2
    generator, found = torch.Generator().manual_seed(0), []
    for is_reordered in (False, True):
        model = tiny_model(family)
        plan = RoutePlan.peers(model.config, domains=FLAT, **shares)
        added = {
            place: Split((split.num_units,))
            for place, split in plan.splits.items()
            if place[1] in ADAPTERS.values()
        }
        routed = route(model, replace(RoutePlan.none(domains=FLAT), splits=added), Cut("none"))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        losses = []
        for step in range(4):
            if step == 2:
                splits = {
                    place: replace(
                        split, order=torch.randperm(split.num_units, generator=generator).tolist()
                    )
                    for place, split in plan.splits.items()
                }
                if is_reordered:
                    plan = replace(plan, splits=splits)
                routed.lay(plan, "none")
                routed.reorder_moments(optimizer)
            ids = tiny_ids(3, seed=step)
            with routed.batch({"code": 1, "biology": 2}):
                losses.append(loss_sum(model(input_ids=ids).logits, ids))
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append({"losses": torch.stack(losses), "logits": model(tiny_ids(2)).logits})
    assert_same(*({name: t.detach() for name, t in of.items()} for of in found))


@pytest.mark.parametrize("kind", ["embed", "unembed"])
def test_an_adapter_of_full_rank_does_not_take_over_one_with_as_many_units(kind):
    model = tiny_model()
    width = model.config.hidden_size
    bottleneck, full = (
        PLANS["forget"](model.config, adapters={kind: units}) for units in (width, "full")
    )
    routed = route_model(model, bottleneck)
    for plan in (full, bottleneck):
        routed.lay(plan)
        wanted = route_model(tiny_model(), plan).model
        assert model.state_dict().keys() == wanted.state_dict().keys()
        made = [*model.parameters()]
        routed.lay(plan)
        assert all(a is b for a, b in zip(model.parameters(), made, strict=True))
