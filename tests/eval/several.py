"""An evaluation that any number of processes can run, which share a model."""

from typing import Any

from gr_sweep.config import EvalConfig, Precision, TrainConfig
from gr_sweep.eval.finetune import recovery
from gr_sweep.eval.removal import removal_losses
from gr_sweep.eval.robustness import robustness_losses
from gr_sweep.eval.samples import Sampler, choose_prompts
from gr_sweep.model.loss import TokenLosses
from gr_sweep.train.distributed import Processes
from gr_sweep.train.step import shard
from tests.eval.tiny import CPU, Letters, held_out, make_routed, shards, text

FLOAT32 = TrainConfig(precision=Precision.float32)


def evaluate(processes: Processes) -> dict[str, Any]:
    """Rows and text of a routed model that is recovered after its removal."""
    batches = held_out(4, rank=processes.rank, world_size=processes.world_size)
    routed = make_routed("forget", forget=["biology"])
    token_losses = TokenLosses(routed)
    if processes.are_several:
        shard(token_losses, FLOAT32, CPU)
    recover = recovery(
        routed, token_losses, lambda part: text().rows("recovery", text().others(part)), 3,
        lr=3e-2, seed=0,
    )  # fmt: skip
    config = EvalConfig(calibrate=True, relearn_steps=2, relearn_lrs=[3e-3], relearn_documents=4,
                        relearn_batch_sequences=3, sample_prompt_tokens=4, sample_tokens=8,
                        batch_sequences=16)  # fmt: skip
    sampler = Sampler(
        routed=routed, token_losses=token_losses, config=config, tokenizer=Letters(), begin=[0],
        prompts=choose_prompts(shards(8, seed=1), config, 16), eot_id=0, sequence_length=16, seed=0,
    )  # fmt: skip
    before = batches.losses(token_losses)
    rows, relearned = robustness_losses(
        routed, token_losses, batches, text(), config, recover=recover, lr=3e-2
    )
    rows += removal_losses(routed, token_losses, batches, recovered=recover)
    dense = make_routed()
    of_dense = TokenLosses(dense)
    if processes.are_several:
        shard(of_dense, FLOAT32, CPU)
    config = EvalConfig(unlearn_steps=3, calibrate=True)
    rows += robustness_losses(dense, of_dense, batches, text(), config, lr=3e-2)[0]
    return {
        "rows": [list(row) for row in rows],
        "relearned": [list(row) for row in relearned],
        "samples": sampler.sample(recover=recover),
        "restored": before == batches.losses(token_losses),
    }
