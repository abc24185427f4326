"""A sweep whose processes are killed at random moments: `gr-sweep bench kills`.

Runs a sweep undisturbed, and then the same sweeps while SIGKILL ends a job's process, or the
command itself, at random moments; the command is typed again until every job is done. What the jobs
leave is then compared: metrics, rows of metrics.jsonl, losses of documents and the last checkpoint,
to the bit.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gr_sweep.arguments import Parser, count
from gr_sweep.bench.output import record
from gr_sweep.errors import JobError
from gr_sweep.folder import (
    CHECKPOINTS,
    RECORD,
    Holder,
    State,
    newest_step,
    standing,
    whole_checkpoints,
)
from gr_sweep.metrics import registry
from gr_sweep.summary import METRICS, SUMMARY, is_finished, read_summary
from gr_sweep.tracking.base import STEP
from gr_sweep.tracking.jsonl import read_rows, rows_from_the_end

SETTINGS = (
    *("debug=default", "data.documents=60", "data.vocab_size=300"),
    *("train.steps=400", "train.checkpoint_every=20", "train.log_every=1", "eval.every=80"),
)
"""Jobs of a few seconds, which save, log and evaluate often."""

SLURM_SETTINGS = ("hydra.launcher.gpu=null", "hydra.launcher.cpus_per_task=1")

MEAN_S = 4.0
"""Between kills, on average."""

_OF_TIME = (registry.TIME_S.key, registry.TRAIN_TOKENS_PER_SECOND.key)


@dataclass
class Toll:
    """What was done to the sweeps, and what it cost."""

    kills: Counter[str] = field(default_factory=Counter)
    """Of jobs by what they were at, and of the command."""
    commands: int = 0
    """How often one was typed."""
    steps_lost: list[int] = field(default_factory=list)
    """For each job that was killed while it trained: steps done since its newest checkpoint."""
    sweeps: int = 0
    jobs: int = 0
    wrong: list[str] = field(default_factory=list)
    """What differs from the undisturbed sweep."""


def bench_kills(
    num_kills: int, num_jobs: int, launcher: str, seed: int, overrides: Sequence[str]
) -> Toll:
    """Sweeps of `num_jobs` seeds until so many processes have been killed; each sweep is finished.

    Raises:
        JobError: a command fails though nothing was done to it.
    """
    drawn, toll = random.Random(seed), Toll()
    with tempfile.TemporaryDirectory(prefix="gr-sweep-bench-") as name:
        folder = Path(name)
        command = _command(num_jobs, "basic", overrides)
        whole = folder / "whole"
        _undisturbed([*command, f"hydra.sweep.dir={whole.name}"], folder)
        command = _command(num_jobs, launcher, overrides)
        while sum(toll.kills.values()) < num_kills:
            sweep = folder / f"killed-{toll.sweeps}"
            left = num_kills - sum(toll.kills.values())
            _disturbed([*command, f"hydra.sweep.dir={sweep.name}"], sweep, left, drawn, toll)
            toll.sweeps += 1
            toll.jobs += num_jobs
            toll.wrong += compare(whole, sweep)
            print(
                f"{sum(toll.kills.values())} of {num_kills} kills, {toll.sweeps} sweeps, "
                f"{len(toll.wrong)} differences",
                file=sys.stderr,
            )
            shutil.rmtree(sweep)
    return toll


def _command(num_jobs: int, launcher: str, overrides: Sequence[str]) -> list[str]:
    seeds = ",".join(map(str, range(num_jobs)))
    return [
        *(sys.executable, "-m", "gr_sweep", "-m", f"seed={seeds}", *(overrides or SETTINGS)),
        *("tracking=off", "data.cache=cache", f"hydra/launcher={launcher}"),
        *(SLURM_SETTINGS if launcher == "slurm" else ()),
    ]


def _environment() -> dict[str, str]:
    # As many threads in every launcher: sums depend on it.
    return dict(os.environ) | {"OMP_NUM_THREADS": "1"}


def _undisturbed(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=_environment())
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["nothing"]
        raise JobError(f"the sweep failed with status {done.returncode}: {said[-1]}")


def _disturbed(
    command: list[str], sweep: Path, num_kills: int, drawn: random.Random, toll: Toll
) -> None:
    """Types the command until all its jobs are done, and kills so many processes meanwhile, at
    most."""
    done_by_now = sum(toll.kills.values())
    while True:
        toll.commands += 1
        with (sweep.parent / "said.log").open("wb") as said:
            process = subprocess.Popen(
                command, cwd=sweep.parent, stdout=said, stderr=said, env=_environment()
            )
            was_killed = False
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(drawn.expovariate(1 / MEAN_S))
                    break
                if sum(toll.kills.values()) - done_by_now >= num_kills:
                    continue
                was_killed |= _kill_one(sweep, process, drawn, toll)
        if process.returncode == 0 and all(is_finished(job / SUMMARY) for job in _jobs(sweep)):
            return
        if not was_killed and process.returncode >= 0:
            lines = (sweep.parent / "said.log").read_text(errors="replace").splitlines()
            raise JobError(
                f"the command failed with status {process.returncode} though nothing was killed: "
                f"{(lines or ['it said nothing'])[-1]}"
            )


def _kill_one(
    sweep: Path, command: "subprocess.Popen[bytes]", drawn: random.Random, toll: Toll
) -> bool:
    """Ends a job's process, or in a tenth of the cases the command's, which may be the same."""
    is_slurm = "hydra/launcher=slurm" in str(command.args)
    victims: dict[int, Path | None] = dict.fromkeys(() if is_slurm else _children(command.pid))
    for job in _jobs(sweep):
        now = standing(job)
        holder = None if now.record is None else now.record.holder
        if now.state is State.running and holder and holder.host == Holder.here().host:
            victims[holder.pid] = job
    if drawn.random() < (0.1 if victims else 0.02):
        command.kill()
        toll.kills["the command"] += 1
        return True
    if not victims:
        return False
    # Starting takes longer than training: most kills are of jobs that have something to lose.
    begun = [pid for pid, job in victims.items() if job is not None and _last_row(job) is not None]
    pid = drawn.choice(sorted(begun if begun and drawn.random() < 0.8 else victims))
    at, lost = _at(victims[pid])
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    toll.kills[f"a job at its {at}"] += 1
    if lost is not None:
        toll.steps_lost.append(lost)
    return True


def _at(job: Path | None) -> tuple[str, int | None]:
    """What a job is at, and while it trains the steps since its newest checkpoint."""
    reached = None if job is None else _last_row(job)
    if job is None or reached is None:
        return "start", None
    record_ = standing(job).record
    if record_ is not None and record_.num_steps == reached:
        return "last evaluation", None
    return "training", reached - (newest_step(job) or 0)


def _children(pid: int) -> list[int]:
    """Processes that the process has started."""
    with contextlib.suppress(OSError):
        paths = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(number) for path in paths for number in path.read_text().split()]
    return []


def _jobs(sweep: Path) -> list[Path]:
    return [path.parent for path in sweep.glob(f"*/{RECORD}")]


def _last_row(job: Path) -> int | None:
    for row in rows_from_the_end(job / METRICS):
        return int(row[STEP])
    return None


def compare(whole: Path, killed: Path) -> list[str]:
    """What the jobs of two sweeps of the same settings do not have in common, a line each."""
    wrong = []
    names = sorted(path.parent.name for path in whole.glob(f"*/{SUMMARY}"))
    others = sorted(path.parent.name for path in killed.glob(f"*/{SUMMARY}"))
    if names != others:
        wrong.append(f"jobs {names} and {others}")
    for name in sorted({*names} & {*others}):
        one, other = whole / name, killed / name
        wrong += [f"{name}: {what}" for what in _different(one, other)]
    return wrong


def _different(one: Path, other: Path) -> list[str]:
    found = []
    summaries = [read_summary(job / SUMMARY) for job in (one, other)]
    for part in ("metrics", "intervals", "fingerprints", "config"):
        before, after = (
            {key: value for key, value in summary[part].items() if not key.startswith("cost/")}
            for summary in summaries
        )
        found += [
            f"{part} {key}: {before.get(key)} and {after.get(key)}"
            for key in sorted({*before, *after})
            if before.get(key) != after.get(key)
        ]
    rows = [_rows(job) for job in (one, other)]
    if rows[0] != rows[1]:
        found.append(f"{len(rows[0])} and {len(rows[1])} rows of metrics.jsonl, or other ones")
    for name in ("document_losses.csv", "plan.json"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    newest = [whole_checkpoints(job / CHECKPOINTS)[-1][1] for job in (one, other)]
    for file in sorted(newest[0].glob("*.distcp")):
        if file.read_bytes() != (newest[1] / file.name).read_bytes():
            found.append(f"checkpoint {newest[1].name}: {file.name}")
    return found


def _rows(job: Path) -> list[dict[str, Any]]:
    rows = read_rows(job / METRICS)
    return [{key: row[key] for key in sorted(row) if key not in _OF_TIME} for row in rows]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or JSON; status 1 where a result differs.

    Raises:
        JobError: a command failed though nothing was done to it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="gr-sweep bench kills", description=__doc__)
    parser.add_argument("--kills", type=count, default=20, help="in all (default: 20)")
    parser.add_argument("--jobs", type=count, default=4, help="seeds of each sweep (default: 4)")
    parser.add_argument(
        "--launcher",
        choices=("basic", "local_parallel", "slurm"),
        default="local_parallel",
        help="how jobs are started (default: local_parallel)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of every job")
    options = parser.parse_intermixed_args(argv)
    start = time.monotonic()
    toll = bench_kills(
        options.kills, options.jobs, options.launcher, options.seed, options.overrides
    )
    settings = {
        "launcher": options.launcher,
        "seconds": time.monotonic() - start,
        "sweeps": toll.sweeps,
        "jobs": toll.jobs,
        "commands": toll.commands,
        "steps_lost_mean": sum(toll.steps_lost) / max(1, len(toll.steps_lost)),
        "steps_lost_most": max(toll.steps_lost, default=0),
        "wrong": toll.wrong,
    }
    rows = [{"killed": what, "times": times} for what, times in sorted(toll.kills.items())]
    if options.json:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        print(json.dumps(record("kills", argv, device, settings, rows), indent=1))
    else:
        for row in rows:
            print(f"killed {row['times']:4} times: {row['killed']}")
        print(
            f"{toll.jobs} jobs in {toll.sweeps} sweeps ({options.launcher}), the command typed "
            f"{toll.commands} times"
        )
        print(
            f"steps done again: {settings['steps_lost_mean']:.1f} on average, at most "
            f"{settings['steps_lost_most']}"
        )
        print(f"{len(toll.wrong)} differences from the undisturbed sweep")
        for line in toll.wrong:
            print(f"  {line}")
    return 1 if toll.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
