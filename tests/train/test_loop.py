"""The loop on a tiny model and on token ids made up here."""

import math

import numpy as np
import pytest
import torch

from gr_sweep.config import Precision, TrainConfig
from gr_sweep.errors import TrainError
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel, route_model
from gr_sweep.model.sizes import Size, llama_config, random_model
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.checkpoint import Checkpoints
from gr_sweep.train.loop import precision_context, train

DOMAINS = ("code", "biology")
SHAPE = Size(16, 24, 2, 2, 2)
CPU = torch.device("cpu")
VOCABULARY = 13


class FixedBatches:
    """Rows that follow from the step; `without` leaves out the rows of a domain."""

    def __init__(self, *, num_micro_batches: int = 1, rows: int = 4, without: str = "") -> None:
        self.num_micro_batches = num_micro_batches
        self.rows = rows // num_micro_batches
        self.counts = {d: 0 if d == without else self.rows for d in DOMAINS}
        self.tokens_per_step = 2 * rows * 6

    def step(self, step: int) -> list[np.ndarray]:
        drawn = {
            domain: np.random.default_rng([step, place]).integers(
                0, VOCABULARY, (self.num_micro_batches, self.rows, 7)
            )
            for place, domain in enumerate(DOMAINS)
            if self.counts[domain]
        }
        return [
            np.concatenate([of_domain[micro] for of_domain in drawn.values()])
            for micro in range(self.num_micro_batches)
        ]


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


def make_routed(edges: str = "both", kind: str = "peers") -> RoutedModel:
    config = llama_config(SHAPE, vocab_size=VOCABULARY, eot_id=0, sequence_length=8)
    plan = RoutePlan.make(kind, config, domains=DOMAINS)
    return route_model(random_model(config, seed=0), plan, edges, foreign_dropout=0.5)


def run(
    folder,
    *,
    routed=None,
    batches=None,
    evaluate=lambda is_last: {"eval/loss/code": 1.0},
    **settings,
):
    routed = routed or make_routed()
    config = TrainConfig(**({"steps": 6, "log_every": 2, "checkpoint_every": 2} | settings))
    rows = Rows()
    state = train(
        routed,
        TokenLosses(routed),
        batches or FixedBatches(),
        config,
        seed=0,
        eval_every=3,
        evaluate=evaluate,
        tracker=rows,
        checkpoints=Checkpoints(folder, keep=2, fingerprint="x"),
        device=CPU,
    )
    return routed, state, rows


def weights(routed: RoutedModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in routed.model.state_dict().items()}


def test_rows_tell_loss_by_domain_norm_by_owner_set_rate_tokens_and_time(tmp_path):
    _, state, rows = run(tmp_path)
    assert [step for step, _ in rows] == [0, 2, 3, 4, 6, 6]
    assert set(rows[-1][1]) == {"eval/loss/code"}
    last = rows[-2][1]
    assert set(last) == {
        "train/loss", "train/loss/code", "train/loss/biology",
        "train/grad_norm/core", "train/grad_norm/code", "train/grad_norm/biology",
        "train/lr", "train/tokens", "train/tokens_per_second", "time_s",
    }  # fmt: skip
    assert last["train/tokens"] == state.tokens == 6 * 8 * 6
    mean = (last["train/loss/code"] + last["train/loss/biology"]) / 2
    assert last["train/loss"] == pytest.approx(mean, rel=1e-6)
    assert state.step == 6 and 0 < state.data_s < state.train_s <= state.elapsed_s


def test_the_loss_falls_on_rows_that_repeat(tmp_path):
    class SameRows(FixedBatches):
        def step(self, step):
            return super().step(0)

    _, _, rows = run(tmp_path, batches=SameRows(), steps=60, lr=1e-2, checkpoint_every=None)
    losses = [row["train/loss"] for _, row in rows if "train/loss" in row]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("edges", ["none", "weight", "act", "both"])
def test_killed_job_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, edges):
    whole, _, whole_rows = run(tmp_path / "whole", routed=make_routed(edges))

    class DiesInStep5(FixedBatches):
        def step(self, step):
            if step == 5:
                raise Killed
            return super().step(step)

    with pytest.raises(Killed):
        run(tmp_path / "killed", routed=make_routed(edges), batches=DiesInStep5())
    resumed, state, rows = run(tmp_path / "killed", routed=make_routed(edges))
    assert state.step == 6 and state.tokens == 6 * 8 * 6
    assert [step for step, _ in rows] == [6, 6], "goes on from the checkpoint of step 4"
    assert rows[0][1]["train/loss"] == whole_rows[-2][1]["train/loss"]
    for name, value in weights(whole).items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_finished_run_that_is_started_again_trains_nothing(tmp_path):
    first, _, _ = run(tmp_path)
    again, state, rows = run(tmp_path)
    assert state.step == 6 and not rows
    for name, value in weights(first).items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_micro_batches_add_up_to_the_whole_batch(tmp_path):
    """Without foreign dropout, whose balanced list follows the size of the micro-batch."""

    def trained(folder, num_micro_batches):
        config = llama_config(SHAPE, vocab_size=VOCABULARY, eot_id=0, sequence_length=8)
        plan = RoutePlan.peers(config, domains=DOMAINS)
        routed = route_model(random_model(config, seed=0), plan, "weight")
        batches = FixedBatches(num_micro_batches=num_micro_batches)
        drawn = FixedBatches()

        def same_rows(step):
            (rows,) = drawn.step(step)
            code, biology = np.split(rows, 2)
            parts = zip(
                np.split(code, num_micro_batches), np.split(biology, num_micro_batches), strict=True
            )
            return [np.concatenate(part) for part in parts]

        batches.step = same_rows
        return weights(run(folder, routed=routed, batches=batches)[0])

    whole, parts = trained(tmp_path / "1", 1), trained(tmp_path / "2", 2)
    for name, value in whole.items():
        # AdamW's first steps divide a rounding difference by itself where a gradient is near 0.
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-4, msg=name)


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
    tokens = torch.from_numpy(batches.step(0)[0])
    (TokenLosses(fresh)(tokens)[0] / (2 * 4 * 6)).backward()
    torch.testing.assert_close(seen[0], fresh.model.lm_head.weight.grad)


def test_a_loss_that_is_not_finite_stops_before_a_checkpoint_is_written(tmp_path):
    routed = make_routed()
    with torch.no_grad():
        routed.model.lm_head.weight.fill_(math.nan)
    with pytest.raises(TrainError, match="not finite at step 2"):
        run(tmp_path, routed=routed)
    assert not list(tmp_path.iterdir())


def test_what_is_not_finite_is_never_saved_though_no_row_is_due(tmp_path):
    """Rows every 4 steps, checkpoints every 3: the bad step 3 lies between rows."""

    class BadInStep3(FixedBatches):
        def step(self, step):
            if step == 2:
                with torch.no_grad():
                    routed.model.lm_head.weight.fill_(math.nan)
            return super().step(step)

    routed = make_routed()
    with pytest.raises(TrainError, match="not finite at step 3"):
        run(tmp_path, routed=routed, batches=BadInStep3(), log_every=4, checkpoint_every=3)
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_logs_the_rows_of_an_uninterrupted_one(tmp_path):
    """A checkpoint between two rows has a row of its own."""

    class DiesInStep5(FixedBatches):
        def step(self, step):
            if step == 5:
                raise Killed
            return super().step(step)

    often = {"log_every": 4, "checkpoint_every": 3, "steps": 8}
    _, _, whole = run(tmp_path / "whole", **often)
    with pytest.raises(Killed):
        run(tmp_path / "killed", batches=DiesInStep5(), **often)
    _, _, resumed = run(tmp_path / "killed", **often)

    def losses(rows):
        return {step: row["train/loss"] for step, row in rows if "train/loss" in row}

    assert list(losses(whole)) == [3, 4, 6, 8]
    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 3}


def test_dropout_of_a_model_follows_from_the_step(tmp_path):
    def with_dropout():
        routed = make_routed()
        routed.model.config.attention_dropout = 0.5
        for layer in routed.model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        return routed

    class DiesInStep5(FixedBatches):
        def step(self, step):
            if step == 5:
                raise Killed
            return super().step(step)

    whole, _, _ = run(tmp_path / "whole", routed=with_dropout())
    plain, _, _ = run(tmp_path / "plain")
    assert not torch.equal(whole.model.lm_head.weight, plain.model.lm_head.weight)
    with pytest.raises(Killed):
        run(tmp_path / "killed", routed=with_dropout(), batches=DiesInStep5())
    torch.rand(3)  # what else draws in between does not matter
    resumed, _, _ = run(tmp_path / "killed", routed=with_dropout())
    for name, value in weights(whole).items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_bfloat16_is_a_context_of_the_forward_pass_alone():
    routed = make_routed()
    tokens = torch.from_numpy(FixedBatches().step(0)[0])
    with routed.batch({"code": 4, "biology": 4}):
        _, exact = TokenLosses(routed)(tokens)
        with precision_context(CPU, Precision.bfloat16):
            rough_sum, rough = TokenLosses(routed)(tokens)
        rough_sum.backward()
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)
    assert not torch.equal(rough, exact)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in routed.model.parameters())
