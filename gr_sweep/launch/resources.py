"""What a job requests from SLURM: what the user sets, and otherwise what its estimate needs.

An estimate of hours or bytes is not a promise, so requests are larger.
"""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gr_sweep.bounds import bounded
from gr_sweep.checks import check_values
from gr_sweep.config import Device, RunConfig, num_micro_batches
from gr_sweep.data.rows import step_rows
from gr_sweep.errors import ConfigError, GrSweepError
from gr_sweep.metrics.cost import GPUS
from gr_sweep.train.distributed import mesh_of, rows_of

if TYPE_CHECKING:
    from gr_sweep.launch.estimate import Estimate

UTILISATION = 0.4
"""Fraction of a GPU's bfloat16 peak that training reaches."""

MEMORY_FRACTION = 0.9
"""Of a GPU's memory: the rest is for fragmentation and the CUDA context."""

_HOURS_FACTOR = 2.0
_EXTRA_MIN = 60
"""For the start, data and evaluation."""
_MAX_MIN = 24 * 60
"""Default limit of most clusters, after which a longer job resumes. Also of jobs on CPUs, whose
speed is not estimated."""
_NODE_GB = 8
"""Main memory for Python with its libraries, data and files; also of a process without a GPU."""
_CPUS = 4
_MAX_GPUS = 256
"""Of one job, unless the user sets more."""


@dataclass
class SlurmConfig:
    """`hydra/launcher=slurm`. What is null follows from the job's needs (`gr-sweep estimate`)."""

    _target_: str = "gr_sweep.cli.run.SlurmLauncher"
    """Marker by which the launcher is recognised; Hydra never instantiates it."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    """As sbatch takes it, instead of a number of GPUs; give tasks_per_node too."""
    gpu: str | None = "h100"
    """The cluster's GPU type, for the estimate (`gr-sweep estimate --help` lists them); null: jobs
    run on CPUs."""
    nodes: int | None = bounded(None, at_least=1)
    gpus_per_node: int | None = bounded(None, at_least=0)
    """Also the number of tasks: one per GPU."""
    max_gpus_per_node: int = bounded(8, at_least=1)
    """A job that needs more GPUs runs on several nodes."""
    tasks_per_node: int | None = bounded(None, at_least=1)
    cpus_per_task: int | None = bounded(None, at_least=1)
    mem_gb: int | None = bounded(None, at_least=1)
    """Main memory of a node, GB."""
    timeout_min: int | None = bounded(None, at_least=1)
    """Time limit; a job that reaches it is requeued and resumes."""
    signal_delay_s: int = bounded(300, at_least=1)
    """Seconds before the time limit at which a job is told to save and stop."""
    array_parallelism: int = bounded(256, at_least=1)
    """Jobs of an array that run at the same time."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the job, such as `module load cuda`."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Any other option of sbatch, such as {reservation: friday, exclude: node7}."""
    submitit_folder: str = "${hydra.sweep.dir}/.submitit"
    """Scripts, pickles and output of the jobs. Without submitit's %j: SLURM may start a job before
    a folder with its number is made."""


@dataclass(frozen=True)
class Resources:
    """What one job requests."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    mem_gb: int
    """Main memory of a node."""
    timeout_min: int


def check_given(given: SlurmConfig) -> None:
    """Checks the resources that the user sets; raises ConfigError."""
    check_values(given, "hydra.launcher")
    gpus, tasks = given.gpus_per_node, given.tasks_per_node
    if tasks is not None and gpus and gpus != tasks:
        raise ConfigError(
            f"hydra.launcher.tasks_per_node={tasks} and gpus_per_node={gpus} differ, but a job has "
            "one process per GPU; set one of them"
        )
    if given.timeout_min is not None and given.timeout_min * 60 <= given.signal_delay_s:
        raise ConfigError(
            f"hydra.launcher.timeout_min={given.timeout_min}: expected more than "
            f"hydra.launcher.signal_delay_s={given.signal_delay_s}, or jobs are told to save as "
            "soon as they start"
        )
    if given.gpu is not None and given.gpu not in GPUS:
        raise ConfigError(
            f"hydra.launcher.gpu={given.gpu}: expected one of {', '.join(GPUS)}, or null for CPUs"
        )


def resources_of(config: RunConfig, given: SlurmConfig) -> Resources:
    """What a job requests: the fewest GPUs that hold it, and time for its estimated hours.

    Raises:
        ConfigError: no number of GPUs holds the job, or its rows do not divide over the processes.
    """
    minutes = _MAX_MIN
    if given.gpu is None or given.gpus_per_node == 0 or config.train.device is Device.cpu:
        nodes, tasks, gpus = given.nodes or 1, given.tasks_per_node or 1, 0
        memory_gb = _NODE_GB * tasks
    else:
        world_size, estimate = _fewest_gpus(config, given)
        most = given.tasks_per_node or given.gpus_per_node or given.max_gpus_per_node
        fewest = math.ceil(world_size / most)
        # The same number of GPUs on each node.
        nodes = given.nodes or next(n for n in range(fewest, world_size + 1) if world_size % n == 0)
        tasks = world_size // nodes
        gpus = tasks if given.gres is None else 0
        memory_gb = _NODE_GB
        if estimate is not None:
            memory_gb += math.ceil(1.25 * estimate.host_bytes / 1e9 * tasks)
            minutes = min(math.ceil(60 * _HOURS_FACTOR * estimate.hours) + _EXTRA_MIN, _MAX_MIN)
    num_rows = sum(step_rows(config).values())
    mesh_of(config.train.mesh, nodes * tasks)
    rows_of(0, nodes * tasks, num_rows, num_micro_batches(config.train))
    # Long enough to do something before the job is told to save.
    minutes = max(minutes, math.ceil(given.signal_delay_s / 60) + _EXTRA_MIN)
    return Resources(
        nodes,
        tasks,
        gpus,
        given.cpus_per_task or _CPUS,
        given.mem_gb or memory_gb,
        given.timeout_min or minutes,
    )


def _fewest_gpus(config: RunConfig, given: SlurmConfig) -> "tuple[int, Estimate | None]":
    """Number of GPUs, and the estimate for each; None if the model is not on this machine."""
    from gr_sweep.launch.estimate import Target, estimate_job, what_would_help

    assert given.gpu is not None
    per_node, nodes = given.tasks_per_node or given.gpus_per_node, given.nodes or 1
    rows, num_micro = sum(step_rows(config).values()), num_micro_batches(config.train)
    most = _MAX_GPUS if given.nodes is None else nodes * given.max_gpus_per_node
    sizes = [nodes * 2**power for power in range(_MAX_GPUS.bit_length())]
    sizes = [size for size in sizes if size <= most and rows % (num_micro * size) == 0] or [nodes]
    if per_node is not None:
        sizes = [nodes * per_node]
    elif config.train.mesh != "auto":
        sizes = [math.prod(config.train.mesh)]
    target = Target.gpu(given.gpu, utilisation=UTILISATION)
    room = MEMORY_FRACTION * (target.memory_bytes or 0)
    for size in sizes:
        try:
            estimate = estimate_job(config, replace(target, world_size=size))
        except GrSweepError:
            return sizes[0], None  # a checkpoint or a tokenizer that is still to be downloaded
        if estimate.peak_bytes <= room:
            return size, estimate
    help_ = what_would_help(estimate, config, replace(target, world_size=size, memory_bytes=room))
    raise ConfigError(
        f"a job does not fit on {' or '.join(map(str, sizes))} {given.gpu} (hydra.launcher.gpu, "
        f".gpus_per_node, .nodes; the number has to divide its micro-batch): {help_}"
    )
