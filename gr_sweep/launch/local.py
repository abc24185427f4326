"""Jobs of a sweep in parallel on one machine, over its GPUs or its cores.

Each job runs in a process of its own, in one of a fixed number of slots, and its files say how it
ended. `python -m gr_sweep.launch.local` is that process: it reads the job from its standard input.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gr_sweep.bounds import bounded
from gr_sweep.checks import check_values
from gr_sweep.config import Device, RunConfig
from gr_sweep.data.encode import usable_cores
from gr_sweep.errors import ConfigError
from gr_sweep.jobdir import State, change_record, standing
from gr_sweep.launch.work import Work, clear_warnings, say, say_end, say_warnings
from gr_sweep.train.signals import Stopped, StopSignals

POLL_S = 0.5

OUTPUT = "output.log"
"""What a job's process prints beside its log."""

Process = subprocess.Popen[bytes]


@dataclass
class LocalParallelConfig:
    """`hydra/launcher=local_parallel`."""

    _target_: str = "gr_sweep.cli.run.LocalParallelLauncher"
    """Marker by which the launcher is recognised; Hydra never instantiates it."""
    jobs_per_device: int = bounded(1, at_least=1)
    """Jobs at the same time on a GPU, or on a group of cores: one small model leaves a GPU idle."""
    cores_per_job: int = bounded(1, at_least=1)
    """Cores and threads of each job on a CPU."""


Slot = dict[str, str]
"""A place where one job runs at a time: what it adds to the job's environment."""


def slots_of(config: LocalParallelConfig, jobs: Sequence[RunConfig]) -> list[Slot]:
    """The slots of this machine for these jobs, alternating between GPUs.

    Raises:
        ConfigError: an invalid setting.
    """
    check_values(config, "hydra.launcher")
    gpus = [] if all(job.train.device is Device.cpu for job in jobs) else visible_gpus()
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] * config.jobs_per_device
    cores = usable_cores()
    if config.cores_per_job > cores:
        raise ConfigError(
            f"hydra.launcher.cores_per_job={config.cores_per_job}: this process may use {cores} "
            "cores; use fewer"
        )
    count = config.jobs_per_device * (cores // config.cores_per_job)
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return [dict.fromkeys(threads, str(config.cores_per_job))] * count


def run_side_by_side(works: Sequence[Work], slots: Sequence[Slot]) -> None:
    """Runs each job in a process of its own, and returns when all have ended.

    A job that another process is running already is waited for. Ctrl-C or SIGTERM stops all jobs:
    each finishes its step and saves; a second Ctrl-C kills them.

    Args:
        slots: from `slots_of`.

    Raises:
        Stopped: a signal came.
    """
    waiting, elsewhere = deque(works), list[Work]()
    running: dict[int, tuple[Work, Process]] = {}
    signals = StopSignals()
    with signals.listening(), signals.deferred():
        try:
            while waiting or running or elsewhere:
                for number, (work, process) in list(running.items()):
                    say_warnings(work)
                    if process.poll() is not None:
                        del running[number]
                        _note_exit(work, process)
                        elsewhere.append(work)
                # A job still runs if another process has locked its folder first.
                for work in [work for work in elsewhere if not _is_running(work)]:
                    elsewhere.remove(work)
                    num_left = len(waiting) + len(running) + len(elsewhere)
                    say_end(work, f"{len(works) - num_left} of {len(works)}")
                for number, slot in enumerate(slots):
                    if number in running or not waiting:
                        continue
                    work = waiting.popleft()
                    if _is_running(work):
                        elsewhere.append(work)
                        continue
                    running[number] = work, _start(work, slot)
                    gpu = slot.get("CUDA_VISIBLE_DEVICES")
                    say(work, "started" if gpu is None else f"started on GPU {gpu}")
                if signals.are_there:
                    signals.obey()
                time.sleep(POLL_S)
        except BaseException:
            _stop([process for _, process in running.values()])
            raise


def _is_running(work: Work) -> bool:
    return standing(work.folder).state is State.running


def _start(work: Work, slot: Slot) -> Process:
    work.folder.mkdir(parents=True, exist_ok=True)
    clear_warnings(work.folder)
    with (work.folder / OUTPUT).open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gr_sweep.launch.local"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | slot,
            # Ctrl-C reaches only this process, which then signals the others.
            start_new_session=True,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # the exit status says more
        pickle.dump(work, process.stdin)
    return process


def _note_exit(work: Work, process: Process) -> None:
    """Records the end of a job whose process could not."""
    status, state = process.returncode, standing(work.folder).state
    if state in (State.done, State.failed) or (state is State.stopped and status == 0):
        return
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    hint = " (out of memory?)" if status == -signal.SIGKILL else ""
    said = f"its process ended {how}{hint}; see {work.folder / OUTPUT}"
    # A killed job resumes when it is started again.
    state = State.stopped if status < 0 else State.failed
    with contextlib.suppress(OSError):  # a full disk does not stop the other jobs
        change_record(work.folder, state=state, error=said)


def _stop(processes: Iterable[Process]) -> None:
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait()
    except (Stopped, KeyboardInterrupt):
        for process in processes:
            process.kill()
        raise


def visible_gpus() -> list[str]:
    """Each GPU that torch sees, as CUDA_VISIBLE_DEVICES names it."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return named[:count] if len(named) >= count and named[0] else [str(i) for i in range(count)]


if __name__ == "__main__":
    pickle.load(sys.stdin.buffer)()
