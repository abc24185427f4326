"""The training loop: the same for dense and routed jobs, on CPU and GPU.

N sequences of the micro-batch (sorted by row group), T positions, S = T + 1.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from gr_sweep.config import Precision, TrainConfig, num_steps
from gr_sweep.data.batches import Batches
from gr_sweep.errors import DataError
from gr_sweep.metrics import registry
from gr_sweep.model.families import decoder_layers, family_of
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.rows import within
from gr_sweep.tracking.base import Tracker
from gr_sweep.train.checkpoint import Checkpoints, tensors_of
from gr_sweep.train.distributed import Processes
from gr_sweep.train.finite import first_not_finite, not_finite
from gr_sweep.train.optim import make_optimizer, make_schedule
from gr_sweep.train.progress import Progress
from gr_sweep.train.state import TrainState
from gr_sweep.train.stop import StopSignals

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Tokens [N, S] to the sum of their losses and the losses [N, T], as `TokenLosses`."""


def precision_context(
    device: torch.device, precision: Precision
) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 where asked, or by default on CUDA; float32 otherwise."""
    if is_bfloat16(device, precision):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def is_bfloat16(device: torch.device, precision: Precision) -> bool:
    """Whether matrix products are in bfloat16 there."""
    return precision is Precision.bfloat16 or (
        precision is Precision.auto and device.type == "cuda"
    )


def training_forward(token_losses: TokenLosses, config: TrainConfig) -> Forward:
    """The forward pass of training steps: compiled, and with activation checkpointing, as asked.

    Evaluation calls `token_losses` itself: what is switched off there would compile anew each time.
    """
    if config.activation_checkpointing:
        # Each decoder layer keeps its input alone and is computed again in the backward pass (Chen
        # et al. 2016, arXiv 1604.06174). Not reentrant: with hooks on modules, compiled or not.
        model: Any = token_losses.model
        enable = getattr(model, "activation_checkpointing_enable", None)  # its newer name
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if not config.compile:
        return token_losses
    # What the job before compiled in this process is of no use here, and code that Dynamo has
    # compiled eight times it leaves uncompiled from then on.
    torch.compiler.reset()
    if isinstance(token_losses, FSDPModule):
        # Weights are gathered between the layers, which no graph can hold: a graph a layer.
        layers = decoder_layers(token_losses.model, family_of(token_losses.model.config))
        # Layers that a plan splits alike share a graph; others are compiled each.
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * len(layers))
        for layer in layers:
            layer.compile(dynamic=False)
        return token_losses
    compiled: Forward = torch.compile(token_losses, dynamic=False)
    return compiled


@dataclass(slots=True)
class StepResult:
    """What one or several steps leave for the log, on their device: nobody has waited for it."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    """Sum in nats over the tokens of each label."""
    tokens: dict[str, int] = field(default_factory=dict)
    grad_norms: dict[str, Tensor] = field(default_factory=dict)
    """Of the last step, before clipping, by owner set."""
    first_not_finite: list[Tensor] = field(default_factory=list)
    """Of each micro-batch and row the place of the first loss that is not finite."""

    def add(self, step: "StepResult") -> None:
        """One more step."""
        for label, loss in step.losses.items():
            self.losses[label] = self.losses[label] + loss if label in self.losses else loss
            self.tokens[label] = self.tokens.get(label, 0) + step.tokens[label]
        self.grad_norms = step.grad_norms
        self.first_not_finite += step.first_not_finite


def train_step(
    routed: RoutedModel,
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    micro_batches: Iterable[Tensor],
    counts: Mapping[str, int],
    *,
    tokens_per_step: int,
    config: TrainConfig,
    rows: slice | None = None,
) -> StepResult:
    """Gradients of the micro-batches, clipping, update. The host waits for nothing.

    Args:
        forward: as `training_forward` gives it.
        micro_batches: token ids [N, S] on the model's device.
        counts: rows of a micro-batch by label, in their order.
        tokens_per_step: denominator of the loss.
        config: precision and clipping.
        rows: those of the rows in `counts` that the micro-batches hold; None for all.
    """
    result = StepResult()
    counts_here = list(counts.values()) if rows is None else within(counts.values(), rows)
    for tokens_NS in micro_batches:
        with routed.batch(counts, rows=rows):
            with precision_context(tokens_NS.device, config.precision):
                loss_sum, losses_NT = forward(tokens_NS)
            (loss_sum / tokens_per_step).backward()
        parts = dict(zip(counts, losses_NT.split(counts_here), strict=True))
        parts = {label: part for label, part in parts.items() if part.numel()}
        result.add(
            StepResult(
                {label: part.sum() for label, part in parts.items()},
                {label: part.numel() for label, part in parts.items()},
                first_not_finite=[first_not_finite(losses_NT.detach())],
            )
        )
    result.grad_norms = routed.clip_grad_norm_(config.max_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return result


class _Ahead:
    """The rows of each step, read by one thread while the device computes the step before.

    A step's rows follow from its number, so reading ahead changes nothing. What goes wrong is
    raised in the step that needs the rows.
    """

    def __init__(
        self, read: Callable[[int], list[np.ndarray]], steps: range, device: torch.device
    ) -> None:
        """`read` gives the micro-batches of a step by its number."""
        self._read = read
        self._device = device
        self._stop = steps.stop
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._next: Future[list[np.ndarray]] | None = None
        if steps:
            self._next = self._thread.submit(read, steps.start)

    def __enter__(self) -> "_Ahead":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, state: TrainState) -> list[Tensor]:
        """The micro-batches of the step that is due, on the device or on their way to it."""
        assert self._next is not None  # a step within the range that was given
        start = time.perf_counter()
        rows = self._next.result()
        state.data_s += time.perf_counter() - start
        if state.step + 1 < self._stop:
            self._next = self._thread.submit(self._read, state.step + 1)
        return [self._moved(torch.from_numpy(rows_NS)) for rows_NS in rows]

    def _moved(self, rows_NS: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return rows_NS.to(self._device)
        # From pinned memory the host does not wait for the copy. Pinned here and not in the thread,
        # which knows no device of its own.
        return rows_NS.pin_memory().to(self._device, non_blocking=True)


@dataclass(slots=True)
class Training:
    """A run as it stands: what goes on through all of its phases."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    state: TrainState
    plan: str | None
    """Of the checkpoint that it was taken up from, as text; None where it begins."""

    def end(self) -> None:
        """Frees the optimizer's moments, twice the parameters: what follows needs none."""
        self.optimizer.state.clear()


def start(
    model: torch.nn.Module,
    config: TrainConfig,
    *,
    checkpoints: Checkpoints,
    tracker: Tracker,
    processes: Processes | None = None,
    plan: RoutePlan | None = None,
    phases: Sequence[int] | None = None,
    rewarm: float = 1.0,
) -> Training:
    """A run from its beginning, or from the newest checkpoint if there is one, which fills the
    model.

    Args:
        model: on its device; spread over processes where several train it.
        plan: the one that a checkpoint must have; None where training makes plans itself.
        phases: steps of each phase, each with the schedule of a run of its own; None for one.
        rewarm: peak learning rate of every phase after the first, as a share of the first's.

    Raises:
        DataError: a checkpoint of another run or plan, or one that the system does not let be
            read; a row of the tracker that is none.
    """
    processes = processes or Processes()
    optimizer = make_optimizer(model, config)
    schedule = make_schedule(optimizer, phases or [num_steps(config)], config, rewarm=rewarm)

    def resume() -> Training:
        about = checkpoints.load_newest(lambda: tensors_of(model, optimizer))
        if about is None:
            return Training(optimizer, schedule, TrainState(), None)
        if plan is not None and about["plan"] != plan.in_place().to_json():
            raise DataError("the newest checkpoint has another plan; use another folder")
        schedule.load_state_dict(about["schedule"])
        for group, lr in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = lr
        return Training(optimizer, schedule, TrainState(**about["state"]), about["plan"])

    training = processes.together(resume)
    step = training.state.step
    processes.from_main(lambda: tracker.cut_back(step if step else -1))
    return training


def train(
    training: Training,
    routed: RoutedModel,
    token_losses: TokenLosses,
    batches: Batches,
    config: TrainConfig,
    *,
    seed: int,
    eval_every: int | None,
    evaluate: Callable[[bool], dict[str, float]],
    tracker: Tracker,
    checkpoints: Checkpoints,
    device: torch.device,
    processes: Processes | None = None,
    stop: int | None = None,
    signals: StopSignals | None = None,
) -> None:
    """Trains on from where the run stands to its last step, or to the end of a phase.

    Args:
        training: the run, which goes on.
        routed: the model, on `device`.
        token_losses: its losses.
        batches: token ids by step.
        config: steps, batch, optimizer and how often to log and save.
        seed: of what the model itself draws while training (dropout; most models draw nothing).
        eval_every: steps between calls of `evaluate`, which is also called before the first step
            and after the last of the run; None for four in a run.
        evaluate: metrics of the model as it stands; told whether the run is at its end.
        tracker: takes the rows.
        checkpoints: where the run is saved, at the latest when this ends.
        device: of the model.
        processes: those that share the rows of every micro-batch, the model being spread over them
            (`distributed.shard`); None for this one alone. All of them must call this.
        stop: step after which to stop; None for the run's last.
        signals: what asks the run to save and stop before that.

    Raises:
        JobError: a loss or gradient that is not finite.
        Stopped: a signal came, here or in another process; the run is saved.
    """
    processes = processes or Processes()
    rows = processes.rows(batches.num_rows) if processes.are_several else None
    read = batches.step if rows is None else functools.partial(batches.step, rows=rows)
    total = num_steps(config)
    stop = total if stop is None else stop
    eval_every = eval_every or math.ceil(total / 4)
    optimizer, schedule, state = training.optimizer, training.schedule, training.state
    clock = _Clock(state)
    signals = signals or StopSignals()
    agreement = _Agreement(processes, device)

    def log_evaluation(*, is_last: bool) -> None:
        with clock.evaluating(state):
            metrics = evaluate(is_last)
        tracker.log(state.step, metrics)

    if state.step == 0:
        with clock.paused(state):
            log_evaluation(is_last=False)

    forward = training_forward(token_losses, config)
    since_row: list[StepResult] = []
    routed.model.train()
    with (
        Progress(total, state.step, is_shown=processes.is_main) as progress,
        _Ahead(read, range(state.step, stop), device) as ahead,
        signals.deferred(),
    ):
        while state.step < stop:
            # For models with dropout: what a step draws follows from its number, not from history.
            torch.manual_seed((processes.rank * 1_000_003 + seed) * 1_000_003 + state.step)
            step = train_step(
                routed,
                forward,
                optimizer,
                ahead.take(state),
                batches.counts,
                tokens_per_step=batches.tokens_per_step,
                config=config,
                rows=rows,
            )
            lr = float(schedule.get_last_lr()[0])
            schedule.step()
            since_row.append(step)
            state.tokens += sum(step.tokens.values()) * processes.world_size
            state.step += 1
            progress.step()

            is_last = state.step == total
            is_told = agreement.on(signals.are_there)
            saves = is_told or state.step == stop or _is_due(config.checkpoint_every, state.step)
            evaluates = is_last or _is_due(eval_every, state.step)
            # A row with every checkpoint: a resumed run logs the same rows, and what is saved is
            # finite. One with every evaluation: the host waits for the device there, and training
            # that is still to be computed would count as evaluation.
            if _is_due(config.log_every, state.step) or saves or evaluates:
                row = _row(_of_all(since_row, batches.counts, processes))
                if not all(map(math.isfinite, row.values())):
                    raise not_finite(since_row, state.step, batches, processes, rows)
                speed = clock.tokens_per_second(state)
                progress.show(state.step, row[registry.TRAIN_LOSS.key], _by_label(row), speed)
                row |= {
                    registry.TRAIN_LR.key: lr,
                    registry.TRAIN_TOKENS.key: state.tokens,
                    registry.TRAIN_TOKENS_PER_SECOND.key: speed,
                    registry.TIME_S.key: state.elapsed_s,
                }
                tracker.log(state.step, row)
                since_row = []
            with clock.paused(state):
                if evaluates:
                    log_evaluation(is_last=is_last)
                    routed.model.train()
                if saves:
                    tracker.sync()
                    _save(training, routed, checkpoints)
            if is_told:
                signals.obey()
        # One that came with the last step, which is saved.
        if agreement.on(signals.are_there):
            signals.obey()


class _Agreement:
    """Whether one of the processes wants something, told to all of them after the same step."""

    def __init__(self, processes: Processes, device: torch.device) -> None:
        self._processes = processes
        self._device = device
        self._asked: Tensor | None = None

    def on(self, is_wanted: bool) -> bool:
        """Called by all after every step. Several processes learn it a step later: so the host
        waits for the step before, whose sum is there by then, and not for the one just begun."""
        if not self._processes.are_several:
            return is_wanted
        before = self._asked
        # Filled on the device: a copy from the host would wait for what is computed there.
        wanted = torch.full((), float(is_wanted), device=self._device)
        self._asked = self._processes.sum_(wanted)
        return before is not None and before.item() > 0


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

    @contextlib.contextmanager
    def evaluating(self, state: TrainState) -> Iterator[None]:
        """Time inside counts as evaluation; inside `paused`."""
        start = time.perf_counter()
        yield
        state.eval_s += time.perf_counter() - start

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


def _of_all(each: Iterable[StepResult], labels: Iterable[str], processes: Processes) -> StepResult:
    """The steps together, with losses and tokens over all processes, each of which has rows of some
    labels."""
    steps = StepResult()
    for step in each:
        steps.add(step)
    if not processes.are_several:
        return steps
    zero = torch.zeros_like(next(iter(steps.losses.values())))
    sums = [steps.losses.get(label, zero).double() for label in labels]
    sums += [torch.full_like(sums[0], steps.tokens.get(label, 0)) for label in labels]
    losses, tokens = processes.sum_(torch.stack(sums)).chunk(2)
    counted = dict(zip(labels, map(int, tokens.tolist()), strict=True))
    return StepResult(
        {label: loss for label, loss in zip(labels, losses, strict=True) if counted[label]},
        {label: count for label, count in counted.items() if count},
        steps.grad_norms,
    )


def _row(steps: StepResult) -> dict[str, float]:
    """The sums and norms as numbers of a row; here the host waits for the device."""
    labels = list(steps.losses)
    values = torch.stack(
        [x.float() for x in (*steps.losses.values(), *steps.grad_norms.values())]
    ).tolist()
    losses = values[: len(labels)]
    norms = dict(zip(steps.grad_norms, values[len(labels) :], strict=True))
    loss: float = sum(losses) / sum(steps.tokens.values())
    row: dict[str, float] = {registry.TRAIN_LOSS.key: loss}
    for label, value in zip(labels, losses, strict=True):
        row[registry.TRAIN_LOSS_OF(label)] = value / steps.tokens[label]
    for name, norm in norms.items():
        row[registry.GRAD_NORM(name)] = norm
    return row


def _by_label(row: Mapping[str, float]) -> dict[str, float]:
    prefix = registry.TRAIN_LOSS.key + "/"
    return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}


def _save(training: Training, routed: RoutedModel, checkpoints: Checkpoints) -> None:
    about = {
        "plan": routed.plan.in_place().to_json(),
        "schedule": training.schedule.state_dict(),
        "state": training.state.as_dict(),
    }
    tensors = tensors_of(routed.model, training.optimizer)
    checkpoints.save(training.state.step, about, tensors)
