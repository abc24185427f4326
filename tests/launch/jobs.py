"""Small jobs for the estimate, and what a real step of theirs holds."""

import gc

import torch

from gr_sweep.checks import validate
from gr_sweep.components import lay_plan, named_config
from gr_sweep.config import (
    DataConfig,
    DomainConfig,
    ModelConfig,
    PartitionConfig,
    Precision,
    RunConfig,
    TrainConfig,
)
from gr_sweep.data.rows import step_rows
from gr_sweep.model.sizes import random_model
from gr_sweep.train.memory import AllocatedBytes
from gr_sweep.train.step import JobStep
from tests.train.allocator import allocator_peak

DOMAINS = ("code", "biology", "creative")
TRAIN = TrainConfig(steps=5, batch_sequences=6, sequence_length=64, precision=Precision.float32)


def make_config(size: str = "tiny", **parts: object) -> RunConfig:
    config = RunConfig(
        partition=PartitionConfig(domains={domain: DomainConfig() for domain in DOMAINS}),
        **(
            {
                "model": ModelConfig(size=size),
                "train": TRAIN,
                "data": DataConfig(vocab_size=400),
            }
            | parts
        ),
    )
    return validate(config)


def measured_peak(config: RunConfig, world_size: int = 1) -> int:
    """Bytes that the allocator holds at most during a real step of the job, and those from before
    it."""
    model = random_model(named_config(config, vocab_size=400, eot_id=0), seed=0)
    counts = step_rows(config)
    step = JobStep(lay_plan(model, config), config.train, counts, torch.device("cpu"), world_size)
    step.run()
    gc.collect()
    held = AllocatedBytes()
    held.hold([*step.weights(), *step.optimizer_state()])
    return held.current + allocator_peak(step.run)
