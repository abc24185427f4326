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
from collections import Counter
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
    *("tracking=off", "data.cache=cache"),
)
"""Jobs of a few seconds that save, log and evaluate often."""
SLURM_SETTINGS = ("hydra.launcher.gpu=null", "hydra.launcher.cpus_per_task=1")
MEAN_S = 4.0
"""Mean time between two kills."""
OF_TIME = (registry.TIME_S.key, registry.TRAIN_TOKENS_PER_SECOND.key)
"""Columns of metrics.jsonl that no two runs share."""


def run_kills(num_kills: int, num_jobs: int, launcher: str, seed: int) -> tuple[Counter, list[str]]:
    """Runs sweeps of `num_jobs` seeds until so many processes were killed. Returns what was killed,
    and what differs from the sweep that nobody killed."""
    drawn, killed, found = random.Random(seed), Counter[str](), list[str]()
    seeds = ",".join(map(str, range(num_jobs)))
    command = [sys.executable, "-m", "gr_sweep", "-m", f"seed={seeds}", *SETTINGS]
    more = [f"hydra/launcher={launcher}", *(SLURM_SETTINGS if launcher == "slurm" else ())]
    with tempfile.TemporaryDirectory(prefix="gr-sweep-kills-") as name:
        folder = Path(name)
        assert start([*command, "hydra.sweep.dir=whole"], folder).wait() == 0
        while killed.total() < num_kills:
            words = [*command, *more, "hydra.sweep.dir=killed"]
            while run_disturbed(words, folder, num_kills, drawn, killed):
                pass
            found += compare(folder / "whole", folder / "killed")
            print(f"{killed.total()} kills, {len(found)} differences", file=sys.stderr)
            shutil.rmtree(folder / "killed")
    return killed, found


def start(command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    # Sums depend on the number of threads, which launchers choose differently.
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    with (folder / "output.log").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ | more)


def run_disturbed(
    command: list[str], folder: Path, num_kills: int, drawn: random.Random, killed: Counter[str]
) -> bool:
    """Runs the command and kills until there are `num_kills`; whether a job is left to do."""
    process, before = start(command, folder), killed.total()
    while process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(drawn.expovariate(1 / MEAN_S))
            break
        if killed.total() < num_kills:
            kill_one(folder / "killed", process, drawn, killed)
    jobs = [path.parent for path in (folder / "killed").glob(f"*/{RECORD}")]
    if process.returncode == 0 and all(read_finished(job) is not None for job in jobs):
        return False
    assert killed.total() > before, (folder / "output.log").read_text(errors="replace")
    return True


def kill_one(
    sweep: Path, command: "subprocess.Popen[bytes]", drawn: random.Random, killed: Counter[str]
) -> None:
    """Kills the process of a job, or in a tenth of the cases that of the command."""
    victims = []
    for path in sweep.glob(f"*/{RECORD}"):
        now = standing(path.parent)
        if now.state is State.running and now.holder and now.holder.host == Holder.here().host:
            victims.append(now.holder.pid)
    if drawn.random() < (0.1 if victims else 0.02):
        command.kill()
        killed["command"] += 1
    elif victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(drawn.choice(sorted(victims)), signal.SIGKILL)
            killed["job"] += 1


def compare(whole: Path, killed: Path) -> list[str]:
    """The differences between two sweeps of the same settings, a line each."""
    found = []
    for path in whole.glob(f"*/{SUMMARY}"):
        one, other = facts_of(path.parent), facts_of(killed / path.parent.name)
        keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
        found += [f"{path.parent.name}: {key}" for key in keys]
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="in all (20)")
    parser.add_argument("--jobs", type=int, default=4, help="seeds of a sweep (4)")
    launchers = ("basic", "local_parallel", "slurm")
    parser.add_argument("--launcher", choices=launchers, default="local_parallel")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    options = parser.parse_args()
    toll, lines = run_kills(options.kills, options.jobs, options.launcher, options.seed)
    print(f"killed {toll['job']} times a job, {toll['command']} times the command")
    print("\n".join([f"{len(lines)} differences from the sweep that nobody killed", *lines]))
    raise SystemExit(1 if lines else 0)
