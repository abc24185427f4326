"""Which tracker a mode asks for, how a block closes it, and the tags of a job."""

from pathlib import Path

import pytest

from gr_sweep.config import TrackingConfig, TrackingMode
from gr_sweep.tracking import Tracker, make_tracker
from gr_sweep.tracking.jsonl import JsonlTracker


def test_a_block_that_ends_without_a_summary_counts_as_failed() -> None:
    failed: list[str] = []

    class Recorder(Tracker):
        def fail(self, message: str) -> None:
            failed.append(message)

    with Recorder():
        pass
    with pytest.raises(RuntimeError), Recorder():
        raise RuntimeError("loss is nan")
    assert failed == ["the job ended without a summary", "RuntimeError: loss is nan"]


def test_tracking_off_writes_metrics_jsonl_alone(tmp_path: Path) -> None:
    config = TrackingConfig(mode=TrackingMode.off)
    with make_tracker(config, folder=tmp_path, job="j", sweep="s", run_config={}) as tracker:
        assert type(tracker) is JsonlTracker
        tracker.log(1, {"train/loss": 1.0})
        tracker.finish({"metrics": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
