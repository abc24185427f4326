"""Every procedure on several processes over gloo computes what one process does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gr_sweep.export.run import load_routed, open_run
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, read_losses
from tests.jobs import rows_of
from tests.several_jobs import NAMES, run_jobs

pytestmark = pytest.mark.dist

REPOSITORY = Path(__file__).parents[1]
PORT = 29_000 + os.getpid() % 900


def run_several(folder: Path, number: int, *names: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.several_jobs", str(PORT + number), folder, str(number),
         *names],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def stopped_after(step: int, folder: Path, to: Path) -> None:
    """A copy of a job's folder as if the job had been killed after the step."""
    shutil.copytree(folder, to)
    (to / "summary.json").unlink()
    for path in (to / "checkpoints").iterdir():
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """The folders of the jobs, run by this process alone, and their token cache."""
    folder = tmp_path_factory.mktemp("one")
    run_jobs(folder, ["alternate", "branch"])
    return folder


def assert_same_job(found: Path, expected: Path) -> None:
    """Plans and assignments are equal; losses, norms and what else is measured to 1e-5."""
    plans = [path.relative_to(expected) for path in expected.glob("**/plan.json")]
    for plan in plans:
        assert (found / plan).read_text() == (expected / plan).read_text()
    rows, others = (json.loads((f / "summary.json").read_text()) for f in (found, expected))
    pairs = [(rows["metrics"], others["metrics"])]
    pairs += zip(rows_of(found), rows_of(expected), strict=True)
    for row, other in pairs:
        assert row.keys() == other.keys()
        for key, value in row.items():
            if not key.startswith(("time", "cost/")) and key != "train/tokens_per_second":
                assert value == pytest.approx(other[key], rel=1e-5, abs=1e-6), key
    for name, kind in (("document_losses.csv", DocumentLoss), ("relearn.csv", RelearnLoss)):
        if (expected / name).exists():
            tables = (read_losses(folder / name, kind) for folder in (found, expected))
            for row, other in zip(*tables, strict=True):
                assert row.loss_nats == pytest.approx(other.loss_nats, rel=1e-5)
                assert row._replace(loss_nats=0.0) == other._replace(loss_nats=0.0)


def test_two_processes_go_on_where_one_was_killed_and_change_the_plan_as_it_did(one, tmp_path):
    names = ["alternate", "branch"]
    shutil.copytree(one / "cache", tmp_path / "cache")
    for name in names:
        stopped_after(1, one / name, tmp_path / name)
    run_several(tmp_path, 2, *names)
    for name in names:
        assert_same_job(tmp_path / name, one / name)
        models = [load_routed(open_run(folder / name))[0] for folder in (tmp_path, one)]
        small, expected = (routed.extract([routed.plan.domains[0]]) for routed in models)
        for key, tensor in expected.state_dict().items():
            torch.testing.assert_close(small.state_dict()[key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_jobs_of_several_processes_are_those_of_one(one, number, tmp_path):
    shutil.copytree(one / "cache", tmp_path / "cache")
    run_several(tmp_path, number, *NAMES)
    run_jobs(one, list(NAMES))
    for name in NAMES:
        assert_same_job(tmp_path / name, one / name)
    for name in ("alternate", "branch"):
        stopped_after(2, tmp_path / name, tmp_path / f"{name}-goes on")
        run_jobs(tmp_path, [f"{name}-goes on"])
        assert_same_job(tmp_path / f"{name}-goes on", one / name)
