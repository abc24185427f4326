"""Jobs that any number of processes can run, and a program that runs them in several.

    python -m tests.several_jobs PORT FOLDER PROCESSES NAME...

runs each job in FOLDER/<name>, which may hold checkpoints. Their token cache is FOLDER/cache.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from gr_sweep.config import (
    AdaptersConfig,
    Attribution,
    Method,
    MethodConfig,
    ModelConfig,
    PlanConfig,
    PlanKind,
    ProcedureConfig,
    ProcedureKind,
    RunConfig,
)
from tests import jobs

# 187 hidden units: no matrix of an MLP divides over two processes.
UNEVEN = ModelConfig(size="tiny", intermediate_size=187)


def alternate(**procedure: Any) -> ProcedureConfig:
    return ProcedureConfig(
        name=ProcedureKind.alternate, **{"rounds": 2, "documents": 5} | procedure
    )


JOBS: dict[str, dict[str, Any]] = {
    "alternate": {
        "model": UNEVEN,
        "plan": PlanConfig(adapters=AdaptersConfig(unembed=4, mlp=4)),
        "procedure": alternate(),
    },
    "branch": {
        "plan": PlanConfig(attn_shared=0.25, adapters=AdaptersConfig(embed=2)),
        "procedure": ProcedureConfig(name=ProcedureKind.branch, copies=True),
    },
    "attention": {
        "plan": PlanConfig(attn_shared=0.25),
        "procedure": alternate(rounds=1, attribution=Attribution.integrated, attribution_steps=2),
    },
    "lattice": {
        "plan": PlanConfig(kind=PlanKind.lattice),
        "procedure": alternate(rounds=1, attribution=Attribution.activation),
    },
    "silent": {
        "model": UNEVEN,
        "plan": PlanConfig(kind=PlanKind.forget, forget=["biology"]),
        "procedure": ProcedureConfig(name=ProcedureKind.branch, rehearsal=0.5),
    },
    "dense": {
        "model": UNEVEN,
        "plan": PlanConfig(kind=PlanKind.none),
        "method": MethodConfig(name=Method.dense),
        "eval": {"unlearn_steps": 2, "relearn_steps": 1, "calibrate": True},
    },
}
NAMES = [*JOBS]


def make_config(name: str, folder: Path) -> RunConfig:
    """The config of a job; what follows a "-" in its name does not matter."""
    evaluation = {"curve_tokens": 64, "bootstrap": 20, "tokens": 256, "samples": 0}
    name = name.partition("-")[0]
    how = JOBS[name]
    train = {"steps": 6, "batch_sequences": 12, "keep_checkpoints": 9, "checkpoint_every": 1}
    return jobs.make_config(
        folder / "cache",
        data={"documents": 160},
        train=train | {"log_every": 1},
        **how | {"eval": evaluation | how.get("eval", {})},
    )


def run_jobs(folder: Path, names: list[str]) -> None:
    how: dict[str, Any] = {"sweep": "sweep", "overrides": [], "command": "gr-sweep"}
    for name in names:
        jobs.run_job(make_config(name, folder), folder / name, **how)


if __name__ == "__main__":
    port, where, number, *names = sys.argv[1:]
    torch.set_num_threads(1)
    # After the imports, which take longer than the jobs.
    rank, others = 0, []
    while not rank and len(others) + 1 < int(number):
        others.append(os.fork())
        rank = 0 if others[-1] else len(others)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": number}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    run_jobs(Path(where), names)
    if not rank:
        sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in others))
