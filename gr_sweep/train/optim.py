"""AdamW and the learning-rate schedules."""

import bisect
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gr_sweep.config import Schedule, TrainConfig
from gr_sweep.model.route import RoutedModel
from gr_sweep.routing.kinds import BIAS


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101); weight decay on matrices that are
    not those of output biases.

    Parameters with a zero gradient are updated too, by weight decay and by their moments.
    """
    decaying, others = list[Tensor](), list[Tensor]()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = parameter.dim() < 2 or f"adapter.{BIAS}." in name
            (others if is_bias else decaying).append(parameter)
    groups = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


@torch.no_grad()
def update(optimizer: torch.optim.Optimizer, routed: RoutedModel, block_lr: float = 1.0) -> None:
    """`optimizer.step()`, with `block_lr` times the learning rate for the units of blocks, and with
    none for what rests: a frozen core, blocks that are always off.

    AdamW's update is proportional to its learning rate, decay included, so that of a slice is
    multiplied afterwards. (A tensor can hold units of both: a parameter group is whole.)
    """
    core, resting = routed.plan.core.name, routed.resting
    sets = routed.owner_sets() if resting or block_lr != 1.0 else {}
    changed: list[tuple[list[Tensor], list[Tensor], float]] = []
    for name, views in sets.items():
        factor = 0.0 if name in resting else 1.0 if name == core else block_lr
        if views and factor != 1.0:
            changed.append((views, [view.clone() for view in views], factor))
    optimizer.step()
    for views, before, factor in changed:
        torch._foreach_lerp_(views, before, 1.0 - factor)


def lr_factor(step: int, num_steps: int, config: TrainConfig) -> float:
    """Fraction of the peak learning rate in step `step` (from 0): warm-up, then cosine or WSD.

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


def learning_rate(
    step: int, phases: Sequence[int], config: TrainConfig, *, rewarm: float = 1.0
) -> float:
    """The learning rate in a step of the run, counted from 0.

    Args:
        phases: steps of each phase; the rate warms up and decays in each.
        rewarm: peak of every phase after the first, as a fraction of the first's.
    """
    starts = [0, *itertools.accumulate(phases)]
    phase = bisect.bisect_right(starts, step) - 1
    peak = rewarm if starts[phase] else 1.0
    return config.lr * (peak * lr_factor(step - starts[phase], phases[phase], config))
