"""Jobs on a real SLURM cluster: whatever interrupts them, they end as an uninterrupted job."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gr_sweep.jobdir import State, standing
from gr_sweep.launch.slurm import queue_of_user
from tests.program import Program
from tests.train.saved import saved_tensors


def _has_slurm() -> bool:
    if shutil.which("sinfo") is None:
        return False
    return subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not _has_slurm(), reason="there is no SLURM cluster"),
]

QUICK = ["debug=default", "data.documents=60", "data.vocab_size=300", "tracking=off"]
STEPS = 120
LONG = [*QUICK, "edges=both", f"train.steps={STEPS}", "train.checkpoint_every=10"]
LAUNCHER = [
    "hydra/launcher=slurm",
    "hydra.launcher.gpu=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1",
]

COMMAND = """
import sys
import gr_sweep.launch.slurm as slurm
slurm.POLL_S, slurm.FILES_S = 0.2, 1.0
from gr_sweep.cli.app import main
sys.exit(main())
"""
"""The command with short waits."""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    return Program(folder, folder / "cache")


@pytest.fixture(scope="module")
def place(program):
    """The folder of the commands."""
    return program.folder


@pytest.fixture(scope="module")
def start(program) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command there; cancels the jobs that are left at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*argv: str) -> subprocess.Popen[str]:
        started.append(program.start(*argv, by=[sys.executable, "-c", COMMAND]))
        return started[-1]

    yield start
    for launcher in started:
        launcher.kill()
        launcher.communicate()
    records = [standing(record.parent) for record in program.folder.glob("*/*/job.json")]
    mine = {record.slurm_job.split("_")[0] for record in records if record.slurm_job}
    subprocess.run(["scancel", *mine], check=False)


def end(launcher: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit status of a command, and what it said on stderr."""
    _, err = launcher.communicate(timeout=240)
    return launcher.returncode, err


@pytest.fixture(scope="module")
def undisturbed(program):
    """Weights and rows of the long job, run in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    status, _, err = program.run(*LONG, "hydra.run.dir=undisturbed")
    torch.set_num_threads(threads)
    assert status == 0, err
    job = program.folder / "undisturbed"
    return weights(job), rows(job)


def weights(job: Path) -> dict[str, torch.Tensor]:
    return saved_tensors(job / "checkpoints" / f"step_{STEPS:08d}")


def rows(job: Path) -> list[tuple[int, float]]:
    """Step and loss of each row of training."""
    found = map(json.loads, (job / "metrics.jsonl").open())
    return [(row["step"], row["train/loss"]) for row in found if "train/loss" in row]


def assert_same(job: Path, undisturbed: tuple[Any, Any]) -> None:
    """The job ended as one that nobody disturbed, bit for bit and row by row."""
    expected, expected_rows = undisturbed
    found = weights(job)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert rows(job) == expected_rows


def await_(
    what: Callable[[], Any], launcher: subprocess.Popen[str] | None = None, timeout: float = 120
) -> Any:
    """Waits until `what` returns something true, and returns that."""
    give_up = time.monotonic() + timeout
    while not (found := what()):
        if launcher is not None and launcher.poll() is not None:
            raise AssertionError(launcher.communicate()[1])
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.05)
    return found


def job_of(sweep: Path, name: str) -> Path | None:
    return next(sweep.glob(f"*{name}*"), None)


def number_of(job: Path) -> str:
    return standing(job).slurm_job


def training(sweep: Path, name: str) -> Path | None:
    """The job's folder, once it runs and has a checkpoint."""
    job = job_of(sweep, name)
    if job is None or not list(job.glob("checkpoints/step_*")):
        return None
    return job if standing(job).state is State.running else None


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def send(job: Path, number: signal.Signals) -> None:
    """To the process that runs the job."""
    record = standing(job)
    assert record is not None and record.holder is not None
    os.kill(record.holder.pid, number)


def step_of(job: Path) -> int:
    """Of its newest checkpoint; 0 before the first."""
    steps = (int(path.name.removeprefix("step_")) for path in job.glob("checkpoints/step_*"))
    return max(steps, default=0)


def is_queued(job: Path) -> bool:
    queue = queue_of_user()
    return queue is None or number_of(job) in queue


def test_a_killed_and_a_cancelled_job_end_as_an_undisturbed_one(start, place, undisturbed):
    """And the command is interrupted; typed again, it runs both."""
    sweep = place / "killed"
    # A setting that changes none of the numbers compared.
    command = ["-m", *LONG, *LAUNCHER, f"hydra.sweep.dir={sweep}", "eval.bootstrap=103,104"]
    first = start(*command, "hydra.launcher.array_parallelism=1")
    killed = await_(lambda: training(sweep, "103"), first)
    send(killed, signal.SIGSTOP)  # so that it does not end before it is killed
    cancelled = await_(lambda: job_of(sweep, "104"), first)
    # SLURM forgets a task of an array that is cancelled before it begins.
    slurm("scancel", number_of(cancelled))
    await_(lambda: standing(cancelled).state is State.stopped, first)
    assert re.search("left the queue|CANCELLED", standing(cancelled).error)
    first.send_signal(signal.SIGINT)
    status, err = end(first)
    assert status == 130 and "shows them; to end them: scancel " in err, err

    send(killed, signal.SIGKILL)
    await_(lambda: not is_queued(killed))
    assert 0 < step_of(killed) < STEPS
    status, err = end(start(*command))
    assert status == 0, err
    for job in (killed, cancelled):
        assert_same(job, undisturbed)


@pytest.mark.slow
def test_requeued_and_told_jobs_and_one_whose_command_is_killed_end_as_undisturbed_ones(
    start, place, undisturbed
):
    sweep = place / "requeued"
    command = ["-m", *LONG, *LAUNCHER, f"hydra.sweep.dir={sweep}", "eval.bootstrap=101,102"]
    first = start(*command)
    jobs = [await_(functools.partial(training, sweep, name), first) for name in ("101", "102")]
    requeued, told = jobs
    slurm("scontrol", "requeue", number_of(requeued))
    # As SLURM does; scancel would try again for long if the controller is busy.
    send(told, signal.SIGUSR2)
    first.kill()
    end(first)
    numbers = [number_of(job) for job in jobs]
    status, err = end(start(*command))
    assert status == 0, err
    assert [number_of(job) for job in jobs] == numbers, "the same jobs of SLURM"
    for job in jobs:
        assert_same(job, undisturbed)


@pytest.mark.slow
def test_a_preempted_job_goes_on_where_it_was(start, place, undisturbed):
    launcher = start("-m", *LONG, *LAUNCHER, f"hydra.sweep.dir={place / 'preempted'}")
    job = await_(lambda: training(place / "preempted", "-"), launcher)
    wait = "--wrap=sleep 1"
    slurm("sbatch", "--partition=high", "--exclusive", "--mem=0", "--output=/dev/null", wait)
    await_(lambda: standing(job).state is State.stopped, launcher)
    step = step_of(job)
    status, err = end(launcher)
    assert status == 0 and 0 < step < STEPS, err
    assert_same(job, undisturbed)


@pytest.mark.slow
def test_a_job_goes_on_after_its_time_limit(start, place):
    """SLURM's limits are minutes, and its signal may come most of one early."""
    steps = ["train.steps=100000", "train.checkpoint_every=100", "train.log_every=100"]
    command = ["-m", *QUICK, *LAUNCHER, "edges=both", *steps]
    command += ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=20"]
    sweep = place / "limited"
    launcher = start(*command, f"hydra.sweep.dir={sweep}")
    job = await_(lambda: training(sweep, "-"), launcher)
    number = number_of(job)
    await_(lambda: standing(job).state is State.stopped, launcher)
    step = step_of(job)
    assert "SIGUSR2" in standing(job).error
    await_(lambda: step_of(job) > step, launcher, timeout=200)
    assert number_of(job) == number
    launcher.kill()
    slurm("scancel", number)
    found = [step for step, _ in rows(job)]
    assert found == sorted(set(found))
