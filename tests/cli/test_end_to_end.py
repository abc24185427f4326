"""The real command on real jobs, tiny ones, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.train.saved import saved_tensors

QUICK = ["debug=default", "data.documents=60", "data.vocab_size=300"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def gr_sweep(tmp_path, cache):
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

    def start(*argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "gr_sweep", *argv],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(*argv: str) -> tuple[int, str, str]:
        process = start(*argv)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    run.start, run.folder = start, folder
    return run


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
        assert summary["command"].startswith("gr-sweep -m debug=default")
        assert (job / ".hydra" / "config.yaml").exists() and list((job / "wandb").glob("*run-*"))
        assert "step 6/6" in (job / "gr_sweep.log").read_text()
    before = {path: path.stat().st_mtime_ns for job in jobs for path in job.rglob("*")}
    status, _, err = gr_sweep(*command)
    assert status == 0 and err.count("done already") == 2 and "step" not in err
    assert {path: path.stat().st_mtime_ns for job in jobs for path in job.rglob("*")} == before


def test_killed_job_typed_again_ends_with_the_weights_of_an_uninterrupted_one(gr_sweep):
    command = [*QUICK, "train.steps=60", "train.checkpoint_every=5"]

    def weights(folder: str) -> dict[str, torch.Tensor]:
        return saved_tensors(gr_sweep.folder / folder / "checkpoints" / "step_00000060")

    status, _, err = gr_sweep(*command, "hydra.run.dir=whole")
    assert status == 0, err
    process = gr_sweep.start(*command, "hydra.run.dir=killed")
    checkpoints = gr_sweep.folder / "killed" / "checkpoints"
    give_up = time.monotonic() + 120
    while not list(checkpoints.glob("step_*")):
        assert time.monotonic() < give_up and process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (gr_sweep.folder / "killed" / "summary.json").exists()
    status, _, err = gr_sweep(*command, "hydra.run.dir=killed")
    assert status == 0 and "step 1/60" not in err, err
    whole, killed = weights("whole"), weights("killed")
    assert whole.keys() == killed.keys()
    for name, value in whole.items():
        assert torch.equal(value, killed[name]), name
    rows = [json.loads(line) for line in (gr_sweep.folder / "killed" / "metrics.jsonl").open()]
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert steps == list(range(1, 61)), "one continuous run, no step twice"


def test_text_of_ones_own_in_three_formats(gr_sweep):
    texts = gr_sweep.folder / "my texts"
    (texts / "code").mkdir(parents=True)
    for number in range(60):
        (texts / "code" / f"{number}.txt").write_text(
            f"def f{number}(x): return x + {number}\n" * 30
        )
    lines = [{"text": f"cell {number} of the tissue " * 40} for number in range(60)]
    (texts / "biology.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    import pandas as pd

    stories = [f"Once upon a time, {number} years ago, " * 40 for number in range(60)]
    pd.DataFrame({"text": stories}).to_parquet(texts / "creative.parquet")
    status, out, err = gr_sweep(
        "debug=default", "data=local", "data.root=my texts", "data.vocab_size=300"
    )
    assert status == 0, err
    assert "loss, full model" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["edges=wieght"], "weight"),
        (["plan=forget"], "plan.forget=[code]"),
        (["plan.mlp_shared=1.5"], "from 0 to 1"),
        (["train.batch_sequences=7"], "multiple of 3"),
        (["tracking=online"], "wandb login"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2_before_any_work(
    gr_sweep, monkeypatch, argv, message
):
    status, out, err = gr_sweep(*argv)
    assert status == 2 and out == "" and err.count("\n") == 1 and message in err, err
    assert not list(gr_sweep.folder.iterdir())


@pytest.mark.slow
def test_separation_falls_as_the_domains_share_more(gr_sweep):
    status, _, err = gr_sweep(
        "-m", "model=tiny", "edges=weight", "data.overlap=0,0.5,1", "data.documents=400",
        "data.vocab_size=600", "train.steps=150", "train.sequence_length=64", "tracking=off",
    )  # fmt: skip
    assert status == 0, err
    mean_selectivity = {}
    for path in gr_sweep.folder.glob("outputs/*/*/summary.json"):
        summary = json.loads(path.read_text())
        values = [
            summary["metrics"][f"separability/selectivity/{domain}"]
            for domain in summary["domains"]
        ]
        mean_selectivity[summary["config"]["data"]["overlap"]] = sum(values) / len(values)
    assert mean_selectivity[0.0] > mean_selectivity[0.5] + 0.1 > mean_selectivity[1.0] + 0.2
    assert abs(mean_selectivity[1.0]) < 0.1
