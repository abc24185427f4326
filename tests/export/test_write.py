"""Exports of tiny models of every family: their logits, their padding and its cost."""

import functools
import json
import random
import shutil
from dataclasses import replace

import pytest
import torch

from gr_sweep.errors import DataError, JobError
from gr_sweep.export import write
from gr_sweep.export.card import card_text, remarks_of, table_text
from gr_sweep.export.losses import Loss
from gr_sweep.export.measure import padding_of
from gr_sweep.export.run import open_run
from gr_sweep.export.write import export
from gr_sweep.routing.plan import ATTN, MLP, RoutePlan, Split
from gr_sweep.setup import save_model_files
from gr_sweep.train.cost import kept_flops_per_token, kept_parameters
from tests.export.folder import make_run
from tests.model.tiny import (
    FAMILIES,
    HIDDEN,
    LAYERS,
    WHOLE_ATTENTION_ONLY,
    tiny_ids,
)
from tests.model.tiny import (
    MLP as WIDTH,
)

pytestmark = pytest.mark.usefixtures("one_thread")

DOMAINS = ["code", "biology", "creative"]
PEERS = functools.partial(RoutePlan.peers, domains=DOMAINS)
CPU = torch.device("cpu")


def export_to(run, keep, to, **how):
    how.setdefault("measures_generation", False)
    return export(run, keep, to, command="gr-sweep export", device=CPU, **how)


def loaded_logits(folder, ids):
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert loaded.dtype == torch.float32
    return loaded(input_ids=ids).logits.detach()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_the_checkpoint_has_the_logits_of_keep(family, tied, tmp_path):
    """Units were reordered before training; the checkpoint has them in the plan's order."""
    order = random.Random(0).sample(range(WIDTH), WIDTH)
    orders = {(layer, MLP): order for layer in range(LAYERS)}
    share = 1.0 if family in WHOLE_ATTENTION_ONLY else 0.25
    plan_of = functools.partial(PEERS, attn_shared=share, orders=orders)
    run, routed = make_run(tmp_path / "job", plan_of, family, tie_word_embeddings=tied)
    made = export_to(run, ["biology"], tmp_path / "out")
    ids = tiny_ids(3)
    with torch.no_grad(), routed.keep(["biology"]):
        wanted = routed.model(input_ids=ids).logits
    torch.testing.assert_close(loaded_logits(tmp_path / "out", ids), wanted, rtol=1e-5, atol=1e-5)
    assert made.extracted.parameters == kept_parameters(routed)["biology"]
    assert made.removed_domains == ["code", "creative"] and made.step == 7
    assert not list(tmp_path.glob(".*")), "nothing beside it"


def test_heads_are_padded_to_a_number_that_the_architecture_takes_and_that_is_counted(tmp_path):
    """6 of 8 groups of 2 heads do not divide the width of 16."""
    run, routed = make_run(tmp_path / "job", functools.partial(PEERS, attn_shared=0.5))
    kept_flops = kept_flops_per_token(routed, 8)["code"]
    kept = kept_parameters(routed)["code"]
    made = export_to(run, ["code"], tmp_path / "out")
    padding = made.padding[ATTN]
    assert padding.units.by_layer == (6, 6) and padding.units.width == 8
    assert padding.units.padding == (2, 2) and padding.share == 2 / 8
    # q and o have 2 heads of 2 features a group, k and v one.
    assert padding.parameters == 2 * LAYERS * HIDDEN * (4 + 2 + 2 + 4)
    assert made.padding[MLP].parameters == 0
    assert made.extracted.parameters - padding.parameters == kept
    assert made.extracted.flops_per_token - padding.flops_per_token == kept_flops
    [remark] = remarks_of(made)
    assert "4 zero key-value groups of heads in all" in remark and "25.0%" in remark
    assert remark in (tmp_path / "out" / "README.md").read_text()


def test_layers_of_unequal_sizes_are_padded_to_the_widest_and_that_is_counted(tmp_path):
    def plan_of(config):
        plan = PEERS(config)
        splits = {(0, MLP): Split((10, 6, 6, 6)), (1, MLP): Split((4, 8, 7, 9))}
        return replace(plan, splits=splits)

    run, routed = make_run(tmp_path / "job", plan_of)
    kept = kept_parameters(routed)["biology"]
    made = export_to(run, ["biology"], tmp_path / "out")
    padding = made.padding[MLP]
    assert padding.units.by_layer == (16, 11) and padding.units.padding == (0, 5)
    assert padding.parameters == 5 * 3 * HIDDEN and padding.share == 5 / 32
    assert padding.flops_per_token == 2 * padding.parameters
    assert made.extracted.parameters == kept + padding.parameters
    assert made.extracted.mlp_parameters == 2 * 16 * 3 * HIDDEN
    assert made.full.mlp_parameters == 2 * WIDTH * 3 * HIDDEN
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["intermediate_size"] == 16
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| MLP hidden units | 28 | 16, 11 | 16 |" in card


def test_a_plan_of_some_layers_buys_nothing_and_says_so(tmp_path):
    run, _ = make_run(tmp_path / "job", functools.partial(PEERS, layers=[1]))
    made = export_to(run, ["biology"], tmp_path / "out")
    assert made.padding[MLP].units.padding == (0, WIDTH - 19)
    assert made.extracted == made.full
    assert any("as large as the full one" in remark for remark in remarks_of(made))


def test_every_domain_kept_is_the_full_model_without_padding(tmp_path):
    run, routed = make_run(tmp_path / "job", functools.partial(PEERS, attn_shared=0.5))
    assert padding_of(routed, (), 8)[ATTN].parameters == 0
    made = export_to(run, DOMAINS, tmp_path / "out", measures_generation=True)
    assert made.extracted == made.full and not made.removed_blocks and remarks_of(made) == []
    assert made.generation["full"] == made.generation["extracted"]


def test_a_domain_that_owns_no_block_is_not_said_to_be_removed(tmp_path):
    plan_of = functools.partial(RoutePlan.forget, domains=DOMAINS, forget=["biology"])
    run, _ = make_run(tmp_path / "job", plan_of)
    made = export_to(run, ["code"], tmp_path / "out")
    assert made.removed_blocks == made.removed_domains == ["biology"]
    assert made.unremoved_domains == ["creative"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "not removed, though not kept: creative" in card
    assert "has learned from the removed ones too" not in card


def test_domains_that_rounds_split_further_are_named_and_have_losses_as_the_run_knows_them(
    tmp_path,
):
    labels = ["code/0", "code/1", "biology/0", "biology/1"]
    plan_of = functools.partial(RoutePlan.tree, domains=labels)
    metrics = {"loss/full/code": 1.0, "loss/full/biology": 2.0, "loss/kept/biology/biology": 2.5}
    run, _ = make_run(tmp_path / "job", plan_of, metrics=metrics)
    run = replace(run, summary={**run.summary, "domains": ["code", "biology"]})
    made = export_to(run, ["biology"], tmp_path / "out")
    assert made.kept_domains == ["biology"] and made.removed_domains == ["code"]
    assert made.losses["biology"].extracted.nats == 2.5 and made.losses["code"].extracted is None
    assert "code (removed)" in table_text(made)
    made = export_to(run, ["biology/1", "code"], tmp_path / "other")
    assert made.kept_domains == ["code", "biology/1"] and made.removed_domains == ["biology/0"]


def test_a_dense_model_of_the_same_size_has_a_column_of_its_own(tmp_path):
    metrics = {"loss/full/code": 1.0, "loss/full/biology": 2.0, "loss/kept/biology/biology": 2.5}
    run, _ = make_run(tmp_path / "job", PEERS, metrics=metrics)
    made = export_to(run, ["biology"], tmp_path / "out")
    assert made.alone == "" and "alone" not in table_text(made) + card_text(made)
    losses = {**made.losses, "biology": replace(made.losses["biology"], alone=Loss(2.25, (2, 3)))}
    made = replace(made, losses=losses, alone="method=filtered")
    *_, head, code, biology = table_text(made).splitlines()
    assert head.split()[-3:] == ["extracted", "difference", "alone"]
    assert code.split() == ["code", "(removed)", "1.000", "-", "-", "-"]
    assert biology.split() == ["biology", "2.000", "2.500", "+0.500", "2.250"]
    card = card_text(made)
    assert "| domain | full | extracted | difference | alone |" in card
    assert "| biology | 2.000 | 2.500 | +0.500 | 2.250 (2.000 to 3.000) |" in card
    assert any("alone: a dense model" in remark for remark in remarks_of(made))


def test_generation_is_measured_of_both_models(tmp_path):
    run, _ = make_run(tmp_path / "job", PEERS, max_position_embeddings=128)
    made = export_to(run, ["biology"], tmp_path / "out", measures_generation=True)
    full, extracted = made.generation["full"], made.generation["extracted"]
    assert full.tokens_per_second > 0 and extracted.tokens_per_second > 0
    assert full.peak_bytes > made.full.weight_bytes
    # What comes on top of the weights is the same, or less where MLPs are narrower.
    difference = full.peak_bytes - extracted.peak_bytes
    assert 0 <= difference - (made.full.weight_bytes - made.extracted.weight_bytes) < 2**14
    content = json.loads((tmp_path / "out" / "export.json").read_text())
    assert content == json.loads(json.dumps(made.as_dict()))


def test_how_to_generate_is_copied_even_where_transformers_would_refuse_to_write_it(tmp_path):
    """Published models have a temperature beside do_sample=false."""
    run, routed = make_run(tmp_path / "job", PEERS)
    routed.model.generation_config.temperature = 0.9
    routed.model.generation_config.do_sample = False
    shutil.rmtree(run.model_folder)
    save_model_files(run.folder, routed.model, run.folder / "cache")
    export_to(run, ["biology"], tmp_path / "out")
    content = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert content["temperature"] == 0.9


def test_what_is_not_the_model_of_keep_is_not_written(tmp_path, monkeypatch):
    run, _ = make_run(tmp_path / "job", PEERS)
    loaded = write._reloaded_logits
    monkeypatch.setattr(write, "_reloaded_logits", lambda *a: loaded(*a) + 1e-3)
    with pytest.raises(RuntimeError, match="a bug of gr-sweep"):
        export_to(run, ["biology"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["job"]


def test_a_checkpoint_that_is_broken_or_of_another_run_is_refused_and_stays(tmp_path):
    run, _ = make_run(tmp_path / "job", PEERS)
    changed = replace(run, summary={**run.summary, "fingerprints": {"config": "x", "text": "b"}})
    with pytest.raises(JobError, match="not of the run"):
        export_to(changed, ["biology"], tmp_path / "out")
    [tensors] = (tmp_path / "job" / "checkpoints").glob("*/*.distcp")
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(DataError, match="step_00000007 cannot be read"):
        export_to(run, ["biology"], tmp_path / "out")
    assert tensors.exists() and not (tmp_path / "out").exists()


def test_the_plan_of_the_weights_counts_where_plan_json_is_of_another_round(tmp_path):
    run, _ = make_run(tmp_path / "job", PEERS)
    other = PEERS(json_config(tmp_path / "job"), mlp_shared=0.25)
    (tmp_path / "job" / "plan.json").write_text(other.to_json())
    made = export_to(open_run(run.folder), ["biology"], tmp_path / "out")
    assert made.padding[MLP].units.width == 14 + 5


def json_config(folder):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder / "model")
