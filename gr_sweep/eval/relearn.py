"""The relearning attack: what an attacker with a little text of a domain recovers by fine-tuning.

Fine-tuning the whole model on few documents undoes what only looks like forgetting. SGTM (Shilov et
al. 2025, arXiv 2512.05648) and Cloud et al. 2024 (arXiv 2410.04332) attack in the same way.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from gr_sweep.eval.finetune import fine_tune, restored
from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.eval.text import Rows
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, View
from gr_sweep.model.adapters import adapted_modules
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.model.units import unsharded

logger = logging.getLogger(__name__)


def relearn_losses(
    token_losses: TokenLosses,
    held_out: HeldoutBatches,
    rows_of: Rows,
    *,
    view: View,
    part: str,
    num_steps: int,
    lrs: Sequence[float],
    seed: int,
) -> list[RelearnLoss]:
    """Held-out losses while the model, with nothing off, is fine-tuned.

    They are read before the attack, after 1, 2, 4, 8, ... steps and at the end: the first steps
    teach most. Each learning rate starts from the same weights, which the model has again
    afterwards.

    Args:
        held_out: text of the domain that is taught.
        rows_of: the rows of each step, from the attacker's documents; all steps have as many.
    """
    rows: list[RelearnLoss] = []
    step_tokens = rows_of(0)[:, 1:].size

    def add(found: Sequence[DocumentLoss], lr: float, step: int) -> None:
        for row in found:
            document = row.domain, row.document, row.loss_nats, row.tokens, row.bytes
            rows.append(RelearnLoss(view, part, lr, step * step_tokens, *document))

    token_losses.model.eval()
    before = held_out.losses(token_losses)
    for lr in lrs:

        def after_step(step: int, lr: float = lr) -> None:
            if step.bit_count() == 1 or step == num_steps:
                add(held_out.losses(token_losses), lr, step)

        logger.info("relearning %s with learning rate %g", part, lr)
        add(before, lr, 0)
        with restored(token_losses):
            fine_tune(token_losses, rows_of, num_steps, lr=lr, seed=seed, after_step=after_step)
    return rows


@contextlib.contextmanager
def added_units_off(routed: RoutedModel, part: str) -> Iterator[None]:
    """Inside, adapter units of the blocks that removing `part` switches off add nothing and do not
    learn. They are beside the model's own units: without them it is as large as a filtered one."""
    removed, hooks = routed.plan.removed_by([part]), []
    for kind, split, module in adapted_modules(routed.model, routed.plan):
        mask_U = torch.ones(split.num_units)
        for index in removed:
            mask_U[split.slices(1)[index]] = 0.0

        def masked(module: nn.Module, inputs: object, h: Tensor, mask_U: Tensor = mask_U) -> Tensor:
            return h * mask_U.to(h)

        hooks.append(module.get_submodule(f"adapter.{kind}.A").register_forward_hook(masked))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def randomize_blocks(routed: RoutedModel, part: str, seed: int) -> None:
    """Gives the units of the blocks that removing `part` switches off new random weights.

    As in a new model of the family, weights are normal with the config's `initializer_range` and
    biases are 0. If processes share the parameters, all must call this inside `restored`, and the
    weights are those that one process draws.
    """
    generator = torch.Generator().manual_seed(seed)
    std: float = routed.model.config.initializer_range
    for linear in routed.unit_linears:
        for parameter in linear.parameters:
            dim = linear.dim(parameter)
            with unsharded(parameter) as weight:
                for index in routed.plan.removed_by([part]):
                    units = linear.units[index]
                    removed = weight.narrow(dim, units.start, units.stop - units.start)
                    if removed.dim() == 1:
                        removed.zero_()
                    else:
                        removed.copy_(torch.randn(removed.shape, generator=generator) * std)
