"""Jobs on a real SLURM cluster: whatever interrupts them, they end as an uninterrupted job."""

import dataclasses
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
from gr_sweep.launch.slurm import numbers_in_queue, read_submitted
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


@dataclasses.dataclass
class Launcher:
    """A command that runs in the background."""

    process: "subprocess.Popen[str]"

    def end(self, timeout: float = 240) -> tuple[int, str]:
        """Its exit status, and what it said on stderr."""
        _, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a space in its name."""
    folder = tmp_path_factory.mktemp("slurm") / "a folder"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def start(place) -> Iterator[Callable[..., Launcher]]:
    """Starts a command there; cancels the jobs that are left at the end."""
    environment = {name: value for name, value in os.environ.items() if "WANDB" not in name} | {
        "HOME": str(place),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "GR_SWEEP_CACHE": str(place / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    started: list[Launcher] = []

    def start(*argv: str) -> Launcher:
        launcher = Launcher(
            subprocess.Popen(
                [sys.executable, "-c", COMMAND, *argv],
                cwd=place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        started.append(launcher)
        return launcher

    yield start
    for launcher in started:
        launcher.process.kill()
        launcher.process.communicate()
    mine = [number for sweep in place.iterdir() for number in read_submitted(sweep).values()]
    subprocess.run(["scancel", *{number.split("_")[0] for number in mine}], check=False)


@pytest.fixture(scope="module")
def undisturbed(start, place):
    """Weights and rows of the long job, run here."""
    status, err = start(*LONG, "hydra.run.dir=undisturbed").end()
    assert status == 0, err
    return weights(place / "undisturbed"), rows(place / "undisturbed")


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


def await_(what: Callable[[], Any], launcher: Launcher | None = None, timeout: float = 120) -> Any:
    """Waits until `what` returns something true, and returns that."""
    give_up = time.monotonic() + timeout
    while not (found := what()):
        if launcher is not None and launcher.process.poll() is not None:
            raise AssertionError(launcher.process.communicate()[1])
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.05)
    return found


def job_of(sweep: Path, name: str) -> Path | None:
    return next(sweep.glob(f"*{name}*"), None)


def number_of(job: Path) -> str:
    return read_submitted(job.parent)[job.name]


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


@pytest.mark.parametrize("requeues", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_disturbed_jobs_end_as_an_undisturbed_one(start, place, undisturbed, requeues):
    """Jobs are killed and cancelled, and with `requeues` requeued and told to save, too; the
    command is interrupted."""
    sweep = place / f"disturbed {requeues}"
    # A setting that changes none of the numbers compared.
    names = ["101", "102", "103", "104"] if requeues else ["103", "104"]
    command = ["-m", *LONG, *LAUNCHER, f"hydra.sweep.dir={sweep}"]
    at_once = len(names) // 2
    command += [f"eval.bootstrap={','.join(names)}", f"hydra.launcher.array_parallelism={at_once}"]

    first = start(*command)
    await_(lambda: all(training(sweep, name) for name in names[:at_once]), first)
    jobs = [job for name in names if (job := job_of(sweep, name)) is not None]
    *others, killed, cancelled = jobs
    slurm("scancel", number_of(cancelled))
    if others:
        requeued, told = others
        slurm("scontrol", "requeue", number_of(requeued))
        # As SLURM does; scancel would try again for long if the controller is busy.
        send(told, signal.SIGUSR2)
    await_(lambda: standing(cancelled).state is State.stopped, first)
    # SLURM forgets a task of an array that is cancelled before it begins.
    assert re.search("left the queue|CANCELLED", standing(cancelled).error)
    first.process.send_signal(signal.SIGINT)
    status, err = first.end()
    assert status == 130 and "shows them; to end them: scancel " in err, err

    await_(lambda: training(sweep, killed.name))
    send(killed, signal.SIGKILL)
    number = number_of(killed)
    await_(lambda: (queue := numbers_in_queue(sweep)) is not None and killed.name not in queue)
    second = start(*command)
    await_(lambda: number_of(killed) != number, second)
    second.process.kill()
    second.end()

    status, err = start(*command).end()
    assert status == 0, err
    for job in jobs:
        assert_same(job, undisturbed)


@pytest.mark.slow
def test_a_preempted_job_goes_on_where_it_was(start, place, undisturbed):
    launcher = start("-m", *LONG, *LAUNCHER, f"hydra.sweep.dir={place / 'preempted'}")
    job = await_(lambda: training(place / "preempted", "edges=both"), launcher)
    wait = "--wrap=sleep 1"
    slurm("sbatch", "--partition=high", "--exclusive", "--mem=0", "--output=/dev/null", wait)
    await_(lambda: standing(job).state is State.stopped, launcher)
    step = step_of(job)
    status, err = launcher.end()
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
    job = await_(lambda: training(sweep, "edges=both"), launcher)
    number = number_of(job)
    await_(lambda: standing(job).state is State.stopped, launcher)
    step = step_of(job)
    assert "SIGUSR2" in standing(job).error
    await_(lambda: step_of(job) > step, launcher, timeout=200)
    assert number_of(job) == number
    launcher.process.kill()
    slurm("scancel", number)
    found = [step for step, _ in rows(job)]
    assert found == sorted(set(found))
