"""The training loop of every method and procedure; procedures start in `gr_sweep.job.Job.train`.

N sequences of a micro-batch or step (sorted by row group), T positions, S = T + 1.
"""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

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
from gr_sweep.train.signals import StopSignals
from gr_sweep.train.step import (
    Forward,
    StepResult,
    learning_rate,
    make_optimizer,
    train_step,
    training_forward,
)

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

    @contextlib.contextmanager
    def timed(self, *names: str) -> Iterator[None]:
        """Adds the seconds inside to these fields."""
        begin = time.perf_counter()
        yield
        for name in names:
            setattr(self, name, getattr(self, name) + time.perf_counter() - begin)


def _prefetched(
    read: Callable[[int], list[np.ndarray]], steps: range, state: TrainState, device: torch.device
) -> Generator[list[Tensor], None, None]:
    """The micro-batches of each step, on the device or being copied to it. A thread reads those of
    the next step while the device computes; its error is raised in the step that needs them."""

    def to_device(rows_NS: Tensor) -> Tensor:
        # The host does not wait for a copy from pinned memory. The thread has no CUDA device set.
        is_cuda = device.type == "cuda"
        return (rows_NS.pin_memory() if is_cuda else rows_NS).to(device, non_blocking=is_cuda)

    with ThreadPoolExecutor(1, "prefetch") as thread:
        following = thread.submit(read, steps.start)
        for step in steps:
            with state.timed("data_s"):
                rows = following.result()
            if step + 1 < steps.stop:
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
    """As in `learning_rate`."""

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
            DataError: a checkpoint of another run or plan.
        """
        self.optimizer = make_optimizer(self.routed.model, self.config)

        def tensors(about: dict[str, Any]) -> dict[str, Tensor]:
            enter(about["state"]["step"])
            return tensors_of(self.routed.model, self.optimizer)

        def resume() -> None:
            about = self.checkpoints.load_newest(tensors)
            if about is None:
                return
            if plan is not None and about["plan"] != plan.in_place().to_json():
                raise DataError("the newest checkpoint has another plan; use another folder")
            self.state, self.plan = TrainState(**about["state"]), about["plan"]

        self.processes.together(resume)
        step = self.state.step
        self.processes.from_main(lambda: self.tracker.cut_back(step if step else -1))

    def run(self, batches: Batches, stop: int | None = None) -> None:
        """Trains to step `stop`, or to the end of the run, in every process; saves a checkpoint
        there.

        Raises:
            JobError: a loss or gradient that is not finite.
            Stopped: a signal came, in this or another process; the run is saved.
        """
        self.batches = batches
        state, config, total = self.state, self.config, num_steps(self.config)
        stop = total if stop is None else stop
        if state.step == 0:
            self._log_evaluation(is_last=False)
        if state.step == stop:
            return
        here, num_micro = self.processes, num_micro_batches(config)
        rows = rows_of(here.rank, here.world_size, batches.num_rows, num_micro)

        def read(step: int) -> list[np.ndarray]:
            return [batches.step(step, part) for part in rows]

        forward = training_forward(self.token_losses, config)
        self.routed.model.train()
        eval_every = self.eval_every or math.ceil(total / 4)
        phases = self.phases or [total]
        results, begin_s = list[StepResult](), state.train_s  # since the last row
        ahead = _prefetched(read, range(state.step, stop), state, self.device)
        with contextlib.closing(ahead) as steps, self.signals.deferred():
            while state.step < stop:
                with state.timed("elapsed_s", "train_s"):
                    lr = learning_rate(state.step, phases, config, rewarm=self.rewarm)
                    for group in self.optimizer.param_groups:
                        group["lr"] = lr
                    results.append(self._step(forward, next(steps), rows))
                    is_last = state.step == total
                    evaluates = is_last or _is_due(eval_every, state.step)
                    saves = (
                        self._is_told
                        or state.step == stop
                        or _is_due(config.checkpoint_every, state.step)
                    )
                    # A row with every checkpoint, so that a resumed run logs the same rows. One
                    # with every evaluation: the host waits for the device there, and steps that
                    # are still being computed would count as evaluation.
                    logs = _is_due(config.log_every, state.step) or saves or evaluates
                    row = self._row(results) if logs else {}
                if logs:
                    self._log_row(row | {registry.TRAIN_LR.key: lr}, len(results), begin_s)
                    results, begin_s = [], state.train_s
                if evaluates:
                    self._log_evaluation(is_last=is_last)
                    self.routed.model.train()
                if saves:
                    with state.timed("elapsed_s"):
                        self.tracker.sync()
                        self._save()
                if self._is_told:
                    self.signals.obey()
            # A signal that came after the last step's check.
            if any(self.processes.gather(self.signals.are_there)):
                self.signals.obey()
        reshard(self.token_losses)  # another plan may follow

    def _step(self, forward: Forward, micro_batches: list[Tensor], rows: list[slice]) -> StepResult:
        state, batches = self.state, self.batches
        # For models with dropout: a step's draws depend only on its number.
        torch.manual_seed((self.processes.rank * 1_000_003 + self.seed) * 1_000_003 + state.step)
        result = train_step(
            self.routed,
            forward,
            self.optimizer,
            micro_batches,
            batches.counts,
            rows=rows,
            step=state.step,
            tokens_per_step=batches.tokens_per_step,
            config=self.config,
            check=self._check,
        )
        state.tokens += batches.num_rows * self.config.sequence_length
        state.step += 1
        return result

    def _check(self, step: StepResult) -> None:
        """Ends the run before an update that is not finite; learns whether to stop after the step.

        The host waits for the device here: what it then has to start, the update, is short.
        """
        names = [f"loss of {label}" for label in self.batches.counts]
        names += [f"gradient norm of {name}" for name in step.grad_norms]
        values = torch.cat([step.losses_L, torch.stack([*step.grad_norms.values()])])
        is_told = torch.full((1,), self.signals.are_there, device=self.device)
        # A process knows the losses of its own rows, and the norms of all gradients.
        flags = self.processes.sum_(torch.cat([~values.isfinite(), is_told]).float())
        *bad, self._is_told = map(bool, flags.tolist())

        def fail() -> None:
            first = names[bad.index(True)]
            raise JobError(
                f"the {first} is not finite in step {self.state.step + 1}; lower train.lr "
                "or train.max_norm; the newest checkpoint is from an earlier step"
            )

        if any(bad):
            self.processes.together(fail)

    def _log_evaluation(self, *, is_last: bool) -> None:
        with self.state.timed("elapsed_s", "eval_s"):
            metrics = self.evaluate(is_last)
        self.tracker.log(self.state.step, metrics)

    def _row(self, results: list[StepResult]) -> dict[str, float]:
        """Losses in nats per token, over these steps and all processes, and the last norms."""
        losses_L = functools.reduce(torch.add, [step.losses_L for step in results])
        losses = self.processes.sum_(losses_L.double()).float().tolist()
        counts, each = self.batches.counts, len(results) * self.config.sequence_length
        row = {registry.TRAIN_LOSS.key: sum(losses) / (self.batches.num_rows * each)}
        for (label, count), loss in zip(counts.items(), losses, strict=True):
            if count:
                row[registry.TRAIN_LOSS_OF(label)] = loss / (count * each)
        norms = results[-1].grad_norms
        for name, norm in zip(norms, torch.stack([*norms.values()]).float().tolist(), strict=True):
            row[registry.GRAD_NORM(name)] = norm
        return row

    def _log_row(self, row: dict[str, float], num_logged: int, begin_s: float) -> None:
        """Logs what the last steps gave; training had taken `begin_s` before them."""
        state, batches, total = self.state, self.batches, num_steps(self.config)
        tokens = num_logged * batches.num_rows * self.config.sequence_length
        speed = tokens / (state.train_s - begin_s)
        prefix = registry.TRAIN_LOSS.key + "/"
        by_label = (
            f"{key.removeprefix(prefix)} {loss:.3f}"
            for key, loss in row.items()
            if key.startswith(prefix)
        )
        left = timedelta(seconds=round((total - state.step) * batches.tokens_per_step / speed))
        logger.info(
            f"step {state.step}/{total}  loss {row[registry.TRAIN_LOSS.key]:.3f} "
            f"({' '.join(by_label)})  {speed:,.0f} tokens/s  {left} left"
        )
        row |= {
            registry.TRAIN_TOKENS.key: state.tokens,
            registry.TRAIN_TOKENS_PER_SECOND.key: speed,
            registry.TIME_S.key: state.elapsed_s,
        }
        steps = range(state.step - num_logged, state.step)
        self.tracker.log(state.step, row | foreign_dropout(self.routed, batches.counts, steps))

    def _save(self) -> None:
        about = {"plan": self.routed.plan.in_place().to_json(), "state": asdict(self.state)}
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


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
