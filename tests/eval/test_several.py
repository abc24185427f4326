"""Two processes that share a model over gloo, started with torchrun, against one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.config import Device, EvalConfig
from gr_sweep.eval.removal import removal_losses
from gr_sweep.eval.robustness import recovery, robustness_losses
from gr_sweep.eval.samples import Sampler, choose_prompts
from gr_sweep.eval.text import TrainingText
from gr_sweep.model.families import decoder_layers, family_of
from gr_sweep.model.loss import TokenLosses
from gr_sweep.train.distributed import Processes, connect, shard
from tests.eval.tiny import CPU, Letters, held_out, make_routed, shards

REPOSITORY = Path(__file__).parents[2]


def found(processes: Processes) -> dict[str, Any]:
    """Rows and text of a routed model that is recovered after its removal."""
    text = TrainingText(shards(), sequence_length=8, batch_sequences=6, seed=0)
    config = EvalConfig(calibrate=True, relearn_steps=2, relearn_every=1, relearn_lrs=[3e-3],
                        relearn_documents=4, relearn_batch_sequences=3)  # fmt: skip
    batches = held_out(4, rank=processes.rank, world_size=processes.world_size)
    routed = make_routed("forget", forget=["biology"])
    token_losses = TokenLosses(routed)
    if processes.are_several:
        layers = decoder_layers(routed.model, family_of(routed.model.config))
        shard(token_losses, layers, CPU, bfloat16=False)
    options = {"lr": 3e-2, "device": CPU, "num_processes": processes.world_size}
    recover = recovery(
        routed, token_losses, lambda part: text.rows("recovery", text.others(part)), 3,
        seed=0, **options,
    )  # fmt: skip
    limits = {"sample_tokens": 8, "sequence_length": 16}
    prompts = choose_prompts(shards(8, seed=1), number=1, prompt_tokens=4, **limits)
    sampler = Sampler(routed, token_losses, prompts, tokenizer=Letters(), eot_id=0,
                      batch_sequences=16, seed=0, device=CPU, **limits)  # fmt: skip
    recover = sampler.recovering(recover)
    before = batches.losses(token_losses)
    rows, relearned = robustness_losses(
        routed, token_losses, batches, text, config, recover=recover, **options
    )
    rows += removal_losses(routed, token_losses, batches, recovered=recover)
    return {
        "rows": [list(row) for row in rows],
        "relearned": [list(row) for row in relearned],
        "samples": sampler.sample(),
        "restored": before == batches.losses(token_losses),
    }


@pytest.mark.dist
def test_two_processes_find_what_one_does(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "tests.eval.test_several", str(tmp_path / "two.json")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    two, one = json.loads((tmp_path / "two.json").read_text()), found(Processes())
    for table in ("rows", "relearned"):
        assert len(one[table]) > 20
        for mine, other in zip(one[table], two[table], strict=True):
            # Sums in another order.
            assert other[-3] == pytest.approx(mine[-3], rel=1e-5), mine
            assert other[:-3] + other[-2:] == mine[:-3] + mine[-2:]
    # Sums in another order change no token here.
    assert one["samples"] == two["samples"]
    assert one["restored"] and two["restored"]


if __name__ == "__main__":
    own = connect()
    with own.joined(Device.cpu):
        result = found(own)
        if own.is_main:
            Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")
