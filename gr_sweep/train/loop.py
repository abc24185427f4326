"""The training loop of every method and procedure; procedures start in `gr_sweep.job.Job.train`.

N sequences of a micro-batch or step (sorted by row group), T positions, S = T + 1.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from gr_sweep.config import TrainConfig, num_micro_batches, num_steps
from gr_sweep.data.batches import Batches
from gr_sweep.errors import DataError, JobError
from gr_sweep.metrics import registry
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.model.units import reshard
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.rows import dropped_share
from gr_sweep.tracking.base import Tracker
from gr_sweep.train.checkpoint import Checkpoints, tensors_of
from gr_sweep.train.distributed import Processes, rows_of
from gr_sweep.train.optim import make_optimizer, make_schedule
from gr_sweep.train.signals import StopSignals
from gr_sweep.train.step import Forward, StepResult, train_step, training_forward

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class TrainState:
    """Position of a run. Batches are a function of `step`, so it is the data position as well."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Training tokens seen."""
    elapsed_s: float = 0.0
    """Seconds in the loop, summed over resumes."""
    train_s: float = 0.0
    """Seconds of `elapsed_s` without evaluation and checkpoints."""
    eval_s: float = 0.0
    """Seconds in evaluations: before the first step, between steps, and after the last."""
    assign_s: float = 0.0
    """Seconds of clustering, attribution and assignment between phases."""
    data_s: float = 0.0
    """Seconds of `train_s` in which the loop waited for data."""


def _prefetched(
    read: Callable[[int], list[np.ndarray]], stop: int, state: TrainState, device: torch.device
) -> Generator[list[Tensor], None, None]:
    """The micro-batches of each step up to `stop`, on the device or being copied to it.

    A thread reads the rows of the next step, `read(step)`, while the device computes the current
    one. An error of the thread is raised in the step that needs the rows.
    """

    def to_device(rows_NS: Tensor) -> Tensor:
        # The host does not wait for a copy from pinned memory. The thread has no CUDA device set.
        is_cuda = device.type == "cuda"
        return (rows_NS.pin_memory() if is_cuda else rows_NS).to(device, non_blocking=is_cuda)

    if state.step >= stop:
        return
    with ThreadPoolExecutor(1, "prefetch") as thread:
        following = thread.submit(read, state.step)
        for step in range(state.step, stop):
            start = time.perf_counter()
            rows = following.result()
            state.data_s += time.perf_counter() - start
            if step + 1 < stop:
                following = thread.submit(read, step + 1)
            yield [to_device(torch.from_numpy(rows_NS)) for rows_NS in rows]


@dataclass(kw_only=True)
class Trainer:
    """Trains a model through all phases of a run: `start`, then `run` to the end of each."""

    routed: RoutedModel
    """The model, on `device`; sharded if several processes train it."""
    token_losses: TokenLosses
    config: TrainConfig
    """Steps, batch, optimizer and how often to log and save."""
    seed: int
    """Of what the model itself draws in training (dropout; most models draw nothing)."""
    eval_every: int | None
    """Steps between calls of `evaluate`; None for four in a run."""
    evaluate: Callable[[bool], dict[str, float]]
    """Metrics of the current model, also before the first step and after the last; the argument
    says whether the run is at its end."""
    tracker: Tracker
    checkpoints: Checkpoints
    device: torch.device
    processes: Processes = field(default_factory=Processes)
    """Those over which the model is sharded; each computes its share of every micro-batch."""
    signals: StopSignals = field(default_factory=StopSignals)
    phases: Sequence[int] | None = None
    """Steps of each phase, each with its own schedule; None for one phase."""
    rewarm: float = 1.0
    """As in `make_schedule`."""

    batches: Batches = field(init=False)
    """Of the phase that is trained."""
    state: TrainState = field(init=False, default_factory=TrainState)
    plan: str | None = field(init=False, default=None)
    """Plan of the checkpoint that the run was resumed from, as JSON; None for a new run."""
    _is_told: bool = field(init=False, default=False)
    """Whether a signal has asked one of the processes to stop."""

    def start(
        self, plan: RoutePlan | None = None, enter: Callable[[int], None] = lambda step: None
    ) -> None:
        """Starts a run, or resumes it from the newest checkpoint, whose weights the model then has.

        Args:
            plan: the one that a checkpoint must have; None if training makes the plans.
            enter: makes the model what it was after so many steps, before a checkpoint is loaded.

        Raises:
            DataError: a checkpoint of another run or plan, or one that cannot be read now.
        """
        self.optimizer = make_optimizer(self.routed.model, self.config)
        phases = self.phases or [num_steps(self.config)]
        self.schedule = make_schedule(self.optimizer, phases, self.config, rewarm=self.rewarm)

        def tensors(about: dict[str, Any]) -> dict[str, Tensor]:
            enter(about["state"]["step"])
            return tensors_of(self.routed.model, self.optimizer)

        def resume() -> None:
            about = self.checkpoints.load_newest(tensors)
            if about is None:
                return
            if plan is not None and about["plan"] != plan.in_place().to_json():
                raise DataError("the newest checkpoint has another plan; use another folder")
            self.schedule.load_state_dict(about["schedule"])
            rates = self.schedule.get_last_lr()
            for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = lr
            self.state, self.plan = TrainState(**about["state"]), about["plan"]

        self.processes.together(resume)
        step = self.state.step
        self.processes.from_main(lambda: self.tracker.cut_back(step if step else -1))

    @property
    def _rows(self) -> list[slice]:
        """Rows of the step that this process computes, by micro-batch."""
        here, num_rows = self.processes, self.batches.num_rows
        return rows_of(here.rank, here.world_size, num_rows, num_micro_batches(self.config))

    def run(self, batches: Batches, stop: int | None = None) -> None:
        """Trains to step `stop`, or to the end of the run; saves a checkpoint there.

        Every process must call this.

        Raises:
            JobError: a loss or gradient that is not finite.
            Stopped: a signal came, in this or another process; the run is saved.
        """
        self.batches = batches
        state, config = self.state, self.config
        total = num_steps(config)
        stop = total if stop is None else stop
        eval_every = self.eval_every or math.ceil(total / 4)
        clock = _Clock(state)
        if state.step == 0:
            with clock.paused():
                self._log_evaluation(is_last=False)

        forward = training_forward(self.token_losses, config)
        since_row, last_row = StepResult(), state.step
        rows = self._rows

        def read(step: int) -> list[np.ndarray]:
            return [self.batches.step(step, part) for part in rows]

        self.routed.model.train()
        with (
            contextlib.closing(_prefetched(read, stop, state, self.device)) as steps,
            self.signals.deferred(),
        ):
            for micro_batches in steps:
                # For models with dropout: a step's draws depend only on its number.
                torch.manual_seed(
                    (self.processes.rank * 1_000_003 + self.seed) * 1_000_003 + state.step
                )
                lr = float(self.schedule.get_last_lr()[0])
                step = self._step(forward, micro_batches)
                since_row.add(step)
                since_row.grad_norms = step.grad_norms

                is_last = state.step == total
                evaluates = is_last or _is_due(eval_every, state.step)
                saves = (
                    self._is_told
                    or state.step == stop
                    or _is_due(config.checkpoint_every, state.step)
                )
                # A row with every checkpoint, so that a resumed run logs the same rows. One with
                # every evaluation: the host waits for the device there, and steps that are still
                # being computed would count as evaluation.
                if _is_due(config.log_every, state.step) or saves or evaluates:
                    self._log_row(since_row, range(last_row, state.step), lr, clock)
                    since_row, last_row = StepResult(), state.step
                with clock.paused():
                    if evaluates:
                        self._log_evaluation(is_last=is_last)
                        self.routed.model.train()
                    if saves:
                        self.tracker.sync()
                        self._save()
                if self._is_told:
                    self.signals.obey()
            # A signal that came after the last step's check.
            if any(self.processes.gather(self.signals.are_there)):
                self.signals.obey()
        reshard(self.token_losses)  # another plan may follow

    def _step(self, forward: Forward, micro_batches: list[Tensor]) -> StepResult:
        state = self.state
        step = train_step(
            self.routed,
            forward,
            self.optimizer,
            micro_batches,
            self.batches.counts,
            rows=self._rows,
            step=state.step,
            tokens_per_step=self.batches.tokens_per_step,
            config=self.config,
            check=self._check,
        )
        self.schedule.step()
        state.tokens += sum(step.tokens.values()) * self.processes.world_size
        state.step += 1
        return step

    def _check(self, step: StepResult) -> None:
        """Ends the run before an update that is not finite; learns whether to stop after the step.

        The host waits for the device here: what it then has to start, the update, is short.
        """
        values = torch.stack(
            [x.double() for x in (*step.losses.values(), *step.grad_norms.values())]
        )
        is_told = torch.full((), self.signals.are_there, device=self.device)
        flags = self.processes.sum_(torch.stack([~values.isfinite().all(), is_told]).float())
        is_bad, self._is_told = map(bool, flags.tolist())
        if is_bad:
            self._raise_not_finite(step)

    def _raise_not_finite(self, step: StepResult) -> NoReturn:
        def bad(values: Mapping[str, Tensor]) -> list[str]:
            return [name for name, value in values.items() if not math.isfinite(value)]

        # A process knows the losses of its own rows, and the norms of all gradients.
        labels = {label for found in self.processes.gather(bad(step.losses)) for label in found}
        what = f"loss of {', '.join(sorted(labels))}"
        if not labels:
            what = f"gradient norm of {', '.join(bad(step.grad_norms))}"

        def fail() -> NoReturn:
            raise JobError(
                f"the {what} is not finite in step {self.state.step + 1}; lower train.lr "
                "or train.max_norm; the newest checkpoint is from an earlier step"
            )

        self.processes.from_main(fail)
        raise AssertionError("unreachable")

    def _log_evaluation(self, *, is_last: bool) -> None:
        start = time.perf_counter()
        metrics = self.evaluate(is_last)
        self.state.eval_s += time.perf_counter() - start
        self.tracker.log(self.state.step, metrics)

    def _log_row(self, sums: StepResult, steps: range, lr: float, clock: "_Clock") -> None:
        state = self.state
        row = _row(sums, self.batches.counts, self.processes)
        speed = clock.tokens_per_second()
        prefix = registry.TRAIN_LOSS.key + "/"
        by_label = (
            f"{key.removeprefix(prefix)} {loss:.3f}"
            for key, loss in row.items()
            if key.startswith(prefix)
        )
        total = num_steps(self.config)
        left = timedelta(seconds=round((total - state.step) * self.batches.tokens_per_step / speed))
        logger.info(
            f"step {state.step}/{total}  loss {row[registry.TRAIN_LOSS.key]:.3f} "
            f"({' '.join(by_label)})  {speed:,.0f} tokens/s  {left} left"
        )
        row |= {
            registry.TRAIN_LR.key: lr,
            registry.TRAIN_TOKENS.key: state.tokens,
            registry.TRAIN_TOKENS_PER_SECOND.key: speed,
            registry.TIME_S.key: state.elapsed_s,
        }
        dropped = foreign_dropout(self.routed, self.batches.counts, steps)
        self.tracker.log(state.step, row | dropped)

    def _save(self) -> None:
        about = {
            "plan": self.routed.plan.in_place().to_json(),
            "schedule": self.schedule.state_dict(),
            "state": asdict(self.state),
        }
        tensors = tensors_of(self.routed.model, self.optimizer)
        self.checkpoints.save(self.state.step, about, tensors)


def foreign_dropout(
    routed: RoutedModel, counts: Mapping[str, int], steps: range
) -> dict[str, float]:
    """The foreign dropout that these steps have had, as a metric; without one where no domain has
    a part that is off."""
    groups = (group for step in steps for group in routed.row_groups(counts, step=step))
    share = dropped_share(routed.plan, groups)
    return {} if share is None else {registry.FOREIGN_DROPOUT.key: share}


class _Clock:
    """Adds to a state's seconds, and measures the speed since the last row."""

    def __init__(self, state: TrainState) -> None:
        self._state = state
        self._last = time.perf_counter()
        self._row_tokens, self._row_train_s = state.tokens, state.train_s

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside counts as elapsed, not as training."""
        self._advance(is_training=True)
        yield
        self._advance(is_training=False)

    def tokens_per_second(self) -> float:
        """Of training, since the last call."""
        self._advance(is_training=True)
        state = self._state
        speed = (state.tokens - self._row_tokens) / (state.train_s - self._row_train_s)
        self._row_tokens, self._row_train_s = state.tokens, state.train_s
        return speed

    def _advance(self, *, is_training: bool) -> None:
        now = time.perf_counter()
        self._state.elapsed_s += now - self._last
        self._state.train_s += now - self._last if is_training else 0.0
        self._last = now


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _row(steps: StepResult, labels: Iterable[str], processes: Processes) -> dict[str, float]:
    """Losses in nats per token, over the rows of all processes, and gradient norms."""
    zero = torch.zeros((), dtype=torch.double, device=next(iter(steps.losses.values())).device)
    sums = [zero + steps.losses.get(label, zero) for label in labels]
    sums += [zero + steps.tokens.get(label, 0) for label in labels]
    of_losses, of_tokens = processes.sum_(torch.stack(sums)).chunk(2)
    losses, tokens = of_losses.float().tolist(), of_tokens.tolist()
    norms = torch.stack([norm.float() for norm in steps.grad_norms.values()]).tolist()
    row = {registry.TRAIN_LOSS.key: sum(losses) / sum(tokens)}
    for label, loss, count in zip(labels, losses, tokens, strict=True):
        if count:
            row[registry.TRAIN_LOSS_OF(label)] = loss / count
    for name, norm in zip(steps.grad_norms, norms, strict=True):
        row[registry.GRAD_NORM(name)] = norm
    return row
