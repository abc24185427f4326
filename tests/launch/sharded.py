"""What a real step of a job holds where two processes share it; started with torchrun.

torchrun --nproc-per-node 2 -m tests.launch.sharded FOLDER

leaves in FOLDER/peaks.json, by case, what the allocator of the first process held at most.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from gr_sweep.config import Precision, RunConfig
from tests.launch.jobs import TRAIN, make_config, measured_peak

_LARGE = replace(TRAIN, batch_sequences=12, sequence_length=256)

CASES: dict[str, RunConfig] = {
    "float32": make_config(train=_LARGE),
    "bfloat16": make_config(train=replace(_LARGE, precision=Precision.bfloat16)),
    "recomputed": make_config(train=replace(_LARGE, activation_checkpointing=True)),
}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    peaks = {name: measured_peak(config, world_size=2) for name, config in CASES.items()}
    if rank == 0:
        (folder / "peaks.json").write_text(json.dumps(peaks))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
