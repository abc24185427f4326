"""AdamW and the learning-rate schedules."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from gr_sweep.config import Schedule, TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), fused; weight decay on matrices alone.

    A zero gradient is not "no update": moments and decay go on (DESIGN: what else couples domains).
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def lr_factor(step: int, num_steps: int, config: TrainConfig) -> float:
    """Share of the peak learning rate in step `step` (from 0): warm-up, then cosine or WSD.

    WSD (warm-up, stable, decay) is the schedule of Hu et al. 2024, arXiv 2404.06395.
    """
    warmup = round(config.warmup * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule is Schedule.cosine:
        progress = (step - warmup) / max(1, num_steps - warmup)
        return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    decay = round(config.decay * num_steps)
    left = num_steps - step
    if left > decay:
        return 1.0
    return config.final_lr + (1 - config.final_lr) * left / max(1, decay)


def make_schedule(
    optimizer: torch.optim.Optimizer, num_steps: int, config: TrainConfig
) -> LambdaLR:
    """The schedule over a whole run of `num_steps`."""
    return LambdaLR(optimizer, lambda step: lr_factor(step, num_steps, config))


def num_steps(config: TrainConfig) -> int:
    """Optimizer steps of a run; a number of tokens is rounded up to whole steps."""
    if config.steps is not None:
        return config.steps
    assert config.tokens is not None  # config.validate: one of the two is given
    return math.ceil(config.tokens / (config.batch_sequences * config.sequence_length))
