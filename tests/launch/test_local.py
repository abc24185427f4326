"""Jobs in parallel on one machine: slots, memory, and how jobs end; small functions act as jobs."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import pytest
import torch

from gr_sweep.config import RunConfig
from gr_sweep.errors import ConfigError
from gr_sweep.jobdir import State, standing
from gr_sweep.launch import local
from gr_sweep.launch.local import (
    LocalParallelConfig,
    run_side_by_side,
    slots_of,
    visible_gpus,
)
from gr_sweep.launch.work import Work
from tests.launch.played import CONFIG, works


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the machine have so many cores."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return lambda number: monkeypatch.setattr(
        os, "sched_getaffinity", lambda _: set(range(number)), raising=False
    )


def states(jobs: Sequence[Work]) -> list[State]:
    return [standing(job.folder).state for job in jobs]


def at_once(jobs: Sequence[Work]) -> int:
    """The most jobs that ran at the same time."""
    times = [json.loads((job.folder / "times").read_text()) for job in jobs]
    return max(sum(begun <= at < ended for begun, ended in times) for at, _ in times)


def test_jobs_run_in_as_many_slots_as_there_are_groups_of_cores(tmp_path, cores):
    cores(5)
    jobs = works(tmp_path, *["meets 2"] * 3, seconds=0.2)
    run_side_by_side(jobs, slots_of(LocalParallelConfig(cores_per_job=2), [CONFIG]))
    assert states(jobs) == [State.done] * 3 and at_once(jobs) == 2
    environment = json.loads((jobs[0].folder / "environment").read_text())
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "2"


def test_each_gpu_has_slots_and_jobs_see_only_theirs(monkeypatch, cores, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-1a2b,7")
    assert visible_gpus() == ["5", "GPU-1a2b", "7"]
    config = LocalParallelConfig(jobs_per_device=2)
    gpu_jobs = [RunConfig()]
    assert slots_of(config, gpu_jobs) == [
        {"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("5", "GPU-1a2b", "7") * 2
    ]
    with pytest.raises(ConfigError, match="jobs_per_device: 0; expected a number at least 1"):
        slots_of(LocalParallelConfig(jobs_per_device=0), gpu_jobs)
    cores(1)
    with pytest.raises(ConfigError, match="cores_per_job=64: this process may use 1 cores"):
        slots_of(LocalParallelConfig(cores_per_job=64), [CONFIG])
    [slot] = slots_of(LocalParallelConfig(), [CONFIG])
    assert slot == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1", "2"]


def test_a_job_that_fails_or_dies_does_not_take_down_the_others(tmp_path, cores, capfd):
    cores(2)
    jobs = works(tmp_path, "fails", "bug", "killed", "")
    run_side_by_side(jobs, slots_of(LocalParallelConfig(), [CONFIG]))
    assert states(jobs) == [State.failed] * 2 + [State.stopped, State.done]
    errors = [standing(job.folder).error for job in jobs[:3]]
    assert errors[0] == "x.jsonl line 3: not UTF-8"
    assert errors[1] == "ZeroDivisionError: a bug"
    assert errors[2].startswith("its process ended by SIGKILL (out of memory?); see ")
    assert "Traceback" in (jobs[1].folder / "output.log").read_text()
    said = capfd.readouterr().err
    assert "job 0: failed: x.jsonl line 3: not UTF-8" in said and "4 of 4)" in said
    assert said.count("warning: no W&B") == 1, "once a sweep, and each job's own file has it"


def test_a_job_of_another_process_is_waited_for(tmp_path, cores):
    cores(2)
    [job] = works(tmp_path, "", seconds=1.0)
    other = threading.Thread(target=job)  # holds the folder's lock
    other.start()
    while standing(job.folder).state is not State.running:
        time.sleep(0.05)
    run_side_by_side([job], slots_of(LocalParallelConfig(), [CONFIG]))
    assert states([job]) == [State.done] and not (job.folder / "output.log").exists()
    other.join()


def test_a_full_disk_under_the_record_of_a_killed_job_does_not_stop_the_others(
    tmp_path, cores, monkeypatch
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local, "change_record", full)
    killed = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    killed.wait()
    local._note_exit(works(tmp_path, "")[0], killed)


PARENT = """
import sys
from pathlib import Path
from gr_sweep.launch.local import LocalParallelConfig, run_side_by_side, slots_of
from gr_sweep.train.signals import Stopped
from tests.launch.played import works
try:
    jobs = works(Path(sys.argv[1]), "", "", seconds=60.0)
    run_side_by_side(jobs, slots_of(LocalParallelConfig(), [job.config for job in jobs]))
except Stopped as stopped:
    sys.exit(128 + stopped.signum)
"""


def test_a_signal_lets_every_job_save_before_it_stops(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    jobs = works(tmp_path, "")
    while not (jobs[0].folder / "environment").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=30) == 128 + signal.SIGINT
    assert (jobs[0].folder / "saved").exists()
    assert states(jobs) == [State.stopped]
    record = standing(jobs[0].folder)
    assert record is not None and "SIGTERM" in (record.error or "")
