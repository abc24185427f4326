"""What a job asks of a cluster, from what it needs (`launch.estimate`).

An estimate of seconds or bytes is no promise: there is room on top, and what is given counts more.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from gr_sweep.config import Device, ProcedureKind, RunConfig
from gr_sweep.data.rows import micro_batch_rows
from gr_sweep.errors import ConfigError, GrSweepError
from gr_sweep.metrics.cost import GPUS
from gr_sweep.train.distributed import rows_of

if TYPE_CHECKING:
    from gr_sweep.launch.estimate import Estimate

UTILISATION = 0.4
"""Share of a GPU's bfloat16 peak that training gets done."""

MEMORY_SHARE = 0.9
"""Of a GPU's memory: the rest is for what an estimate cannot know (fragments, the context)."""

_HOURS_FACTOR = 2.0
_MORE_MIN = 60
"""For data, evaluation and start."""

_MOST_MIN = 24 * 60
"""What most clusters give: a job that needs longer goes on after its limit. Also that of a job on
CPUs, whose speed nobody has measured."""

_NODE_GB = 8
"""Main memory for Python and its libraries, data and files."""

_CPUS = 4

_MOST_GPUS = 256
"""Of one job, unless more are given."""


@dataclass(frozen=True)
class Resources:
    """Of one job."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    mem_gb: int
    """Main memory of a node."""
    timeout_min: int


class Given(Protocol):
    """What the user has said; null follows from the job."""

    gpu: str | None
    gres: str | None
    nodes: int | None
    gpus_per_node: int | None
    max_gpus_per_node: int
    tasks_per_node: int | None
    cpus_per_task: int | None
    mem_gb: int | None
    timeout_min: int | None
    signal_delay_s: int


def check_given(given: Given) -> None:
    """
    Raises:
        ConfigError: a number that is too small, numbers that contradict each other, or a GPU that
            is unknown.
    """
    for name in (
        "nodes", "max_gpus_per_node", "tasks_per_node", "cpus_per_task", "mem_gb", "timeout_min",
    ):  # fmt: skip
        value = getattr(given, name)
        if value is not None and value < 1:
            raise ConfigError(f"hydra.launcher.{name}={value} is too few; give 1 or more, or null")
    if given.gpus_per_node is not None and given.gpus_per_node < 0:
        raise ConfigError(
            f"hydra.launcher.gpus_per_node={given.gpus_per_node} is below 0; give 0 for CPUs"
        )
    if given.tasks_per_node is not None and given.gpus_per_node not in (
        None, 0, given.tasks_per_node,
    ):  # fmt: skip
        raise ConfigError(
            f"hydra.launcher.tasks_per_node={given.tasks_per_node} and gpus_per_node="
            f"{given.gpus_per_node} differ; a job has a process for each GPU: give one of them"
        )
    if given.timeout_min is not None and given.timeout_min * 60 <= given.signal_delay_s:
        raise ConfigError(
            f"hydra.launcher.timeout_min={given.timeout_min} is over when a job is told to save, "
            f"{given.signal_delay_s} s before its end; give more, or a smaller "
            "hydra.launcher.signal_delay_s"
        )
    if given.gpu is not None and given.gpu not in GPUS:
        raise ConfigError(
            f"hydra.launcher.gpu={given.gpu} is not known; allowed: {', '.join(GPUS)}, or null for "
            "CPUs"
        )


def resources_of(config: RunConfig, given: Given) -> Resources:
    """What a job asks for: as few GPUs as hold it, a node's worth at most a node.

    Raises:
        ConfigError: no number of GPUs holds it, or rows that do not divide over the processes.
    """
    uses_gpu = given.gpu is not None and config.train.device is not Device.cpu
    if given.gpus_per_node == 0 and given.gres is None:
        uses_gpu = False
    if not uses_gpu:
        nodes, tasks = given.nodes or 1, given.tasks_per_node or 1
        _check_rows(config, nodes * tasks)
        gigabytes = _NODE_GB + tasks * _estimate_gb(config, nodes * tasks)
        return Resources(
            nodes,
            tasks,
            0,
            given.cpus_per_task or _CPUS,
            given.mem_gb or gigabytes,
            given.timeout_min or _default_minutes(_MOST_MIN, given),
        )
    world_size, estimate = _smallest(config, given)
    fewest = math.ceil(world_size / (_named(given) or given.max_gpus_per_node))
    # As many on each.
    nodes = given.nodes or next(n for n in range(fewest, world_size + 1) if world_size % n == 0)
    per_node = world_size // nodes
    # Each process builds the whole model in float32 in main memory before it keeps its part.
    model_gb = 0 if estimate is None else 4 * estimate.parameters / 1e9
    minutes = _MOST_MIN
    if estimate is not None:
        minutes = math.ceil(60 * _HOURS_FACTOR * estimate.hours) + _MORE_MIN
    return Resources(
        nodes,
        per_node,
        per_node if given.gres is None or given.gpus_per_node else 0,
        given.cpus_per_task or _CPUS,
        given.mem_gb or _NODE_GB + math.ceil(1.25 * model_gb * per_node),
        given.timeout_min or _default_minutes(minutes, given),
    )


def _default_minutes(minutes: int, given: Given) -> int:
    """At most a day, and never so few that a job is told to save as soon as it begins."""
    return max(min(minutes, _MOST_MIN), math.ceil(given.signal_delay_s / 60) + _MORE_MIN)


def _named(given: Given) -> int | None:
    """GPUs of a node, where the user says so."""
    return given.tasks_per_node or given.gpus_per_node or None


def _smallest(config: RunConfig, given: Given) -> "tuple[int, Estimate | None]":
    """GPUs of the job, and what it needs on each; None where nothing here knows the model."""
    from gr_sweep.launch.estimate import Target, estimate_job, what_would_help

    assert given.gpu is not None
    named, nodes = _named(given), given.nodes or 1
    if named is not None:
        sizes = [nodes * named]
    else:
        most = _MOST_GPUS if given.nodes is None else nodes * given.max_gpus_per_node
        sizes = [
            size
            for size in (nodes * 2**power for power in range(_MOST_GPUS.bit_length()))
            if size <= most and _divides(config, size)
        ] or [nodes]
    _check_rows(config, sizes[0])
    target = Target.gpu(given.gpu, utilisation=UTILISATION)
    estimate = None
    for size in sizes:
        target = replace(target, world_size=size)
        try:
            estimate = estimate_job(config, target)
        except GrSweepError:
            # A checkpoint or a tokenizer that is not on this machine: one GPU, or what was given.
            return sizes[0], None
        assert target.memory_bytes is not None
        if estimate.peak_bytes <= MEMORY_SHARE * target.memory_bytes:
            return size, estimate
    assert estimate is not None
    room = replace(target, memory_bytes=MEMORY_SHARE * (target.memory_bytes or 0))
    where = f"the {sizes[0]} {given.gpu} that were given"
    if len(sizes) > 1:
        where = f"any number of {given.gpu} up to {sizes[-1]} that its micro-batch divides over"
    raise ConfigError(
        f"a job does not fit on {where} (hydra.launcher.gpu, .gpus_per_node, .nodes): "
        f"{what_would_help(estimate, config, room)}"
    )


def _divides(config: RunConfig, world_size: int) -> bool:
    if world_size > 1 and config.procedure.name is ProcedureKind.alternate:
        return False
    try:
        _check_rows(config, world_size)
    except ConfigError:
        return False
    return True


def _check_rows(config: RunConfig, world_size: int) -> None:
    rows_of(0, world_size, sum(micro_batch_rows(config).values()))


def _estimate_gb(config: RunConfig, world_size: int) -> int:
    """Of a process on a CPU, rounded up."""
    from gr_sweep.launch.estimate import GIB, Target, estimate_job

    target = Target("cpu", 1e12, None, False, world_size)
    try:
        return math.ceil(1.25 * estimate_job(config, target).peak_bytes / GIB)
    except GrSweepError:
        return _NODE_GB
