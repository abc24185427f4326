"""What robustness finds with any number of processes, and the program that several run it with.

    torchrun --nproc-per-node 2 -m tests.eval.several FILE

leaves the rows in FILE, as the main process has them.
"""

import json
import sys
from pathlib import Path
from typing import Any

from gr_sweep.config import Device, EvalConfig
from gr_sweep.eval.removal import removal_losses
from gr_sweep.eval.robustness import recovery, robustness_losses
from gr_sweep.eval.samples import Sampler, choose_prompts
from gr_sweep.eval.text import TrainingText
from gr_sweep.model.families import decoder_layers, family_of
from gr_sweep.model.loss import TokenLosses
from gr_sweep.train.distributed import Processes, connect, shard
from tests.eval.tiny import CPU, Letters, held_out, make_routed, shards


def found(processes: Processes) -> dict[str, Any]:
    """Rows and text of a routed model that is recovered after each removal."""
    text = TrainingText(shards(), sequence_length=8, batch_sequences=6, seed=0)
    config = EvalConfig(
        calibrate=True,
        relearn_steps=2,
        relearn_every=1,
        relearn_lrs=[3e-3],
        relearn_documents=4,
        relearn_batch_sequences=3,
    )
    batches = held_out(4, rank=processes.rank, world_size=processes.world_size)

    routed = make_routed("peers", attn_shared=0.25)
    token_losses = TokenLosses(routed)
    if processes.are_several:
        layers = decoder_layers(routed.model, family_of(routed.model.config))
        shard(token_losses, layers, CPU, bfloat16=False)
    options = {"device": CPU, "num_processes": processes.world_size}
    recover = recovery(
        routed,
        token_losses,
        lambda part: text.rows("recovery", text.others(part)),
        3,
        lr=3e-2,
        seed=0,
        **options,
    )
    prompts = choose_prompts(
        shards(8, seed=1), number=1, prompt_tokens=4, sample_tokens=8, sequence_length=16
    )
    sampler = Sampler(
        routed,
        token_losses,
        prompts,
        tokenizer=Letters(),
        eot_id=0,
        sample_tokens=8,
        sequence_length=16,
        batch_sequences=16,
        seed=0,
        device=CPU,
    )
    recover = sampler.recovering(recover)
    before = batches.losses(token_losses)
    rows, relearned = robustness_losses(
        routed, token_losses, batches, text, config, lr=3e-2, recover=recover, **options
    )
    rows += removal_losses(routed, token_losses, batches, recovered=recover)
    samples = sampler.sample()
    return {
        "rows": [list(row) for row in rows],
        "relearned": [list(row) for row in relearned],
        "restored": before == batches.losses(token_losses),
        "samples": samples,
    }


def main() -> None:
    processes = connect()
    with processes.joined(Device.cpu):
        result = found(processes)
        if processes.is_main:
            Path(sys.argv[1]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
