"""Whole jobs on tiny models, in this process; `tests/cli` runs the command itself."""

import functools
import importlib
import itertools
import math
import os
import shutil
import signal

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gr_sweep.components import make_batches, token_cuts
from gr_sweep.config import (
    AdaptersConfig,
    Core,
    Edges,
    Method,
    MethodConfig,
    ModelConfig,
    PlanConfig,
    PlanKind,
    Precision,
    Resume,
    RouteConfig,
)
from gr_sweep.data.prepare import prepare_data
from gr_sweep.errors import JobError
from gr_sweep.export.run import load_routed, open_run
from gr_sweep.fingerprint import fingerprint
from gr_sweep.jobdir import State, read_summary, standing, write_summary
from gr_sweep.metrics import registry
from gr_sweep.metrics.losses import RelearnLoss, Text, View, read_losses
from gr_sweep.report.collect import read_samples
from gr_sweep.train.signals import SIGNALS, Stopped
from tests import jobs
from tests.data.corpus import tokens_of
from tests.jobs import DOMAINS, rows_of, run
from tests.train.saved import saved_tensors


@pytest.fixture(scope="module")
def make_config(tmp_path_factory):
    return functools.partial(jobs.make_config, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    """The folder of a finished job, which no test changes."""
    folder = tmp_path_factory.mktemp("finished") / "job"
    run(make_config(), folder)
    return folder


@pytest.fixture(scope="module")
def dense(make_config, tmp_path_factory):
    """The folder of a finished dense job, which no test changes."""
    folder = tmp_path_factory.mktemp("dense") / "job"
    run(make_config(method=MethodConfig(name=Method.dense)), folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it, which a test may change."""
    return shutil.copytree(finished, tmp_path / "job")


def variants(folder) -> list[tuple[str, str | None]]:
    """Kind and part of what the model has written after each prompt: after all the same."""
    found = [[(s["kind"], s["part"]) for s in p["samples"]] for p in read_samples(folder)]
    assert all(of_prompt == found[0] for of_prompt in found)
    return found[0]


def test_a_job_leaves_every_file_and_every_metric(finished):
    summary = read_summary(finished / "summary.json")
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "summary.json", "metrics.jsonl", "plan.json", "document_losses.csv", "checkpoints", "model",
        "job.json", "samples.json",
    }  # fmt: skip
    assert {"config.json", "tokenizer.json"} <= {
        path.name for path in (finished / "model").iterdir()
    }
    assert summary["environment"]["precision"] == "float32"
    metrics = summary["metrics"]
    for d in DOMAINS:
        assert metrics[f"loss/full/{d}"] < math.log(400) + 0.5
        for e in DOMAINS:
            difference = metrics[f"loss/removed/{e}/{d}"] - metrics[f"loss/full/{d}"]
            assert metrics[f"separability/matrix/{e}/{d}"] == pytest.approx(difference)
            assert f"loss/kept/{e}/{d}" in metrics
        low, high = summary["intervals"][f"separability/selectivity/{d}"]
        assert low <= metrics[f"separability/selectivity/{d}"] <= high
        assert metrics[f"cost/parameters/kept/{d}"] < metrics["cost/parameters"]
    dropouts = [row["route/foreign_dropout"] for row in rows_of(finished) if "train/loss" in row]
    assert {metrics["route/foreign_dropout"], *dropouts} == {0.75}  # 1.5 of 2 rows
    assert variants(finished) == [
        ("full", None), *(("removed", d) for d in DOMAINS), *(("kept", d) for d in DOMAINS),
    ]  # fmt: skip
    assert set(summary["files"]) == {"plan.json", "document_losses.csv", "samples.json"}
    written = read_samples(finished, summary["files"]["samples.json"])
    assert [prompt["domain"] for prompt in written] == DOMAINS
    assert all(len(p["prompt"]) > 20 and p["reference"] for p in written)
    assert summary["command"] == "gr-sweep a=1" and summary["domains"] == DOMAINS
    assert set(summary["fingerprints"]) == {"code", "config", "text"}
    rows = rows_of(finished)
    unknown = {key for row in (metrics, *rows) for key in row if registry.find(key) is None}
    assert unknown == {"step"}
    # Before training and four times in a run, here every step.
    assert [row["step"] for row in rows if "eval/loss/code" in row] == [0, 1, 2, 3, 4]
    last = [row["eval/loss/code"] for row in rows if "eval/loss/code" in row][-1]
    assert last == pytest.approx(metrics["loss/full/code"])
    # Every 2 steps, and with each of the four evaluations.
    assert [row["step"] for row in rows if "train/loss/code" in row] == [1, 2, 3, 4]


def without_cost(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if not key.startswith("cost/")}


def test_a_finished_job_is_left_alone_and_never_taken_for_another_one(make_config, finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    run(make_config(), finished)
    with pytest.raises(JobError, match=r"settings \(seed was 0, now 5\).*resume=force"):
        run(make_config(seed=5), finished)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_a_finished_job_that_is_forced_trains_on_with_the_new_settings(make_config, copied):
    config = make_config(resume=Resume.force, train={"steps": 6})
    summary = run(config, copied)
    assert summary["changes"] == ["settings (train.steps was 4, now 6)"]
    rows = rows_of(copied)
    assert rows[-1]["step"] == 6 and rows[0]["step"] == 0
    assert run(config, copied) == summary, "that job is done"


def test_routing_that_cuts_and_drops_nothing_is_dense_training_bit_for_bit(
    make_config, finished, dense, tmp_path
):
    nothing = {"edges": Edges.none, "route": RouteConfig(foreign_dropout=0.0)}
    metrics = run(make_config(**nothing), tmp_path)["metrics"]
    losses = [
        [{key: value for key, value in row.items() if "loss" in key} for row in rows_of(folder)]
        for folder in (tmp_path, dense)
    ]
    assert losses[0] == losses[1]
    of_dense = read_summary(dense / "summary.json")["metrics"]
    assert metrics["route/foreign_dropout"] == 0 and "route/foreign_dropout" not in of_dense
    for domain in DOMAINS:
        assert metrics[f"loss/full/{domain}"] == of_dense[f"loss/full/{domain}"]
    assert not [key for key in of_dense if "separability" in key or "kept" in key]
    assert variants(dense) == [("full", None)]
    # Jobs of all settings begin with the same weights and text.
    assert rows_of(tmp_path)[0] == rows_of(dense)[0] == rows_of(finished)[0]


def test_a_filtered_job_never_sees_its_domain_and_is_read_on_it_all_the_same(make_config, tmp_path):
    method = MethodConfig(name=Method.filtered, without=["biology"])
    metrics = run(make_config(method=method), tmp_path)["metrics"]
    rows = rows_of(tmp_path)
    assert not any("train/loss/biology" in row for row in rows)
    assert "loss/full/biology" in metrics


def sends(work, number: int, at: int = 1):
    """The same function, which this process gets a signal in when it is called for that time."""
    calls = itertools.count(1)

    def call(*args, **kwargs):
        if next(calls) == at:
            os.kill(os.getpid(), number)
        return work(*args, **kwargs)

    return call


def test_a_job_that_signals_stop_says_so_and_ends_with_the_numbers_of_one_never_stopped(
    make_config, finished, tmp_path, monkeypatch
):
    """While it trains, and in the matrices after training."""
    stopped = tmp_path / "stopped"
    whole = read_summary(finished / "summary.json")
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    for module, name, at, newest in (
        ("gr_sweep.train.loop", "train_step", 3, "step_00000003"),
        ("gr_sweep.job", "removal_losses", 1, "step_00000004"),
    ):
        with monkeypatch.context() as patch:
            work = getattr(importlib.import_module(module), name)
            patch.setattr(f"{module}.{name}", sends(work, signal.SIGTERM, at))
            with pytest.raises(Stopped):
                run(make_config(), stopped)
        assert {number: signal.getsignal(number) for number in SIGNALS} == handlers
        now = standing(stopped)
        assert now.state is State.stopped and now.error == "stopped by SIGTERM"
        assert max(path.name for path in (stopped / "checkpoints").glob("step_*")) == newest

    again = run(make_config(), stopped)
    assert again["changes"] == [] and again["metrics"].keys() == whole["metrics"].keys()
    assert without_cost(again["metrics"]) == without_cost(whole["metrics"])
    for name in ("document_losses.csv", "samples.json"):
        assert (stopped / name).read_text() == (finished / name).read_text()
    tensors, expected = (
        saved_tensors(folder / "checkpoints" / "step_00000004") for folder in (stopped, finished)
    )
    for key, tensor in expected.items():
        assert torch.equal(tensors[key], tensor), key


@pytest.fixture(scope="module")
def pretrained(finished, tmp_path_factory):
    """A checkpoint in Hugging Face format with its own tokenizer, made here."""
    folder = tmp_path_factory.mktemp("pretrained with a space")
    shutil.copytree(finished / "model", folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.bfloat16().save_pretrained(folder)
    return folder, model


def test_a_frozen_core_keeps_the_bfloat16_of_its_checkpoint_and_changes_no_number(
    make_config, tmp_path, pretrained, monkeypatch
):
    """Neither a loss nor an attack, which trains all of the model, nor what is exported."""
    folder, model = pretrained
    config = make_config(
        model=ModelConfig(size=None, path=str(folder)),
        plan=PlanConfig(core=Core.frozen, mlp_shared=1, adapters=AdaptersConfig(mlp=2)),
        train={"precision": Precision.bfloat16},
        eval={"relearn_steps": 2, "samples": 0},
    )
    found, exported = [], []
    for name in ("narrow", "wide"):
        metrics = run(config, tmp_path / name)["metrics"]
        assert rows_of(tmp_path / name)[0]["eval/loss/code"] == pytest.approx(math.log(400), abs=1)
        found.append(without_cost(metrics))
        routed, _ = load_routed(open_run(tmp_path / name))
        exported.append(routed.extract(["code"]).state_dict())
        monkeypatch.setattr("gr_sweep.job.keep_bfloat16", lambda *of: None)
    assert found[0] == found[1]
    assert all(torch.equal(tensor, exported[1][name]) for name, tensor in exported[0].items())
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(exported[0][name], model.state_dict()[name].float())
    name = "model.embed_tokens.weight"
    assert torch.equal(exported[0][name], model.state_dict()[name].float())
    saved = saved_tensors(tmp_path / "narrow" / "checkpoints" / "step_00000004")
    narrow = {name for name, tensor in saved.items() if tensor.dtype is torch.bfloat16}
    assert "model.model.layers.0.mlp.up_proj.weight" in narrow
    assert not any("adapter" in name or "norm" in name or "embed" in name for name in narrow)


def forgetting(**settings) -> dict:
    """Settings of a job whose core never learns biology."""
    plan = PlanConfig(kind=PlanKind.forget, forget=["biology"])
    route = RouteConfig(foreign_dropout=1.0)
    return {"plan": plan, "edges": Edges.weight, "route": route} | settings


def test_recovery_changes_the_model_without_the_domain_and_counts_its_tokens(make_config, tmp_path):
    method = MethodConfig(name=Method.era, recovery=0.5)
    summary = run(make_config(**forgetting(method=method)), tmp_path / "recovered")
    # Half of the four steps belong to the recovery; the run before it is a run of two.
    config = make_config(**forgetting(), train={"steps": 2})
    plain = run(config, tmp_path / "plain")

    rows = rows_of(tmp_path / "recovered")
    assert rows[-1]["step"] == 2
    tokens = summary["metrics"]["cost/train_tokens"]
    assert tokens == 4 * 6 * 32 == 2 * plain["metrics"]["cost/train_tokens"]
    rows = {
        key.split("/")[2] for key in summary["metrics"] if key.startswith("separability/matrix")
    }
    assert rows == {"biology"}
    views = variants(tmp_path / "recovered")
    assert views[:3] == [("full", None), ("removed", "biology"), ("kept", "code")]
    for domain in DOMAINS:
        full, removed = f"loss/full/{domain}", f"loss/removed/biology/{domain}"
        assert summary["metrics"][full] == plain["metrics"][full]
        assert summary["metrics"][removed] != plain["metrics"][removed]
    silent = run(make_config(**forgetting(method=method), eval={"samples": 0}), tmp_path / "silent")
    assert without_cost(silent["metrics"]) == without_cost(summary["metrics"]), "without samples"


def test_token_weights_are_those_of_the_training_text_and_reach_every_step(make_config, tmp_path):
    def config_of(bias):
        route = RouteConfig(foreign_dropout=0.0, token_bias=bias)
        return make_config(**forgetting(route=route), eval={"samples": 0})

    losses = [
        run(config_of(bias), tmp_path / str(bias))["metrics"]["loss/full/biology"]
        for bias in (None, 100.0, -100.0)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5), "all tokens are cut"
    assert losses[2] < losses[0], "none is"

    config = config_of(-4.0)
    data = prepare_data(config.data, config.partition)
    batches = make_batches(config, data)
    [(label, cut_V)] = token_cuts(config, batches, data.vocab_size, torch.device("cpu")).items()
    assert label == "biology"
    of_owners = {*tokens_of(data.train["code"]), *tokens_of(data.train["creative"])}
    own = sorted({*tokens_of(data.train["biology"])} - of_owners)
    foreign = sorted(of_owners - {*tokens_of(data.train["biology"])})
    assert own and foreign and cut_V[own].min() > 0.5 > 1e-2 > cut_V[foreign].max()


def test_marked_text_is_read_in_every_view_and_an_attack_has_its_own_table(make_config, tmp_path):
    """Where training text has markers, and where robustness is asked for."""
    attack = {"relearn_documents": 4, "relearn_lrs": [1e-3, 1e-2]}
    evaluation = {"calibrate": True, "relearn_steps": 4} | attack
    config = make_config(**forgetting(), data={"spurious": 0.95}, eval=evaluation)
    metrics = run(config, tmp_path)["metrics"]
    assert {f"robustness/spurious_gap/full/{domain}" for domain in DOMAINS} <= metrics.keys()
    rows = read_losses(tmp_path / "document_losses.csv")
    calibrated = {View.calibrated_full, View.calibrated_removed}
    assert calibrated <= {row.view for row in rows}
    plain, marked, swapped = (
        [(r.view, r.part, r.tokens) for r in rows if r.text is text and r.view not in calibrated]
        for text in (Text.plain, Text.marked, Text.swapped)
    )
    assert plain == marked == swapped
    attack = read_losses(tmp_path / "relearn.csv", RelearnLoss)
    assert {(row.lr, row.trained_tokens) for row in attack} == {
        (lr, 8 * 32 * step) for lr in (1e-3, 1e-2) for step in (0, 1, 2, 4)
    }
    assert {(row.view, row.part, row.domain) for row in attack} == {
        (View.removed, "biology", "biology")
    }


def test_a_baseline_is_taken_over_from_another_sweep_unless_it_began_with_another_identity(
    make_config, dense, tmp_path
):
    config = make_config(method=MethodConfig(name=Method.dense))
    name = f"method=dense-{fingerprint(config)[:8]}"
    one = shutil.copytree(dense, tmp_path / "one" / name)
    summary = read_summary(one / "summary.json")

    (tmp_path / "two" / name).mkdir(parents=True)
    for other in ("metrics.jsonl", "relearn.csv"):
        (tmp_path / "two" / name / other).write_text("of an earlier run")
    taken = run(config, tmp_path / "two" / name, sweep="two", is_baseline=True)
    assert taken["taken_from"] == f"one/{name}"
    assert taken["metrics"] == summary["metrics"] and taken["sweep"] == "two"
    for file in ("document_losses.csv", "metrics.jsonl", "plan.json", "samples.json"):
        texts = [(tmp_path / sweep / name / file).read_text() for sweep in ("one", "two")]
        assert texts[0] == texts[1]
    for other in ("checkpoints", "relearn.csv"):
        assert not (tmp_path / "two" / name / other).exists()

    shutil.rmtree(tmp_path / "two")
    write_summary(one / "summary.json", summary | {"changes": ["code"]})
    assert "taken_from" not in run(config, tmp_path / "two" / name, is_baseline=True)
