"""W&B has the rows of metrics.jsonl, each once and in their order, whatever was killed when."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.tracking.stub_server import StubServer
from tests.tracking.tracked_job import SUMMARY
from tests.tracking.wandb_file import read_run

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("no_account")

FLUSHED = "sleep=1.5"
"""Longer than wandb keeps a row in memory."""

SENT = "sleep=3.5"
"""Longer than it takes to send all rows to the server."""


def run(folder: Path, mode: str, *actions: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.tracking.tracked_job", str(folder), mode, *actions],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    killed = actions[-1] == "kill"
    assert done.returncode == (-signal.SIGKILL if killed else 0), done.stderr


def run_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/*run-*/*.wandb"))


def offline_rows(folder: Path) -> list[dict[str, Any]]:
    """Of all attempts, as `wandb sync` would upload them."""
    return [row for path in run_files(folder) for row in read_run(path)["history"]]


def sync(*folders: Path) -> None:
    """The user's command."""
    subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *map(str, folders)],
        check=True,
        capture_output=True,
        cwd=folders[0],
        timeout=120,
    )


def assert_same_rows(history: Iterable[dict[str, Any]], folder: Path, *, last_step: int) -> None:
    """The rows of metrics.jsonl, then that of the matrix, numbered through."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = []
    for line in lines:
        row = json.loads(line)
        rows.append({"gr_sweep/step": row.pop("step")} | row)
    steps = [step for step in range(1, last_step + 1) for _ in range(2 if step % 3 == 0 else 1)]
    assert [row["gr_sweep/step"] for row in rows] == steps
    *metrics, matrix = history
    assert [{k: v for k, v in row.items() if k[0] != "_"} for row in metrics] == rows
    assert any(key.startswith("separability/matrix") for key in matrix)
    assert any(key.startswith("separability/heat_map") for key in matrix)
    assert matrix["gr_sweep/step"] == last_step
    assert [row["_step"] for row in (*metrics, matrix)] == list(range(len(rows) + 1))


def test_a_kill_after_a_checkpoint_doubles_no_row_offline(
    tmp_path: Path, server: StubServer
) -> None:
    """Not in the files, and not on the server that they are uploaded to."""
    job = tmp_path / "job"
    run(job, "offline", "resume=-1", "log=1:7", FLUSHED, "kill")
    assert len(offline_rows(job)) == 9
    run(job, "offline", "resume=4", "log=5:8", "finish")
    assert_same_rows(offline_rows(job), job, last_step=8)
    sync(*[path.parent for path in run_files(job)])
    (uploaded,) = server.runs.values()
    assert_same_rows(uploaded.history, job, last_step=8)


@pytest.mark.parametrize("torn_bytes", [1, pytest.param(300, marks=pytest.mark.slow)])
def test_rows_that_wandb_lost_are_replayed_offline(tmp_path: Path, torn_bytes: int) -> None:
    run(tmp_path, "offline", "resume=-1", "log=1:7", FLUSHED, "kill")
    (path,) = run_files(tmp_path)
    os.truncate(path, path.stat().st_size - torn_bytes)
    assert 0 < len(offline_rows(tmp_path)) < 9
    run(tmp_path, "offline", "resume=7", "log=8:10", "finish")
    assert_same_rows(offline_rows(tmp_path), tmp_path, last_step=10)


@pytest.mark.slow
def test_a_kill_before_wandb_wrote_anything_loses_no_row(tmp_path: Path) -> None:
    run(tmp_path, "offline", "resume=-1", "log=1:4", "kill")
    run(tmp_path, "offline", "resume=4", "log=5:5", "kill")
    for path in run_files(tmp_path):
        os.truncate(path, 0)
    run(tmp_path, "offline", "resume=5", "log=6:6", "finish")
    assert_same_rows(offline_rows(tmp_path), tmp_path, last_step=6)


@pytest.mark.slow
def test_a_kill_between_the_end_and_summary_json_doubles_neither_rows_nor_matrix(
    tmp_path: Path,
) -> None:
    run(tmp_path, "offline", "resume=-1", "log=1:6", "finish", FLUSHED, "kill")
    run(tmp_path, "offline", "resume=4", "log=5:6", "finish")
    assert_same_rows(offline_rows(tmp_path), tmp_path, last_step=6)
    *_, last = run_files(tmp_path)
    assert SUMMARY["metrics"].items() <= read_run(last)["summary"].items()


def test_a_kill_after_a_checkpoint_doubles_no_row_online(
    tmp_path: Path, server: StubServer
) -> None:
    run(tmp_path, "online", "resume=-1", "log=1:7", SENT, "kill")
    (sent,) = server.runs.values()
    assert len(sent.history) == 9
    run(tmp_path, "online", "resume=4", "log=5:8", "finish")
    assert_same_rows(sent.history, tmp_path, last_step=8)
    assert sent.exit_code == 0


@pytest.mark.slow
def test_rows_that_did_not_reach_the_server_are_replayed(
    tmp_path: Path, server: StubServer
) -> None:
    run(tmp_path, "online", "resume=-1", "log=1:4", SENT, "kill")
    (sent,) = server.runs.values()
    del sent.lines["wandb-history.jsonl"][2:]
    del sent.lines["wandb-summary.json"]  # came in the same request as the rows
    run(tmp_path, "online", "resume=4", "log=5:6", "finish")
    assert_same_rows(sent.history, tmp_path, last_step=6)


@pytest.mark.slow
def test_a_kill_between_the_end_and_summary_json_doubles_nothing_online(
    tmp_path: Path, server: StubServer
) -> None:
    run(tmp_path, "online", "resume=-1", "log=1:6", "finish", "kill")
    run(tmp_path, "online", "resume=4", "log=5:6", "finish")
    (sent,) = server.runs.values()
    assert_same_rows(sent.history, tmp_path, last_step=6)
    assert sent.summary["loss/full/code"] == 4.0


@pytest.mark.slow
def test_a_run_begun_offline_goes_on_online_with_all_its_rows(
    tmp_path: Path, server: StubServer
) -> None:
    """And nobody uploads the offline part a second time."""
    run(tmp_path / "job", "offline", "resume=-1", "log=1:5", FLUSHED, "kill")
    assert not server.runs
    run(tmp_path / "job", "auto", "resume=3", "log=4:6", "finish")
    (sent,) = server.runs.values()
    assert_same_rows(sent.history, tmp_path / "job", last_step=6)
    sync(*[path.parent for path in run_files(tmp_path / "job") if "offline" in str(path)])
    assert_same_rows(sent.history, tmp_path / "job", last_step=6)


@pytest.mark.slow
def test_a_run_that_was_offline_in_between_ends_online_with_all_its_rows(
    tmp_path: Path, server: StubServer
) -> None:
    run(tmp_path, "online", "resume=-1", "log=1:5", SENT, "kill")
    run(tmp_path, "offline", "resume=4", "log=5:8", FLUSHED, "kill")
    between = read_run(next(tmp_path.glob("wandb/offline-run-*/*.wandb")))["history"]
    # Not those that the files of the attempt before have.
    assert [row["gr_sweep/step"] for row in between] == [6, 6, 7, 8]
    run(tmp_path, "online", "resume=8", "log=9:9", "finish")
    (sent,) = server.runs.values()
    assert_same_rows(sent.history, tmp_path, last_step=9)


def test_what_ended_an_earlier_attempt_is_not_what_ended_the_run(
    tmp_path: Path, server: StubServer
) -> None:
    run(tmp_path, "online", "resume=-1", "log=1:3", "fail")
    (sent,) = server.runs.values()
    assert sent.summary["gr_sweep/error"] == "loss is not finite"
    run(tmp_path, "online", "resume=3", "log=4:6", "finish")
    assert_same_rows(sent.history, tmp_path, last_step=6)
    assert sent.summary.get("gr_sweep/error") is None
