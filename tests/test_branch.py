"""The procedure `branch` against a plain loop, and from end to end on tiny models."""

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from gr_sweep.branch import begun_phases
from gr_sweep.components import make_batches, make_routed
from gr_sweep.config import (
    AdaptersConfig,
    PlanConfig,
    PlanKind,
    ProcedureConfig,
    ProcedureKind,
    RunConfig,
)
from gr_sweep.data.prepare import prepare_data
from gr_sweep.errors import ConfigError
from gr_sweep.launch.estimate import Target, estimate_job
from gr_sweep.model.loss import TokenLosses
from gr_sweep.planning import Phase, phases_of
from gr_sweep.train import loop
from gr_sweep.train.loop import TrainState
from gr_sweep.train.signals import Stopped
from gr_sweep.train.step import learning_rate, make_optimizer, train_step
from tests import jobs
from tests.jobs import rows_of, run
from tests.train.saved import saved_tensors

FORGET = {"kind": PlanKind.forget, "forget": ["biology"]}
CORE = 96
"""Hidden units of the core, of 192."""


@pytest.fixture(scope="module")
def make_config(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def make(*, plan=FORGET, steps=6, **procedure) -> RunConfig:
        return jobs.make_config(
            cache,
            plan=PlanConfig(**plan),
            procedure=ProcedureConfig(name=ProcedureKind.branch, **procedure),
            train={"steps": steps, "checkpoint_every": 1, "log_every": 1},
            eval={"curve_tokens": 64, "bootstrap": 20, "sample_tokens": 2},
        )

    return make


def data_of(config):
    return prepare_data(config.data, config.partition)


def weights_of(model) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def set_rate(optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def in_phases(config, data, routed) -> list[dict[str, Tensor]]:
    """Trains the model; its weights at the begin of each phase and at the end."""
    optimizer = make_optimizer(routed.model, config.train)
    lengths = [phase.stop - phase.start for phase in phases_of(config)]
    trainer: Any = SimpleNamespace(optimizer=optimizer, state=TrainState())
    found = []
    for phase in begun_phases(config, routed, trainer):
        found.append(weights_of(routed.model))
        batches = make_batches(config, data, phase=phase)
        for step in range(phase.start, phase.stop):
            set_rate(optimizer, learning_rate(step, lengths, config.train))
            train_step(
                routed,
                TokenLosses(routed),
                optimizer,
                [torch.from_numpy(batches.step(step))],
                batches.counts,
                rows=[slice(None)],
                step=step,
                tokens_per_step=batches.tokens_per_step,
                config=config.train,
            )
            trainer.state.step += 1
    return [*found, weights_of(routed.model)]


def plain_loop(model, config, phase: Phase, batches, learning) -> None:
    """Trains what `learning` gives views of; all else gets no gradient and stays as it is."""
    optimizer = make_optimizer(model, config.train)
    learns = {}
    for name, parameter in model.named_parameters():
        learns[name] = torch.zeros_like(parameter, dtype=torch.bool)
        learning(name, learns[name]).fill_(True)
    length = phase.stop - phase.start
    for step in range(phase.start, phase.stop):
        set_rate(optimizer, learning_rate(step - phase.start, [length], config.train))
        rows_NS = torch.from_numpy(batches.step(step))
        logits_NTV, targets_NT = model(rows_NS[:, :-1]).logits, rows_NS[:, 1:]
        cross_entropy(logits_NTV.flatten(0, 1), targets_NT.flatten()).backward()
        for name, parameter in model.named_parameters():
            parameter.grad *= learns[name]
        clip_grad_norm_(model.parameters(), 1.0)
        before = weights_of(model)
        optimizer.step()
        for name, parameter in model.named_parameters():
            parameter.data = torch.where(learns[name], parameter.data, before[name])
        optimizer.zero_grad()


def core_of(name: str, weight: Tensor) -> Tensor:
    if "mlp.down" in name:
        return weight[:, :CORE]
    return weight[:CORE] if ".mlp." in name else weight


def block_of(name: str, weight: Tensor) -> Tensor:
    if "mlp.down" in name:
        return weight[:, CORE:]
    return weight[CORE:] if ".mlp." in name else weight[:0]


def test_it_is_a_plain_loop_over_the_core_and_one_over_the_block(make_config, exact_norms):
    config = make_config(rehearsal=0.5)
    data, (trunk, branches) = data_of(config), phases_of(config)
    routed = make_routed(config, data)
    routed.model.double()
    core, whole = routed.extract(keep=["code"]), routed.extract(keep=["biology"])
    first, middle, end = in_phases(config, data, routed)
    plain_loop(core, config, trunk, make_batches(config, data), lambda name, weight: weight)
    trained = core.state_dict()
    for name, weight in whole.state_dict().items():
        core_of(name, weight).copy_(trained[name])
    rows = make_batches(config, data, phase=branches)
    plain_loop(whole, config, branches, rows, block_of)
    for name, weight in whole.state_dict().items():
        # AdamW divides by the root of tiny moments, which magnifies rounding.
        torch.testing.assert_close(end[name], weight, rtol=1e-7, atol=1e-10)
        assert torch.equal(block_of(name, middle[name]), block_of(name, first[name]))
        assert torch.equal(core_of(name, end[name]), core_of(name, middle[name]))


def test_copies_begin_as_what_the_first_block_has_become_in_a_dense_model(make_config, exact_norms):
    plan = {"mlp_shared": 0.0, "full_width": True}
    config = make_config(plan=plan, copies=True, steps=4)
    data, (trunk, _) = data_of(config), phases_of(config)
    routed = make_routed(config, data)
    routed.model.double()
    dense = routed.extract(keep=["code"])
    _, middle, _ = in_phases(config, data, routed)
    plain_loop(dense, config, trunk, make_batches(config, data), lambda name, weight: weight)
    for name, weight in dense.state_dict().items():
        copies = middle[name].chunk(3, dim=int("down" in name)) if ".mlp." in name else ()
        for found in copies or [middle[name]]:
            torch.testing.assert_close(found, weight, rtol=1e-7, atol=1e-10)


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    """A config with two blocks of adapters beside other units, and the folder of a whole run."""
    forget = {"kind": PlanKind.forget, "forget": ["biology", "creative"]}
    config = make_config(
        plan=forget | {"adapters": AdaptersConfig(mlp=2, unembed="full")}, rehearsal=0.5
    )
    folder = tmp_path_factory.mktemp("branch") / "job"
    return config, folder, run(config, folder)


@pytest.mark.parametrize("stop", [1, 3, 4], ids=["trunk", "between", "branches"])
def test_a_run_that_is_stopped_in_a_phase_ends_like_one_never_stopped(
    finished, tmp_path, monkeypatch, stop
):
    config, whole, _ = finished
    folder, plain_step = tmp_path / "job", loop.train_step

    def step(*args, **kwargs):
        if kwargs["step"] == stop - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain_step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step)
        with pytest.raises(Stopped):
            run(config, folder)
    assert (folder / "checkpoints" / f"step_{stop:08d}").exists()
    run(config, folder)
    for name in ("plan.json", "document_losses.csv"):
        assert (folder / name).read_text() == (whole / name).read_text(), name
    here, there = (saved_tensors(of / "checkpoints" / "step_00000006") for of in (folder, whole))
    assert here.keys() == there.keys()
    assert all(torch.equal(value, there[name]) for name, value in here.items())


def test_rows_rates_tokens_and_operations_are_those_of_both_phases(finished):
    config, folder, summary = finished
    rows = [row for row in rows_of(folder) if "train/loss" in row]
    read = [{key for key in row if key.startswith("train/loss/")} for row in rows]
    assert read == [{"train/loss/code"}] * 3 + [{"train/loss/biology", "train/loss/creative"}] * 3
    assert rows[0]["train/lr"] == rows[3]["train/lr"] == config.train.lr > rows[2]["train/lr"]
    metrics, estimate = summary["metrics"], estimate_job(config, Target("cpu", 1e9, None, False))
    assert metrics["cost/train_tokens"] == estimate.tokens == 6 * 6 * 32
    assert metrics["cost/train_flops_per_token"] * estimate.tokens == pytest.approx(estimate.flops)
    # Without foreign blocks, and without gradients of the core in half of the steps.
    assert estimate.flops < 0.9 * estimate.dense_flops


def test_a_phase_without_steps_is_refused(make_config):
    config = make_config(trunk=0.0)
    assert [(phase.start, phase.stop) for phase in phases_of(config)] == [(0, 6)]
    for trunk in (0.01, 0.99):
        with pytest.raises(ConfigError, match="of 6 steps, which leaves"):
            phases_of(make_config(trunk=trunk))
