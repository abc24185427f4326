"""A job as its tracker sees it, for the tests of this folder; as a program it can be killed.

    python -m tests.tracking.tracked_job FOLDER MODE ACTION...

Actions: `resume=STEP` (-1: from nothing), `log=FIRST:LAST` (steps, two rows at every third),
`sleep=S`, `finish`, `fail`, and `kill`, which also kills wandb's process, as SLURM does. What is
logged at a step depends on the step alone, so a second job continues as the first would have.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from gr_sweep.config import ModelConfig, RunConfig, TrackingConfig, TrackingMode, to_plain
from gr_sweep.tracking import Tracker, make_tracker

SUMMARY: dict[str, Any] = {
    "command": "gr-sweep edges=both",
    "domains": ["code", "prose"],
    "metrics": {
        "loss/full/code": 4.0,
        "separability/matrix/code/code": 1.5,
        "separability/matrix/code/prose": 0.01,
    },
}


def run(folder: Path, mode: str, *actions: str) -> None:
    """Does the actions, one after another."""
    act(tracked(folder, mode), *actions)


def tracked(folder: Path, mode: str) -> Tracker:
    """The job's tracker."""
    return make_tracker(
        TrackingConfig(mode=TrackingMode(mode), tags=["mine", "mine"]),
        folder=folder,
        job="edges=both",
        sweep="sweep",
        run_config=to_plain(RunConfig(model=ModelConfig(size=None, path="x" * 80))),
    )


def act(tracker: Tracker, *actions: str) -> None:
    """Does the actions with a job's tracker."""
    for action in actions:
        name, _, value = action.partition("=")
        if name == "resume":
            tracker.cut_back(int(value))
        elif name == "log":
            first, last = map(int, value.split(":"))
            for step in range(first, last + 1):
                tracker.log(step, {"train/loss": 10 / step, "train/bad": float("nan")})
                if step % 3 == 0:
                    tracker.log(step, {"eval/loss/code": 5 / step})
        elif name == "sleep":
            time.sleep(float(value))
        elif name == "finish":
            tracker.finish(SUMMARY)
        elif name == "fail":
            tracker.fail("loss is not finite")
        else:
            assert name == "kill"
            os.killpg(0, signal.SIGKILL)


def track(job: Path, mode: TrackingMode = TrackingMode.offline) -> None:
    """Logs a finished job's rows and summary, as it did while it ran."""
    summary: dict[str, Any] = json.loads((job / "summary.json").read_text("utf-8"))
    tracker = make_tracker(
        TrackingConfig(mode=mode),
        folder=job,
        job=job.name,
        sweep=summary["sweep"],
        run_config=summary["config"],
    )
    tracker.cut_back(1 << 30)  # replays all rows
    tracker.finish(summary)


if __name__ == "__main__":
    run(Path(sys.argv[1]), *sys.argv[2:])
