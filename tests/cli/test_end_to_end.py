"""Whole jobs, tiny ones, by the command: in this process where a new one would prove no more."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gr_sweep.cli.help import conf_dir
from tests.program import MODULE, Program
from tests.two_tasks import start_two

QUICK = ["debug=default", "data.documents=60", "data.vocab_size=300"]
STOPPABLE = [*QUICK, "train.steps=60", "eval.samples=0", "tracking=off"]
SHARED = [*QUICK, "edges=both", "train.max_norm=null", "eval.samples=1"]
"""A job that several processes can share."""


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def program(tmp_path, cache):
    return Program(tmp_path, cache)


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < give_up and process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def test_a_sweep_ends_with_its_report_and_a_second_one_trains_nothing(program):
    command = ["-m", *QUICK, "edges=both,act", "tracking=offline"]
    process = program.start(*command)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    report = program.folder / out.splitlines()[-1]
    assert report.name == "index.html" and report.exists()
    sweep = report.parents[1]
    jobs = sorted(path for path in sweep.iterdir() if path.name.startswith("edges="))
    assert [job.name.rsplit("-", 1)[0] for job in jobs] == ["edges=act", "edges=both"]
    for job in jobs:
        summary = json.loads((job / "summary.json").read_text())
        assert f"edges={summary['config']['edges']}" in summary["overrides"]
        assert summary["command"].startswith("gr-sweep debug=default")
        assert (job / ".hydra" / "config.yaml").exists() and list((job / "wandb").glob("*run-*"))
        assert "step 6/6" in (job / "gr_sweep.log").read_text()
    before = {path: path.stat().st_mtime_ns for job in jobs for path in job.rglob("*")}
    status, _, err = program.run(*command)
    assert status == 0 and err.count("done already") == 2 and "step" not in err
    assert {path: path.stat().st_mtime_ns for job in jobs for path in job.rglob("*")} == before


def steps_of(job: Path) -> list[int]:
    rows = [json.loads(line) for line in (job / "metrics.jsonl").open()]
    return [row["step"] for row in rows if "train/loss" in row]


def test_a_signal_stops_the_command_with_a_line_and_the_same_command_goes_on(program):
    """tests/test_job.py has the weights of a job that was stopped."""
    # No checkpoint is due before the end.
    command = [*STOPPABLE, "train.checkpoint_every=60", "hydra.run.dir=stopped"]
    process = program.start(*command)
    folder = program.folder / "stopped"
    rows = folder / "metrics.jsonl"
    wait_until(lambda: rows.exists() and "train/loss" in rows.read_text(), process)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert out == "" and "Traceback" not in err
    assert err.splitlines()[-1] == (
        "gr-sweep: stopped by SIGTERM; the same command resumes from here"
    )
    [saved] = (folder / "checkpoints").glob("step_*")
    assert not (folder / "summary.json").exists()

    status, out, err = program.run("status", "stopped")
    assert status == 0 and out.splitlines()[-1].startswith("1 stopped"), err
    assert "stopped by SIGTERM" in out and f"{int(saved.name[5:])}/60" in out

    status, _, err = program.run(*command)
    assert status == 0 and "step 1/60" not in err, err
    assert steps_of(folder) == list(range(1, 61))
    assert json.loads((folder / "summary.json").read_text())["changes"] == []


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
    """Folder of the shared job, run by one process."""
    program = Program(tmp_path_factory.mktemp("alone"), cache)
    status, out, err = program.run(*SHARED, "train.lr=0.003", "hydra.run.dir=alone")
    assert status == 0 and out.count("loss, full model") == 1, err
    return program.folder / "alone"


@pytest.mark.dist
def test_two_processes_leave_what_one_leaves_and_say_it_once(program, alone):
    """A sweep whose first job fails in both, in a folder whose name holds the time, which is
    another one in each process."""

    def read(path: Path) -> tuple[dict[str, float], list[dict[str, float]]]:
        assert {file.name for file in path.iterdir()} == {
            ".hydra", "checkpoints", "document_losses.csv", "gr_sweep.log", "job.json",
            "metrics.jsonl", "model", "plan.json", "samples.json", "summary.json",
        }  # fmt: skip
        summary = json.loads((path / "summary.json").read_text())
        rows = [json.loads(line) for line in (path / "metrics.jsonl").open()]
        return summary["metrics"], rows

    def assert_same(one, two):
        assert one.keys() == two.keys()
        for key, value in one.items():
            if not key.startswith("cost/") and key not in ("time_s", "train/tokens_per_second"):
                # Separability and the like are differences of losses.
                assert two[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key

    where = ["hydra.sweep.dir=two/${now:%H-%M-%S-%f}", "hydra.sweep.subdir=${train.lr}"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = ["-m", *SHARED, "train.lr=1e30,0.003", *where]
    process = program.start(*command, by=[*torchrun, "--nproc-per-node=2", *MODULE])
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    # Whether loss or gradient is the first to overflow depends on the processor.
    [line] = [line for line in err.splitlines() if "gr-sweep: train.lr=1e+30 failed: " in line]
    assert " is not finite in step " in line
    assert err.count("step 6/6") == 1
    [two] = (program.folder / "two").iterdir()
    assert not (two / "1e+30" / "summary.json").exists()
    (metrics, rows), (others, other_rows) = read(alone), read(two / "0.003")
    assert_same(metrics, others)
    for row, other in zip(rows, other_rows, strict=True):
        assert_same(row, other)


@pytest.mark.dist
@pytest.mark.slow
def test_rows_that_do_not_divide_are_one_line_of_all_processes(tmp_path):
    task = start_two(tmp_path, "train.batch_sequences=9")
    _, err = task.communicate(timeout=300)
    assert task.returncode == 2
    assert "9 sequences, which do not divide over 2 processes" in err
    assert err.startswith("gr-sweep: ") and err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"other"}


EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_study_runs_small_from_start_to_report(program, experiment):
    status, out, err = program.run(f"experiment={experiment}", "scale=smoke", "tracking=off")
    assert status == 0, err
    assert (program.folder / out.splitlines()[-1]).exists()
    assert "failed" not in err
