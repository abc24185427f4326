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
from gr_sweep.metrics import registry
from gr_sweep.summary import SUMMARY, read_summary

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


def bench_sweep(num_jobs: int, overrides: Sequence[str], at_once: int = 1) -> dict[str, float]:
    """Seconds of a sweep over `num_jobs` seeds, by what they were spent on.

    They add up to "wall", times the places for a job where several run at once.

    Args:
        num_jobs: seeds.
        overrides: settings of every job, and of a launcher.
        at_once: places for a job that the launcher has.

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
        return _spent(folder / _SWEEP, spawned, ended, at_once)


def _spent(sweep: Path, spawned: float, ended: float, at_once: int) -> dict[str, float]:
    """Reads when the files of a job were written: they appear whole, at a step of the job's way."""
    jobs = sorted(path.parent for path in sweep.glob(f"*/{SUMMARY}"))
    seconds = dict.fromkeys(PARTS, 0.0)
    starts = {job: _written(job / ".hydra" / "config.yaml") for job in jobs}
    ends = [_written(job / SUMMARY) for job in jobs]
    first, last = min(starts.values()), max(ends)
    seconds["start"] = at_once * (first - spawned)
    # Of every place, as long as there are jobs: what no job took.
    seconds["between jobs"] = at_once * (last - first) - sum(ends) + sum(starts.values())
    for job, began in starts.items():
        planned = _written(job / "plan.json")
        evaluated = _written(job / "document_losses.csv")
        summarized = _written(job / SUMMARY)
        metrics = read_summary(job / SUMMARY)["metrics"]
        training = metrics[registry.COST_TRAIN_SECONDS.key]
        evaluation = metrics[registry.COST_EVAL_SECONDS.key]
        seconds["data and model"] += planned - began
        seconds["training"] += training
        seconds["evaluation"] += evaluation
        seconds["around the steps"] += evaluated - planned - training - evaluation
        seconds["summary"] += summarized - evaluated
    seconds["report"] = at_once * (ended - last)
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
    parser.add_argument(
        "--at-once",
        type=count,
        default=1,
        help="jobs that the launcher runs at once: seconds are then those of so many (default: 1)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings of every job (default: model=tiny)",
    )
    options = parser.parse_intermixed_args(argv)
    overrides = options.overrides or ["model=tiny"]
    seconds = bench_sweep(options.jobs, overrides, options.at_once)
    wall = seconds.pop("wall")
    rows: list[dict[str, Any]] = [
        {"part": part, "seconds": spent, "share": spent / (wall * options.at_once)}
        for part, spent in seconds.items()
    ]
    settings = {
        "jobs": options.jobs,
        "overrides": overrides,
        "wall_s": wall,
        "at_once": options.at_once,
        "ratio": wall * options.at_once / seconds["training"],
        "between_jobs_s": seconds["between jobs"] / options.jobs,
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.json:
        print(json.dumps(record("sweep", argv, device, settings, rows), indent=1))
        return 0
    print(f"{options.jobs} jobs, {' '.join(overrides)}: {wall:.1f} s")
    print(f"{settings['ratio']:.2f} times their training")
    print(f"{settings['between_jobs_s']:.2f} s from a job to the next in its place")
    for row in rows:
        print(f"{row['part']:16} {row['seconds']:8.1f} s {row['share']:7.1%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
