"""What a job needs before it runs: parameters, operations, memory a device, hours.

Memory is not a formula: the job's own training step runs on fake tensors, which have shapes and no
data (`torch._subclasses.fake_tensor`), and its allocations are counted. Over several devices the
model is sharded by the code that shards a real run, in a process group that only pretends. Nothing
is downloaded, tokenised or written.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from gr_sweep.config import Device, Precision, RunConfig, TrainConfig, num_steps, to_plain
from gr_sweep.data.rows import micro_batch_rows
from gr_sweep.data.tokenize import PretrainedTokenizer
from gr_sweep.errors import DataError, GrSweepError, PlanError
from gr_sweep.metrics.cost import GPUS
from gr_sweep.model import loss
from gr_sweep.model.families import decoder_layers, family_of
from gr_sweep.model.loss import TokenLosses, chunk_positions
from gr_sweep.model.route import RoutedModel
from gr_sweep.model.sizes import random_model
from gr_sweep.setup import lay_plan, named_config
from gr_sweep.train.cost import (
    active_parameters,
    forward_flops_per_token,
    kept_parameters,
    num_parameters,
    train_flops_per_token,
)
from gr_sweep.train.distributed import rows_of, shard
from gr_sweep.train.memory import AllocatedBytes
from gr_sweep.train.optim import make_optimizer
from gr_sweep.train.step import is_bfloat16, precision_context, train_step, training_forward

GIB = 2**30

_CUDA_BLOCK = 512
"""Bytes that CUDA's caching allocator deals in."""

NO_EFFECT_ON_COST = (
    "seed",
    "resume",
    "tracking",
    "eval.every",
    "eval.curve_tokens",
    "eval.bootstrap",
    "eval.samples",
    "eval.sample_prompt_tokens",
    "eval.sample_tokens",
    "partition.name",
    "partition.mislabelled",
    "data.kind",
    "data.root",
    "data.paths",
    "data.text_field",
    "data.sources",
    "data.limit_tokens",
    "data.overlap",
    "data.spurious",
    "data.documents",
    "data.seed",
    "data.cache",
    "train.lr",
    "train.schedule",
    "train.warmup",
    "train.decay",
    "train.final_lr",
    "train.weight_decay",
    "train.beta1",
    "train.beta2",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
)
"""Settings of which a job's cost does not depend: jobs that differ in these alone are estimated
once."""


@dataclass(frozen=True)
class Target:
    """What a job is to run on."""

    name: str
    flops: float
    """Operations a second that one device gets done in training."""
    memory_bytes: float | None
    """Of one device; None where it is not known."""
    is_gpu: bool
    world_size: int = 1
    """Devices that a job is spread over."""
    workspace_bytes: int = 0
    """What libraries take on a device beside tensors."""

    @classmethod
    def gpu(cls, name: str, *, utilisation: float, world_size: int = 1) -> "Target":
        """A GPU of `metrics.cost.GPUS` at a share of its bfloat16 peak."""
        gpu = GPUS[name]
        flops = utilisation * gpu.flops
        return cls(name, flops, gpu.memory_bytes, True, world_size, gpu.workspace_bytes)


@dataclass(frozen=True)
class Estimate:
    """What one job needs; bytes are those of one device."""

    parameters: int
    active_parameters: float
    """Parameters that are on for a training sequence, on average."""
    kept_parameters: dict[str, int]
    """Of each domain's extracted model; empty for a dense job."""
    steps: int
    tokens: int
    """Trained on, over the run."""
    flops: float
    """Operations of training that routing leaves; the optimizer's and recomputation are no part."""
    dense_flops: float
    """Operations of the same training without routing."""
    recomputed_flops: float
    """What activation checkpointing computes a second time."""
    weight_bytes: int
    optimizer_bytes: int
    step_bytes: int
    """The most that a training step holds beside weights and optimizer: gradients, activations,
    gathered layers and temporaries."""
    evaluation_bytes: int
    """The most that an evaluation holds beside them."""
    hours: float
    """Training on the target, with what is recomputed; without evaluation and data."""

    @property
    def step_peak_bytes(self) -> int:
        """The most that tensors hold at once on one device in a training step."""
        return self.weight_bytes + self.optimizer_bytes + self.step_bytes

    @property
    def peak_bytes(self) -> int:
        """The most that tensors hold at once on one device in the run."""
        lasting = self.weight_bytes + self.optimizer_bytes
        return lasting + max(self.step_bytes, self.evaluation_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return dataclasses.asdict(self) | {"peak_bytes": self.peak_bytes}


def cost_key(config: RunConfig) -> str:
    """Equal for jobs that cost the same."""
    plain = to_plain(config)
    plain["partition"]["domains"] = list(plain["partition"]["domains"])
    for name in NO_EFFECT_ON_COST:
        *path, last = name.split(".")
        node = plain
        for part in path:
            node = node[part]
        del node[last]
    return json.dumps(plain)


def estimate_job(config: RunConfig, target: Target, *, vocab_size: int | None = None) -> Estimate:
    """What the job needs on the target.

    Args:
        config: validated and resolved, as for a run.
        target: what it is to run on.
        vocab_size: of a model with random weights, instead of what the config says; a checkpoint
            has its own.

    Raises:
        GrSweepError: what would keep the job from running there, or a tokenizer or checkpoint that
            is not on this machine.
    """
    model_config = _model_config(config, vocab_size)
    counts = micro_batch_rows(config)
    train = config.train
    with FakeTensorMode():
        routed = lay_plan(random_model(model_config, seed=0), config)
        length = train.sequence_length
        micro = train.micro_batch_sequences or train.batch_sequences
        rows = sum(counts.values()) * (train.batch_sequences // micro)
        tokens = num_steps(train) * rows * length
        flops = train_flops_per_token(routed, counts, length)
        forward = forward_flops_per_token(routed, length)
        active, whole = active_parameters(routed, counts), num_parameters(routed)
        kept = kept_parameters(routed)
        recomputed = 0.0
        if train.activation_checkpointing:
            # The layers, as far as they are on; not the unembedding.
            unembedding = routed.model.get_output_embeddings().weight.numel()
            recomputed = forward - 2 * (whole - active) - 2 * unembedding
        weights, optimizer, step, evaluation = _memory(routed, config, counts, target)
    return Estimate(
        parameters=whole,
        active_parameters=active,
        kept_parameters=kept,
        steps=num_steps(train),
        tokens=tokens,
        flops=tokens * flops,
        dense_flops=tokens * 3 * forward,
        recomputed_flops=tokens * recomputed,
        weight_bytes=weights,
        optimizer_bytes=optimizer,
        step_bytes=step,
        evaluation_bytes=evaluation,
        hours=tokens * (flops + recomputed) / (target.flops * target.world_size) / 3600,
    )


def _model_config(config: RunConfig, vocab_size: int | None) -> Any:
    """The Hugging Face config of the job's model, from this machine alone."""
    if config.model.path is None:
        return named_config(config, vocab_size=vocab_size or _vocabulary(config), eot_id=0)
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path, gguf_file = config.model.path, config.model.gguf_file
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        return AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, **options
        )
    except (
        *(OSError, ValueError, ImportError, KeyError, TypeError),
        *(RecursionError, StrictDataclassError),
    ) as error:
        raise PlanError(
            f"model.path={path}: its config.json is not on this machine or cannot be read, and an "
            f"estimate downloads nothing; fetch it first (hf download {path} config.json)"
        ) from error


def _vocabulary(config: RunConfig) -> int:
    name = config.data.tokenizer
    if name is None:
        return config.data.vocab_size
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise DataError(
            f"data.tokenizer={name} is not on this machine or cannot be read, and an estimate "
            "downloads nothing; say how many tokens it has: --vocab-size 50257"
        ) from error
    return PretrainedTokenizer(tokenizer, name).vocab_size


@dataclass(frozen=True)
class JobStep:
    """A job's training step and what it works on."""

    routed: RoutedModel
    token_losses: TokenLosses
    optimizer: torch.optim.Optimizer
    run: Callable[[], None]
    """One whole step on token ids that are all 0: forward, backward, clipping, optimizer."""

    def weights(self) -> list[Tensor]:
        """Parameters and buffers, of this device."""
        return [*self.routed.model.parameters(), *self.routed.model.buffers()]

    def optimizer_state(self) -> list[Tensor]:
        """The optimizer's tensors, of this device; none before its first step."""
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return [value for value in values if isinstance(value, Tensor)]


def make_step(
    routed: RoutedModel,
    train: TrainConfig,
    counts: Mapping[str, int],
    device: torch.device,
    world_size: int = 1,
    optimizer: torch.optim.Optimizer | None = None,
) -> JobStep:
    """The step that `train.loop.Trainer` takes with the model, which is on `device` already.

    Args:
        counts: rows of a micro-batch by label, over all devices.
        world_size: devices; where there are several, this is the first process of their group.
        optimizer: of the model, where it has one already.
    """
    token_losses = TokenLosses(routed)
    rows = None
    num_rows = sum(counts.values())
    if world_size > 1:
        rows = rows_of(0, world_size, num_rows)
        num_rows = rows.stop - rows.start
        layers = decoder_layers(routed.model, family_of(routed.model.config))
        # The mesh of devices is none of the fake tensors.
        with unset_fake_temporarily():
            shard(token_losses, layers, device, bfloat16=is_bfloat16(device, train.precision))
    routed.model.train()
    forward = training_forward(token_losses, train)
    if optimizer is None:
        optimizer = make_optimizer(routed.model, train)
    micro = train.micro_batch_sequences or train.batch_sequences
    shape_NS = (num_rows, train.sequence_length + 1)
    micro_batches = [
        torch.zeros(shape_NS, dtype=torch.long, device=device)
        for _ in range(train.batch_sequences // micro)
    ]

    def run() -> None:
        train_step(
            routed,
            forward,
            optimizer,
            micro_batches,
            counts,
            tokens_per_step=train.batch_sequences * train.sequence_length,
            config=train,
            rows=rows,
        )

    return JobStep(routed, token_losses, optimizer, run)


def _memory(
    routed: RoutedModel, config: RunConfig, counts: Mapping[str, int], target: Target
) -> tuple[int, int, int, int]:
    """Bytes of weights and of the optimizer's state, and the most that a training step and an
    evaluation hold beside them.

    Called under a FakeTensorMode, in which `routed` was made.
    """
    # Compiling takes minutes and changes little of what is held.
    train = replace(config.train, compile=False)
    if train.precision is Precision.auto:
        # As on the target: the fake tensors themselves are on the CPU.
        precision = Precision.bfloat16 if target.is_gpu else Precision.float32
        train = replace(train, precision=precision)
    if train.micro_batch_sequences is not None:
        # Gradients are there from the second micro-batch on; more of them hold no more.
        few = min(2, train.batch_sequences // train.micro_batch_sequences)
        train = replace(train, batch_sequences=few * train.micro_batch_sequences)
    with _pretended_devices(target):
        step = make_step(routed, train, counts, torch.device("cpu"), target.world_size)
        memory = AllocatedBytes(round_to=_CUDA_BLOCK if target.is_gpu else 1)
        memory.hold(step.weights())
        weights = memory.current
        _make_optimizer_state(step)
        memory.hold(step.optimizer_state())
        lasting = memory.current
        with memory:
            step.run()
            in_step = memory.peak - lasting
            memory.reset_peak()
            _evaluate(step, config, train.precision)
            in_evaluation = memory.peak - lasting
    more = target.workspace_bytes
    return weights, lasting - weights, in_step + more, in_evaluation + more


def _evaluate(step: JobStep, config: RunConfig, precision: Precision) -> None:
    """A batch of an evaluation while training, of windows as long as they can be.

    The views at the end keep what they share, two matrices [M, T, D] at most, but come when the
    optimizer is gone.
    """
    length = min(config.eval.document_tokens, config.train.sequence_length)
    num_windows = len(config.partition.domains) * math.ceil(config.eval.tokens / length)
    num_rows = min(config.eval.batch_sequences, num_windows)
    tokens_MT = torch.zeros(num_rows, length, dtype=torch.long)
    step.routed.model.eval()
    with torch.no_grad(), precision_context(tokens_MT.device, precision):
        step.token_losses(tokens_MT, tokens_MT)


def _make_optimizer_state(step: JobStep) -> None:
    """As the first step does, at the cost of no forward and backward pass."""
    for parameter in step.routed.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step.optimizer.step()
    step.optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _pretended_devices(target: Target) -> Iterator[None]:
    """Inside, this process is the first of the target's devices, as far as code asks for them."""
    with contextlib.ExitStack() as stack:
        if target.is_gpu:
            # The one size that is another on a GPU; the fake tensors say that they are on a CPU,
            # because torch without CUDA aborts on fake CUDA ones.
            on_gpu = functools.partial(_chunk_on_gpu, chunk_positions)
            stack.enter_context(mock.patch.object(loss, "chunk_positions", on_gpu))
        if target.world_size > 1:
            from torch.testing._internal.distributed.fake_pg import FakeStore

            torch.distributed.init_process_group(
                "fake", store=FakeStore(), rank=0, world_size=target.world_size
            )
            stack.callback(torch.distributed.destroy_process_group)
        yield


def _chunk_on_gpu(positions: Callable[[int, str], int], vocab_size: int, _: str) -> int:
    return positions(vocab_size, "cuda")


def what_would_help(estimate: Estimate, config: RunConfig, target: Target) -> str | None:
    """What to change where the job does not fit on the target; None where it does."""
    room = target.memory_bytes
    if room is None or estimate.peak_bytes <= room:
        return None
    train = config.train
    says = (
        f"{estimate.peak_bytes / GIB:.1f} GiB do not fit in the {room / GIB:.1f} of {target.name}"
    )
    # Gradients are as large as the weights.
    lasting = 2 * estimate.weight_bytes + estimate.optimizer_bytes
    if lasting > room:
        devices = math.ceil(lasting * target.world_size / room)
        return (
            f"{says}; weights, gradients and optimizer alone are {lasting / GIB:.1f} GiB: "
            f"spread them over more than {devices - 1} devices (--gpus)"
        )
    options = []
    if estimate.evaluation_bytes > estimate.step_bytes:
        windows = config.eval.batch_sequences
        return f"{says}, because of evaluation; try eval.batch_sequences below {windows}"
    if not train.activation_checkpointing:
        options.append("train.activation_checkpointing=true")
    rows = [count for count in micro_batch_rows(config).values() if count]
    micro = train.micro_batch_sequences or train.batch_sequences
    if min(rows) > 1 and micro > target.world_size:
        options.append(f"train.micro_batch_sequences below {micro}")
    options.append("more devices (--gpus)")
    return f"{says}; try {', '.join(options)}"


def after_out_of_memory(config: RunConfig, world_size: int) -> str:
    """What to change, for a job that ran out of memory on this machine, with what it needs.

    Args:
        config: the job's.
        world_size: processes that it ran in.
    """
    if torch.cuda.is_available() and config.train.device is not Device.cpu:
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        target = Target(gpu.name, 1e12, gpu.total_memory, True, world_size)
    else:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        target = Target("this machine", 1e12, total, False, world_size)
    assert target.memory_bytes is not None
    try:
        estimate = estimate_job(config, target)
    except GrSweepError as error:
        return f"what the job needs cannot be said ({error}); try fewer train.micro_batch_sequences"
    advice = what_would_help(estimate, config, target)
    if advice is not None:
        return advice
    smaller = replace(target, memory_bytes=0.99 * estimate.peak_bytes)
    options = what_would_help(estimate, config, smaller)
    assert options is not None
    return (
        f"by its estimate the job needs {estimate.peak_bytes / GIB:.1f} GiB of the "
        f"{target.memory_bytes / GIB:.1f} of {target.name}: something else may hold the rest; end "
        f"that, or {options.rpartition('; ')[2]}"
    )
