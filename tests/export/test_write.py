"""Exports of tiny models of every family: logits, padding, losses and the card."""

import functools
import json
import random
import shutil
from dataclasses import replace

import pytest
import torch

from gr_sweep.export import write
from gr_sweep.export.card import Loss, card_text, remarks_of, table_text
from gr_sweep.export.run import open_run
from gr_sweep.export.write import export, losses_of
from gr_sweep.model.sizes import SIZES
from gr_sweep.routing.plan import ATTN, MLP, RoutePlan, Split
from gr_sweep.setup import save_model_files
from gr_sweep.train.cost import kept_flops_per_token, kept_parameters
from tests.export.folder import make_run
from tests.model.tiny import FAMILIES, HIDDEN, LAYERS, WHOLE_ATTENTION_ONLY, tiny_ids
from tests.model.tiny import MLP as WIDTH

pytestmark = pytest.mark.usefixtures("one_thread")

DOMAINS = ["code", "biology", "creative"]
PEERS = functools.partial(RoutePlan.peers, domains=DOMAINS)
COMMAND = "gr-sweep export"


def loaded_logits(folder, ids):
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert loaded.dtype == torch.float32
    return loaded(input_ids=ids).logits.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoint_has_the_logits_of_keep(family, tmp_path):
    """Units were reordered before training; the checkpoint has them in the plan's order."""
    order = random.Random(0).sample(range(WIDTH), WIDTH)
    orders = {(layer, MLP): order for layer in range(LAYERS)}
    share = 1.0 if family in WHOLE_ATTENTION_ONLY else 0.25
    plan_of = functools.partial(PEERS, attn_shared=share, orders=orders)
    is_tied = FAMILIES.index(family) % 2 == 0
    run, routed = make_run(tmp_path / "job", plan_of, family, tie_word_embeddings=is_tied)
    made = export(run, ["biology"], tmp_path / "out", command=COMMAND)
    ids = tiny_ids(3)
    with torch.no_grad(), routed.keep(["biology"]):
        wanted = routed.model(input_ids=ids).logits
    torch.testing.assert_close(loaded_logits(tmp_path / "out", ids), wanted, rtol=1e-5, atol=1e-5)
    assert made.extracted.parameters == kept_parameters(routed)["biology"]
    if family == "llama":  # has no biases, which `kept_flops_per_token` counts as matrices
        assert made.extracted.flops_per_token == kept_flops_per_token(routed, 8)["biology"]
    assert made.removed_domains == ["code", "creative"] and made.step == 7
    assert not list(tmp_path.glob(".*")), "no temporary folder is left"


def test_heads_are_padded_to_a_number_that_the_architecture_takes(tmp_path):
    """6 of 8 groups of 2 heads do not divide the width of 16."""
    run, routed = make_run(tmp_path / "job", functools.partial(PEERS, attn_shared=0.5))
    made = export(run, ["code"], tmp_path / "out", command=COMMAND)
    units = made.units[ATTN]
    assert (units.full, units.kept, units.extracted, units.padding) == (8, [6, 6], 8, [2, 2])
    # q and o have 2 heads of 2 features a group, k and v one.
    zeros = 2 * LAYERS * HIDDEN * (4 + 2 + 2 + 4)
    assert made.extracted.parameters - zeros == kept_parameters(routed)["code"]
    [remark] = remarks_of(made)
    assert remark in (tmp_path / "out" / "README.md").read_text()


def test_layers_of_unequal_sizes_are_padded_to_the_widest(tmp_path):
    def plan_of(config):
        splits = {(0, MLP): Split((10, 6, 6, 6)), (1, MLP): Split((4, 8, 7, 9))}
        return replace(PEERS(config), splits=splits)

    run, routed = make_run(tmp_path / "job", plan_of)
    made = export(run, ["biology"], tmp_path / "out", command=COMMAND)
    units = made.units[MLP]
    assert (units.kept, units.extracted, units.padding) == ([16, 11], 16, [0, 5])
    zeros = 5 * 3 * HIDDEN
    assert made.extracted.parameters == kept_parameters(routed)["biology"] + zeros
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["intermediate_size"] == 16


def test_a_plan_that_leaves_a_layer_whole_saves_nothing_and_says_so(tmp_path):
    run, _ = make_run(tmp_path / "job", functools.partial(PEERS, layers=[1]))
    made = export(run, ["biology"], tmp_path / "out", command=COMMAND)
    assert made.units[MLP].padding == [0, WIDTH - 19]
    assert made.extracted == made.full
    assert any("as large as the full one" in remark for remark in remarks_of(made))


def test_every_domain_kept_is_the_full_model_without_padding(tmp_path):
    run, _ = make_run(tmp_path / "job", functools.partial(PEERS, attn_shared=0.5))
    made = export(run, DOMAINS, tmp_path / "out", command=COMMAND)
    assert made.extracted == made.full and not made.removed_blocks and remarks_of(made) == []


def test_a_domain_that_owns_no_block_is_not_said_to_be_removed(tmp_path):
    plan_of = functools.partial(RoutePlan.forget, domains=DOMAINS, forget=["biology"])
    run, _ = make_run(tmp_path / "job", plan_of)
    made = export(run, ["code"], tmp_path / "out", command=COMMAND)
    assert made.removed_blocks == made.removed_domains == ["biology"]
    assert made.unremoved_domains == ["creative"] and not made.is_core_of_removed
    card = (tmp_path / "out" / "README.md").read_text()
    assert "not removed, though not kept: creative" in card
    assert "has learned from the removed domains" not in card


def test_domains_that_rounds_divided_are_named_by_their_uppermost_nodes(tmp_path):
    labels = ["code/0", "code/1", "biology/0", "biology/1"]
    metrics = {"loss/full/code": 1.0, "loss/full/biology": 2.0, "loss/kept/biology/biology": 2.5}
    plan_of = functools.partial(RoutePlan.tree, domains=labels)
    run, _ = make_run(tmp_path / "job", plan_of, metrics=metrics)
    run = replace(run, summary={**run.summary, "domains": ["code", "biology"]})
    made = export(run, ["biology"], tmp_path / "out", command=COMMAND)
    assert made.kept_domains == ["biology"] and made.removed_domains == ["code"]
    assert made.losses["biology"] == (Loss(2.0, None), Loss(2.5, None))
    assert made.losses["code"] == (Loss(1.0, None), None)
    lines = [line.split() for line in table_text(made).splitlines()]
    assert ["code", "(removed)", "1.000", "-", "-"] in lines
    assert ["biology", "2.000", "2.500", "+0.500"] in lines
    assert "| biology | 2.000 | 2.500 | +0.500 |" in card_text(made)
    made = export(run, ["biology/1", "code"], tmp_path / "other", command=COMMAND)
    assert made.kept_domains == ["code", "biology/1"] and made.removed_domains == ["biology/0"]


def test_the_generation_config_is_copied_even_where_transformers_refuses_to_write_it(tmp_path):
    """Some published models have a temperature together with do_sample=false."""
    run, routed = make_run(tmp_path / "job", PEERS)
    routed.model.generation_config.temperature = 0.9
    routed.model.generation_config.do_sample = False
    shutil.rmtree(run.folder / "model")
    save_model_files(run.folder, routed.model, run.folder / "cache")
    export(run, ["biology"], tmp_path / "out", command=COMMAND)
    content = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert content["temperature"] == 0.9


def test_a_model_with_other_logits_is_not_written(tmp_path, monkeypatch):
    run, _ = make_run(tmp_path / "job", PEERS)
    monkeypatch.setattr(write, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="a bug of gr-sweep"):
        export(run, ["biology"], tmp_path / "out", command=COMMAND)
    assert [path.name for path in tmp_path.iterdir()] == ["job"]


def test_the_plan_of_the_weights_counts_where_plan_json_is_of_another_round(tmp_path):
    run, routed = make_run(tmp_path / "job", PEERS)
    other = PEERS(routed.model.config, mlp_shared=0.25)
    (tmp_path / "job" / "plan.json").write_text(other.to_json())
    made = export(open_run(run.folder), ["biology"], tmp_path / "out", command=COMMAND)
    assert made.units[MLP].extracted == 14 + 5


# Losses

FLAT = RoutePlan.peers(SIZES["tiny"], domains=DOMAINS)
SUMMARY = {
    "metrics": {
        "loss/full/code": 1.0,
        "loss/kept/code/code": 1.1,
        "loss/removed/biology/code": 1.2,
    },
    "intervals": {"loss/kept/code/code": [1.05, 1.15]},
}


@pytest.mark.parametrize(
    ("keep", "extracted"),
    [
        (["code"], Loss(1.1, (1.05, 1.15))),
        (["code", "creative"], Loss(1.2, None)),
        (DOMAINS, Loss(1.0, None)),
        (["biology"], None),
    ],
)
def test_the_loss_of_the_extracted_model_is_that_of_the_same_network(keep, extracted):
    found = losses_of(SUMMARY, FLAT, FLAT.kept_off(keep), keep, {})
    assert found == {"code": (Loss(1.0, None), extracted)}


@pytest.mark.parametrize(("recovery", "is_there"), [(0.0, True), (0.01, False)])
def test_what_recovery_trained_is_another_network(recovery, is_there):
    plan = RoutePlan.forget(SIZES["tiny"], domains=DOMAINS, forget=["biology"])
    summary = SUMMARY | {"config": {"method": {"recovery": recovery}}}
    found = losses_of(summary, plan, plan.kept_off(["code"]), ["code"], {})
    assert (found["code"][1] is not None) is is_there


TREE = RoutePlan.tree(SIZES["tiny"], domains=["code/0", "code/1", "biology/0", "biology/1"])
OF_PARTITION = {
    "domains": ["code", "biology"],
    "metrics": {"loss/full/code": 1.0, "loss/full/biology": 2.0, "loss/kept/code/code": 1.5},
}
OF_ROUND = {
    "labels": list(TREE.domains),
    "metrics": {"loss/full/code.1": 4.0, "loss/kept/code.1/code.1": 4.5},
    "intervals": {"loss/kept/code.1/code.1": [4.4, 4.6]},
}


def test_a_kept_label_of_the_last_round_has_its_losses_next_to_those_of_its_domain():
    found = losses_of(OF_PARTITION, TREE, TREE.kept_off(["code/1"]), ["code/1"], OF_ROUND)
    assert found == {
        "code": (Loss(1.0, None), None),
        "code/1": (Loss(4.0, None), Loss(4.5, (4.4, 4.6))),
        "biology": (Loss(2.0, None), None),
    }
    found = losses_of(OF_PARTITION, TREE, TREE.kept_off(["code"]), ["code"], OF_ROUND)
    assert list(found) == ["code", "biology"] and found["code"][1] == Loss(1.5, None)


def test_the_last_round_is_the_one_of_the_plan_s_labels(tmp_path):
    run, _ = make_run(tmp_path / "job", functools.partial(RoutePlan.tree, domains=TREE.domains))
    assert run.last_round() == {}
    for number, about in ((2, {"labels": DOMAINS}), (10, OF_ROUND)):
        folder = run.folder / "rounds" / str(number)
        folder.mkdir(parents=True)
        (folder / "round.json").write_text(json.dumps(about))
    assert run.last_round() == OF_ROUND
    assert replace(run, plan=FLAT).last_round() == {}, "of other labels"
