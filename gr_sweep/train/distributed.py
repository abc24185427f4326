"""Several processes of one job: who they are, how they start, share, agree and end.

The only file that reads the environment for this. Processes come from `torchrun` or are the tasks
of a SLURM step; without either there is one, and nothing here does anything. Which rows a process
takes, and how a model is spread over all, is said here too. Knows nothing of Hydra, files or data.
"""

import atexit
import contextlib
import functools
import os
import pickle
import re
import socket
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from gr_sweep.config import Device
from gr_sweep.errors import ConfigError, GrSweepError, JobError, LostError, PlanError

if TYPE_CHECKING:
    # Imported where it is used: the command line asks who it is before it needs torch.
    import torch
    from torch import Tensor, nn
    from torch.distributed import Store  # type: ignore[attr-defined]

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others, where all are at work, before it gives them up."""

START_TIMEOUT = timedelta(minutes=5)
"""How long a process waits for the first one to be there."""

_LEAVE_S = 10.0
_LEAVE_FAILED_S = 2.0
_POLL_S = 0.05
_PORTS = range(15_000, 30_000)
"""Below those that systems hand out by themselves."""
_FAILURE = "failure"
"""Where the first process that fails says so."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands among those that run a job together."""

    rank: int
    world_size: int
    local_rank: int
    """Among the processes of its node."""
    is_slurm: bool
    """A task of a SLURM step, not of torchrun."""
    url: str
    """Where all of them meet, as `torch.distributed.rendezvous` takes it."""


def place(environment: Mapping[str, str] | None = None) -> Place | None:
    """What the environment says; None for a process alone.

    torchrun's variables come first, so that `srun torchrun` works; of SLURM's those of a step
    count, because a batch script that asks for many tasks is one process itself.

    Raises:
        JobError: variables that are incomplete or no numbers.
    """
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, world_size = _number(env, "RANK"), _number(env, "WORLD_SIZE")
        if world_size == 1:
            return None
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not env.get(name):
                raise JobError(
                    f"RANK and WORLD_SIZE are set, but not {name}; start several processes with "
                    "torchrun or srun, or unset these variables"
                )
        return Place(rank, world_size, _number(env, "LOCAL_RANK", 0), False, "env://")
    if "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        rank, world_size = _number(env, "SLURM_PROCID"), _number(env, "SLURM_STEP_NUM_TASKS")
        if world_size == 1:
            return None
        host, port = _meeting_point(env)
        url = f"tcp://{host}:{port}?rank={rank}&world_size={world_size}"
        return Place(rank, world_size, _number(env, "SLURM_LOCALID", 0), True, url)
    return None


def is_main() -> bool:
    """Whether this process speaks for all: it prints, logs and writes.

    In an environment that makes no sense it does: somebody has to say so.
    """
    try:
        here = place()
    except JobError:
        return True
    return here is None or here.rank == 0


def rows_of(rank: int, world_size: int, num_rows: int) -> slice:
    """The rows of a micro-batch that a process takes: one contiguous part, as large as any other's.

    Rows are sorted by domain, so a contiguous part has the fewest row groups.

    Raises:
        ConfigError: rows that do not divide.
    """
    if num_rows % world_size:
        raise ConfigError(
            f"a micro-batch has {num_rows} sequences, which do not divide over {world_size} "
            f"processes; set train.micro_batch_sequences (or train.batch_sequences) to a multiple "
            f"of {world_size}, or start another number of processes"
        )
    each = num_rows // world_size
    return slice(rank * each, (rank + 1) * each)


class Processes:
    """The processes that run a job together, as one of them sees them; by default it is alone.

    Every method that talks to the others must be called by all of them, in the same order.
    """

    def __init__(self, here: Place | None = None, store: "Store | None" = None) -> None:
        self.rank = 0 if here is None else here.rank
        self.world_size = 1 if here is None else here.world_size
        self._place = here
        self._store = store
        self._num_answers = self._num_verdicts = self._num_groups = 0
        self._failure: str | None = None
        # Not the error itself, whose frames hold a job's model.
        self._last_of_all: Callable[[], GrSweepError | None] = lambda: None

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints, logs and writes."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1

    def rows(self, num_rows: int) -> slice:
        """Those of `num_rows` rows that this process takes. Raises as `rows_of`."""
        return rows_of(self.rank, self.world_size, num_rows)

    def from_main(self, work: Callable[[], Value]) -> Value:
        """What `work` returns, or the GrSweepError that it raises, on the main process.

        The others wait for it as long as it takes; it must pickle.
        """
        if self._store is None:
            return work()
        self._check_whole()
        self._num_answers += 1
        key = f"main/{self._num_answers}"
        if self.is_main:
            try:
                answer: tuple[Any, GrSweepError | None] = work(), None
            except GrSweepError as raised:
                answer = None, raised
            except Exception as raised:
                self._answer(key, None, JobError(f"the main process failed ({_said(raised)})"))
                raise
            self._answer(key, *answer)
        else:
            answer = self._read(key, 0)
        value, error_of_main = answer
        if error_of_main is not None:
            self._last_of_all = weakref.ref(error_of_main)
            raise error_of_main
        return value

    def together(self, work: Callable[[], Value]) -> Value:
        """What `work` returns in this process.

        A GrSweepError that it raises in one or more is raised in all: that of the lowest rank. So
        what hangs on a process's own device or files fails everywhere or nowhere.
        """
        if self._store is None:
            return work()
        self._check_whole()
        self._num_verdicts += 1
        key = f"verdict/{self._num_verdicts}"
        results: list[Value] = []
        own: GrSweepError | None = None
        try:
            results.append(work())
        except GrSweepError as raised:
            if self._failure is not None:
                raise  # nobody is there to compare with
            own = raised
        except Exception as raised:
            self._write(f"{key}/{self.rank}", JobError(f"{self._name} ({_said(raised)})"))
            raise
        self._write(f"{key}/{self.rank}", own)
        try:
            self.from_main(functools.partial(self._check_verdicts, key))
        except GrSweepError as of_all:
            raise of_all from own
        return results[0]

    def _check_verdicts(self, key: str) -> None:
        for rank in range(self.world_size):
            error = self._read(f"{key}/{rank}", rank, TIMEOUT)
            if error is not None:
                raise error

    def _answer(self, key: str, value: Any, error: GrSweepError | None) -> None:
        self._write(key, (value, error))

    def _write(self, key: str, value: Any) -> None:
        assert self._store is not None
        self._store.set(key, pickle.dumps(value).hex())

    def _read(self, key: str, writer: int, timeout: timedelta | None = None) -> Any:
        """What the process of that rank writes there, as long as that takes where no time is given.

        Raises:
            JobError: it will not come.
        """
        assert self._store is not None
        give_up = None if timeout is None else time.monotonic() + timeout.total_seconds()
        try:
            # Not `wait`, which knows of nothing but its time limit.
            while not self._store.check([key]):
                # Looked for once more: whoever failed may have answered just before.
                if self._store.check([_FAILURE]) and not self._store.check([key]):
                    self._failure = self._store.get(_FAILURE).decode()
                    raise _failure_of(self._failure)
                if give_up is not None and time.monotonic() > give_up:
                    gone = f"process {writer} of {self.world_size} is not there after {timeout}"
                    self._failure = self._store.compare_set(_FAILURE, "", gone).decode()
                    raise LostError(f"{gone}: it was killed, ran out of memory or hangs")
                time.sleep(_POLL_S)
            return pickle.loads(bytes.fromhex(self._store.get(key).decode()))
        except RuntimeError as error:  # all errors of torch.distributed are
            raise LostError("the main process ended; it says why") from error

    def main_first(self, work: Callable[[], Value]) -> Value:
        """`work` on the main process, and when it is done there on the others.

        For what leaves files behind that the others then find. Raises as `together`.
        """
        results: list[Value] = []

        def work_of_main() -> None:
            results.append(work())

        self.from_main(work_of_main)
        return self.together(lambda: results[0] if self.is_main else work())

    @contextlib.contextmanager
    def joined(self, device: Device) -> "Iterator[torch.device]":
        """Inside, tensors can be exchanged: over nccl on GPUs, over gloo on CPUs.

        A GrSweepError of `from_main` or `together` and a JobError are of all processes alike.
        What else ends one ends all: the others see it in their next exchange, at the latest after
        `TIMEOUT`, and raise a JobError that says who was first.

        Returns:
            The device of this process.

        Raises:
            PlanError: CUDA where torch sees no GPU.
            JobError: fewer GPUs on a node than processes; GPUs on some nodes alone; another process
                failed.
        """
        import torch
        import torch.distributed as dist

        if self._store is None:
            yield _device(device, self._place)
            return
        kind = self.from_main(lambda: _device(device, self._place).type)
        is_cuda = kind == "cuda"

        def take() -> torch.device:
            own = _device(device, self._place)
            if own.type != kind:
                raise JobError(
                    f"process {self.rank} of {self.world_size} would compute on {own.type}, the "
                    f"main one on {kind}; use nodes that are alike, or train.device=cpu"
                )
            if is_cuda:
                torch.cuda.set_device(own)
            return own

        # Before the group is made, in which all would wait for one that has no device.
        chosen = self.together(take)
        self._num_groups += 1
        try:
            dist.init_process_group(
                "nccl" if is_cuda else "gloo",
                # A job's own names: those of the job before are still in the store.
                store=dist.PrefixStore(f"job/{self._num_groups}", self._store),  # type: ignore[attr-defined]
                rank=self.rank,
                world_size=self.world_size,
                timeout=TIMEOUT,
                device_id=chosen if is_cuda else None,
            )
            yield chosen
            # The main process has more to write at the end than the others have patience.
            self.from_main(lambda: None)
            dist.barrier()
        except Exception as error:
            if isinstance(error, JobError) or error is self._last_of_all():
                dist.destroy_process_group()
                raise
            self._failure = self._first_failure(error)
            if not is_cuda and dist.is_initialized():
                # The others, who wait for this one, see it leave. nccl would wait for them itself.
                dist.destroy_process_group()
            if not self._failure.startswith(self._name):
                raise _failure_of(self._failure) from error
            if _is_of_exchange(self._failure):
                raise LostError(
                    f"process {self.rank} of {self.world_size} lost another one: it was killed, "
                    f"ran out of memory or hung for {TIMEOUT} ({_said(error)})"
                ) from error
            raise
        dist.destroy_process_group()

    @property
    def _name(self) -> str:
        return f"process {self.rank} of {self.world_size} failed"

    def _first_failure(self, error: Exception) -> str:
        """Which process failed first, as far as is known: this one, with this error, or another."""
        own = f"{self._name} ({_said(error)})"
        if self._store is None:
            return own
        try:
            return self._store.compare_set(_FAILURE, "", own).decode()
        except RuntimeError:
            return own  # the store ended with the process that held it

    def _check_whole(self) -> None:
        """Raises JobError where a process failed before: nothing can be exchanged any more."""
        if self._failure is not None:
            raise JobError(f"not run: {self._failure} in an earlier job; type the command again")

    def sum_(self, tensor: "Tensor") -> "Tensor":
        """The tensor, in place, as the sum over all processes."""
        if self.are_several:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def _leave(self) -> None:
        """The main process may hold what the others still read: it goes last."""
        assert self._store is not None
        # Whoever is still there after a failure knows of it by now.
        give_up = time.monotonic() + (_LEAVE_S if self._failure is None else _LEAVE_FAILED_S)
        with contextlib.suppress(RuntimeError):
            self._store.add("left", 0 if self.is_main else 1)
            while self.is_main and self._store.add("left", 0) < self.world_size - 1:
                if time.monotonic() > give_up:
                    break
                time.sleep(_POLL_S)


@functools.cache
def connect() -> Processes:
    """This process among the others of its command; they meet once in its life.

    Raises:
        JobError: the others cannot be found.
    """
    here = place()
    if here is None:
        return Processes()
    import torch.distributed as dist

    try:
        store, _, _ = next(dist.rendezvous(here.url, timeout=START_TIMEOUT))  # type: ignore[attr-defined]
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise JobError(f"process {here.rank} does not find the others: {reason}") from error
    processes = Processes(here, store)
    atexit.register(processes._leave)
    return processes


def shard(
    root: "nn.Module", layers: "Iterable[nn.Module]", device: "torch.device", *, bfloat16: bool
) -> None:
    """Spreads parameters, gradients and optimizer state over all processes, in place (FSDP2).

    Zhao et al. 2023 (arXiv 2304.11277), as `torch.distributed.fsdp.fully_shard` has it. A layer's
    weights are gathered where it is computed and dropped after; in bfloat16 where that is the type
    of the products, from float32 ones that the optimizer sees. Gradients are summed in float32: the
    loss is divided by the tokens of all processes before.

    Args:
        root: a module whose forward pass is all that a step computes.
        layers: those within it whose weights are gathered together.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bfloat16 else None, reduce_dtype=torch.float32
    )
    for module in (*layers, root):
        sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
        sharded.set_gradient_divide_factor(1.0)
        # Plain sums: gloo has no others, and nccl's with a factor multiply by this 1.
        sharded.set_force_sum_reduction_for_comms(True)


def _device(device: Device, here: Place | None) -> "torch.device":
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is Device.cuda and num_gpus == 0:
        raise PlanError("train.device=cuda, but torch sees no GPU; use train.device=auto")
    if device is Device.cpu or num_gpus == 0:
        return torch.device("cpu")
    if here is None:
        return torch.device("cuda")
    # SLURM may show each task one GPU of its own, which is then the first.
    index = 0 if here.is_slurm and num_gpus == 1 else here.local_rank
    if index >= num_gpus:
        raise JobError(
            f"process {here.local_rank} of this node has no GPU: torch sees {num_gpus}; "
            "start as many processes a node as it has GPUs, or use train.device=cpu"
        )
    return torch.device("cuda", index)


def _is_of_exchange(failure: str) -> bool:
    """Whether it is one that meets whoever is left when another process goes."""
    return "/gloo/" in failure or "(Dist" in failure  # torch.distributed.DistError and its children


def _failure_of(failure: str) -> JobError:
    return LostError(failure) if _is_of_exchange(failure) else JobError(failure)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = env.get(name, default)
    try:
        return int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise JobError(f"{name}={value} in the environment is no whole number") from error


def _meeting_point(env: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of a SLURM step's first process; MASTER_ADDR and MASTER_PORT say otherwise."""
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or socket.gethostname()
    is_one_node = env.get("SLURM_STEP_NUM_NODES", "1") == "1"
    host = env.get("MASTER_ADDR") or ("127.0.0.1" if is_one_node else first_host(nodes))
    # Steps of one job may run side by side.
    number = _number(env, "SLURM_JOB_ID", 0) + 7919 * _number(env, "SLURM_STEP_ID", 0)
    port = _number(env, "MASTER_PORT") if env.get("MASTER_PORT") else _PORTS[number % len(_PORTS)]
    return host, port


def first_host(nodes: str) -> str:
    """The first of SLURM's list of nodes: `gpu[03-05,9],cpu1` gives `gpu03`."""
    found = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    assert found is not None  # every part may be empty
    return "".join(part or "" for part in found.groups())
