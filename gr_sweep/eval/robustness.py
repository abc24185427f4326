"""Robustness of a removal: attacks that bring the domain back, and removal without routing.

Decides which models are tested and on which text; the other modules of this folder run the tests.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from gr_sweep.config import EvalConfig
from gr_sweep.domains import expand
from gr_sweep.eval.calibrate import calibrated, fitted_bias
from gr_sweep.eval.finetune import fine_tune, restored, snapshot
from gr_sweep.eval.loss import HeldoutBatches, Losses
from gr_sweep.eval.relearn import added_units_off, randomize_blocks, relearn_losses
from gr_sweep.eval.removal import WithoutDomain
from gr_sweep.eval.text import Rows, TrainingText
from gr_sweep.eval.unlearn import unlearned
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, View
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel

CALIBRATION_TOKENS = 16_384
"""Training text of a domain that the bias on the logits is fitted to, at most."""
RECOVERY_LR = 0.1
"""Learning rate of the recovery as a fraction of training's peak: gradient routing's own (5e-4 and
5e-5, projects/tinystories of its code)."""
RECOVERY_READS = 8
"""Evaluations of the recovery, at most, besides the one before it; the best weights count. Its code
has one after each step."""
RECOVERY_ROWS = 4
"""Steps whose rows these read: the ones that would follow the recovery's."""


def recovery(
    routed: RoutedModel,
    token_losses: TokenLosses,
    rows_without: Callable[[str], Rows | None],
    num_steps: int,
    *,
    lr: float,
    seed: int,
    micro_batch_sequences: int | None = None,
) -> WithoutDomain | None:
    """For each domain, the context in which the model without it was trained on the others' text.

    This is the recovery of gradient routing's robust unlearning (Cloud et al. 2024, arXiv
    2410.04332: expand, route, ablate, then train on retained text). The removed blocks are off in
    each step and do not change; inside the context, switch them off too. Of the weights before,
    between and after the steps those count that have the lowest loss on more of the others' text.
    They are computed each time that a context is entered, with the same result.

    Args:
        rows_without: the rows of each step, for a domain; None if there is no other text.
        lr: training's peak learning rate, of which the fraction `RECOVERY_LR` is used.

    Returns:
        None without steps, or if the plan has no domain that can be removed.
    """
    if not num_steps or not routed.plan.removable():
        return None

    @contextlib.contextmanager
    def without(part: str) -> Iterator[None]:
        rows = rows_without(part)
        if rows is None:
            yield
            return
        held_in = [rows(step) for step in range(num_steps, num_steps + RECOVERY_ROWS)]
        every = math.ceil(num_steps / RECOVERY_READS)
        lowest, take_best = math.inf, lambda: None

        @torch.no_grad()
        def read(step: int) -> None:
            """Keeps the weights if their summed loss on the rows that choose them is the lowest."""
            nonlocal lowest, take_best
            if step % every and step != num_steps:
                return
            routed.model.eval()
            losses = []
            with routed.remove([part]):
                for rows_NS in held_in:
                    tokens_NS = torch.from_numpy(rows_NS).to(token_losses.device)
                    for micro_NS in tokens_NS.split(micro_batch_sequences or len(tokens_NS)):
                        losses.append(token_losses(micro_NS)[0])
            found = float(torch.stack(losses).sum())
            if step == 0 or found < lowest:
                lowest, take_best = found, snapshot(token_losses)

        with restored(token_losses):
            read(0)
            fine_tune(
                token_losses,
                rows,
                num_steps,
                lr=lr * RECOVERY_LR,
                seed=seed,
                routing=functools.partial(routed.remove, [part]),
                after_step=read,
                micro_batch_sequences=micro_batch_sequences,
            )
            take_best()
            yield

    return without


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
    match, and with nothing off but their adapter units. Call it inside the precision of the losses;
    the model is unchanged afterwards. Processes that share the parameters all call this and
    get every row.

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
        config = self.config
        if not config.relearn_steps:
            return
        gone = expand([part], self.domains)
        self.relearned += relearn_losses(
            self.token_losses,
            self.held_out.only(gone),
            self.text.rows(
                "relearn",
                gone,
                documents=config.relearn_documents,
                num_rows=config.relearn_batch_sequences,
            ),
            view=view,
            part=part,
            num_steps=config.relearn_steps,
            lrs=config.relearn_lrs,
            seed=self.text.seed,
        )
