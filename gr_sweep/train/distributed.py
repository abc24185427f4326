"""The processes of one job: their positions, how they exchange values, and how they fail.

Processes are started by `torchrun` or are the tasks of a SLURM step; only this file reads their
environment variables. All values are exchanged through collectives of `torch.distributed`.
"""

import atexit
import contextlib
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from gr_sweep.config import Device
from gr_sweep.errors import ConfigError, GrSweepError, JobError, PlanError

if TYPE_CHECKING:
    # The command line asks for the rank before it needs torch.
    import torch
    from torch import Tensor

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others, at the start and in an exchange of tensors."""

MAIN_TIMEOUT = timedelta(hours=24)
"""How long a process waits for rank 0, which prepares the data for all."""

_PORTS = range(15_000, 30_000)
"""Below the ports that systems assign automatically."""


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a process among those of its job."""

    rank: int
    world_size: int
    local_rank: int
    """Rank among the processes of its node."""
    is_slurm: bool
    """Whether it is a task of a SLURM step rather than of torchrun."""
    url: str
    """Where the processes meet, the `init_method` of torch.distributed."""


def place(environment: Mapping[str, str] | None = None) -> Place | None:
    """Reads the position of this process from the environment; None for a process alone.

    The variables of torchrun take precedence, so that `srun torchrun` works. SLURM's count only
    inside a step, because a batch script that requests many tasks is itself one process.
    """
    env = os.environ if environment is None else environment
    is_slurm = not ("RANK" in env and "WORLD_SIZE" in env)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if is_slurm:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    rank, world_size, local_rank = (int(env.get(name) or 0) for name in names)
    if world_size < 2:
        return None
    url = _slurm_url(env) if is_slurm else "env://"
    return Place(rank, world_size, local_rank, is_slurm, url)


def _slurm_url(env: Mapping[str, str]) -> str:
    """That of a SLURM step's first process; MASTER_ADDR and MASTER_PORT override it."""
    host = "127.0.0.1"
    if env.get("SLURM_STEP_NUM_NODES", "1") != "1":
        # The first host: `gpu[03-05,9],cpu1` gives `gpu03`.
        first = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", env["SLURM_STEP_NODELIST"])
        assert first is not None  # every part may be empty
        host = "".join(part or "" for part in first.groups())
    # Steps of one job may run at the same time.
    number = int(env.get("SLURM_JOB_ID") or 0) + 7919 * int(env.get("SLURM_STEP_ID") or 0)
    port = env.get("MASTER_PORT") or _PORTS[number % len(_PORTS)]
    return f"tcp://{env.get('MASTER_ADDR') or host}:{port}"


def is_main() -> bool:
    """Whether this process prints, logs and writes for all."""
    here = place()
    return here is None or here.rank == 0


def rows_of(rank: int, world_size: int, num_rows: int, num_micro_batches: int) -> list[slice]:
    """Those of a step's rows that a process computes, for each micro-batch.

    Micro-batch k has the rows k, k + num_micro_batches, ...: rows are sorted by domain and by what
    is off, so micro-batches are alike. Of each, a process has a contiguous, equal share, which has
    the fewest row groups.

    Raises:
        ConfigError: the rows do not divide evenly over several processes.
    """
    if world_size > 1 and num_rows % (num_micro_batches * world_size):
        raise ConfigError(
            f"a micro-batch has {num_rows / num_micro_batches:g} sequences, which do not divide "
            f"over {world_size} processes; set train.micro_batch_sequences (or "
            f"train.batch_sequences) to a multiple of {world_size}, or start another number of "
            "processes"
        )
    found = []
    for first in range(min(num_micro_batches, num_rows)):
        rows = range(first, num_rows, num_micro_batches)
        own = rows[len(rows) * rank // world_size : len(rows) * (rank + 1) // world_size]
        found.append(slice(own.start, own.stop, own.step))
    return found


class Processes:
    """The processes of a job, as one of them sees them; by default there is only this one.

    Every method that exchanges values must be called by all processes, in the same order. A
    GrSweepError of work that they share is raised in all, which can go on with the next job. Any
    other error ends the exchange: the others get a JobError where they wait for this process.
    """

    def __init__(self, here: Place | None = None, group: Any = None) -> None:
        """`group`: that of `connect`, which exchanges Python objects."""
        self.rank = 0 if here is None else here.rank
        self.world_size = 1 if here is None else here.world_size
        self.is_main = self.rank == 0
        """Whether this process prints, logs and writes."""
        self.are_several = self.world_size > 1
        self._place = here
        self._group = group
        self._end = ""
        """Why no more values are exchanged; empty while they are."""

    def from_main(self, work: Callable[[], Value]) -> Value:
        """Calls `work` on rank 0 and returns its result, which must pickle, in every process."""
        if not self.are_several:
            return work()
        attempt = self._attempt(work) if self.is_main else (None, None)
        value, error = self.gather(attempt)[0]
        _raise_in_all([error])
        return cast(Value, value)

    def together(self, work: Callable[[], Value]) -> Value:
        """Calls `work` in every process and returns the process's own result; an error is that of
        the lowest rank that has one."""
        if not self.are_several:
            return work()
        value, error = self._attempt(work)
        _raise_in_all(self.gather(error))
        return cast(Value, value)

    def main_first(self, work: Callable[[], Value]) -> Value:
        """Calls `work` on rank 0 and then in the other processes, which find the files it left."""
        results: list[Value] = []
        self.from_main(lambda: results.append(work()))
        return self.together(lambda: results[0] if self.is_main else work())

    def turns(self, values: Iterable[Value], size: int) -> Iterator[tuple[int, list[Value], bool]]:
        """Divides values into batches of `size`, which the processes take in turn.

        Yields the number of the batch's first value, the batch, and whether it is this process's
        own. All get as many, because they compute together: where too few batches are left, the
        others get one again that is not theirs.
        """
        remaining, start = iter(values), 0
        while read := list(itertools.islice(remaining, size * self.world_size)):
            first = size * self.rank
            is_own = first < len(read)
            first = first if is_own else 0
            yield start + first, read[first : first + size], is_own
            start += len(read)

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, by rank, in every process; they must pickle."""
        if not self.are_several:
            return [value]
        if self._end:
            raise JobError(f"not run: in an earlier job, {self._end}")
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        with self._ending_exchange():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def sum_(self, tensor: "Tensor") -> "Tensor":
        """Sums a tensor over all processes, in place."""
        if self.are_several:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    @contextlib.contextmanager
    def joined(self, device: Device) -> "Iterator[torch.device]":
        """Gives the device of this process, for one job.

        Raises:
            PlanError: train.device=cuda where torch sees no GPU.
            JobError: fewer GPUs on a node than processes; another process failed or was lost.
        """
        import torch

        own = self.together(lambda: _device(device, self._place))
        if self.are_several and own.type == "cuda":
            torch.cuda.set_device(own)
        with self._ending_exchange():
            yield own

    def _attempt(self, work: Callable[[], Any]) -> tuple[Any, GrSweepError | None]:
        with self._ending_exchange():
            try:
                return work(), None
            except GrSweepError as error:
                if self._end:
                    raise
                return None, error

    @contextlib.contextmanager
    def _ending_exchange(self) -> Iterator[None]:
        """Ends all exchange after an error of this process alone: the others must not wait for it,
        or take its next exchange for this one.

        Raises:
            JobError: the error only shows that another process is gone.
        """
        try:
            yield
        except Exception as error:
            if not self.are_several or self._end or getattr(error, "is_shared", False):
                raise
            import torch
            import torch.distributed as dist

            name = f"process {self.rank} of {self.world_size}"
            self._end = f"{name} failed ({_first_line(error)})"
            # nccl would itself wait for the others.
            dist.destroy_process_group(self._group if torch.cuda.is_available() else None)
            is_lost = isinstance(error, RuntimeError) and "gloo" in str(error)
            if not is_lost and not isinstance(error, dist.DistError):
                raise
            self._end = f"{name} lost another one, which failed, was killed or hung; see its output"
            lost = JobError(self._end)
            lost.is_resumable = True
            raise lost from error


@functools.cache
def connect() -> Processes:
    """This process among the others of its command; they meet once, on the first call.

    Raises:
        JobError: the others cannot be found.
    """
    here = place()
    if here is None:
        return Processes()
    import torch
    import torch.distributed as dist

    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            init_method=here.url,
            rank=here.rank,
            world_size=here.world_size,
            timeout=TIMEOUT,
        )
        group = dist.new_group(backend="gloo", timeout=MAIN_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise JobError(
            f"process {here.rank} cannot find the others ({_first_line(error)}); start several "
            "processes with torchrun or srun"
        ) from error
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    return Processes(here, group)


def mesh_of(mesh: Any, world_size: int) -> tuple[int, int]:
    """Copies of the model, and processes that share each, by `train.mesh`.

    Raises:
        ConfigError: the mesh is one of another number of processes.
    """
    replicas, shards = (1, world_size) if mesh == "auto" else mesh
    if replicas * shards != world_size:
        raise ConfigError(
            f"train.mesh=[{replicas},{shards}] is for {replicas * shards} processes, and there "
            f"{'is' if world_size == 1 else 'are'} {world_size}; use train.mesh=auto"
        )
    return replicas, shards


def _device(device: Device, here: Place | None) -> "torch.device":
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is Device.cuda and num_gpus == 0:
        raise PlanError("train.device=cuda, but torch sees no GPU; use train.device=auto")
    if device is Device.cpu or num_gpus == 0:
        return torch.device("cpu")
    if here is None:
        return torch.device("cuda")
    # SLURM may show each task only its own GPU, which then has index 0.
    index = 0 if here.is_slurm and num_gpus == 1 else here.local_rank
    if index >= num_gpus:
        raise JobError(
            f"process {here.local_rank} of this node has no GPU: torch sees {num_gpus}; "
            "start as many processes per node as it has GPUs, or use train.device=cpu"
        )
    return torch.device("cuda", index)


def _raise_in_all(errors: Iterable[GrSweepError | None]) -> None:
    for error in errors:
        if error is not None:
            error.is_shared = True
            raise error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
