"""How well a domain stays away: everything that is done to a trained model to get it back, or to
take it away without routing. One function for a job.

Says which models are tried and with which text; how, the modules beside this one say. Knows nothing
of files.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gr_sweep.config import EvalConfig
from gr_sweep.data.shards import Shard
from gr_sweep.domains import expand
from gr_sweep.errors import JobError
from gr_sweep.eval.calibrate import Calibrated, fitted_bias
from gr_sweep.eval.finetune import Context, recovered, restored
from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.eval.relearn import randomize_blocks, relearn_losses
from gr_sweep.eval.removal import WithoutDomain
from gr_sweep.eval.unlearn import unlearned
from gr_sweep.eval.windows import TextWindows
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, View
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel

logger = logging.getLogger(__name__)

CALIBRATION_TOKENS = 16_384
"""Training text of a domain that the bias on the logits is fitted on, at most."""
RECOVERY_LR = 0.1
"""Learning rate of the recovery, as a share of training's peak: gradient routing's own (5e-4 and
5e-5, projects/tinystories of its code)."""

Rows = Callable[[int], np.ndarray]
_CALIBRATED = {
    View.full: View.calibrated_full,
    View.removed: View.calibrated_removed,
    View.unlearned: View.calibrated_unlearned,
}


@dataclass(frozen=True)
class TrainingText:
    """The training text of a job, by true domain, as rows for what comes after training."""

    shards: Mapping[str, Shard]
    sequence_length: int
    batch_sequences: int
    """Rows of a step of unlearning, all in one forward pass."""
    seed: int
    weights: Mapping[str, float] = field(default_factory=dict)
    """Share of each domain in training, as `data.weights`; those not named have 1."""

    def others(self, part: str) -> list[str]:
        """The domains outside `part` that there was training on."""
        gone = expand([part], list(self.shards))
        return [
            domain
            for domain in self.shards
            if domain not in gone and self.weights.get(domain, 1.0) > 0
        ]

    def rows(self, purpose: str, domains: Sequence[str]) -> Rows:
        """Rows of each step, of all text of these domains, in turn."""
        return functools.partial(
            self._windows(purpose, domains).rows, num_rows=self.batch_sequences
        )

    def attack_rows(self, domains: Sequence[str], config: EvalConfig) -> Rows:
        """Rows of each step of the attack: of few documents, drawn at random."""
        windows = self._windows("relearn", domains, config.relearn_documents)
        return functools.partial(windows.rows, num_rows=config.relearn_batch_sequences)

    def sample(self, purpose: str, domains: Sequence[str], num_tokens: int) -> np.ndarray:
        """Windows [M, T + 1] of about so many tokens; not more than there are."""
        windows = self._windows(purpose, domains)
        return windows.sample(max(1, num_tokens // windows.sequence_length))

    def _windows(
        self, purpose: str, domains: Sequence[str], documents: int | None = None
    ) -> TextWindows:
        return TextWindows(
            [self.shards[domain] for domain in domains],
            sequence_length=self.sequence_length,
            seed=self.seed,
            documents=documents,
            purpose=purpose,
        )


def check_processes(config: EvalConfig, num_processes: int) -> None:
    """Before any work.

    Raises:
        JobError: what several processes cannot do together.
    """
    if config.unlearn_steps and num_processes > 1:
        raise JobError(
            f"eval.unlearn_steps needs the whole model in one process, and this job has "
            f"{num_processes}; run it in one, or leave eval.unlearn_steps out"
        )


def recovery(
    routed: RoutedModel,
    token_losses: TokenLosses,
    rows_without: Callable[[str], Rows | None],
    num_steps: int,
    *,
    lr: float,
    seed: int,
    device: torch.device,
    micro_batch_sequences: int | None = None,
    num_processes: int = 1,
) -> WithoutDomain | None:
    """For each domain the context in which the model without it was trained on the others' text.

    None without steps, and for a plan of which nothing can be removed. A domain's recovered weights
    are computed whenever its context is entered, and are the same each time.

    Args:
        rows_without: for a domain the rows of each step; None where there is no other text.
        num_steps: of the recovery of each domain.
        lr: training's peak learning rate, of which `RECOVERY_LR` is taken.
        micro_batch_sequences: rows of a forward pass at most.
    """
    if not num_steps or not routed.plan.removable():
        return None

    def without(part: str) -> contextlib.AbstractContextManager[None]:
        rows = rows_without(part)
        if rows is None:
            return contextlib.nullcontext()
        return recovered(
            routed,
            token_losses,
            part,
            rows,
            num_steps,
            lr=lr * RECOVERY_LR,
            seed=seed,
            device=device,
            micro_batch_sequences=micro_batch_sequences,
            num_processes=num_processes,
        )

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
    device: torch.device,
    num_processes: int = 1,
) -> tuple[list[DocumentLoss], list[RelearnLoss]]:
    """Calibrated losses, losses after unlearning, and the relearning attack, as `config` asks.

    Which models: of a routed one the full model, and the model without each domain that can be
    removed; of one that never saw some domains (`without`) the full model, for each of them; of
    another dense one the full model, and with `unlearn_steps` the model after each domain was
    unlearned. An attack begins with the units of removed blocks put back at random, so that sizes
    match, and with nothing off. Call it inside the precision that the losses shall have; the model
    is afterwards as it was.

    Args:
        held_out: of all domains, plain text.
        lr: training's peak learning rate; unlearning takes it as it is.
        without: domains, or nodes above them, that the model never saw.
        parts: of the domains and nodes that can be removed, those that are; None: all.
        recover: as `recovery` makes it: the model without a domain is read and attacked in it.
        num_processes: that share the parameters; all call this, and all get every row.

    Raises:
        JobError: as `check_processes`.
        DataError: a domain without training text.
    """
    check_processes(config, num_processes)
    labels = routed.plan.domains
    rows: list[DocumentLoss] = []
    relearned: list[RelearnLoss] = []

    def read(view: View, part: str, of: HeldoutBatches, losses: object = token_losses) -> None:
        routed.model.eval()
        found = of.losses(losses)  # type: ignore[arg-type]
        rows.extend(row._replace(view=view, part=part) for row in found)

    def calibrate(view: View, part: str, routing: Context = contextlib.nullcontext) -> None:
        if not config.calibrate:
            return
        gone = expand([part], labels)
        ids_MS = torch.from_numpy(text.sample("calibrate", gone, CALIBRATION_TOKENS)).to(device)
        routed.model.eval()
        with routing():
            bias_V = fitted_bias(token_losses, ids_MS, batch_sequences=config.batch_sequences)
            calibrated = Calibrated(token_losses, bias_V)
            read(_CALIBRATED[view], part, held_out.only(gone), calibrated)
        logger.info("a bias is fitted to text of %s (%s)", part, view.value)

    def attack(view: View, part: str) -> None:
        if not config.relearn_steps:
            return
        gone = expand([part], labels)
        relearned.extend(
            relearn_losses(
                token_losses,
                held_out.only(gone),
                text.attack_rows(gone, config),
                view=view,
                part=part,
                num_steps=config.relearn_steps,
                lrs=config.relearn_lrs,
                every=config.relearn_every,
                seed=text.seed,
                device=device,
                num_processes=num_processes,
            )
        )

    removable = [part for part in routed.plan.removable() if parts is None or part in parts]
    unlearnable = routed.plan.nodes if config.unlearn_steps else ()
    for part in without or removable or unlearnable:
        calibrate(View.full, part)
    for part in without:
        attack(View.full, part)
    for part in removable if config.calibrate or config.relearn_steps else ():
        with recover(part) if recover is not None else contextlib.nullcontext():
            calibrate(View.removed, part, functools.partial(routed.remove, [part]))
            if config.relearn_steps:
                with restored(token_losses):
                    randomize_blocks(routed, part, text.seed)
                    attack(View.removed, part)
    if config.unlearn_steps and not without and not removable:
        for part in unlearnable:
            others = text.others(part)
            if not others:
                continue  # nothing is left to hold the model where it is
            with unlearned(
                token_losses,
                text.rows("unlearn", expand([part], labels)),
                text.rows("hold", others),
                config.unlearn_steps,
                seed=text.seed,
                device=device,
                lr=lr,
            ):
                read(View.unlearned, part, held_out)
                logger.info("%s is unlearned", part)
                calibrate(View.unlearned, part)
                attack(View.unlearned, part)
    return rows, relearned
