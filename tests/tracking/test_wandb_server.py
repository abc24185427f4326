"""`gr-sweep dashboard` with a local server: uploads, joined metrics, workspace and report."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import wandb

from gr_sweep.cli.app import main
from gr_sweep.cli.dashboard import SAVED
from gr_sweep.metrics import registry
from gr_sweep.report import read_sweep
from gr_sweep.tracking import wandb_server
from gr_sweep.tracking.wandb import offline_logs
from tests.report.conftest import write_job
from tests.tracking.stub_server import ENTITY, StubServer
from tests.tracking.tracked_job import track

pytest.importorskip("wandb_workspaces")

NAME = 'it\'s "edges=both" <1> & a b'
"""A sweep whose name has characters that wandb-workspaces loses in filters."""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A routed and a dense job, both tracked offline."""
    folder = tmp_path_factory.mktemp("tracked") / NAME
    few: dict[str, Any] = {"num_documents": 6, "resamples": 5, "steps": 20}
    jobs = [
        write_job(folder, edges="dense", method="dense", **few),
        write_job(folder, edges="both", **few),
    ]
    for job in jobs:
        track(job)
    wandb.teardown()
    return folder


@pytest.fixture
def sweep(tracked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tracked, tmp_path / NAME))


@pytest.fixture
def one_job(sweep: Path) -> Path:
    """The sweep with its routed job alone."""
    for job in sweep.iterdir():
        if "edges=both" not in job.name:
            shutil.rmtree(job)
    [job] = sweep.iterdir()
    return job


def test_a_sweep_becomes_a_dashboard_that_the_same_command_updates(
    sweep: Path,
    server: StubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_ID", "WANDB_RUN_GROUP"):
        monkeypatch.setenv(name, "elsewhere")  # of the user's shell
    (sweep / SAVED).write_text('{"e/p": {"rep')  # damaged: as if there were none
    assert main(["dashboard", str(sweep)]) == 0
    said = capsys.readouterr().out
    assert said.count(": uploaded\n") == 2
    workspace, report = sorted(server.views, key=lambda view: view.type)
    assert (workspace.type, report.type) == ("project-view", "runs")
    assert f"workspace made: {server.url}/{ENTITY}/gr-sweep?nw=" in said
    assert f"report made: {server.url}/{ENTITY}/gr-sweep/reports/" in said
    assert workspace.display_name == "gr-sweep: it-s -edges-both- -1- - a b" == report.display_name

    # Panels name only what runs have, of this sweep only.
    runs = list(server.runs.values())
    assert {run.project for run in runs} == {"gr-sweep"} and {run.group for run in runs} == {NAME}
    logged = {
        key for run in runs for key in (*run.summary, *(k for row in run.history for k in row))
    }
    for view in server.views:
        text = json.dumps(view.spec)
        assert json.dumps([NAME]) in text
        for key in ("mean_tax", "eval/loss/code", "separability/heat_map"):
            assert key in logged and key in text
        assert registry.ROUND.key not in logged and registry.ROUND.key not in text

    # The runs got the joined metrics, and kept what they had logged.
    for job in read_sweep(sweep).jobs:
        [run] = [run for run in runs if run.display_name == job.name]
        assert job.metrics.items() <= run.summary.items()
        assert "mean_tax" in run.summary and run.summary["train/loss"]
        assert run.config["gr_sweep"]["value"]["compared_as"] == job.edges

    # Again, with a title that somebody changed: the same two, and nothing sent to the runs.
    report.display_name = "My report"
    server.requests.clear()
    assert main(["dashboard", str(sweep)]) == 0
    said = capsys.readouterr().out
    assert "workspace updated: " in said and "report updated: " in said and "added" not in said
    assert "UpsertBucket" not in [name for name, _ in server.requests]
    assert [view.num_saved for view in server.views] == [2, 2]

    # One was deleted on the server.
    server.views.remove(workspace)
    assert main(["dashboard", str(sweep)]) == 0
    assert "workspace made: " in capsys.readouterr().out and len(server.views) == 2


def test_an_upload_of_a_damaged_log_is_an_error_and_not_marked(
    one_job: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    job = one_job.with_name("half")
    shutil.copytree(one_job, job, ignore=shutil.ignore_patterns("wandb"))
    track(job)
    wandb.teardown()
    [log] = job.glob("wandb/offline-run-*/*.wandb")
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    assert main(["dashboard", str(one_job.parent), "--upload-only"]) == 1
    whole, half = capsys.readouterr().out.splitlines()
    assert whole == f"{one_job.name}: uploaded" and not offline_logs(one_job)
    assert half.startswith("half: not uploaded: ") and offline_logs(job) == [log]
    print(half)


def test_a_server_that_is_away_is_one_line_in_seconds(
    one_job: Path,
    server: StubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wandb_server, "API_TIMEOUT_S", 2)
    server.delay_s = 600.0
    begun = time.monotonic()
    monkeypatch.setenv("WANDB_BASE_URL", server.url.replace("//", "//user:secret@"))
    assert main(["dashboard", str(one_job.parent)]) == 2
    assert time.monotonic() - begun < 100
    said = capsys.readouterr()
    assert said.err.startswith(f"gr-sweep: W&B at {server.url} cannot be used: ")
    assert said.err.count("\n") == 1 and not said.out
