"""What a job needs, before it runs: parameters, operations, memory per device, hours.

Memory is not a formula: the job's own training step runs on fake tensors, which have shapes and no
data (`torch._subclasses.fake_tensor`), and its allocations are counted. Over several devices the
model is sharded as in a real run, in a fake process group. Nothing is downloaded,
tokenised or written.
"""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gr_sweep.components import lay_plan, named_config
from gr_sweep.config import (
    PlanConfig,
    PlanKind,
    Precision,
    RunConfig,
    num_micro_batches,
    num_steps,
    to_plain,
)
from gr_sweep.data.rows import step_rows
from gr_sweep.data.tokenize import load_tokenizer
from gr_sweep.errors import PlanError
from gr_sweep.metrics.cost import GPUS
from gr_sweep.model.route import RoutedModel
from gr_sweep.model.sizes import random_model
from gr_sweep.model.units import keep_bfloat16
from gr_sweep.planning import Phase, makes_plan_in_training, phases_of
from gr_sweep.routing.experts import plain_experts
from gr_sweep.routing.kinds import EXPERT, units_per_layer
from gr_sweep.train.cost import (
    active_parameters,
    forward_flops_per_token,
    kept_parameters,
    num_parameters,
    recomputed_flops_per_token,
    train_flops_per_token,
)
from gr_sweep.train.distributed import mesh_of, rows_of
from gr_sweep.train.memory import AllocatedBytes
from gr_sweep.train.step import JobStep, is_bfloat16, precision_context

GIB = 2**30

_PROCESS_BYTES = 600 << 20
"""Resident memory of a job's process without its model, measured on a CPU; CUDA needs more."""


@dataclass(frozen=True)
class Target:
    """The devices of a job."""

    name: str
    flops: float
    """Operations per second that one device reaches in training."""
    memory_bytes: float | None
    """Of one device; None if it is unknown."""
    is_gpu: bool
    world_size: int = 1
    """Number of devices."""
    workspace_bytes: int = 0
    """Memory that libraries take on a device in addition to tensors."""

    @classmethod
    def gpu(cls, name: str, *, utilisation: float, world_size: int = 1) -> "Target":
        """A GPU of `metrics.cost.GPUS` at a fraction of its bfloat16 peak."""
        gpu = GPUS[name]
        flops = utilisation * gpu.flops
        return cls(name, flops, gpu.memory_bytes, True, world_size, gpu.workspace_bytes)


@dataclass(frozen=True)
class Estimate:
    """What one job needs; bytes are those of one device."""

    parameters: int
    dense_parameters: int
    """Those that the plan does not add, of which `train.tokens=20x` is a multiple."""
    active_parameters: float
    """Parameters that are active for a training sequence, on average."""
    kept_parameters: dict[str, int]
    """Parameters of each domain's extracted model; empty for a dense job."""
    steps: int
    tokens: int
    """Training tokens of the whole run."""
    flops: float
    """Operations of training with routing, without the optimizer's and without recomputation."""
    dense_flops: float
    """Operations of the same training without routing and adapters."""
    recomputed_flops: float
    """Operations that activation checkpointing repeats."""
    weight_bytes: int
    optimizer_bytes: int
    step_bytes: int
    """Peak of a training step in addition to weights and optimizer: gradients, activations,
    gathered layers and temporaries."""
    evaluation_bytes: int
    """Peak of an evaluation in addition to them."""
    host_bytes: int
    """Peak main memory of each process, with Python and libraries: while it loads the model, and on
    a CPU afterwards. Without data and files."""
    hours: float
    """Training on the target with recomputation, without evaluation and data."""

    @property
    def step_peak_bytes(self) -> int:
        """Peak memory of tensors on one device in a training step."""
        return self.weight_bytes + self.optimizer_bytes + self.step_bytes

    @property
    def peak_bytes(self) -> int:
        """Peak memory of tensors on one device in the run."""
        lasting = self.weight_bytes + self.optimizer_bytes
        return lasting + max(self.step_bytes, self.evaluation_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return dataclasses.asdict(self) | {"peak_bytes": self.peak_bytes}


_known: dict[Any, Any] = {}
"""What a sweep's jobs share: estimates and parameters by their settings."""


def dense_parameters(config: RunConfig) -> int:
    """Parameters of the job's model without what its plan adds: adapters and wider MLPs. Equal for
    all methods, so that jobs of `train.tokens=20x` read equally much text. Of a tokenizer that is
    trained, `data.vocab_size` tokens count; little text gives it fewer.

    Raises:
        GrSweepError: a tokenizer or checkpoint is not on this machine.
    """
    key = json.dumps(to_plain([config.model, config.data.tokenizer, config.data.vocab_size]))
    if key not in _known:
        model_config = _model_config(replace(config, plan=PlanConfig(kind=PlanKind.none)))
        with torch.device("meta"):  # tensors without data
            model = random_model(model_config, seed=0)
        _known[key] = sum(parameter.numel() for parameter in model.parameters())
    return int(_known[key])


def with_tokens(config: RunConfig) -> RunConfig:
    """The config with a number in place of `train.tokens=20x`, or of digits that an interpolation
    gives as text; raises as `dense_parameters`."""
    said = config.train.tokens
    if not isinstance(said, str):
        return config
    tokens = round(float(said.strip("x")) * (dense_parameters(config) if "x" in said else 1))
    return replace(config, train=replace(config.train, tokens=max(1, tokens)))


def estimate_job(config: RunConfig, target: Target) -> Estimate:
    """Estimates what the job needs on the target; jobs of other seeds or rates are estimated once.

    Args:
        config: validated and resolved, as for a run.
        target: the devices.

    Raises:
        GrSweepError: the job cannot run there, or a tokenizer or checkpoint is not on this machine.
    """
    plain = to_plain(replace(config, seed=0, train=replace(config.train, lr=1.0)))
    key = json.dumps(plain), target
    if key not in _known:
        model_config = _model_config(config)
        phases = phases_of(config)
        if makes_plan_in_training(config):  # as one dense phase
            phases = [Phase(1, True, 0, num_steps(config.train))]
        found = [_of_phase(config, target, model_config, phase) for phase in phases]
        _known[key] = functools.reduce(_both, found)
    known: Estimate = _known[key]
    return known


def _both(first: Estimate, second: Estimate) -> Estimate:
    """Of two phases: the sum of what is trained, and the larger of what is held."""
    values = {}
    for name in ("steps", "tokens", "flops", "dense_flops", "recomputed_flops", "hours"):
        values[name] = getattr(first, name) + getattr(second, name)
    for name in ("weight", "optimizer", "step", "evaluation", "host"):
        values[f"{name}_bytes"] = max(getattr(of, f"{name}_bytes") for of in (first, second))
    active = sum(of.active_parameters * of.steps for of in (first, second))
    return replace(first, active_parameters=active / values["steps"], **values)


def _of_phase(config: RunConfig, target: Target, model_config: Any, phase: Phase) -> Estimate:
    counts = step_rows(config, only=phase.labels)
    train, steps = config.train, phase.stop - phase.start
    dtype = None if config.model.path is None else model_config.dtype
    with FakeTensorMode():
        routed = lay_plan(random_model(model_config, seed=0), config, phase)
        length = train.sequence_length
        tokens = steps * sum(counts.values()) * length
        flops = train_flops_per_token(routed, counts, length)
        dense = 3 * forward_flops_per_token(routed, length, with_adapters=False)
        groups = [group for of_step in routed.cycle(counts) for group in of_step]
        active, whole = active_parameters(routed, groups), num_parameters(routed)
        kept = kept_parameters(routed)
        recomputed = 0.0
        if train.activation_checkpointing:
            recomputed = recomputed_flops_per_token(routed, groups, length)
        # One process holds the whole float32 model until it is on its device; each of several holds
        # its part and one parameter, except of a GGUF file and of mixtures of experts.
        loading = 4 * whole
        is_in_parts = config.model.gguf_file is None and EXPERT not in units_per_layer(model_config)
        if target.world_size > 1 and is_in_parts:
            loading = 4 * max(parameter.numel() for parameter in routed.model.parameters())
        weights, optimizer, step, evaluation = _memory(routed, config, counts, target, dtype)
    host = loading
    if not target.is_gpu:
        added = weights if target.world_size > 1 else 0
        host = max(loading + added, weights + optimizer + max(step, evaluation))
    return Estimate(
        parameters=whole,
        dense_parameters=dense_parameters(config),
        active_parameters=active,
        kept_parameters=kept,
        steps=steps,
        tokens=tokens,
        flops=tokens * flops,
        dense_flops=tokens * dense,
        recomputed_flops=tokens * recomputed,
        weight_bytes=weights,
        optimizer_bytes=optimizer,
        step_bytes=step,
        evaluation_bytes=evaluation,
        host_bytes=_PROCESS_BYTES + host,
        hours=tokens * (flops + recomputed) / (target.flops * target.world_size) / 3600,
    )


def _model_config(config: RunConfig) -> Any:
    """The Hugging Face config of the job's model, from files of this machine only."""
    if config.model.path is None:
        vocab_size, name = config.data.vocab_size, config.data.tokenizer
        if name is not None:
            vocab_size = load_tokenizer(name, may_download=False).vocab_size
        return named_config(config, vocab_size=vocab_size, eot_id=0)
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path, gguf_file = config.model.path, config.model.gguf_file
    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    try:
        found: Any = AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, ImportError, KeyError, TypeError, StrictDataclassError) as error:
        raise PlanError(
            f"model.path={path}: its config.json is not on this machine or cannot be read; "
            f"fetch it first (hf download {path} config.json)"
        ) from error
    if getattr(found, "num_experts", None):
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register("gr_sweep", plain_experts)
        found._experts_implementation = "gr_sweep"
    return found


def _memory(
    routed: RoutedModel,
    config: RunConfig,
    counts: Mapping[str, int],
    target: Target,
    dtype: torch.dtype | None,
) -> tuple[int, int, int, int]:
    """Bytes of the weights, of the optimizer's state, and the peaks of a training step and of an
    evaluation in addition to them.

    Called in the FakeTensorMode in which `routed` was made. `dtype` is that of its checkpoint.
    """
    # Compiling takes minutes and changes little.
    # The target's precision: the fake tensors themselves are on the CPU.
    bfloat16 = is_bfloat16(torch.device("cuda" if target.is_gpu else "cpu"), config.train.precision)
    precision = Precision.bfloat16 if bfloat16 else Precision.float32
    train = replace(config.train, compile=False, precision=precision)
    if bfloat16 and dtype is torch.bfloat16:
        keep_bfloat16(routed.model, lambda name: True)
    # The largest micro-batch of a step, twice: from the second one on there are gradients.
    world_size, num_rows = target.world_size, sum(counts.values())
    mesh_of(train.mesh, world_size)
    parts = rows_of(0, world_size, num_rows, num_micro_batches(train))
    groups = [routed.row_groups(counts, step=0, rows=part) for part in parts]
    sizes = [active_parameters(routed, found) for found in groups]
    parts = [parts[sizes.index(max(sizes))]] * min(2, len(parts))
    with _fake_process_group(target.world_size):
        step = JobStep(
            routed,
            train,
            counts,
            torch.device("cpu"),
            target.world_size,
            rows=parts,
            # torch without CUDA aborts on fake CUDA tensors.
            device_type="cuda" if target.is_gpu else None,
        )
        memory = AllocatedBytes()
        memory.hold(step.weights())
        weights = memory.current
        # The first step makes it; here without a forward and backward pass.
        for parameter in routed.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        step.optimizer.step()
        step.optimizer.zero_grad(set_to_none=True)
        memory.hold(step.optimizer_state())
        lasting = memory.current
        with memory:
            step.run()
            in_step = memory.peak - lasting
            memory.peak = memory.current
            # A batch of an evaluation during training, of windows as long as they can be. The views
            # at the end hold two matrices [M, T, D] more, but no state of the optimizer.
            length = min(config.eval.document_tokens, train.sequence_length)
            num_windows = len(config.partition.domains) * math.ceil(config.eval.tokens / length)
            num_rows = min(config.eval.batch_sequences, num_windows)
            tokens_MT = torch.zeros(num_rows, length, dtype=torch.long)
            step.routed.model.eval()
            with torch.no_grad(), precision_context(tokens_MT.device, train.precision):
                step.token_losses(tokens_MT, tokens_MT)
            in_evaluation = memory.peak - lasting
    more = target.workspace_bytes
    return weights, lasting - weights, in_step + more, in_evaluation + more


@contextlib.contextmanager
def _fake_process_group(world_size: int) -> Iterator[None]:
    """Inside, this process is the first of several that do not exist."""
    if world_size == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def what_would_help(estimate: Estimate, config: RunConfig, target: Target) -> str | None:
    """What to change if the job does not fit on the target; None if it does."""
    room, train = target.memory_bytes, config.train
    if room is None or estimate.peak_bytes <= room:
        return None
    if estimate.evaluation_bytes > estimate.step_bytes:
        ways = [f"eval.batch_sequences below {config.eval.batch_sequences}"]
    else:
        micro = train.micro_batch_sequences or train.batch_sequences
        ways = [f"train.micro_batch_sequences below {micro}", "more devices (--gpus)"]
        if not train.activation_checkpointing:
            ways.insert(0, "train.activation_checkpointing=true")
    return (
        f"{estimate.peak_bytes / GIB:.1f} GiB do not fit in the {room / GIB:.1f} of {target.name}; "
        f"try {', '.join(ways)}"
    )
