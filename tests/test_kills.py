"""The tool that kills sweeps at random moments (tests/kills.py): what it finds, and a short run."""

import json
import shutil
from pathlib import Path

import pytest

from gr_sweep.jobdir import write_summary
from tests import kills


def leave_behind(job: Path, **changes: object) -> None:
    """The files of a finished job, with changes to its loss, rows, plan, weights or times."""
    values = {"loss": 1.0, "rows": (1, 2), "plan": "p", "weights": b"w", "seconds": 1.0} | changes
    checkpoint = job / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "__0_0.distcp").write_bytes(values["weights"])
    metrics = {"loss/full/code": values["loss"], "cost/train_seconds": values["seconds"]}
    parts = {"metrics": metrics, "intervals": {}, "fingerprints": {}, "config": {}}
    write_summary(job / "summary.json", parts)
    rows = [{"step": step, "time_s": values["seconds"]} for step in values["rows"]]
    (job / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (job / "document_losses.csv").write_text("d")
    (job / "plan.json").write_text(str(values["plan"]))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seconds": 9.0}, None),
        ({"loss": 1.5}, "metrics loss/full/code"),
        ({"rows": (1, 2, 2)}, "row 2"),
        ({"weights": b"v"}, "step_00000002/__0_0.distcp"),
    ],
)
def test_everything_but_times_is_compared(tmp_path, changes, difference):
    leave_behind(tmp_path / "whole" / "job")
    leave_behind(tmp_path / "killed" / "job", **changes)
    found = kills.compare(tmp_path / "whole", tmp_path / "killed")
    assert len(found) == (difference is not None)
    assert all(difference in line for line in found)
    shutil.rmtree(tmp_path / "killed" / "job")
    assert kills.compare(tmp_path / "whole", tmp_path / "killed") == ["jobs ['job'] and []"]


@pytest.mark.slow
def test_a_sweep_that_is_killed_three_times_ends_like_one_that_is_not():
    toll = kills.run_kills(3, num_jobs=2, launcher="local_parallel", seed=0)
    assert toll.kills == 3 and toll.differences == []
