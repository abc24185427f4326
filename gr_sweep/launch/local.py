"""Jobs of a sweep side by side on one machine, over its GPUs or its cores.

A slot is a place for one job: a part of a GPU, or a few cores. A job that would not fit beside
those that run waits. A job's own files say what became of it. As `python -m gr_sweep.launch.local`
this is the process that runs one job, which it reads from its standard input.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cloudpickle

from gr_sweep.config import Device, RunConfig
from gr_sweep.errors import ConfigError, GrSweepError
from gr_sweep.jobdir import State, standing
from gr_sweep.joblock import note_end
from gr_sweep.launch.work import Told, Work
from gr_sweep.train.signals import Stopped, StopSignals

POLL_S = 0.5

_PROCESS_BYTES = 1 << 30
"""Main memory that Python, torch and their libraries take in each process."""

OUTPUT = "output.log"
"""What a job's process says beside its log."""


@dataclass
class LocalParallelConfig:
    """`hydra/launcher=local_parallel`."""

    _target_: str = "gr_sweep.cli.launchers.LocalParallelLauncher"
    """What tells it from Hydra's own launchers: no class, but a name that Hydra lets pass."""
    devices: list[int] | None = None
    """Numbers of the GPUs to use, as torch counts them; null: all that are visible."""
    jobs_per_device: int = 1
    """Jobs on a GPU, or on a group of cores, at once: a small model leaves a GPU idle alone."""
    cores_per_job: int = 1
    """Without a GPU: cores, and threads, of each job."""
    check_memory: bool = True
    """Whether a job waits until the estimate of what it needs fits beside those that run."""


@dataclass(frozen=True)
class Spot:
    """A GPU, or the machine's memory, which jobs share."""

    gpu: str | None
    """As CUDA_VISIBLE_DEVICES names it; None for the CPU."""
    num_slots: int
    threads: int | None
    """Of each job; None: as many as torch likes."""
    free_bytes: float


@dataclass
class _Running:
    work: Work
    process: "subprocess.Popen[bytes]"
    spot: Spot
    bytes_needed: int


def check_local(config: LocalParallelConfig, jobs: Sequence[RunConfig]) -> None:
    """
    Raises:
        ConfigError: a number that is too small, a GPU that is not there, or a job that needs more
            memory than any device has free.
    """
    for name in ("jobs_per_device", "cores_per_job"):
        if getattr(config, name) < 1:
            raise ConfigError(
                f"hydra.launcher.{name}={getattr(config, name)} is too few; give 1 or more"
            )
    spots = spots_of(config, jobs)
    for job in jobs:
        needed = bytes_of(job, spots[0]) if config.check_memory else 0
        most = max(spot.free_bytes for spot in spots)
        if needed > most:
            where = "this machine" if spots[0].gpu is None else "any GPU"
            raise ConfigError(
                f"a job needs about {needed / 2**30:.1f} GiB, and {most / 2**30:.1f} are free on "
                f"{where}; see `gr-sweep estimate`, make train.micro_batch_sequences smaller, or "
                "set hydra.launcher.check_memory=false"
            )


def spots_of(config: LocalParallelConfig, jobs: Sequence[RunConfig]) -> list[Spot]:
    """Where jobs can run: the GPUs, unless there is none or the jobs are for the CPU.

    Raises:
        ConfigError: a GPU that is not there.
    """
    gpus = [] if all(job.train.device is Device.cpu for job in jobs) else _visible_gpus()
    if config.devices is not None:
        for number in config.devices:
            if not 0 <= number < len(gpus):
                raise ConfigError(
                    f"hydra.launcher.devices: there is no GPU {number}; torch sees {len(gpus)}"
                )
        gpus = [gpus[number] for number in dict.fromkeys(config.devices)]
    if gpus:
        return [Spot(gpu, config.jobs_per_device, None, _free_on_gpu(gpu)) for gpu in gpus]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    slots = max(1, (cores or 1) // config.cores_per_job) * config.jobs_per_device
    return [Spot(None, slots, config.cores_per_job, _free_memory())]


_known_bytes: dict[tuple[str, bool], int] = {}


def bytes_of(config: RunConfig, spot: Spot) -> int:
    """About what the job holds there at most; 0 where nothing here knows its model."""
    from gr_sweep.launch.estimate import Target, cost_key, estimate_job

    is_gpu = spot.gpu is not None
    key = (cost_key(config), is_gpu)
    if key not in _known_bytes:
        try:
            peak = estimate_job(config, Target("here", 1e12, None, is_gpu)).peak_bytes
            _known_bytes[key] = peak + (0 if is_gpu else _PROCESS_BYTES)
        except GrSweepError:
            # A checkpoint or a tokenizer that is still to be downloaded.
            _known_bytes[key] = 0
    return _known_bytes[key]


def run_side_by_side(
    works: Sequence[Work], config: LocalParallelConfig, *, is_shown: bool = False
) -> None:
    """Runs the jobs, each in a process of its own, and returns when all have ended.

    A job that another process runs already is waited for. Ctrl-C or SIGTERM stops all of them:
    each ends its step and saves; a second Ctrl-C does not wait.

    Args:
        works: the jobs.
        config: the launcher's.
        is_shown: whether a table on the terminal shows how the jobs stand, as `Told` has it.

    Raises:
        Stopped: a signal came.
    """
    spots = spots_of(config, [work.config for work in works])
    needed = {
        work.folder: bytes_of(work.config, spots[0]) if config.check_memory else 0 for work in works
    }
    waiting = list(works)
    running: list[_Running] = []
    told = Told(works, is_shown=is_shown)
    elsewhere: list[Work] = []
    signals = StopSignals()
    # `_stop` says what happens, above the table where there is one.
    with signals.listening(), signals.deferred(is_quiet=is_shown):
        try:
            while waiting or running or elsewhere:
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    _ended(job)
                    if _is_over(job.work):
                        told.end(job.work)
                    else:
                        # Somebody else was first.
                        elsewhere.append(job.work)
                for work in [work for work in elsewhere if _is_over(work)]:
                    elsewhere.remove(work)
                    told.end(work)
                # Without a free place nobody needs to know how those stand that wait.
                for work in list(waiting) if len(running) < sum(s.num_slots for s in spots) else ():
                    if standing(work.folder).state is State.running:
                        waiting.remove(work)
                        elsewhere.append(work)
                        told.look(work)
                        continue
                    spot = _free_spot(spots, running, needed[work.folder])
                    if spot is not None:
                        waiting.remove(work)
                        running.append(
                            _Running(work, _start(work, spot), spot, needed[work.folder])
                        )
                        on = "" if spot.gpu is None else f" on GPU {spot.gpu}"
                        told.start(work, on)
                if signals.are_there:
                    signals.obey()
                time.sleep(POLL_S)
        except BaseException:
            _stop([job.process for job in running])
            raise


def _is_over(work: Work) -> bool:
    return standing(work.folder).state is not State.running


def _free_spot(
    spots: Sequence[Spot], running: Sequence[_Running], bytes_needed: int
) -> Spot | None:
    """The spot with the fewest jobs that has a slot and room; None if there is none."""
    found = []
    for index, spot in enumerate(spots):
        here = [job for job in running if job.spot is spot]
        room = spot.free_bytes - sum(job.bytes_needed for job in here)
        # What is alone may try: check_local has looked at it.
        if len(here) < spot.num_slots and (not here or bytes_needed <= room):
            found.append((len(here), index))
    return spots[min(found)[1]] if found else None


def _start(work: Work, spot: Spot) -> "subprocess.Popen[bytes]":
    environment = dict(os.environ)
    if spot.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = spot.gpu
    if spot.threads is not None:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(spot.threads)
    work.folder.mkdir(parents=True, exist_ok=True)
    with (work.folder / OUTPUT).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gr_sweep.launch.local"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C reaches this process alone, which tells the others once.
            start_new_session=True,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # its status says what happened
        cloudpickle.dump(work.call, process.stdin)  # Hydra's state holds functions of functions
    return process


def _ended(job: _Running) -> None:
    """Writes down how a process ended that could not do so itself."""
    status = job.process.returncode
    now = standing(job.work.folder)
    if now.state in (State.done, State.failed) or (now.state is State.stopped and status == 0):
        return
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    hint = " (out of memory?)" if status == -signal.SIGKILL else ""
    # Killed, it goes on when it is started again, as with any launcher.
    state = State.stopped if status < 0 else State.failed
    with contextlib.suppress(OSError):  # the full disk may be why it ended
        note_end(
            job.work.folder, state, f"its process ended {how}{hint}; see {job.work.folder / OUTPUT}"
        )


def _stop(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    for process in processes:
        process.terminate()
    if processes:
        print("waiting until the jobs have saved; Ctrl-C again kills them", file=sys.stderr)
    try:
        for process in processes:
            process.wait()
    except (Stopped, KeyboardInterrupt):
        for process in processes:
            process.kill()
        raise


def _visible_gpus() -> list[str]:
    """Each GPU that torch sees, as CUDA_VISIBLE_DEVICES names it."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [
        named[index] if len(named) >= count and named[0] else str(index) for index in range(count)
    ]


def _free_on_gpu(gpu: str) -> float:
    """Bytes, from the driver: asking torch would take a part of them."""
    command = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.free"]
    try:
        answer = subprocess.run(
            [*command, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=30
        )
        return float(answer.stdout.split()[0]) * 2**20
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return float("inf")


def _free_memory() -> float:
    """Bytes of main memory that can be had without swapping."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return float("inf")


if __name__ == "__main__":
    pickle.load(sys.stdin.buffer)()
