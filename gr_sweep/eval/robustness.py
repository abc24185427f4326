"""Robustness of a removal: attacks that bring the domain back, and removal without routing.

The relearning attack fine-tunes the whole model on few documents of a domain, which undoes what
only looks like forgetting. SGTM (Shilov et al. 2025, arXiv 2512.05648) and Cloud et al. 2024 (arXiv
2410.04332) attack in the same way.
"""

import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gr_sweep.config import EvalConfig
from gr_sweep.domains import expand
from gr_sweep.eval.calibrate import calibrated, fitted_bias
from gr_sweep.eval.finetune import fine_tune, restored
from gr_sweep.eval.loss import HeldoutBatches, Losses
from gr_sweep.eval.removal import WithoutDomain
from gr_sweep.eval.text import TrainingText
from gr_sweep.eval.unlearn import unlearned
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, View
from gr_sweep.model.adapters import adapted_modules
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.model.units import unsharded

logger = logging.getLogger(__name__)

CALIBRATION_TOKENS = 16_384
"""Training text of a domain that the bias on the logits is fitted to, at most."""


def robustness_losses(
    routed: RoutedModel,
    token_losses: TokenLosses,
    held_out: HeldoutBatches,
    text: TrainingText,
    config: EvalConfig,
    *,
    lr: float,
    without: Sequence[str] = (),
    parts: Collection[str] | None = None,
    recover: WithoutDomain | None = None,
) -> tuple[list[DocumentLoss], list[RelearnLoss]]:
    """Calibrated losses, losses after unlearning, and the relearning attack, as `config` asks.

    Which models are tested: of a routed model the full model, and the model without each domain
    that can be removed; of a filtered model (`without`) the full model, for each domain that it
    never saw; of another dense model the full model, and with `unlearn_steps` the model after each
    domain was unlearned. An attack starts with random units in the removed blocks, so that sizes
    match, and with nothing off but their adapter units. The model is unchanged afterwards.
    Processes that share the parameters all call this and get every row.

    Args:
        held_out: plain text of all domains.
        lr: training's peak learning rate, which unlearning uses.
        without: domains, or nodes above them, that the model never saw.
        parts: the removable domains and nodes that are tested; None: all.
        recover: from `recovery`: the model without a domain is read and attacked inside it.
    """
    domains = routed.plan.domains
    found = _Found(token_losses, held_out, text, config, domains)
    removable = [part for part in routed.plan.removable() if parts is None or part in parts]
    unlearnable = routed.plan.nodes if config.unlearn_steps else ()
    for part in without or removable or unlearnable:
        found.calibrate(View.full, part)
    for part in without:
        found.attack(View.full, part)
    for part in removable if config.calibrate or config.relearn_steps else ():
        with recover(part) if recover is not None else contextlib.nullcontext():
            with routed.remove([part]):
                found.calibrate(View.removed, part)
            if config.relearn_steps:
                with restored(token_losses), added_units_off(routed, part):
                    randomize_blocks(routed, part, text.seed)
                    found.attack(View.removed, part)
    for part in unlearnable if not without and not removable else ():
        if others := text.others(part):
            rows = text.rows("unlearn", expand([part], domains))
            steps, seed = config.unlearn_steps or 0, text.seed
            with unlearned(token_losses, rows, text.rows("hold", others), steps, seed=seed, lr=lr):
                found.read(View.unlearned, part, held_out, token_losses)
                found.calibrate(View.unlearned, part)
                found.attack(View.unlearned, part)
    return found.rows, found.relearned


@dataclass
class _Found:
    """The rows of the model as it is when a method is called."""

    token_losses: TokenLosses
    held_out: HeldoutBatches
    text: TrainingText
    config: EvalConfig
    domains: Sequence[str]
    rows: list[DocumentLoss] = field(default_factory=list)
    relearned: list[RelearnLoss] = field(default_factory=list)

    def read(self, view: View, part: str, of: HeldoutBatches, losses: Losses) -> None:
        self.token_losses.model.eval()
        self.rows += [row._replace(view=view, part=part) for row in of.losses(losses)]

    def calibrate(self, view: View, part: str) -> None:
        if not self.config.calibrate:
            return
        gone = expand([part], self.domains)
        windows = self.text.sample("calibrate", gone, CALIBRATION_TOKENS)
        ids_MS = torch.from_numpy(windows).to(self.token_losses.device)
        self.token_losses.model.eval()
        size = self.config.batch_sequences
        bias_V = fitted_bias(self.token_losses, ids_MS, batch_sequences=size)
        losses = calibrated(self.token_losses, bias_V)
        self.read(View(f"calibrated_{view}"), part, self.held_out.only(gone), losses)

    def attack(self, view: View, part: str) -> None:
        """Held-out losses of the part while the model, with nothing off, is fine-tuned on it.

        They are read before the attack, after 1, 2, 4, 8, ... steps and at the end: the first steps
        teach most. Each learning rate starts from the same weights.
        """
        config, losses = self.config, self.token_losses
        num_steps = config.relearn_steps
        if not num_steps:
            return
        gone = expand([part], self.domains)
        held_out = self.held_out.only(gone)
        documents, num_rows = config.relearn_documents, config.relearn_batch_sequences
        rows_of = self.text.rows("relearn", gone, documents=documents, num_rows=num_rows)
        step_tokens = rows_of(0)[:, 1:].size

        def add(found: Sequence[DocumentLoss], lr: float, step: int) -> None:
            for row in found:
                document = row.domain, row.document, row.loss_nats, row.tokens, row.bytes
                self.relearned.append(RelearnLoss(view, part, lr, step * step_tokens, *document))

        losses.model.eval()
        before = held_out.losses(losses)
        for lr in config.relearn_lrs:

            def after_step(step: int, lr: float = lr) -> None:
                if step.bit_count() == 1 or step == num_steps:
                    add(held_out.losses(losses), lr, step)

            logger.info("relearning %s with learning rate %g", part, lr)
            add(before, lr, 0)
            with restored(losses):
                seed = self.text.seed
                fine_tune(losses, rows_of, num_steps, lr=lr, seed=seed, after_step=after_step)


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
