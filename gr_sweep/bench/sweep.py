"""A whole sweep over the training in it: `gr-sweep bench sweep`.

Runs the real command in a process of its own, in a temporary folder with an empty token cache, and
reads from what the jobs leave behind where the time went.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gr_sweep.arguments import Parser, count
from gr_sweep.bench.output import record
from gr_sweep.errors import JobError
from gr_sweep.metrics import keys
from gr_sweep.summary import read_summary

PARTS = (
    "start",
    "between jobs",
    "data and model",
    "training",
    "around the steps",
    "evaluation",
    "summary",
    "report",
)
"""Where the time goes: from the command to its first job, and from one to the next; a job's text
and model; its steps; checkpoints and tracking; its evaluations, and what is made of the last."""

_SWEEP = "sweep"


def bench_sweep(num_jobs: int, overrides: Sequence[str]) -> dict[str, float]:
    """Seconds of a sweep over `num_jobs` seeds, by what they were spent on; they add up to "wall".

    Raises:
        JobError: the sweep failed; holds what it said last.
    """
    with tempfile.TemporaryDirectory(prefix="gr-sweep-bench-") as name:
        folder = Path(name)
        seeds = ",".join(map(str, range(num_jobs)))
        command = [
            *(sys.executable, "-m", "gr_sweep", "-m", f"seed={seeds}", *overrides),
            *("tracking=off", "data.cache=cache", f"hydra.sweep.dir={_SWEEP}"),
        ]
        spawned = time.time()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        ended = time.time()
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["nothing"]
            raise JobError(f"the sweep failed with status {done.returncode}: {said[-1]}")
        return _spent(folder / _SWEEP, spawned, ended)


def _spent(sweep: Path, spawned: float, ended: float) -> dict[str, float]:
    """Reads when the files of a job were written: they appear whole, at a step of the job's way."""
    jobs = sorted(path.parent for path in sweep.glob("*/summary.json"))
    seconds = dict.fromkeys(PARTS, 0.0)
    by_start = sorted(jobs, key=lambda job: _written(job / ".hydra" / "config.yaml"))
    last = spawned
    for job in by_start:
        began = _written(job / ".hydra" / "config.yaml")
        seconds["start" if job is by_start[0] else "between jobs"] += began - last
        planned = _written(job / "plan.json")
        evaluated = _written(job / "document_losses.csv")
        last = _written(job / "summary.json")
        metrics = read_summary(job / "summary.json")["metrics"]
        training = metrics[keys.COST_TRAIN_SECONDS]
        evaluation = metrics[keys.COST_EVAL_SECONDS]
        seconds["data and model"] += planned - began
        seconds["training"] += training
        seconds["evaluation"] += evaluation
        seconds["around the steps"] += evaluated - planned - training - evaluation
        seconds["summary"] += last - evaluated
    seconds["report"] = ended - last
    return seconds | {"wall": ended - spawned}


def _written(path: Path) -> float:
    return path.stat().st_mtime


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or JSON.

    Raises:
        JobError: the sweep failed.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="gr-sweep bench sweep", description=__doc__)
    parser.add_argument("--jobs", type=count, default=4, help="seeds (default: 4)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings of every job (default: model=tiny)",
    )
    options = parser.parse_intermixed_args(argv)
    overrides = options.overrides or ["model=tiny"]
    seconds = bench_sweep(options.jobs, overrides)
    wall = seconds.pop("wall")
    rows: list[dict[str, Any]] = [
        {"part": part, "seconds": spent, "share": spent / wall} for part, spent in seconds.items()
    ]
    settings = {
        "jobs": options.jobs,
        "overrides": overrides,
        "wall_s": wall,
        "ratio": wall / seconds["training"],
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.json:
        print(json.dumps(record("sweep", argv, device, settings, rows), indent=1))
        return 0
    print(f"{options.jobs} jobs, {' '.join(overrides)}: {wall:.1f} s")
    print(f"{settings['ratio']:.2f} times their training")
    for row in rows:
        print(f"{row['part']:16} {row['seconds']:8.1f} s {row['share']:7.1%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
