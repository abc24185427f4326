"""A W&B that falls ill in the middle of a run costs the job nothing; no secret is left behind."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gr_sweep.config import TrackingConfig, TrackingMode
from gr_sweep.tracking import Trackers, make_tracker
from gr_sweep.tracking import wandb as tracking_wandb
from tests.tracking.conftest import KEY
from tests.tracking.stub_server import StubServer
from tests.tracking.tracked_job import SUMMARY
from tests.tracking.wandb_file import read_run

SLACK_S = 60.0
"""What a loaded machine adds to a time limit; without a limit nothing here would ever end."""

HF_TOKEN = "hf_" + "secret" * 6


def begin(folder: Path, mode: TrackingMode = TrackingMode.online) -> Trackers:
    tracker = make_tracker(
        TrackingConfig(mode=mode), folder=folder, job="j", sweep="s", run_config={"seed": 0}
    )
    tracker.cut_back(-1)
    return tracker


def log(tracker: Trackers, first: int, last: int) -> float:
    """Logs a row at each step; the longest that a call took, in seconds."""
    longest = 0.0
    for step in range(first, last + 1):
        start = time.monotonic()
        tracker.log(step, {"train/loss": 10.0 / step})
        longest = max(longest, time.monotonic() - start)
    return longest


def refuse(server: StubServer) -> None:
    server.stop()


def answer_500(server: StubServer) -> None:
    server.error_status = 500


def answer_slowly(server: StubServer) -> None:
    server.delay_s = 600.0


def lose_the_run(server: StubServer) -> None:
    server.error_status = 403


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("fall_ill", [refuse, answer_500, answer_slowly])
def test_a_server_that_falls_ill_holds_a_job_up_no_longer_than_the_limit(
    tmp_path: Path,
    server: StubServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fall_ill: Callable[[StubServer], None],
) -> None:
    """The rows are on disk, in metrics.jsonl and for `wandb sync`, and one line says so."""
    monkeypatch.setattr(tracking_wandb, "UPLOAD_TIMEOUT_S", 1.0)
    tracker = begin(tmp_path)
    log(tracker, 1, 2)
    fall_ill(server)
    assert log(tracker, 3, 200) < SLACK_S / 6  # the server answers after 600
    start = time.monotonic()
    tracker.finish(SUMMARY)
    assert time.monotonic() - start < 1.0 + SLACK_S
    (said,) = warnings(caplog)
    assert "W&B has not taken everything within 1 s" in said
    tracking_wandb.wandb.teardown()
    assert time.monotonic() - start < 1.0 + 2 * SLACK_S
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 200
    (path,) = tmp_path.glob("wandb/run-*/*.wandb")
    assert str(path.parent) in said
    steps = [row["gr_sweep/step"] for row in read_run(path)["history"]]
    assert steps == [*range(1, 201), 200]
    assert list(path.parent.glob("files/media/table/**/*.json"))


def test_a_server_that_comes_back_gets_every_row(
    tmp_path: Path, server: StubServer, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = begin(tmp_path)
    log(tracker, 1, 2)
    server.stop()
    log(tracker, 3, 200)
    time.sleep(1.5)  # time for requests that fail
    server.start()
    tracker.finish(SUMMARY)
    assert not warnings(caplog)
    (sent,) = server.runs.values()
    assert [row["gr_sweep/step"] for row in sent.history] == [*range(1, 201), 200]
    assert any(path.startswith("media/table/") for path in sent.files)


def test_a_server_that_refuses_the_run_is_spoken_of_once(
    tmp_path: Path, server: StubServer, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = begin(tmp_path)
    log(tracker, 1, 2)
    lose_the_run(server)
    log(tracker, 3, 20)
    time.sleep(2.5)
    log(tracker, 21, 40)
    tracker.finish(SUMMARY)
    (said,) = warnings(caplog)
    assert "Fatal error while uploading data" in said and "\n" not in said
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 40


@pytest.mark.parametrize("mode", [TrackingMode.offline, TrackingMode.online])
def test_no_key_and_no_token_is_left_in_the_jobs_folder(
    tmp_path: Path,
    server: StubServer,
    monkeypatch: pytest.MonkeyPatch,
    mode: TrackingMode,
) -> None:
    """Nor the address of whoever ran it; and W&B is sent no other token than its own."""
    monkeypatch.setenv("HF_TOKEN", HF_TOKEN)
    monkeypatch.setenv("WANDB_USER_EMAIL", "somebody@example.org")
    folder = tmp_path / "job"
    tracker = begin(folder, mode)
    log(tracker, 1, 3)
    time.sleep(1.5)
    tracker.finish(SUMMARY)
    tracking_wandb.wandb.teardown()
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    sent = [body for _, body in server.requests]
    assert {path.suffix for path in written} >= {".wandb", ".log", ".jsonl"}
    assert bool(sent) == (mode is TrackingMode.online)
    for secret in (KEY, HF_TOKEN, "somebody@example.org"):
        assert not [path for path, content in written.items() if secret.encode() in content]
        assert not [body for body in sent if secret.encode() in body]
    assert not list(folder.rglob("wandb-metadata.json"))
