"""Kills the processes of a sweep at random moments, and compares the result with a whole sweep.

    python -m tests.kills --kills 100 [--launcher slurm]

SIGKILL ends the process of a job or of the command; the command is repeated until every job is
done. Metrics, rows of metrics.jsonl, losses of documents and the last checkpoint must then be equal
byte for byte. Exits with status 1 where anything differs.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gr_sweep.jobdir import (
    CHECKPOINTS,
    DOCUMENT_LOSSES,
    METRICS,
    PLAN,
    RECORD,
    SUMMARY,
    Holder,
    State,
    newest_step,
    read_finished,
    read_summary,
    standing,
    whole_checkpoints,
)
from gr_sweep.metrics import registry
from gr_sweep.tracking.jsonl import read_rows

SETTINGS = (
    *("debug=default", "data.documents=60", "data.vocab_size=300"),
    *("train.steps=400", "train.checkpoint_every=20", "train.log_every=1", "eval.every=80"),
)
"""Jobs of a few seconds that save, log and evaluate often."""

SLURM_SETTINGS = ("hydra.launcher.gpu=null", "hydra.launcher.cpus_per_task=1")

MEAN_S = 4.0
"""Mean time between two kills."""

OF_TIME = (registry.TIME_S.key, registry.TRAIN_TOKENS_PER_SECOND.key)
"""Columns of metrics.jsonl that no two runs share."""


@dataclass
class Toll:
    """What was killed, and what differs from the sweep that nobody killed."""

    jobs: int = 0
    commands: int = 0
    sweeps: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.jobs + self.commands


def run_kills(num_kills: int, num_jobs: int, launcher: str, seed: int) -> Toll:
    """Runs sweeps of `num_jobs` seeds until `num_kills` processes were killed, and compares all."""
    drawn, toll = random.Random(seed), Toll()
    with tempfile.TemporaryDirectory(prefix="gr-sweep-kills-") as name:
        folder = Path(name)
        whole = folder / "whole"
        command = [*command_of(num_jobs, "basic"), "hydra.sweep.dir=whole"]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, env=environment()
        )
        assert done.returncode == 0, done.stderr
        command = command_of(num_jobs, launcher)
        while toll.kills < num_kills:
            sweep = folder / f"killed-{toll.sweeps}"
            run_disturbed(
                [*command, f"hydra.sweep.dir={sweep.name}"], sweep, num_kills, drawn, toll
            )
            toll.sweeps += 1
            toll.differences += compare(whole, sweep)
            print(
                f"{toll.kills} of {num_kills} kills, {toll.sweeps} sweeps, "
                f"{len(toll.differences)} differences",
                file=sys.stderr,
            )
            shutil.rmtree(sweep)
    return toll


def command_of(num_jobs: int, launcher: str) -> list[str]:
    seeds = ",".join(map(str, range(num_jobs)))
    return [
        *(sys.executable, "-m", "gr_sweep", "-m", f"seed={seeds}", *SETTINGS),
        *("tracking=off", "data.cache=cache", f"hydra/launcher={launcher}"),
        *(SLURM_SETTINGS if launcher == "slurm" else ()),
    ]


def environment() -> dict[str, str]:
    # Sums depend on the number of threads, which launchers choose differently.
    root = str(Path(__file__).parents[1])
    return dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}


def run_disturbed(
    command: list[str], sweep: Path, num_kills: int, drawn: random.Random, toll: Toll
) -> None:
    """Repeats the command until all its jobs are done, killing until there are `num_kills`."""
    log = sweep.parent / "output.log"
    while True:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=sweep.parent, stdout=output, stderr=output, env=environment()
            )
            was_killed = False
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(drawn.expovariate(1 / MEAN_S))
                    break
                if toll.kills < num_kills:
                    was_killed |= kill_one(sweep, process, drawn, toll)
        if process.returncode == 0 and all(
            read_finished(job) is not None for job in jobs_of(sweep)
        ):
            return
        assert was_killed or process.returncode < 0, log.read_text(errors="replace")


def kill_one(
    sweep: Path, command: "subprocess.Popen[bytes]", drawn: random.Random, toll: Toll
) -> bool:
    """Kills the process of a job, or in a tenth of the cases that of the command."""
    is_slurm = "hydra/launcher=slurm" in str(command.args)
    victims: dict[int, Path | None] = dict.fromkeys(() if is_slurm else children(command.pid))
    for job in jobs_of(sweep):
        now = standing(job)
        holder = now.holder
        if now.state is State.running and holder and holder.host == Holder.here().host:
            victims[holder.pid] = job
    if drawn.random() < (0.1 if victims else 0.02):
        command.kill()
        toll.commands += 1
        return True
    if not victims:
        return False
    # Starting takes longer than training, but a job that trains has more to lose.
    begun = [pid for pid, job in victims.items() if job is not None and newest_step(job)]
    pid = drawn.choice(sorted(begun if begun and drawn.random() < 0.8 else victims))
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    toll.jobs += 1
    return True


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        paths = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(number) for path in paths for number in path.read_text().split()]
    return []


def jobs_of(sweep: Path) -> list[Path]:
    return [path.parent for path in sweep.glob(f"*/{RECORD}")]


def compare(whole: Path, killed: Path) -> list[str]:
    """The differences between two sweeps of the same settings, a line each."""
    names, others = (
        {path.parent.name for path in sweep.glob(f"*/{SUMMARY}")} for sweep in (whole, killed)
    )
    found = [] if names == others else [f"jobs {sorted(names)} and {sorted(others)}"]
    for name in sorted(names & others):
        one, other = facts_of(whole / name), facts_of(killed / name)
        keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
        found += [f"{name}: {key}" for key in keys]
    return found


def facts_of(job: Path) -> dict[str, Any]:
    """What a finished job leaves that does not depend on time, by a name of each part."""
    summary = read_summary(job / SUMMARY)
    parts = ("metrics", "intervals", "fingerprints", "config")
    found = {f"{part} {key}": summary[part][key] for part in parts for key in summary[part]}
    found = {name: value for name, value in found.items() if " cost/" not in name}
    for number, row in enumerate(read_rows(job / METRICS)):
        found[f"row {number}"] = {key: row[key] for key in row if key not in OF_TIME}
    newest = whole_checkpoints(job / CHECKPOINTS)[-1][1]
    for file in (job / DOCUMENT_LOSSES, job / PLAN, *newest.glob("*.distcp")):
        found[file.relative_to(job).as_posix()] = file.read_bytes()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="in all (20)")
    parser.add_argument("--jobs", type=int, default=4, help="seeds of a sweep (4)")
    parser.add_argument(
        "--launcher", choices=("basic", "local_parallel", "slurm"), default="local_parallel"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    options = parser.parse_args(argv)
    toll = run_kills(options.kills, options.jobs, options.launcher, options.seed)
    print(f"killed {toll.jobs} times a job, {toll.commands} times the command")
    print(f"{toll.sweeps * options.jobs} jobs ({options.launcher})")
    print(f"{len(toll.differences)} differences from the sweep that nobody killed")
    for line in toll.differences:
        print(f"  {line}")
    return 1 if toll.differences else 0


if __name__ == "__main__":
    raise SystemExit(main())
