"""The training loop, with a tiny model and random token ids."""

import functools
import itertools
import math
import os
import signal
import threading

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gr_sweep.config import Precision, TrainConfig
from gr_sweep.errors import DataError, JobError
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel, route_model
from gr_sweep.model.sizes import Size, llama_config, random_model
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.checkpoint import Checkpoints, tensors_of
from gr_sweep.train.distributed import rows_of
from gr_sweep.train.loop import Trainer
from gr_sweep.train.signals import Stopped, StopSignals
from gr_sweep.train.step import make_optimizer, train_step

DOMAINS = ("code", "biology")
SHAPE = Size(16, 24, 2, 2, 2)
CPU = torch.device("cpu")
VOCABULARY = 13


class FixedBatches:
    """Rows that follow from the step; `without` leaves out the rows of a domain."""

    def __init__(self, *, rows: int = 4, without: str = "") -> None:
        self.counts = {d: 0 if d == without else rows for d in DOMAINS}
        self.tokens_per_step = 2 * rows * 6
        self.num_rows = sum(self.counts.values())

    def step(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        drawn = [
            np.random.default_rng([step, place]).integers(0, VOCABULARY, (self.counts[domain], 7))
            for place, domain in enumerate(DOMAINS)
        ]
        return np.concatenate(drawn)[rows]


class Rows(list):
    """A tracker that remembers."""

    def log(self, step, metrics):
        self.append((step, dict(metrics)))

    def cut_back(self, step):
        self[:] = [row for row in self if row[0] <= step]

    def sync(self):
        pass


class Killed(BaseException):
    """Stands for a process that ends at once."""


def make_routed(
    edges: str = "both", kind: str = "peers", foreign_dropout: float = 0.5, **options
) -> RoutedModel:
    config = llama_config(SHAPE, vocab_size=VOCABULARY, eot_id=0, sequence_length=8)
    options = {"domains": DOMAINS} | ({"forget": ["biology"]} if kind == "forget" else {}) | options
    plan = RoutePlan.make(kind, config, **options)
    return route_model(random_model(config, seed=0), plan, edges, foreign_dropout=foreign_dropout)


def run(
    folder,
    *,
    routed=None,
    batches=None,
    tracker=None,
    signals=None,
    **settings,
):
    routed = routed or make_routed()
    defaults = {"steps": 6, "log_every": 2, "checkpoint_every": 2, "precision": Precision.float32}
    config = TrainConfig(**defaults | {"sequence_length": 6} | settings)
    rows = Rows() if tracker is None else tracker
    checkpoints = Checkpoints(folder / "checkpoints", keep=2, fingerprint="x")
    trainer = Trainer(
        routed=routed,
        token_losses=TokenLosses(routed),
        config=config,
        seed=0,
        eval_every=3,
        evaluate=lambda is_last: {"eval/loss/code": 1.0},
        tracker=rows,
        checkpoints=checkpoints,
        device=CPU,
        signals=signals or StopSignals(),
    )
    trainer.start(routed.plan)
    trainer.run(batches or FixedBatches())
    return routed, trainer.state, rows


def assert_same_weights(one: RoutedModel, other: RoutedModel) -> None:
    expected = other.model.state_dict()
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


class DiesInStep5(FixedBatches):
    """Stands for a process that is killed in its sixth step."""

    def step(self, step, rows):
        if step == 5:
            raise Killed
        return super().step(step, rows)


def test_rows_tell_loss_by_domain_norm_by_owner_set_rate_tokens_and_time(tmp_path):
    _, state, rows = run(tmp_path)
    assert [step for step, _ in rows] == [0, 2, 3, 3, 4, 6, 6]
    assert set(rows[-1][1]) == {"eval/loss/code"}
    last = rows[-2][1]
    assert set(last) == {
        "train/loss", "train/loss/code", "train/loss/biology",
        "train/grad_norm/core", "train/grad_norm/code", "train/grad_norm/biology",
        "train/lr", "train/tokens", "train/tokens_per_second", "time_s", "route/foreign_dropout",
    }  # fmt: skip
    assert last["route/foreign_dropout"] == 0.5
    assert last["train/tokens"] == state.tokens == 6 * 8 * 6
    mean = (last["train/loss/code"] + last["train/loss/biology"]) / 2
    assert last["train/loss"] == pytest.approx(mean, rel=1e-6)
    assert state.step == 6 and 0 < state.data_s < state.train_s <= state.elapsed_s


def test_a_killed_job_ends_with_the_weights_and_rows_of_an_uninterrupted_one(tmp_path):
    """A checkpoint between two rows has a row of its own."""
    often = {"log_every": 4, "checkpoint_every": 3, "steps": 8}
    whole, _, whole_rows = run(tmp_path / "whole", **often)
    with pytest.raises(Killed):
        run(tmp_path / "killed", batches=DiesInStep5(), **often)
    resumed, state, rows = run(tmp_path / "killed", **often)

    def losses(rows):
        return {step: row["train/loss"] for step, row in rows if "train/loss" in row}

    assert list(losses(whole_rows)) == [3, 4, 6, 8]
    assert losses(rows) == {step: x for step, x in losses(whole_rows).items() if step > 3}
    assert state.step == 8 and state.tokens == 8 * 8 * 6
    assert_same_weights(whole, resumed)


def test_a_signal_in_the_last_step_stops_the_run_that_it_leaves_whole(tmp_path):
    """Whole jobs are stopped in other moments."""
    routed, signals, calls = make_routed(), StopSignals(), itertools.count(1)
    clip = routed.clip_grad_norm_

    def clip_and_send(max_norm):
        if next(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return clip(max_norm)

    routed.clip_grad_norm_ = clip_and_send
    rows = Rows()
    with pytest.raises(Stopped) as error, signals.listening():
        run(tmp_path, routed=routed, signals=signals, tracker=rows)
    assert error.value.signum == signal.SIGINT
    _, state, _ = run(tmp_path, tracker=rows)
    assert state.step == 6 and [step for step, _ in rows] == [0, 2, 3, 3, 4, 6, 6]


def test_rows_left_out_leave_the_denominator_alone(tmp_path):
    """A filtered run's loss is divided by the tokens that the dense run sees."""
    routed = make_routed("none", "none")
    batches = FixedBatches(without="biology")
    seen = []
    clip = routed.clip_grad_norm_
    routed.clip_grad_norm_ = lambda max_norm: (
        seen.append(routed.model.lm_head.weight.grad.clone()) or clip(max_norm)
    )
    run(tmp_path, routed=routed, batches=batches, steps=1)
    fresh = make_routed("none", "none")
    tokens = torch.from_numpy(batches.step(0))
    (TokenLosses(fresh)(tokens)[0] / (2 * 4 * 6)).backward()
    torch.testing.assert_close(seen[0], fresh.model.lm_head.weight.grad)


class Poisoned(FixedBatches):
    """Token 12 is in the text once: the fifth of the seventh row of step 4."""

    def step(self, step, rows):
        drawn = np.minimum(super().step(step), 11)
        if step == 3:
            drawn[6, 4] = 12
        return drawn[rows]


def poison(routed: RoutedModel) -> None:
    """Token 12 makes what the model computes NaN."""

    def hook(module, inputs, output):
        return torch.where((inputs[0] == 12)[..., None], math.nan, output)

    routed.model.get_input_embeddings().register_forward_hook(hook)


def test_a_loss_that_is_not_finite_ends_the_run_before_the_update_and_names_the_domain(tmp_path):
    """In a step without a row or a checkpoint."""
    routed = make_routed()
    poison(routed)
    said = "^the loss of biology is not finite in step 4"
    with pytest.raises(JobError, match=said):
        run(
            tmp_path,
            routed=routed,
            batches=Poisoned(),
            batch_sequences=8,
            micro_batch_sequences=2,
            log_every=6,
            checkpoint_every=3,
        )
    # The weights are those of step 3, which was saved.
    fresh = make_routed()
    optimizer = make_optimizer(fresh.model, TrainConfig())
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, fingerprint="x")
    about = checkpoints.load_newest(lambda _: tensors_of(fresh.model, optimizer))
    assert about is not None and about["state"]["step"] == 3
    assert_same_weights(routed, fresh)


def test_a_gradient_that_is_not_finite_is_named(tmp_path):
    routed = make_routed()
    routed.model.lm_head.weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(JobError, match=r"^the gradient norm of core.* is not finite in step 1"):
        run(tmp_path, routed=routed)


def test_dropout_of_a_model_follows_from_the_step(tmp_path):
    def trained(name: str, dropout: float = 0.5) -> RoutedModel:
        routed = make_routed()
        for layer in routed.model.model.layers:
            layer.self_attn.attention_dropout = dropout
        return run(tmp_path / name, routed=routed, steps=2)[0]

    one = trained("one")
    torch.rand(3)  # what else draws in between does not matter
    assert_same_weights(one, trained("other"))
    plain = trained("plain", 0.0)
    assert not torch.equal(one.model.lm_head.weight, plain.model.lm_head.weight)


class NoWait(TorchDispatchMode):
    """Refuses what makes the host wait for the device: a value, or a shape that depends on one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
        ), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device_but_for_its_check():
    routed = make_routed("both", "forget")
    batches = FixedBatches()
    step = functools.partial(
        train_step,
        routed,
        TokenLosses(routed),
        make_optimizer(routed.model, TrainConfig()),
        counts=batches.counts,
        rows=rows_of(0, 1, 8, 2),
        step=0,
        tokens_per_step=batches.tokens_per_step,
        config=TrainConfig(),
    )
    rows = [torch.from_numpy(batches.step(0, part)) for part in rows_of(0, 1, 8, 2)]
    step(micro_batches=rows)  # what is computed once, in the first step, may wait
    with NoWait():
        result = step(micro_batches=rows)
    assert result.losses_L.shape == (2,) and result.grad_norms


def test_rows_are_read_ahead_once_in_order_and_an_error_stops_the_step_that_needs_them(tmp_path):
    asked = []

    class EndsAtStep3(FixedBatches):
        def step(self, step, rows):
            asked.append((step, threading.current_thread().name))
            if step == 3:
                raise DataError("the file is gone")
            return super().step(step, rows)

    rows = Rows()
    with pytest.raises(DataError, match="the file is gone"):
        run(tmp_path, batches=EndsAtStep3(), tracker=rows, log_every=1)
    assert [step for step, _ in rows] == [0, 1, 2, 3, 3]
    assert [step for step, _ in asked] == [0, 1, 2, 3]
    assert not any(name == threading.current_thread().name for _, name in asked)
    assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name]
