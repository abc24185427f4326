"""Which tracker a mode asks for, how a block closes it, and the tags of a job."""

import dataclasses
import enum
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.config import RunConfig, TrackingConfig, TrackingMode
from gr_sweep.tracking import Tracker, make_tracker, run_tags
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


def test_tags_say_what_tells_jobs_of_a_sweep_apart() -> None:
    def plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {k: v.value if isinstance(v, enum.Enum) else v for k, v in items}

    run_config = dataclasses.asdict(RunConfig(), dict_factory=plain)
    assert run_tags(run_config) == [
        "procedure=fixed",
        "edges=act",
        "plan=peers",
        "model=nano",
        "method=routed",
        "partition=code_bio_creative",
    ]
    run_config["model"] = {"size": None, "path": "some/where/pythia-70m"}
    assert "model=pythia-70m" in run_tags(run_config)
