"""Fine-tunes a model in place for some steps, and restores its weights afterwards, bit for bit.

N rows, S tokens of a row.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gr_sweep.eval.text import Rows
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.units import reshard

Context = Callable[[], contextlib.AbstractContextManager[None]]

WARMUP_STEPS = 10
"""Steps in which the learning rate rises from 0, because the optimizer starts without moments."""
MAX_NORM = 1.0
"""Global gradient norm that is clipped to."""
BETAS = (0.9, 0.95)
"""AdamW's, as in training; without weight decay, so that what gets no gradient does not change."""


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
    routing: Context = contextlib.nullcontext,
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
