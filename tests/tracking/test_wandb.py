"""W&B, run offline for real: what is logged is read back from the file that wandb writes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.config import TrackingConfig, TrackingMode
from gr_sweep.errors import ConfigError
from gr_sweep.tracking import check_tracking, make_tracker
from gr_sweep.tracking import wandb as tracking_wandb
from tests.tracking.wandb_file import read_run

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("no_account")

KEY = "0" * 40

SUMMARY: dict[str, Any] = {
    "command": "gr-sweep edges=both",
    "domains": ["code", "biology/virology"],
    "metrics": {
        "loss/full/code": 4.0,
        "loss/full/biology.virology": 4.5,
        "separability/matrix/code/code": 1.5,
        "separability/matrix/code/biology.virology": 0.01,
        "separability/matrix/biology.virology/code": -0.02,
        "separability/matrix/biology.virology/biology.virology": 0.7,
    },
}


def run_job(folder: Path, mode: TrackingMode, *, fail: str | None = None) -> None:
    config = TrackingConfig(mode=mode, tags=["mine", "mine", "x" * 80])
    tracker = make_tracker(
        config,
        folder=folder,
        job="edges=both",
        sweep="2026-11-24",
        run_config={"plan": {"kind": "peers"}, "seed": 0},
        tags=["edges=both"],
    )
    tracker.log(10, {"train/loss": 3.0})
    tracker.log(20, {"train/loss": 2.0})
    if fail is None:
        tracker.finish(SUMMARY)
    else:
        tracker.fail(fail)


def runs_in(folder: Path) -> list[dict[str, Any]]:
    # wandb's own process may still be writing when a run's finish() returns. It is done when it
    # ends, which a program waits for when it exits.
    tracking_wandb.wandb.teardown()
    return [read_run(path) for path in sorted(folder.glob("wandb/*run-*/*.wandb"))]


def test_an_offline_run_holds_group_name_tags_config_rows_and_summary(tmp_path: Path) -> None:
    run_job(tmp_path / "job", TrackingMode.offline)
    (run,) = runs_in(tmp_path / "job")
    assert run["run"].run_group == "2026-11-24"
    assert run["run"].display_name == "edges=both"
    assert list(run["run"].tags) == ["edges=both", "mine", "x" * 64]
    assert run["config"]["plan"] == {"kind": "peers"}
    assert run["config"]["command"] == "gr-sweep edges=both"
    assert [(row["gr_sweep/step"], row["train/loss"]) for row in run["history"][:2]] == [
        (10, 3.0),
        (20, 2.0),
    ]
    assert {metric.glob_name: metric.step_metric for metric in run["metrics"]}[
        "*"
    ] == "gr_sweep/step"
    assert SUMMARY["metrics"].items() <= run["summary"].items()
    assert run["exit"] == 0


def test_the_removal_matrix_is_a_table_and_a_heat_map(tmp_path: Path) -> None:
    run_job(tmp_path / "job", TrackingMode.offline)
    runs_in(tmp_path / "job")
    (table,) = tmp_path.glob("job/wandb/offline-run-*/files/media/table/**/*.json")
    assert json.loads(table.read_text(encoding="utf-8")) == {
        "columns": ["removed", "code", "biology/virology"],
        "data": [["code", 1.5, 0.01], ["biology/virology", -0.02, 0.7]],
    }
    (figure,) = tmp_path.glob("job/wandb/offline-run-*/files/media/plotly/**/*.json")
    trace = json.loads(figure.read_text(encoding="utf-8"))["data"][0]
    assert trace["type"] == "heatmap"
    assert trace["y"] == ["code", "biology/virology"]


def test_a_run_without_a_matrix_still_has_its_summary(tmp_path: Path) -> None:
    tracker = make_tracker(
        TrackingConfig(mode=TrackingMode.offline),
        folder=tmp_path,
        job="plan=none",
        sweep="s",
        run_config={},
    )
    tracker.finish({"domains": ["code"], "metrics": {"loss/full/code": 4.0}})
    (run,) = runs_in(tmp_path)
    assert run["summary"]["loss/full/code"] == 4.0
    assert not list(tmp_path.glob("wandb/*/files/media"))


def test_under_forget_the_matrix_has_a_row_for_forgotten_domains_alone() -> None:
    metrics = {k: v for k, v in SUMMARY["metrics"].items() if "matrix/code/" not in k}
    assert tracking_wandb.removal_matrix({**SUMMARY, "metrics": metrics}) == (
        ["biology/virology"],
        ["code", "biology/virology"],
        [[-0.02, 0.7]],
    )


def test_a_resumed_job_goes_on_in_the_same_run(tmp_path: Path) -> None:
    run_job(tmp_path / "job", TrackingMode.offline, fail="SIGTERM")
    run_job(tmp_path / "job", TrackingMode.offline)
    first, second = runs_in(tmp_path / "job")
    assert first["run"].run_id == second["run"].run_id
    assert sorted([first["exit"], second["exit"]]) == [0, 1]


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    run_job(tmp_path / "job", TrackingMode.offline, fail="RuntimeError: loss is nan at step 3")
    (run,) = runs_in(tmp_path / "job")
    assert run["summary"]["gr_sweep/error"] == "RuntimeError: loss is nan at step 3"
    assert run["exit"] == 1


def test_two_jobs_are_two_runs(tmp_path: Path) -> None:
    for job in ("a", "b"):
        run_job(tmp_path / job, TrackingMode.offline)
    (a,), (b,) = runs_in(tmp_path / "a"), runs_in(tmp_path / "b")
    assert a["run"].run_id != b["run"].run_id


def test_auto_without_a_key_is_offline() -> None:
    assert tracking_wandb.resolve_mode(TrackingMode.auto) is TrackingMode.offline


def test_auto_with_a_key_in_the_environment_is_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert tracking_wandb.resolve_mode(TrackingMode.auto) is TrackingMode.online


def test_auto_with_a_key_in_netrc_is_online(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:9\nlogin user\npassword {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert tracking_wandb.resolve_mode(TrackingMode.auto) is TrackingMode.online
    assert tracking_wandb.key_source() == str(tmp_path / "netrc")


def test_a_key_for_another_server_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine elsewhere.example\nlogin user\npassword {KEY}\n")
    assert tracking_wandb.resolve_mode(TrackingMode.auto) is TrackingMode.offline


@pytest.mark.parametrize(
    ("wanted", "expected"), [("offline", TrackingMode.offline), ("disabled", TrackingMode.off)]
)
def test_auto_follows_wandb_mode(
    monkeypatch: pytest.MonkeyPatch, wanted: str, expected: TrackingMode
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", wanted)
    assert tracking_wandb.resolve_mode(TrackingMode.auto) is expected


def test_online_without_a_key_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="finds no W&B key"):
        check_tracking(TrackingConfig(mode=TrackingMode.online))


def test_a_server_out_of_reach_turns_the_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking_wandb, "CONNECT_TIMEOUT_S", 0.5)
    run_job(tmp_path / "job", TrackingMode.auto)
    assert "logging offline instead" in caplog.text
    offline, *_ = runs_in(tmp_path / "job")
    assert offline["summary"]["loss/full/code"] == 4.0


def test_a_run_that_wandb_lost_costs_no_row_of_metrics_jsonl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(*_: Any, **__: Any) -> None:
        raise ConnectionResetError(
            "Connection lost"
        )  # what wandb raises when its process is killed

    tracker = make_tracker(
        TrackingConfig(mode=TrackingMode.offline),
        folder=tmp_path,
        job="j",
        sweep="s",
        run_config={},
    )
    monkeypatch.setattr(tracking_wandb.wandb.Run, "log", lost)
    for step in (1, 2):
        tracker.log(step, {"train/loss": 1.0})
    tracker.finish(SUMMARY)
    assert caplog.text.count("no W&B from here on") == 1
    assert len((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_a_job_does_not_use_the_wandb_process_of_whoever_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "a process that ended"
    monkeypatch.setenv("WANDB_SERVICE", f"3-1-unix-{gone}")
    run_job(tmp_path / "job", TrackingMode.offline)
    (run,) = runs_in(tmp_path / "job")
    assert run["exit"] == 0


def test_a_wandb_that_does_not_start_costs_no_row_of_metrics_jsonl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(**_: Any) -> None:
        raise tracking_wandb.wandb.Error("wandb-core\ncould not be started")

    monkeypatch.setattr(tracking_wandb.wandb, "init", broken)
    run_job(tmp_path, TrackingMode.offline)
    assert "no W&B from here on" in caplog.text
    assert "wandb-core could not be started" in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_nothing_is_printed_and_nothing_is_asked(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from gr_sweep.config import TrackingConfig;"
        " from gr_sweep.tracking import make_tracker;"
        " t = make_tracker(TrackingConfig(), folder=Path(sys.argv[1]), job='j', sweep='s',"
        " run_config={}); t.log(1, {'a': 1.0}); t.finish({'domains': [], 'metrics': {}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a job")],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_API_KEY", "a key with blanks "),
        ("WANDB_MODE", "bogus"),
        ("WANDB_BASE_URL", "x.local"),
    ],
)
def test_a_variable_that_wandb_refuses_costs_the_w_and_b_run_alone(name, value, tmp_path):
    """In a process of its own: wandb reads its environment once."""
    program = (
        "from gr_sweep.config import TrackingMode\n"
        "from gr_sweep.tracking.wandb import resolve_mode\n"
        "print(resolve_mode(TrackingMode.auto).value)\n"
    )
    environment = {k: v for k, v in os.environ.items() if "WANDB" not in k}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), name: value},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.strip() == "off"
    assert "W&B cannot be used" in done.stderr
