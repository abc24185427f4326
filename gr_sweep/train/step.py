"""One training step: forward and backward passes, clipping, check, update; the optimizer and its
learning rate.

N sequences of a micro-batch (sorted by row group), T positions, S = T + 1, L labels.
"""

import bisect
import contextlib
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel

from gr_sweep.config import Precision, Schedule, TrainConfig, num_micro_batches
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.model.units import decoder_layers
from gr_sweep.routing.kinds import BIAS
from gr_sweep.train.distributed import mesh_of, rows_of

_MAX_GRAPHS = 64
"""Most shapes of micro-batches that are compiled: those of the lists of foreign dropout, times the
few by which the micro-batches of a step differ."""

_SHORT = 128
"""Longest sequence that trains without flash attention in bfloat16 on a CPU."""

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Tokens [N, S] to the sum of their losses and the losses [N, T], as `TokenLosses`."""


def precision_context(
    device: torch.device, precision: Precision
) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 where `is_bfloat16`; float32 otherwise."""
    if is_bfloat16(device, precision):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def is_bfloat16(device: torch.device, precision: Precision) -> bool:
    """Whether matrix products are computed in bfloat16 on the device."""
    if precision is Precision.auto:
        return device.type == "cuda" or cpu_has_bfloat16()
    return precision is Precision.bfloat16


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this machine's x86 CPU has instructions for bfloat16 products; others were not
    measured."""
    # torch.cpu.get_capabilities is newer than the oldest torch that is supported.
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def shard(token_losses: TokenLosses, train: TrainConfig, device: torch.device) -> None:
    """Shards parameters, gradients and optimizer state over all processes, in place (FSDP2; Zhao et
    al. 2023, arXiv 2304.11277).

    With bfloat16 products weights are gathered in bfloat16; the optimizer keeps float32. Gradients
    are summed in float32: the loss is already divided by the number of tokens on all processes. In
    a mesh of several copies neighbours in rank share one, so that weights are gathered within a
    node and only gradients are summed between nodes.
    """
    replicas, shards = mesh_of(train.mesh, torch.distributed.get_world_size())
    shape = (shards,) if replicas == 1 else (replicas, shards)
    names = ("replicas", "shards")[-len(shape) :]
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    dtype = torch.bfloat16 if is_bfloat16(device, train.precision) else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in (*decoder_layers(token_losses.model), token_losses):
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        sharded.set_gradient_divide_factor(1.0)
        # Plain sums: gloo has no others, and nccl's with a factor multiply by this 1.
        sharded.set_force_sum_reduction_for_comms(True)


def _attention(
    tokens_NS: Tensor, config: TrainConfig, device_type: str
) -> contextlib.AbstractContextManager[None]:
    """The faster kernel of attention, forward and backward. On a CPU, short sequences in bfloat16
    take 0.6 of the time without flash attention (torch 2.13, 128 positions; 1.6 at 256)."""
    is_short = tokens_NS.shape[1] - 1 <= _SHORT
    device = torch.device(device_type)
    if device_type == "cpu" and is_short and is_bfloat16(device, config.precision):
        return sdpa_kernel(SDPBackend.MATH)
    return contextlib.nullcontext()


def training_forward(token_losses: TokenLosses, config: TrainConfig) -> Forward:
    """The forward pass of training steps, compiled and with activation checkpointing as configured.

    Evaluation calls `token_losses` directly: each set of blocks it switches off would be compiled.
    """
    if config.activation_checkpointing:
        # Each decoder layer keeps only its input and is recomputed in the backward pass (Chen et
        # al. 2016, arXiv 1604.06174). Not reentrant: works with module hooks and when compiled.
        model: Any = token_losses.model
        enable = getattr(model, "activation_checkpointing_enable", None)  # its newer name
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if not config.compile:
        return token_losses
    # Graphs of an earlier job in this process are of no use, and count towards the number after
    # which Dynamo stops compiling: eight, where foreign dropout and micro-batches may need more.
    torch.compiler.reset()
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, _MAX_GRAPHS)
    if isinstance(token_losses, FSDPModule):
        # Weights are gathered between layers, which a graph cannot contain: one graph per layer.
        layers = decoder_layers(token_losses.model)
        # Layers that the plan splits in the same way share a graph.
        dynamo.recompile_limit = max(dynamo.recompile_limit, _MAX_GRAPHS * len(layers))
        for layer in layers:
            layer.compile(dynamic=False)
        return token_losses
    compiled: Forward = torch.compile(token_losses, dynamic=False)
    return compiled


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101); weight decay on matrices that are
    not those of output biases.

    Parameters with a zero gradient are updated too, by weight decay and by their moments.
    """
    decaying, others = list[Tensor](), list[Tensor]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = parameter.dim() < 2 or f"adapter.{BIAS}." in name
            (others if is_bias else decaying).append(parameter)
    groups = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


@torch.no_grad()
def update(optimizer: torch.optim.Optimizer, routed: RoutedModel, block_lr: float = 1.0) -> None:
    """`optimizer.step()`, with `block_lr` times the learning rate for the units of blocks, and with
    none for what rests: a frozen core, blocks that are always off.

    AdamW's update is proportional to its learning rate, decay included, so that of a slice is
    multiplied afterwards. (A tensor can hold units of both: a parameter group is whole.)
    """
    core, resting = routed.plan.core.name, routed.resting
    sets = routed.owner_sets() if resting or block_lr != 1.0 else {}
    changed: list[tuple[list[Tensor], list[Tensor], float]] = []
    for name, views in sets.items():
        factor = 0.0 if name in resting else 1.0 if name == core else block_lr
        if views and factor != 1.0:
            changed.append((views, [view.clone() for view in views], factor))
    optimizer.step()
    for views, before, factor in changed:
        torch._foreach_lerp_(views, before, 1.0 - factor)


def lr_factor(step: int, num_steps: int, config: TrainConfig) -> float:
    """Fraction of the peak learning rate in step `step` (from 0): warm-up, then cosine or WSD.

    WSD (warm-up, stable, decay) is the schedule of Hu et al. 2024, arXiv 2404.06395.
    """
    warmup = round(config.warmup * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule is Schedule.cosine:
        progress = (step - warmup) / max(1, num_steps - warmup)
        return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    decay = round(config.decay * num_steps)
    left = num_steps - step
    if left > decay:
        return 1.0
    return config.final_lr + (1 - config.final_lr) * left / max(1, decay)


def learning_rate(
    step: int, phases: Sequence[int], config: TrainConfig, *, rewarm: float = 1.0
) -> float:
    """The learning rate in a step of the run, counted from 0.

    Args:
        phases: steps of each phase; the rate warms up and decays in each.
        rewarm: peak of every phase after the first, as a fraction of the first's.
    """
    starts = [0, *itertools.accumulate(phases)]
    phase = bisect.bisect_right(starts, step) - 1
    peak = rewarm if starts[phase] else 1.0
    return config.lr * (peak * lr_factor(step - starts[phase], phases[phase], config))


@dataclass(frozen=True)
class StepResult:
    """Losses and norms of a step, on the device: the host has not waited for them."""

    losses_L: Tensor
    """Sum in nats over the tokens of each label, of this process's rows."""
    grad_norms: dict[str, Tensor]
    """Before clipping, by owner set, over all processes."""


def train_step(
    routed: RoutedModel,
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    micro_batches: Iterable[Tensor],
    counts: Mapping[str, int],
    *,
    rows: Sequence[slice],
    step: int,
    tokens_per_step: int,
    config: TrainConfig,
    check: Callable[[StepResult], None] = lambda result: None,
    device_type: str | None = None,
) -> StepResult:
    """Computes the gradients of the micro-batches, clips them and updates the weights.

    Args:
        forward: from `training_forward`.
        micro_batches: token ids [N, S] on the model's device.
        counts: rows of the step by label, in their order.
        rows: those of the rows that each micro-batch contains, from `rows_of`.
        step: number of the step.
        tokens_per_step: denominator of the loss.
        config: precision, clipping and `block_lr`.
        check: called before the update, which does not happen if it raises.
        device_type: device whose kernels are used, as in `TokenLosses`.
    """
    losses = []
    for index, (tokens_NS, part) in enumerate(zip(micro_batches, rows, strict=True)):
        if isinstance(forward, FSDPModule):
            # Gradients are summed over copies of the model once a step, and the weights outside of
            # layers, which are whole from forward to backward anyway, are gathered once.
            is_last = index == len(rows) - 1
            forward.set_requires_all_reduce(is_last)
            forward.set_reshard_after_backward(is_last, recurse=False)
        with (
            routed.batch(counts, step=step, rows=part, next_NT=tokens_NS[:, 1:]),
            _attention(
                tokens_NS, config, device_type or tokens_NS.device.type
            ),  # of layers that are recomputed too
        ):
            with precision_context(tokens_NS.device, config.precision):
                loss_sum, losses_NT = forward(tokens_NS)
            (loss_sum / tokens_per_step).backward()
        sizes = Counter[str]()
        for group in routed.row_groups(counts, step=step, rows=part):
            sizes[group.domain] += group.count
        by_label = losses_NT.split([sizes[label] for label in counts])
        losses.append(torch.stack([of_label.sum() for of_label in by_label]))
    losses_L = functools.reduce(torch.add, losses)
    result = StepResult(losses_L, routed.clip_grad_norm_(config.max_norm))
    check(result)
    update(optimizer, routed, config.block_lr)
    optimizer.zero_grad(set_to_none=True)
    return result


class JobStep:
    """The steps that `train.loop.Trainer` takes with a model that is on `device` already."""

    def __init__(
        self,
        routed: RoutedModel,
        train: TrainConfig,
        counts: Mapping[str, int],
        device: torch.device,
        world_size: int = 1,
        *,
        rows: Sequence[slice] | None = None,
        device_type: str | None = None,
    ) -> None:
        """
        Args:
            counts: rows of a step by label, over all devices.
            world_size: number of devices; of several, this is the first process of their group.
            rows: of each micro-batch; None for those of a step.
            device_type: as in `TokenLosses`.
        """
        self.routed, self._train, self._counts = routed, train, counts
        self._device_type = device_type
        self.token_losses = TokenLosses(routed, device_type=device_type)
        num_rows, length = sum(counts.values()), train.sequence_length + 1
        self._rows = rows or rows_of(0, world_size, num_rows, num_micro_batches(train))
        if world_size > 1:
            with unset_fake_temporarily():  # the mesh of devices is a real tensor
                shard(self.token_losses, train, device)
        routed.model.train()
        self._forward = training_forward(self.token_losses, train)
        self.optimizer = make_optimizer(routed.model, train)
        self.micro_batches = [
            torch.zeros(len(range(num_rows)[part]), length, dtype=torch.long, device=device)
            for part in self._rows
        ]
        """Token ids [N, S] that every step trains on; all 0 until someone fills them."""
        self._step = itertools.count()

    def run(self) -> None:
        """The next step: forward, backward, clipping, optimizer."""
        train_step(
            self.routed,
            self._forward,
            self.optimizer,
            self.micro_batches,
            self._counts,
            rows=self._rows,
            step=next(self._step),
            tokens_per_step=self._train.batch_sequences * self._train.sequence_length,
            config=self._train,
            device_type=self._device_type,
        )

    def weights(self) -> list[Tensor]:
        """Parameters and buffers on this device."""
        return [*self.routed.model.parameters(), *self.routed.model.buffers()]

    def optimizer_state(self) -> list[Tensor]:
        """The optimizer's tensors on this device; none before its first step."""
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return [value for value in values if isinstance(value, Tensor)]
