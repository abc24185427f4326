"""The training loop: the same for dense and routed jobs, on CPU and GPU.

N sequences of the micro-batch (sorted by row group), T positions, V vocabulary.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gr_sweep.config import Precision, TrainConfig
from gr_sweep.data.batches import Batches
from gr_sweep.errors import CheckpointError, TrainError
from gr_sweep.metrics import keys
from gr_sweep.model.route import RoutedModel
from gr_sweep.tracking.base import Tracker
from gr_sweep.train.checkpoint import Checkpoints, tensors_of
from gr_sweep.train.optim import make_optimizer, make_schedule, num_steps
from gr_sweep.train.progress import Progress
from gr_sweep.train.state import TrainState


def token_losses(routed: RoutedModel, tokens_NS: Tensor) -> Tensor:
    """Negative log likelihood in nats of each next token, float32 [N, T]; `tokens_NS` is [N, T +
    1]."""
    logits_NTV = routed(input_ids=tokens_NS[:, :-1], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits_NTV.flatten(0, 1).float(), tokens_NS[:, 1:].flatten(), reduction="none"
    )
    return losses.view(tokens_NS.shape[0], -1)


def precision_context(
    device: torch.device, precision: Precision
) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 where asked, or by default on CUDA; float32 otherwise."""
    if precision is Precision.bfloat16 or (precision is Precision.auto and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@dataclass
class _Sums:
    """What was summed since the last row, on the device: no host wait a step."""

    losses: dict[str, Tensor]
    tokens: dict[str, int]

    def add(self, counts: Mapping[str, int], losses_NT: Tensor) -> None:
        for label, part in zip(
            counts, losses_NT.detach().split(list(counts.values())), strict=True
        ):
            if part.numel():
                self.losses[label] = self.losses.get(label, part.new_zeros(())) + part.sum()
                self.tokens[label] = self.tokens.get(label, 0) + part.numel()


def train(
    routed: RoutedModel,
    batches: Batches,
    config: TrainConfig,
    *,
    seed: int,
    eval_every: int | None,
    evaluate: Callable[[], dict[str, float]],
    tracker: Tracker,
    checkpoints: Checkpoints,
    device: torch.device,
) -> TrainState:
    """Trains to the last step, from the newest checkpoint if there is one.

    Args:
        routed: the model, on `device`.
        batches: token ids by step.
        config: steps, batch, optimizer and how often to log and save.
        seed: of what the model itself draws while training (dropout; most models draw nothing).
        eval_every: steps between calls of `evaluate`, which is also called before the first step
            and after the last; None for four in a run.
        evaluate: metrics of the model as it stands.
        tracker: takes the rows.
        checkpoints: where the run is saved, and taken up.
        device: of the model.

    Returns:
        Where the run stands at the end.

    Raises:
        TrainError: a loss or gradient that is not finite.
        CheckpointError: a checkpoint of another run.
    """
    total = num_steps(config)
    eval_every = eval_every or math.ceil(total / 4)
    optimizer = make_optimizer(routed.model, config)
    schedule = make_schedule(optimizer, total, config)
    state = _resume(routed, optimizer, schedule, checkpoints)
    tracker.cut_back(state.step if state.step else -1)
    if state.step == 0:
        tracker.log(0, evaluate())

    counts = dict(batches.counts)
    sums = _Sums({}, {})
    routed.model.train()
    clock = _Clock(state)
    with Progress(total, state.step) as progress:
        while state.step < total:
            # For models with dropout: what a step draws follows from its number, not from history.
            torch.manual_seed(seed * 1_000_003 + state.step)
            for micro_batch in _timed(batches, state):
                tokens_NS = torch.from_numpy(micro_batch).to(device, non_blocking=True)
                state.tokens += micro_batch.shape[0] * (micro_batch.shape[1] - 1)
                with routed.batch(counts):
                    with precision_context(device, config.precision):
                        losses_NT = token_losses(routed, tokens_NS)
                    (losses_NT.sum() / batches.tokens_per_step).backward()
                sums.add(counts, losses_NT)
            grad_norms = routed.clip_grad_norm_(config.max_norm)
            lr = float(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            state.step += 1
            progress.step()

            is_last = state.step == total
            saves = is_last or _is_due(config.checkpoint_every, state.step)
            # A row with every checkpoint: a resumed run logs the same rows, and what is saved is
            # finite.
            if state.step % config.log_every == 0 or saves:
                row = _row(sums, grad_norms, state.step)
                speed = clock.tokens_per_second(state)
                progress.show(state.step, row[keys.TRAIN_LOSS], _by_label(row), speed)
                row |= {
                    keys.TRAIN_LR: lr,
                    keys.TRAIN_TOKENS: state.tokens,
                    keys.TRAIN_TOKENS_PER_SECOND: speed,
                    keys.TIME_S: state.elapsed_s,
                }
                tracker.log(state.step, row)
                sums = _Sums({}, {})
            with clock.paused(state):
                if state.step % eval_every == 0 or is_last:
                    tracker.log(state.step, evaluate())
                    routed.model.train()
                if saves:
                    tracker.sync()
                    _save(routed, optimizer, schedule, checkpoints, state)
    return state


class _Clock:
    """Keeps a state's seconds, and the speed since the row before."""

    def __init__(self, state: TrainState) -> None:
        self._last = time.perf_counter()
        self._row_tokens, self._row_train_s = state.tokens, state.train_s

    @contextlib.contextmanager
    def paused(self, state: TrainState) -> Iterator[None]:
        """Time inside counts as elapsed, not as training."""
        self._advance(state, is_training=True)
        yield
        self._advance(state, is_training=False)

    def tokens_per_second(self, state: TrainState) -> float:
        """Of training, since the last call."""
        self._advance(state, is_training=True)
        speed = (state.tokens - self._row_tokens) / (state.train_s - self._row_train_s)
        self._row_tokens, self._row_train_s = state.tokens, state.train_s
        return speed

    def _advance(self, state: TrainState, *, is_training: bool) -> None:
        now = time.perf_counter()
        state.elapsed_s += now - self._last
        state.train_s += now - self._last if is_training else 0.0
        self._last = now


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _timed(batches: Batches, state: TrainState) -> Sequence[np.ndarray]:
    start = time.perf_counter()
    micro_batches = batches.step(state.step)
    state.data_s += time.perf_counter() - start
    return micro_batches


def _row(sums: _Sums, grad_norms: Mapping[str, Tensor], step: int) -> dict[str, float]:
    """The sums and norms as numbers of a row; here the host waits for the device."""
    labels = list(sums.losses)
    values = torch.stack(
        [*(sums.losses[d] for d in labels), *(n.float() for n in grad_norms.values())]
    ).tolist()
    losses = values[: len(labels)]
    norms = dict(zip(grad_norms, values[len(labels) :], strict=True))
    loss: float = sum(losses) / sum(sums.tokens.values())
    if not all(math.isfinite(value) for value in values):
        raise TrainError(
            f"loss or gradient is not finite at step {step} (loss {loss}); "
            "lower train.lr or train.max_norm, the newest checkpoint is from before"
        )
    row: dict[str, float] = {keys.TRAIN_LOSS: loss}
    for label, value in zip(labels, losses, strict=True):
        row[keys.train_loss(label)] = value / sums.tokens[label]
    for name, norm in norms.items():
        row[keys.grad_norm(name)] = norm
    return row


def _by_label(row: Mapping[str, float]) -> dict[str, float]:
    prefix = keys.TRAIN_LOSS + "/"
    return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}


def _save(
    routed: RoutedModel,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    checkpoints: Checkpoints,
    state: TrainState,
) -> None:
    about = {
        "plan": routed.plan.to_json(),
        "schedule": schedule.state_dict(),
        "state": state.as_dict(),
    }
    checkpoints.save(state.step, about, tensors_of(routed.model, optimizer))


def _resume(
    routed: RoutedModel,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    checkpoints: Checkpoints,
) -> TrainState:
    about = checkpoints.load_newest(lambda: tensors_of(routed.model, optimizer))
    if about is None:
        return TrainState()
    if about["plan"] != routed.plan.to_json():
        raise CheckpointError("the newest checkpoint has another plan; use another folder")
    schedule.load_state_dict(about["schedule"])
    for group, lr in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = lr
    return TrainState(**about["state"])
