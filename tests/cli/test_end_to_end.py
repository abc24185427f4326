"""The real command on real jobs, tiny ones, each in a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gr_sweep.cli.schema import conf_dir
from tests.train.saved import saved_tensors

QUICK = ["debug=default", "data.documents=60", "data.vocab_size=300"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


STOPPABLE = [*QUICK, "train.steps=60", "eval.samples=0", "tracking=off"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """Weights of a job that was never stopped."""
    run = runner(tmp_path_factory.mktemp("whole"), cache)
    status, _, err = run(*STOPPABLE, "hydra.run.dir=whole")
    assert status == 0, err
    return saved_tensors(run.folder / "whole" / "checkpoints" / "step_00000060")


def assert_same_weights(folder: Path, whole: dict[str, torch.Tensor]) -> None:
    weights = saved_tensors(folder / "checkpoints" / "step_00000060")
    assert weights.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(value, weights[name]), name


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < give_up and process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def runner(tmp_path: Path, cache: Path):
    """Runs a command line in an empty folder with a blank in its name."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    repository = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if "WANDB" not in name} | {
        "HOME": str(tmp_path),  # whoever runs the tests may be logged in to W&B
        "PYTHONPATH": str(repository),
        "GR_SWEEP_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }

    def start(*argv: str, processes: int = 1, srun: bool = False) -> subprocess.Popen[str]:
        starter = [sys.executable]
        if srun:
            starter = ["srun", f"--ntasks={processes}", *starter]
        elif processes > 1:
            starter += ["-m", "torch.distributed.run", "--standalone"]
            starter += [f"--nproc-per-node={processes}"]
        return subprocess.Popen(
            [*starter, "-m", "gr_sweep", *argv],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(*argv: str, **how: Any) -> tuple[int, str, str]:
        process = start(*argv, **how)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    run.start, run.folder = start, folder
    return run


@pytest.fixture
def gr_sweep(tmp_path, cache):
    return runner(tmp_path, cache)


def test_a_sweep_ends_with_its_report_and_a_second_one_trains_nothing(gr_sweep):
    command = ["-m", *QUICK, "edges=both,act", "tracking=offline"]
    status, out, err = gr_sweep(*command)
    assert status == 0, err
    report = gr_sweep.folder / out.splitlines()[-1]
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
    status, _, err = gr_sweep(*command)
    assert status == 0 and err.count("done already") == 2 and "step" not in err
    assert {path: path.stat().st_mtime_ns for job in jobs for path in job.rglob("*")} == before


@pytest.mark.slow
def test_killed_job_typed_again_ends_with_the_weights_of_an_uninterrupted_one(gr_sweep, whole):
    command = [*STOPPABLE, "train.checkpoint_every=5"]
    process = gr_sweep.start(*command, "hydra.run.dir=killed")
    checkpoints = gr_sweep.folder / "killed" / "checkpoints"
    wait_until(lambda: any(checkpoints.glob("step_*")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (gr_sweep.folder / "killed" / "summary.json").exists()
    status, _, err = gr_sweep(*command, "hydra.run.dir=killed")
    assert status == 0 and "step 1/60" not in err, err
    assert_same_weights(gr_sweep.folder / "killed", whole)
    rows = [json.loads(line) for line in (gr_sweep.folder / "killed" / "metrics.jsonl").open()]
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert steps == list(range(1, 61)), "one continuous run, no step twice"


def test_a_signal_stops_the_command_with_a_line_and_the_same_command_goes_on(gr_sweep, whole):
    # No checkpoint is due before the end.
    command = [*STOPPABLE, "train.checkpoint_every=60"]
    process = gr_sweep.start(*command, "hydra.run.dir=stopped")
    folder = gr_sweep.folder / "stopped"
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

    status, out, err = gr_sweep("status", "stopped")
    assert status == 0 and out.splitlines()[-1].startswith("1 stopped"), err
    assert "stopped by SIGTERM" in out and f"{int(saved.name[5:])}/60" in out

    status, _, err = gr_sweep(*command, "hydra.run.dir=stopped")
    assert status == 0, err
    assert_same_weights(folder, whole)
    assert json.loads((folder / "summary.json").read_text())["changes"] == []


SHARED = [*QUICK, "edges=both", "train.max_norm=null"]
"""A job that several processes can share."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
    """Folder of that job, run by one process."""
    run = runner(tmp_path_factory.mktemp("alone"), cache)
    status, out, err = run(*SHARED, "train.lr=0.003", "hydra.run.dir=alone")
    assert status == 0 and out.count("loss, full model") == 1, err
    return run.folder / "alone"


@pytest.mark.dist
def test_two_processes_leave_what_one_leaves_and_say_it_once(gr_sweep, alone):
    """A sweep whose first job fails in both, in a folder whose name holds the time, which is
    another one in each process."""

    def read(path: Path) -> tuple[dict[str, float], list[dict[str, float]]]:
        assert {file.name for file in path.iterdir()} == {
            ".hydra", ".lock", "checkpoints", "document_losses.csv", "gr_sweep.log", "job.json",
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
    status, _, err = gr_sweep("-m", *SHARED, "train.lr=1e30,0.003", *where, processes=2)
    assert status != 0
    # Whether loss or gradient is the first to overflow depends on the processor.
    [line] = [line for line in err.splitlines() if "gr-sweep: train.lr=1e+30 failed: " in line]
    assert " is not finite in step " in line
    assert err.count("step 6/6") == 1
    [two] = (gr_sweep.folder / "two").iterdir()
    assert not (two / "1e+30" / "summary.json").exists()
    (metrics, rows), (others, other_rows) = read(alone), read(two / "0.003")
    assert_same(metrics, others)
    for row, other in zip(rows, other_rows, strict=True):
        assert_same(row, other)


@pytest.mark.dist
def test_rows_that_do_not_divide_are_one_line_of_all_processes(gr_sweep):
    status, out, err = gr_sweep("train.batch_sequences=9", processes=2)
    assert status != 0 and out == ""
    said = [line for line in err.splitlines() if line.startswith("gr-sweep: ")]
    assert len(said) == 1 and "9 sequences, which do not divide over 2 processes" in said[0]
    assert err.count("Traceback") == 1, "torchrun's own"
    assert not list(gr_sweep.folder.iterdir())


@pytest.mark.slurm
@pytest.mark.skipif(
    shutil.which("srun") is None
    or subprocess.run(["sinfo"], capture_output=True, check=False).returncode != 0,
    reason="there is no SLURM cluster",
)
def test_tasks_of_a_slurm_step_are_processes_of_one_job(gr_sweep, alone):
    command = [*SHARED, "train.lr=0.003", "hydra.run.dir=two"]
    status, out, err = gr_sweep(*command, processes=2, srun=True)
    assert status == 0 and err.count("step 6/6") == 1 and out.count("loss, full") == 1, err
    losses = []
    for folder in (alone, gr_sweep.folder / "two"):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        losses.append([row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


SMOKE = ["scale=smoke", "tracking=off", "data.documents=200", "train.steps=12"]


@pytest.mark.slow
def test_a_study_brings_its_baselines_and_its_report_compares_with_them(gr_sweep):
    import pandas as pd

    command = ["experiment=edges_vs_baselines", *SMOKE, "method=routed,era", "edges=weight"]
    status, out, err = gr_sweep(*command)
    assert status == 0, err
    report = gr_sweep.folder / out.splitlines()[-1]
    table = pd.read_csv(report.parent / "results.csv").set_index("job")
    kinds = sorted(table["method.name"])
    assert kinds == sorted(["routed", "era", *["dense"] * 4, *["filtered"] * 3])
    routed = table[table["method.name"] == "routed"].iloc[0]
    [dense] = [row for _, row in table[table["method.name"] == "dense"].iterrows()
               if row["train.steps"] == 12]  # fmt: skip
    for domain in ("code", "biology", "creative"):
        tax = routed[f"loss/full/{domain}"] - dense[f"loss/full/{domain}"]
        assert routed[f"utility/tax/{domain}"] == pytest.approx(tax)
        [filtered] = [row for _, row in table.iterrows() if row["method.without"] == f"[{domain}]"]
        for other in {"code", "biology", "creative"} - {domain}:
            transfer = filtered[f"loss/full/{other}"] - dense[f"loss/full/{other}"]
            assert routed[f"utility/transfer/{domain}/{other}"] == pytest.approx(transfer)

    # Another study beside it takes the same baselines over.
    status, _, err = gr_sweep(*command[:-2], "method=demix", "edges=act")
    assert status == 0, err
    assert err.count("its results are copied") == 7
    # And typed again, neither trains anything.
    status, _, err = gr_sweep(*command)
    assert status == 0 and err.count("done already") == 9 and "tokens/s" not in err, err


EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_study_runs_small_from_start_to_report(gr_sweep, experiment):
    status, out, err = gr_sweep(f"experiment={experiment}", "scale=smoke", "tracking=off")
    assert status == 0, err
    assert (gr_sweep.folder / out.splitlines()[-1]).exists()
    assert "failed" not in err
