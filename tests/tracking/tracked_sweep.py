"""What the jobs of a sweep's folder logged to W&B while they ran, by the tracker itself."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gr_sweep.config import TrackingConfig, TrackingMode
from gr_sweep.metrics import registry
from gr_sweep.tracking import make_tracker


def track(job: Path, mode: TrackingMode = TrackingMode.offline, *, ends: bool = True) -> None:
    """Logs a finished job's rows and summary, as it did while it ran.

    Args:
        ends: or else as after a kill: W&B gets no summary and no end.
    """
    summary: dict[str, Any] = json.loads((job / "summary.json").read_text("utf-8"))
    tracker = make_tracker(
        TrackingConfig(mode=mode),
        folder=job,
        job=job.name,
        sweep=summary["sweep"],
        run_config=summary["config"],
    )
    tracker.cut_back(1 << 30)  # replays all rows
    if ends:
        tracker.finish(summary)


def log_rounds(job: Path, domains: Sequence[str], rounds: int) -> None:
    """Adds the rows that `procedure=alternate` logs at the end of each round."""
    with (job / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for number in range(1, rounds + 1):
            row = {registry.LOSS_EXPERT(domain): 5.0 - 0.1 * number for domain in domains}
            row |= {
                registry.MODULARITY.key: 0.5,
                registry.ROUND.key: float(number),
                "step": 300 + number,
            }
            file.write(json.dumps(row) + "\n")
