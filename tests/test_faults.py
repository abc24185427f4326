"""What goes wrong around a job, from end to end: what is damaged, what is full, what is killed.

Each fault is followed by the start that a user would make next.
"""

import builtins
import errno
import functools
import io
import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gr_sweep.config import AdaptersConfig, PlanConfig, RunConfig
from gr_sweep.data.cache import open_or_build
from gr_sweep.data.shards import ShardWriter, open_shard
from gr_sweep.errors import JobError
from gr_sweep.jobdir import read_record, read_summary
from gr_sweep.train import loop
from gr_sweep.train.checkpoint import Checkpoints
from tests import kills
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


def flip(path: Path) -> None:
    """One bit of it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(config, whole, tmp_path, caplog):
    killed_at(config, tmp_path, 5)
    flip(newest(tmp_path) / "__0_0.distcp")
    run(config, tmp_path)
    assert "step_00000004 is damaged (" in caplog.text
    assert (tmp_path / "checkpoints" / "step_00000004.unreadable").exists()
    assert_as_if_nothing_had_happened(tmp_path, whole)


def test_a_damaged_summary_is_made_again_without_training(config, whole, tmp_path, monkeypatch):
    run(config, tmp_path)
    flip(tmp_path / "summary.json")

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a step of training")

    monkeypatch.setattr(loop, "train_step", never)
    run(config, tmp_path)
    assert (tmp_path / "summary.json.replaced").exists()
    assert_as_if_nothing_had_happened(tmp_path, whole)


# Memory


def test_a_job_that_runs_out_of_memory_is_one_line(config, tmp_path, monkeypatch):
    def fails(*args: object, **how: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")

    monkeypatch.setattr(loop, "train_step", fails)
    with pytest.raises(JobError, match=r"^out of memory \(.*\); try train.activation") as caught:
        run(config, tmp_path)
    record = read_record(tmp_path)
    assert record.error == str(caught.value) and not record.is_bug


# A full disk


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors have no names here")
@pytest.mark.parametrize("name", [".step_00000004.tmp/__0_0", "/metrics.jsonl"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    config, whole, tmp_path, monkeypatch, name
):
    """A disk without room for files whose path holds `name`: found out when they are synced."""
    fsync = os.fsync

    def fails(descriptor: int) -> None:
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "full")
        fsync(descriptor)

    with monkeypatch.context() as patch, pytest.raises(JobError, match=r"No space left.*; free"):
        patch.setattr(os, "fsync", fails)
        run(config, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    run(config, tmp_path)
    assert_as_if_nothing_had_happened(tmp_path, whole)


# SIGKILL


CHANGES = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")
"""Of `os`, which pathlib, shutil and tempfile call; beside what is written to a file."""


def kill_after(left: int) -> None:
    """Lets this process change the file system so many times, and kills it before the next."""
    calls = itertools.count()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def before(*args: Any, **kwargs: Any) -> Any:
            mode = kwargs.get("mode", (*args, "r")[1]) if call is plain_open else "w"
            if "w" in mode and next(calls) == left:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return before

    plain_open = io.open
    io.open = builtins.open = counted(plain_open)  # pathlib's, and the others'
    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))


def at_every_moment(folder: Path, begin: Callable, work: Callable, check: Callable) -> list[Any]:
    """What `check` found after every kill, and after the last, whole one: the work is done in a
    child that kills itself at its first change of the file system, then in one that does at its
    second, and so on. `begin` makes the folder what it is before."""
    begin(folder / "before")
    found: list[Any] = []
    while True:
        place = folder / "place"
        shutil.copytree(folder / "before", place)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                kill_after(len(found))
                work(place)
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), status
        found.append(check(place))
        shutil.rmtree(place)
        if status == 0:
            return found


def test_whenever_a_checkpoint_is_killed_the_one_before_or_the_new_one_is_whole(tmp_path):
    def save(place: Path, step: float) -> None:
        tensors = {"weights": torch.full((300, 20), step), "step": torch.tensor(step)}
        Checkpoints(place, keep=1, fingerprint="x").save(int(step), {"note": step}, tensors)

    def check(place: Path) -> float:
        target = {"weights": torch.zeros(300, 20), "step": torch.tensor(0.0)}
        about = Checkpoints(place, keep=1, fingerprint="x").load_newest(lambda _: target)
        assert about is not None
        [found] = {float(x) for tensor in target.values() for x in tensor.flatten()}
        assert about["note"] == found
        save(place, 3.0)
        assert [path.name for path in place.iterdir()] == ["step_00000003"], "nothing half written"
        return found

    steps = at_every_moment(tmp_path, lambda at: save(at, 1.0), lambda at: save(at, 2.0), check)
    assert len(steps) > 20 and steps == sorted(steps) and {*steps} == {1.0, 2.0}


def test_whenever_the_build_of_a_cache_is_killed_the_next_start_finds_or_builds_it(tmp_path):
    builds = []

    def build(place: Path) -> dict[str, Any]:
        builds.append(place)
        with ShardWriter(place, "a", np.dtype(np.uint16), eot_id=7) as writer:
            writer.add(np.arange(10, 30, dtype=np.uint16), 11, 5)
        return {"vocab_size": 30}

    def check(place: Path) -> int:
        builds.clear()
        open_or_build(place / "cache", build)
        shard = open_shard(place / "cache", "a", np.dtype(np.uint16))
        assert shard.document(0).tolist() == [*range(10, 30), 7]
        assert {path.name for path in place.iterdir()} <= {"cache", "cache.lock"}
        return len(builds)

    found = at_every_moment(
        tmp_path, Path.mkdir, lambda place: open_or_build(place / "cache", build), check
    )
    assert len(found) > 10 and found == sorted(found, reverse=True) and {*found} == {0, 1}


@pytest.mark.slow
def test_a_sweep_that_is_killed_three_times_ends_like_one_that_is_not():
    killed, differences = kills.run_kills(3, num_jobs=2, launcher="local_parallel", seed=0)
    assert killed.total() == 3 and differences == []


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
