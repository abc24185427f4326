"""Weights & Biases as a tracker: wandb itself, with a local server or none."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from gr_sweep.cli.app import main
from gr_sweep.cli.compose import compose
from gr_sweep.config import TrackingConfig, TrackingMode
from gr_sweep.errors import ConfigError
from gr_sweep.tracking import check_tracking
from gr_sweep.tracking import wandb as tracking_wandb
from gr_sweep.tracking.base import agents_run_id
from gr_sweep.tracking.wandb import has_key, offline_logs, one_line, resolve_mode
from tests.tracking.conftest import KEY
from tests.tracking.stub_server import StubRun, StubServer
from tests.tracking.tracked_job import SUMMARY, act, run, tracked

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("no_account")


def the_run(server: StubServer) -> StubRun:
    [found] = server.runs.values()
    return found


def assert_same_rows(sent: StubRun, folder: Path, *, last_step: int) -> None:
    """The server has the rows of metrics.jsonl, each once, then that of the removal matrix."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = []
    for line in lines:
        row = json.loads(line)
        rows.append({"gr_sweep/step": row.pop("step")} | row)
    steps = [step for step in range(1, last_step + 1) for _ in range(2 if step % 3 == 0 else 1)]
    assert [row["gr_sweep/step"] for row in rows] == steps
    *metrics, matrix = sent.history
    assert [{k: v for k, v in row.items() if k[0] != "_"} for row in metrics] == rows
    assert "separability/heat_map" in matrix
    assert matrix["gr_sweep/step"] == last_step
    assert [row["_step"] for row in (*metrics, matrix)] == list(range(len(rows) + 1))


def killed(folder: Path, mode: str, *actions: str) -> None:
    """Runs the actions in a process, which is killed after them, with wandb's own process."""
    words = [sys.executable, "-m", "tests.tracking.tracked_job", str(folder), mode, *actions]
    done = subprocess.run(
        [*words, "kill"], cwd=ROOT, capture_output=True, text=True, start_new_session=True
    )
    assert done.returncode < 0, done.stderr


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


# What a run has


def test_a_run_has_group_name_tags_config_rows_matrix_and_summary(
    tmp_path: Path, server: StubServer
) -> None:
    run(tmp_path, "auto", "log=1:4", "finish", "fail")  # what comes later is ignored
    sent = the_run(server)
    assert (sent.group, sent.display_name, sent.exit_code) == ("sweep", "edges=both", 0)
    assert {"edges=act", "model=" + "x" * 58, "mine"} < {*sent.tags}
    assert sent.config["plan"]["value"]["kind"] == "peers"
    assert sent.config["command"]["value"] == "gr-sweep edges=both"
    assert SUMMARY["metrics"].items() <= sent.summary.items()
    assert_same_rows(sent, tmp_path, last_step=4)
    [figure] = [content for path, content in sent.files.items() if "media/plotly/" in path]
    assert json.loads(figure)["data"][0]["y"] == ["code"]


def test_each_job_is_a_run_of_its_own_whatever_run_the_environment_names(
    tmp_path: Path, server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a process that W&B Launch, SageMaker or a W&B run of an agent's has started."""
    monkeypatch.setenv("WANDB_SERVICE", f"3-1-unix-{tmp_path / 'a process that ended'}")
    for name in ("RUN_ID", "SWEEP_ID", "RUN_GROUP", "NAME", "PROJECT", "RESUME_FROM", "FORK_FROM"):
        monkeypatch.setenv(f"WANDB_{name}", "theirs?_step=1" if name.endswith("FROM") else "theirs")
    monkeypatch.setenv("WANDB_RESUME", "must")
    monkeypatch.setenv("WANDB_LAUNCH", "true")
    monkeypatch.setenv("SM_TRAINING_ENV", "{}")
    monkeypatch.setenv("TRAINING_JOB_NAME", "theirs")
    for job in ("a", "b"):
        run(tmp_path / job, "online", "log=1:2", "finish")
    ids = {(tmp_path / job / "wandb" / "run_id").read_text().strip() for job in ("a", "b")}
    assert len(ids) == 2 and server.runs.keys() == ids
    for sent in server.runs.values():
        assert (sent.project, sent.group) == ("gr-sweep", "sweep")


@pytest.mark.slow
def test_wandb_agent_starts_jobs_that_log_to_its_runs_and_done_ones_report_again(
    tmp_path: Path, server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb's own agent starts the same job twice, as the recipe in the docs says."""
    monkeypatch.setenv("GR_SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    [recipe] = re.findall("```yaml\n(.*?)```", (ROOT / "docs/report.md").read_text(), re.DOTALL)
    sweep = yaml.safe_load(recipe)
    quick = ["debug=default", "data.documents=60", "data.vocab_size=300", "tracking=online"]
    sweep["command"][1:1] = [*quick, "eval.samples=0", "eval.bootstrap=50"]
    server.sweep_config = yaml.safe_dump(sweep)
    settings = {"edges": "none", "seed": 1, "model": "tiny"}
    server.agent_runs = [("first", settings), ("second", settings)]
    agent = "from wandb import wandb_agent as w; w.Agent.POLL_INTERVAL = 1; "
    agent += "w.agent('stub/theirs/sweep1', count=2)"
    words = [sys.executable, "-c", agent]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "done already" in done.stderr, done.stderr

    [job] = (tmp_path / "outputs" / "runs").iterdir()
    metrics = json.loads((job / "summary.json").read_text())["metrics"]
    assert server.runs.keys() == {"first", "second"}
    for sent in server.runs.values():
        assert (sent.project, sent.sweep, sent.exit_code) == ("theirs", "sweep1", 0)
        assert sent.config["seed"]["value"] == 1
        assert sent.config["plan"]["value"]["kind"] == "peers"
        assert metrics.items() <= sent.summary.items()
    first, second = ([row["_step"] for row in sent.history] for sent in server.runs.values())
    assert first == second == list(range(len(first))) and len(first) > 6
    assert (job / "wandb" / "run_id").read_text() == "second\n"


def test_the_jobs_of_a_sweep_do_not_share_an_agents_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep1")
    compose(["seed=1"])
    assert agents_run_id() == "theirs"
    compose(["seed=1,2"], multirun=True)
    assert agents_run_id() is None


# Resuming


def test_a_resumed_job_continues_its_run_online_without_a_row_twice(
    tmp_path: Path, server: StubServer
) -> None:
    """It had come some steps further than its last checkpoint. Nor is its error left."""
    run(tmp_path, "online", "resume=-1", "log=1:7", "fail")
    assert the_run(server).summary["gr_sweep/error"] == "loss is not finite"
    assert the_run(server).exit_code == 1
    run(tmp_path, "online", "resume=4", "log=5:8", "finish")
    assert_same_rows(the_run(server), tmp_path, last_step=8)
    assert the_run(server).exit_code == 0
    assert the_run(server).summary.get("gr_sweep/error") is None


def test_a_job_that_was_killed_offline_is_uploaded_once_and_whole(
    tmp_path: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its second start wrote a log of all rows; that of the first, torn by the kill, is skipped."""
    job = tmp_path / "sweep" / "edges=both"
    killed(job, "offline", "resume=-1", "log=1:7", "sleep=1.5")
    [torn] = job.glob("wandb/offline-run-*/*.wandb")
    os.truncate(torn, torn.stat().st_size - 1)
    run(job, "offline", "resume=4", "log=5:8", "finish")
    (job / "job.json").write_text("{}")
    capsys.readouterr()
    assert main(["dashboard", str(job.parent), "--upload-only"]) == 0
    assert capsys.readouterr().out == "edges=both: uploaded\n"
    assert_same_rows(the_run(server), job, last_step=8)
    assert any(path.startswith("media/plotly/") for path in the_run(server).files)
    server.requests.clear()
    assert main(["dashboard", str(job), "--upload-only"]) == 0
    assert capsys.readouterr().out == "nothing to upload\n" and not server.requests


# A server that is away


def test_a_server_out_of_reach_turns_the_run_offline_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking_wandb, "CONNECT_TIMEOUT_S", 0.5)
    run(tmp_path, "auto", "log=1:2", "finish")
    [said] = warnings(caplog)
    assert "logging offline instead" in said and "\n" not in said
    assert len(tracking_wandb.offline_logs(tmp_path)) == 1


def test_a_server_that_is_slow_delays_a_job_no_longer_than_the_limit(
    tmp_path: Path,
    server: StubServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tracking_wandb, "UPLOAD_TIMEOUT_S", 1.0)
    begun = time.monotonic()
    with tracked(tmp_path, "online") as tracker:
        server.delay_s = 600.0
        act(tracker, "log=1:200", "finish")
    assert time.monotonic() - begun < 120
    [said] = warnings(caplog)
    assert "W&B has not taken everything within 1 s" in said
    [folder] = tmp_path.glob("wandb/run-*")
    assert str(folder) in said
    assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == 266
    wandb.teardown()
    assert time.monotonic() - begun < 180


def test_a_failing_wandb_is_one_warning_and_no_row_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("Connection\nlost")  # its process was killed

    monkeypatch.setattr(wandb.Run, "log", lost)
    run(tmp_path / "a", "offline", "log=1:2", "finish")
    [said] = warnings(caplog)
    assert "no W&B from here on" in said and "Connection lost" in said
    monkeypatch.setattr(wandb, "init", lost)
    run(tmp_path / "b", "offline", "log=1:2", "finish")
    assert len(warnings(caplog)) == 2
    for job in ("a", "b"):
        assert len((tmp_path / job / "metrics.jsonl").read_bytes().splitlines()) == 2


# Modes and keys


def test_the_mode_follows_the_key_and_wandbs_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_mode(TrackingMode.auto) is TrackingMode.offline
    with pytest.raises(ConfigError, match="finds no W&B key"):
        check_tracking(TrackingConfig(mode=TrackingMode.online))
    for host, expected in (
        ("elsewhere.example", TrackingMode.offline),
        ("127.0.0.1:9", TrackingMode.online),
    ):
        (tmp_path / "netrc").write_text(f"machine {host}\nlogin user\npassword {KEY}\n")
        (tmp_path / "netrc").chmod(0o600)
        assert resolve_mode(TrackingMode.auto) is expected
    assert has_key()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for wanted, expected in (
        ("online", TrackingMode.online),
        ("offline", TrackingMode.offline),
        ("disabled", TrackingMode.off),
    ):
        wandb.teardown()  # forgets what it read
        monkeypatch.setenv("WANDB_MODE", wanted)
        assert resolve_mode(TrackingMode.auto) is expected
    # What is logged offline can be uploaded with a key that is right.
    wandb.teardown()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "not a key")
    assert resolve_mode(TrackingMode.auto) is TrackingMode.offline
    run(tmp_path / "job", "offline", "log=1:2", "finish")
    assert offline_logs(tmp_path / "job")
    # A variable that wandb refuses costs only the W&B run.
    wandb.teardown()
    monkeypatch.setenv("WANDB_BASE_URL", "x.y")
    assert resolve_mode(TrackingMode.auto) is TrackingMode.off


# Secrets and silence


def test_errors_do_not_show_the_password_of_a_url() -> None:
    said = one_line(ValueError("no answer of\nhttps://user:secret@w.example/api"))
    assert said == "no answer of https://w.example/api"


def test_no_secret_is_left_nothing_is_printed_and_no_foreign_process_used(
    tmp_path: Path,
    server: StubServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    token = "hf_" + "secret" * 6
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("WANDB_USER_EMAIL", "somebody@example.org")
    monkeypatch.setenv("WANDB_SERVICE", f"3-1-unix-{tmp_path / 'a process that ended'}")
    for mode in ("offline", "online"):
        run(tmp_path / mode, mode, "log=1:2", "finish")
    wandb.teardown()
    assert capfd.readouterr() == ("", "")
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    sent = [body for _, body in server.requests]
    assert {path.suffix for path in written} >= {".wandb", ".log", ".jsonl"} and sent
    for secret in (KEY, token, "somebody@example.org"):
        assert not [path for path, content in written.items() if secret.encode() in content]
        assert not [body for body in sent if secret.encode() in body]
    assert not list(tmp_path.rglob("wandb-metadata.json"))
