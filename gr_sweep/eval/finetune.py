"""Fine-tunes a model in place for some steps, as after a removal, and restores its weights
afterwards, bit for bit.

N rows, S tokens of a row.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gr_sweep.eval.removal import WithoutDomain
from gr_sweep.eval.text import Rows
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.model.units import reshard

WARMUP_STEPS = 10
"""Steps in which the learning rate rises from 0, because the optimizer starts without moments."""
MAX_NORM = 1.0
"""Global gradient norm that is clipped to."""
BETAS = (0.9, 0.95)
"""AdamW's, as in training; without weight decay, so that what gets no gradient does not change."""

RECOVERY_LR = 0.1
"""Learning rate of the recovery as a fraction of training's peak: gradient routing's own (5e-4 and
5e-5, projects/tinystories of its code)."""
RECOVERY_READS = 8
"""Evaluations of the recovery, at most, besides the one before it; the best weights count. Its code
has one after each step."""
RECOVERY_ROWS = 4
"""Steps whose rows these read: the ones that would follow the recovery's."""


def snapshot(model: nn.Module) -> Callable[[], None]:
    """Copies parameters and buffers to the host's memory, because the device may have no room for
    them; returns what copies them back.

    If processes share the parameters, `model` is the module that gathers all (`TokenLosses`).
    """
    reshard(model)
    tensors = [*model.parameters(), *model.buffers()]
    copies = [_local(tensor).to("cpu", copy=True) for tensor in tensors]

    @torch.no_grad()
    def restore() -> None:
        reshard(model)
        for tensor, old in zip(tensors, copies, strict=True):
            if tensor.dtype != old.dtype:
                tensor.data = torch.empty_like(tensor, dtype=old.dtype)
            _local(tensor).copy_(old)

    return restore


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restores parameters and buffers afterwards; as `snapshot`. Which parameters have gradients is
    not restored: only what follows a job's training uses this."""
    restore = snapshot(model)
    # Within an autocast context torch keeps its first cast of a weight, even if the weight changes.
    keeps_casts = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(keeps_casts)
        restore()


def fine_tune(
    token_losses: TokenLosses,
    rows_of: Rows,
    num_steps: int,
    *,
    lr: float,
    seed: int,
    routing: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    after_step: Callable[[int], None] | None = None,
    micro_batch_sequences: int | None = None,
) -> None:
    """AdamW on all parameters, with a constant learning rate after a short warm-up.

    Computes in the caller's autocast precision, inside `restored`. Layers that are compiled for
    training run eagerly: a few steps are not worth a compilation. Losses that are not finite raise
    nothing. Processes that share the parameters all compute the same rows.

    Args:
        rows_of: token ids int64 [N, S] of each step, counted from 0.
        routing: context in which the gradients are computed.
        after_step: called with the number of steps so far; may evaluate.
        micro_batch_sequences: rows of a forward pass at most; None: all rows of a step.
    """
    model: nn.Module = token_losses.model
    reshard(token_losses)
    parameters = [parameter.requires_grad_() for parameter in model.parameters()]
    for parameter in parameters:
        if parameter.dtype is torch.bfloat16:  # frozen until now
            parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=0.0, fused=True)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup(step)
        tokens_NS = torch.from_numpy(rows_of(step)).to(token_losses.device)
        num_tokens = tokens_NS[:, 1:].numel()
        model.train()
        with seeded(seed, step), torch.compiler.set_stance("force_eager"), routing():
            for micro_NS in tokens_NS.split(micro_batch_sequences or len(tokens_NS)):
                loss_sum, _ = token_losses(micro_NS)
                (loss_sum / (num_tokens * token_losses.num_processes)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        model.eval()
        if after_step is not None:
            after_step(step + 1)


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
        rows_without: the rows of each step, for a domain; None without other text.
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


def warmup(step: int) -> float:
    """Fraction of the learning rate in this step, counted from 0."""
    return min(1.0, (step + 1) / WARMUP_STEPS)


@contextlib.contextmanager
def seeded(seed: int, step: int) -> Iterator[None]:
    """Inside, torch draws random numbers that follow from seed and step, and then goes on."""
    with torch.random.fork_rng(
        [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    ):
        torch.manual_seed(seed * 1_000_003 + step)
        yield
