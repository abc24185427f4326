"""Which tracker a mode asks for, how a block closes it, and the tags of a job."""

from pathlib import Path

from gr_sweep.config import TrackingConfig, TrackingMode
from gr_sweep.tracking import make_tracker
from gr_sweep.tracking.jsonl import JsonlTracker


def test_tracking_off_writes_metrics_jsonl_alone(tmp_path: Path) -> None:
    config = TrackingConfig(mode=TrackingMode.off)
    with make_tracker(config, folder=tmp_path, job="j", sweep="s", run_config={}) as tracker:
        assert type(tracker) is JsonlTracker
        tracker.log(1, {"train/loss": 1.0})
        tracker.finish({"metrics": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
