"""The tool that kills sweeps at random moments (tests/kills.py)."""

from pathlib import Path

import pytest

from gr_sweep.jobdir import write_summary
from tests import kills


def leave_behind(job: Path, loss: float, seconds: float) -> None:
    """The files of a finished job."""
    (job / "checkpoints" / "step_00000002").mkdir(parents=True)
    metrics = {"loss/full/code": loss, "cost/train_seconds": seconds}
    parts = {"metrics": metrics, "intervals": {}, "fingerprints": {}, "config": {}}
    write_summary(job / "summary.json", parts)
    (job / "metrics.jsonl").write_text(f'{{"step": 1, "time_s": {seconds}, "loss": {loss}}}\n')
    for name in ("document_losses.csv", "plan.json", "checkpoints/step_00000002/__0_0.distcp"):
        (job / name).write_text(str(loss))


def test_everything_but_times_is_compared(tmp_path):
    leave_behind(tmp_path / "whole" / "job", 1.0, 1.0)
    leave_behind(tmp_path / "same" / "job", 1.0, 2.0)
    leave_behind(tmp_path / "other" / "job", 1.5, 1.0)
    assert kills.compare(tmp_path / "whole", tmp_path / "same") == []
    assert len(kills.compare(tmp_path / "whole", tmp_path / "other")) == 5
    assert kills.compare(tmp_path / "whole", tmp_path) == ["jobs ['job'] and []"]


@pytest.mark.slow
def test_a_sweep_that_is_killed_three_times_ends_like_one_that_is_not():
    toll = kills.run_kills(3, num_jobs=2, launcher="local_parallel", seed=0)
    assert toll.kills == 3 and toll.differences == []
