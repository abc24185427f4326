"""metrics.jsonl: whole rows, whatever happened, and taken back when a resume makes them void."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.config import TrackingConfig, TrackingMode
from gr_sweep.tracking import make_tracker
from gr_sweep.tracking.jsonl import JsonlTracker, read_rows


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_readers_skip_invalid_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_bytes(
        b'{"step": 1}\n\xff\n[1]\n{"loss": 2.0}\n{"step": 2, "a": 1.0}\n{"step": 3, "a'
    )
    assert read_rows(path) == [{"step": 1}, {"step": 2, "a": 1.0}]
    assert read_rows(path, last_bytes=40) == [{"step": 2, "a": 1.0}]
    assert read_rows(path, last_bytes=1000) == read_rows(path)


def test_a_resume_cuts_back_to_the_step_of_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    for step in (10, 20, 20, 30):
        tracker.log(step, {"train/loss": step / 10})
    tracker.cut_back(20)
    tracker.log(30, {"train/loss": 9.0})
    assert [(row["step"], row["train/loss"]) for row in rows(path)] == [
        (10, 1.0),
        (20, 2.0),
        (20, 2.0),
        (30, 9.0),
    ]
    tracker.cut_back(-1)
    assert path.read_bytes() == b""
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", [b'{"step": 30, "train/lo', b'{"step": 30}'])
def test_a_torn_last_line_is_dropped_at_the_next_start(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 10}\n{"step": 20}\n' + torn)
    tracker = JsonlTracker(path)
    tracker.cut_back(20)
    tracker.log(30, {"train/loss": 1.0})
    assert [row["step"] for row in rows(path)] == [10, 20, 30]


def test_a_broken_line_in_the_middle_is_dropped_by_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 10}\nnonsense\n{"step": 20}\n')
    JsonlTracker(path).cut_back(20)
    assert rows(path) == [{"step": 10}, {"step": 20}]


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonlTracker(path).log(1, {"train/loss": 1.0, "a": math.nan, "b": math.inf})
    assert rows(path) == [{"step": 1, "train/loss": 1.0}]


def test_tracking_off_writes_metrics_jsonl_alone(tmp_path: Path) -> None:
    config = TrackingConfig(mode=TrackingMode.off)
    with make_tracker(config, folder=tmp_path, job="j", sweep="s", run_config={}) as tracker:
        tracker.log(1, {"train/loss": 1.0})
        tracker.finish({"metrics": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
