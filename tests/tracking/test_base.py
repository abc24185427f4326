"""Several trackers as one, the tags of a job, and which trackers a mode asks for."""

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.config import RunConfig, TrackingConfig, TrackingMode
from gr_sweep.tracking import Tracker, Trackers, make_tracker, run_tags
from gr_sweep.tracking.jsonl import JsonlTracker


class Recorder(Tracker):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.told.append(("log", step, dict(metrics)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.told.append(("finish", dict(summary)))

    def fail(self, message: str) -> None:
        self.told.append(("fail", message))


def test_every_tracker_hears_everything_and_an_error_after_the_summary_is_no_failed_run() -> None:
    first, second = Recorder(), Recorder()
    with pytest.raises(OSError), Trackers([first, second]) as tracker:
        tracker.log(4, {"train/loss": 2.5})
        tracker.finish({"metrics": {}})
        raise OSError("disk full")
    assert first.told == [("log", 4, {"train/loss": 2.5}), ("finish", {"metrics": {}})]
    assert second.told == first.told


def test_a_block_that_ends_without_a_summary_counts_as_failed() -> None:
    recorder = Recorder()
    with Trackers([recorder]):
        pass
    with pytest.raises(RuntimeError), Trackers([recorder]):
        raise RuntimeError("loss is nan")
    assert recorder.told == [
        ("fail", "the job ended without a summary"),
        ("fail", "RuntimeError: loss is nan"),
    ]


def test_tracking_off_writes_metrics_jsonl_alone(tmp_path: Path) -> None:
    config = TrackingConfig(mode=TrackingMode.off)
    with make_tracker(config, folder=tmp_path, job="j", sweep="s", run_config={}) as tracker:
        assert [type(one) for one in tracker.trackers] == [JsonlTracker]
        tracker.log(1, {"train/loss": 1.0})
        tracker.finish({"metrics": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tags_say_what_tells_jobs_of_a_sweep_apart() -> None:
    def plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {k: v.value if isinstance(v, enum.Enum) else v for k, v in items}

    run_config = dataclasses.asdict(RunConfig(), dict_factory=plain)
    assert run_tags(run_config) == [
        "edges=act",
        "plan=peers",
        "model=nano",
        "method=routed",
        "partition=code_bio_creative",
    ]
    run_config["procedure"]["name"] = "alternate"
    assert "procedure=alternate" in run_tags(run_config)
    run_config["model"] = {"size": None, "path": "some/where/pythia-70m"}
    assert "model=pythia-70m" in run_tags(run_config)
