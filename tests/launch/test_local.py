"""Jobs side by side: slots, room, and what becomes of each; played by small functions."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.cli.compose import compose
from gr_sweep.config import Device, RunConfig, TrainConfig
from gr_sweep.errors import ConfigError, DataError
from gr_sweep.jobdir import SUMMARY, State, standing
from gr_sweep.joblock import lock_job_dir
from gr_sweep.launch import local
from gr_sweep.launch.local import LocalParallelConfig, Spot, check_local, run_side_by_side
from gr_sweep.launch.work import Work
from gr_sweep.train.signals import StopSignals

CONFIG = RunConfig(train=TrainConfig(device=Device.cpu))
QUICK = LocalParallelConfig(check_memory=False)


def play(folder: Path, act: str = "", seconds: float = 0.0) -> None:
    """Stands for a job: holds its folder, notes its environment and times, and ends as told."""
    signals = StopSignals()
    with signals.listening(), lock_job_dir(folder):
        begun = time.time()
        (folder / "environment").write_text(json.dumps(dict(os.environ)))
        if act == "fails":
            raise DataError("x.jsonl line 3: not UTF-8")
        if act == "bug":
            raise ZeroDivisionError("a bug")
        if act == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if act.startswith("meets "):
            # Ends when so many have been there at once.
            give_up = time.monotonic() + 30
            while len(list(folder.parent.glob("*/environment"))) < int(act.split()[1]):
                assert time.monotonic() < give_up
                time.sleep(0.02)
        with signals.deferred():
            give_up = time.monotonic() + seconds
            while time.monotonic() < give_up and not signals.are_there:
                time.sleep(0.02)
            if signals.are_there:
                (folder / "saved").touch()
                signals.obey()
        (folder / "times").write_text(json.dumps([begun, time.time()]))
        (folder / SUMMARY).write_text("{}")


def works(tmp_path: Path, *acts: str, seconds: float = 0.0) -> list[Work]:
    return [
        Work(folder, f"job {number}", CONFIG, partial(play, folder, act, seconds))
        for number, act in enumerate(acts)
        for folder in [tmp_path / f"job{number}"]
    ]


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the machine have so many cores."""

    def make(number: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(number)), raising=False)
        monkeypatch.setattr(local, "_visible_gpus", lambda: [])

    return make


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the machine have GPUs with so much free memory."""

    def make(**free: float) -> None:
        monkeypatch.setattr(local, "_visible_gpus", lambda: list(free))
        monkeypatch.setattr(local, "_free_on_gpu", free.__getitem__)

    return make


def states(jobs: Sequence[Work]) -> list[State]:
    return [standing(job.folder).state for job in jobs]


def at_once(jobs: Sequence[Work]) -> int:
    """The most jobs that ran at the same time."""
    times = [json.loads((job.folder / "times").read_text()) for job in jobs]
    return max(sum(begin <= start < end for begin, end in times) for start, _ in times)


def environment(job: Work) -> dict[str, str]:
    found: dict[str, str] = json.loads((job.folder / "environment").read_text())
    return found


def test_as_many_jobs_run_at_once_as_there_are_cores(tmp_path, cores):
    cores(3)
    jobs = works(tmp_path, *["meets 3"] * 5, seconds=0.5)
    run_side_by_side(jobs, QUICK)
    assert states(jobs) == [State.done] * 5
    assert at_once(jobs) == 3
    assert {environment(job)["OMP_NUM_THREADS"] for job in jobs} == {"1"}


def test_jobs_of_several_cores_are_fewer_at_once(tmp_path, cores):
    cores(5)
    jobs = works(tmp_path, *["meets 2"] * 3, seconds=0.5)
    run_side_by_side(jobs, dataclasses.replace(QUICK, cores_per_job=2))
    assert at_once(jobs) == 2 and environment(jobs[0])["OMP_NUM_THREADS"] == "2"


def test_jobs_are_spread_over_the_gpus_and_share_them_as_told(tmp_path, gpus):
    gpus(a=80e9, b=80e9)
    config = dataclasses.replace(CONFIG, train=TrainConfig(device=Device.auto))
    jobs = [dataclasses.replace(job, config=config) for job in works(tmp_path, *[""] * 4)]
    run_side_by_side(jobs, dataclasses.replace(QUICK, jobs_per_device=2))
    seen = [environment(job)["CUDA_VISIBLE_DEVICES"] for job in jobs]
    assert sorted(seen) == ["a", "a", "b", "b"] and set(seen[:2]) == {"a", "b"}


def test_a_gpu_that_is_not_there_is_one_line(gpus):
    gpus(a=80e9)
    config = dataclasses.replace(CONFIG, train=TrainConfig())
    with pytest.raises(ConfigError, match=r"hydra.launcher.devices: there is no GPU 3; torch sees"):
        check_local(LocalParallelConfig(devices=[0, 3]), [config])


@pytest.mark.parametrize("name", ["jobs_per_device", "cores_per_job"])
def test_numbers_below_one_are_one_line(name):
    with pytest.raises(ConfigError, match=rf"hydra.launcher.{name}=0 is too few"):
        check_local(LocalParallelConfig(**{name: 0}), [CONFIG])


def test_a_job_waits_until_there_is_room_beside_those_that_run(tmp_path, cores, monkeypatch):
    cores(4)
    monkeypatch.setattr(local, "_free_memory", lambda: 10e9)
    monkeypatch.setattr(local, "bytes_of", lambda config, spot: 4e9)
    jobs = works(tmp_path, *["meets 2"] * 4, seconds=0.5)
    run_side_by_side(jobs, LocalParallelConfig())
    assert states(jobs) == [State.done] * 4
    assert at_once(jobs) == 2


def test_a_job_that_fits_nowhere_is_refused_before_any_runs(cores, monkeypatch):
    cores(4)
    monkeypatch.setattr(local, "_free_memory", lambda: 1 << 30)
    [job] = compose(["model=tiny", "train.device=cpu"]).jobs
    with pytest.raises(ConfigError, match=r"a job needs about \d\.\d GiB, and 1\.0 are free on th"):
        check_local(LocalParallelConfig(), [job.config])
    check_local(LocalParallelConfig(check_memory=False), [job.config])


def test_what_a_job_needs_is_its_estimate():
    from gr_sweep.launch.estimate import Target, estimate_job

    [job] = compose(["model=tiny", "train.sequence_length=64"]).jobs
    gpu, cpu = Spot("0", 1, None, 80e9), Spot(None, 1, 1, 80e9)
    on_gpu = estimate_job(job.config, Target("a gpu", 1e12, None, True)).peak_bytes
    assert local.bytes_of(job.config, gpu) == on_gpu
    on_cpu = estimate_job(job.config, Target("a cpu", 1e12, None, False)).peak_bytes
    assert local.bytes_of(job.config, cpu) == on_cpu + (1 << 30)


def test_a_job_that_fails_or_dies_does_not_take_down_the_others(tmp_path, cores, capfd):
    cores(2)
    jobs = works(tmp_path, "fails", "bug", "killed", "")
    run_side_by_side(jobs, QUICK)
    assert states(jobs) == [State.failed] * 2 + [State.stopped, State.done]
    errors = [standing(job.folder).record.error for job in jobs[:3]]
    assert errors[0] == "x.jsonl line 3: not UTF-8"
    assert errors[1] == "ZeroDivisionError: a bug"
    assert errors[2].startswith("its process ended by SIGKILL (out of memory?); see ")
    assert "Traceback" in (jobs[1].folder / "output.log").read_text()
    said = capfd.readouterr().err
    assert "job 0: failed: x.jsonl line 3: not UTF-8" in said and "4 of 4)" in said


def test_a_job_of_another_process_is_waited_for(tmp_path, cores):
    cores(2)
    [job] = works(tmp_path, "")
    script = "import sys; from pathlib import Path; from tests.launch.test_local import play; "
    script += "play(Path(sys.argv[1]), '', 3.0)"
    other = subprocess.Popen([sys.executable, "-c", script, str(job.folder)])
    while standing(job.folder).state is not State.running:
        time.sleep(0.05)
    run_side_by_side([job], QUICK)
    assert other.wait() == 0 and states([job]) == [State.done]
    assert not (job.folder / "output.log").exists()


PARENT = """
import sys
from pathlib import Path
from gr_sweep.launch.local import run_side_by_side
from gr_sweep.train.signals import Stopped
from tests.launch.test_local import QUICK, works
try:
    run_side_by_side(works(Path(sys.argv[1]), "", "", seconds=60.0), QUICK)
except Stopped as stopped:
    sys.exit(128 + stopped.signum)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_every_job_save_before_it_stops(tmp_path, number):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)])
    jobs = works(tmp_path, "")
    while not (jobs[0].folder / "environment").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    parent.send_signal(number)
    assert parent.wait(timeout=30) == 128 + number
    assert (jobs[0].folder / "saved").exists()
    assert states(jobs) == [State.stopped]
    record = standing(jobs[0].folder).record
    assert record is not None and "SIGTERM" in (record.error or "")


def test_a_visible_gpu_keeps_the_name_it_has_outside(monkeypatch):
    torch: Any = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-1a2b")
    assert local._visible_gpus() == ["5", "GPU-1a2b"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert local._visible_gpus() == ["0", "1"]
