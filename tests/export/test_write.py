"""Exports of tiny models of every family: logits, padding, losses and the card."""

import functools
import json
import random
from dataclasses import replace

import pytest
import torch

from gr_sweep.errors import JobError
from gr_sweep.export import write
from gr_sweep.export.write import export, facts_of
from gr_sweep.routing.kinds import ATTN, EXPERT, MLP
from gr_sweep.routing.plan import RoutePlan, Split
from gr_sweep.train.cost import kept_parameters, num_parameters
from tests.export.folder import make_run
from tests.model.tiny import EXPERTS, FAMILIES, HIDDEN, LAYERS, WHOLE_ATTENTION_ONLY, tiny_ids
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
    orders |= {(layer, EXPERT): [i for i in order if i < EXPERTS] for layer in range(LAYERS)}
    share = 1.0 if family in WHOLE_ATTENTION_ONLY else 0.25
    plan_of = functools.partial(PEERS, attn_shared=share, orders=orders)
    is_tied = FAMILIES.index(family) % 2 == 0
    run, routed = make_run(tmp_path / "job", plan_of, family, tie_word_embeddings=is_tied)
    made = export(run, ["biology"], tmp_path / "out", command=COMMAND)
    ids = tiny_ids(3)
    with torch.no_grad(), routed.keep(["biology"]):
        wanted = routed.model(input_ids=ids).logits
    torch.testing.assert_close(loaded_logits(tmp_path / "out", ids), wanted, rtol=1e-5, atol=1e-5)
    # Where the config derives the size of a head from their number, removed heads are zeros.
    linears = [linear for linear in routed.unit_linears if linear.kind == ATTN]
    per_group = sum(linear.size(p) for linear in linears for p in linear.parameters) // LAYERS
    zeros = (
        (made["units"][ATTN]["extracted"] - made["units"][ATTN]["kept"][0]) * LAYERS * per_group
        if linears
        else 0
    )
    assert made["parameters"] - zeros == kept_parameters(routed)["biology"]
    assert made["removed_domains"] == ["code", "creative"] and made["step"] == 7
    assert not list(tmp_path.glob(".*")), "no temporary folder is left"


@pytest.mark.parametrize(("keep", "is_tied"), [("code", True), ("biology", False)])
def test_adapters_that_are_kept_are_merged_and_untie_the_embeddings(keep, is_tied, tmp_path):
    adapters = {"embed": 3, "unembed": "full", "bias": keep == "code", "attn": 1, "mlp": 2}
    plan_of = functools.partial(
        RoutePlan.forget, domains=DOMAINS, forget=["biology"], adapters=adapters
    )
    run, routed = make_run(tmp_path / "job", plan_of, tie_word_embeddings=True)
    made = export(run, [keep], tmp_path / "out", command=COMMAND)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is is_tied
    assert made["parameters"] == kept_parameters(routed)[keep]
    assert made["full_parameters"] == num_parameters(routed)


def test_kept_biases_of_the_output_are_refused(tmp_path):
    run, _ = make_run(tmp_path / "job", functools.partial(PEERS, adapters={"bias": True}))
    with pytest.raises(JobError, match=r"biases .* plan.adapters.bias=false"):
        export(run, ["code"], tmp_path / "out", command=COMMAND)
    assert not (tmp_path / "out").exists()


def test_heads_are_padded_to_a_number_that_the_architecture_takes(tmp_path):
    """6 of 8 groups of 2 heads do not divide the width of 16."""
    run, routed = make_run(tmp_path / "job", functools.partial(PEERS, attn_shared=0.5))
    made = export(run, ["code"], tmp_path / "out", command=COMMAND)
    units = made["units"][ATTN]
    assert units == {"full": 8, "kept": (6, 6), "extracted": 8}
    # q and o have 2 heads of 2 features a group, k and v one.
    zeros = 2 * LAYERS * HIDDEN * (4 + 2 + 2 + 4)
    assert made["parameters"] - zeros == kept_parameters(routed)["code"]
    remark = facts_of(made)[-2]
    assert remark in (tmp_path / "out" / "README.md").read_text()


def test_layers_of_unequal_sizes_are_padded_to_the_widest(tmp_path):
    def plan_of(config):
        splits = {(0, MLP): Split((10, 6, 6, 6)), (1, MLP): Split((4, 8, 7, 9))}
        return replace(PEERS(config), splits=splits)

    run, routed = make_run(tmp_path / "job", plan_of)
    made = export(run, ["biology"], tmp_path / "out", command=COMMAND)
    units = made["units"][MLP]
    assert (units["kept"], units["extracted"]) == ((16, 11), 16)
    zeros = 5 * 3 * HIDDEN
    assert made["parameters"] == kept_parameters(routed)["biology"] + zeros
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["intermediate_size"] == 16


def test_a_model_with_other_logits_is_not_written(tmp_path, monkeypatch):
    run, _ = make_run(tmp_path / "job", PEERS)
    monkeypatch.setattr(write, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="a bug of gr-sweep"):
        export(run, ["biology"], tmp_path / "out", command=COMMAND)
    assert [path.name for path in tmp_path.iterdir()] == ["job"]
