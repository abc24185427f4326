"""What goes wrong around a job, from end to end: what is damaged, what is full, what is killed.

Each fault is followed by the start that a user would make next.
"""

import contextlib
import errno
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gr_sweep.config import AdaptersConfig, PlanConfig, RunConfig
from gr_sweep.errors import JobError
from gr_sweep.jobdir import read_record, read_summary
from gr_sweep.train import loop
from tests import kill_points
from tests.jobs import make_config, rows_of, run
from tests.train.saved import saved_tensors
from tests.two_tasks import kill_other, start_two

STEPS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    """A job of seconds, with a checkpoint every two steps."""
    return make_config(
        tmp_path_factory.mktemp("cache"),
        train={"steps": STEPS, "log_every": 6, "keep_checkpoints": 3},
        eval={"every": STEPS},
        plan=PlanConfig(adapters=AdaptersConfig(embed=2, unembed="full", bias=True, attn=1, mlp=2)),
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    """A job that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run(config, folder)
    return folder


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step_????????"))


def assert_as_if_nothing_had_happened(folder: Path, whole: Path) -> None:
    """Weights, rows and numbers of the job, and nothing that is half written."""
    expected, found = (saved_tensors(newest(path)) for path in (whole, folder))
    assert newest(folder).name == f"step_{STEPS:08d}" and expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    steps = [[row["step"] for row in rows_of(path)] for path in (whole, folder)]
    assert steps[0] == steps[1]
    one, two = (read_summary(path / "summary.json")["metrics"] for path in (whole, folder))
    assert one.keys() == two.keys()
    for key, number in one.items():
        assert key.startswith("cost/") or two[key] == number, key
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


class Killed(BaseException):
    """Stands for a process that ends at once."""


def killed_at(config: RunConfig, folder: Path, step: int) -> None:
    """Leaves a job that was ended after that many steps."""
    train_step, done = loop.train_step, []

    @functools.wraps(train_step)
    def dying(*args: Any, **kwargs: Any) -> Any:
        if len(done) == step:
            raise Killed
        done.append(1)
        return train_step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "train_step", dying)
        run(config, folder)


def flip(path: Path, place: float = 0.5) -> None:
    """One bit, and neither the size nor the time of change."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(config, whole, tmp_path, caplog):
    killed_at(config, tmp_path, 5)
    flip(newest(tmp_path) / "__0_0.distcp")
    run(config, tmp_path)
    assert "step_00000004 is damaged (" in caplog.text
    assert "trying the one before" in caplog.text
    assert (tmp_path / "checkpoints" / "step_00000004.unreadable").exists()
    assert_as_if_nothing_had_happened(tmp_path, whole)


def test_a_damaged_summary_is_made_again_without_training(
    config, whole, tmp_path, caplog, monkeypatch
):
    run(config, tmp_path)
    flip(tmp_path / "summary.json")

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a step of training")

    monkeypatch.setattr(loop, "train_step", never)
    run(config, tmp_path)
    assert f"{tmp_path / 'summary.json'}: renamed" in caplog.text
    assert (tmp_path / "summary.json.replaced").exists()
    assert_as_if_nothing_had_happened(tmp_path, whole)


# Memory


@pytest.mark.parametrize("kind", ["GPU", "tensor"])
def test_a_job_that_runs_out_of_memory_is_one_line(config, tmp_path, monkeypatch, kind):
    def fails(*args: object, **how: object) -> None:
        if kind == "GPU":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")
        torch.empty(1 << 60)

    monkeypatch.setattr(loop, "train_step", fails)
    with pytest.raises(JobError, match=r"^out of memory \(.*\); try train.activation") as caught:
        run(config, tmp_path)
    record = read_record(tmp_path)
    assert record.error == str(caught.value) and not record.is_bug


# A full disk


@contextlib.contextmanager
def full_for(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk without room for files whose path holds `name`: found out when they are synced."""
    fsync = os.fsync

    def fails(descriptor: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        yield


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors have no names here")
@pytest.mark.parametrize("name", [".step_00000004.tmp/__0_0", "/metrics.jsonl"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    config, whole, tmp_path, monkeypatch, name
):
    number = errno.ENOSPC
    with full_for(name, number, monkeypatch), pytest.raises(JobError) as caught:
        run(config, tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path} cannot be written: {os.strerror(number)} (")
    assert said.endswith("free on the disk); free some space and start the same command again")
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    run(config, tmp_path)
    assert_as_if_nothing_had_happened(tmp_path, whole)


# SIGKILL


def test_whenever_a_checkpoint_is_killed_the_one_before_or_the_new_one_is_whole(tmp_path):
    found = kill_points.checkpoint(tmp_path)
    steps = [step for step, _ in found]
    assert len(steps) > 20 and steps == sorted(steps)
    assert steps[0] == 1.0 and steps[-1] == 2.0 and set(steps) == {1.0, 2.0}
    assert all(left == ["step_00000003"] for _, left in found), "and nothing half written"


def test_whenever_the_build_of_a_cache_is_killed_the_next_start_finds_or_builds_it(tmp_path):
    found = kill_points.cache(tmp_path)
    builds = [number for number, _ in found]
    assert len(builds) > 10 and builds == sorted(builds, reverse=True)
    assert builds[0] == 1 and builds[-1] == 0
    assert all({*left} <= {"cache", "cache.lock"} for _, left in found), "and nothing half written"


@pytest.mark.dist
def test_when_a_process_is_killed_while_it_trains_the_other_ends_soon_with_one_line(tmp_path):
    """SLURM tells of the main process."""
    settings = [
        *("debug=default", "data.documents=60", "data.vocab_size=300", "train.checkpoint_every=5"),
        *("tracking=off", "eval.every=1000", "train.log_every=5", "train.steps=100000"),
    ]
    task = start_two(tmp_path, *settings, "hydra.run.dir=job")
    try:
        give_up = time.monotonic() + 120
        while not list((tmp_path / "job").glob("checkpoints/step_????????")):
            assert time.monotonic() < give_up and task.poll() is None
            time.sleep(0.05)
        kill_other(tmp_path)
        _, err = task.communicate(timeout=60)
        assert task.returncode == 2 and "Traceback" not in err, err
        [line] = [line for line in err.splitlines() if line.startswith("gr-sweep: ")]
        assert line.startswith("gr-sweep: process 0 of 2 lost another one")
    finally:
        task.kill()
        task.communicate()
    tensors = saved_tensors(newest(tmp_path / "job"))
    assert tensors and all(tensor.isfinite().all() for tensor in tensors.values())
