"""Fine-tunes a model in place for some steps, and gives its weights back afterwards, bit for bit.

Knows nothing of what the text is for. N rows, S tokens of a row.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel

Context = Callable[[], contextlib.AbstractContextManager[None]]

WARMUP_STEPS = 10
"""Steps in which the learning rate rises from 0: the optimizer starts without moments."""
MAX_NORM = 1.0
"""Global gradient norm that is clipped to."""
BETAS = (0.9, 0.95)
"""AdamW's, as in training; without weight decay, so that what gets no gradient stays as it is."""


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """After it, parameters, buffers and gradients are what they were before, and so are the modes.

    The copies lie in the host's memory: the device has none to spare for them.

    Args:
        model: a module that computes alone. Where processes share its parameters the one that
            gathers all (`TokenLosses`); each process keeps its own part.
    """
    _drop_gathered(model)
    tensors = [*model.parameters(), *model.buffers()]
    before = [_local(tensor).to("cpu", copy=True) for tensor in tensors]
    learns = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    # Within one autocast context torch keeps the narrow copy of a weight that it made first, though
    # the weight changes.
    keeps_copies = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(keeps_copies)
        _drop_gathered(model)
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                _local(tensor).copy_(old)
        for parameter, requires_grad, grad in learns:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, is_training in modes:
            module.training = is_training


def fine_tune(
    token_losses: TokenLosses,
    rows_of: Callable[[int], np.ndarray],
    num_steps: int,
    *,
    lr: float,
    seed: int,
    device: torch.device,
    routing: Context = contextlib.nullcontext,
    after_step: Callable[[int], None] | None = None,
    micro_batch_sequences: int | None = None,
    num_processes: int = 1,
) -> None:
    """AdamW on all parameters: the rate rises over a few steps and then stays.

    Products are in the type that the caller's autocast says. Layers that are compiled for training
    run eagerly: a few steps are not worth a compilation. A rate that is too high leaves losses that
    are not finite; nothing is raised.

    Args:
        rows_of: token ids int64 [N, S] of the step with that number, from 0.
        routing: what is computed for the gradients is routed by it.
        after_step: told how many steps there have been; may evaluate.
        micro_batch_sequences: rows of a forward pass at most; None: all of a step.
        seed: of what the model itself draws while training.
        num_processes: that share the parameters. All compute the same rows, and gradients are
            summed over them.
    """
    model: nn.Module = token_losses.model
    _drop_gathered(token_losses)
    parameters = [parameter.requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=0.0, fused=True)
    optimizer.zero_grad()
    torch.clear_autocast_cache()
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * warmup(step)
        tokens_NS = torch.from_numpy(rows_of(step)).to(device)
        num_tokens = tokens_NS[:, 1:].numel()
        model.train()
        with seeded(seed, step, device), torch.compiler.set_stance("force_eager"), routing():
            for micro_NS in tokens_NS.split(micro_batch_sequences or len(tokens_NS)):
                loss_sum, _ = token_losses(micro_NS)
                (loss_sum / (num_tokens * num_processes)).backward()
        clip(parameters)
        optimizer.step()
        optimizer.zero_grad()
        torch.clear_autocast_cache()
        if after_step is not None:
            model.eval()
            after_step(step + 1)
    model.eval()


def warmup(step: int) -> float:
    """Share of the learning rate in step `step`, from 0."""
    return min(1.0, (step + 1) / WARMUP_STEPS)


def clip(parameters: Sequence[Tensor]) -> None:
    """Clips the gradients to `MAX_NORM`, measured over all of them and over all processes."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    torch.nn.utils.clip_grads_with_norm_(parameters, MAX_NORM, norm)


@contextlib.contextmanager
def recovered(
    routed: RoutedModel,
    token_losses: TokenLosses,
    part: str,
    rows_of: Callable[[int], np.ndarray],
    num_steps: int,
    *,
    lr: float,
    seed: int,
    device: torch.device,
    micro_batch_sequences: int | None = None,
    num_processes: int = 1,
) -> Iterator[None]:
    """Inside, the model without `part` has been trained on, on text of the others.

    The recovery of gradient routing's own robust unlearning (Cloud et al. 2024, arXiv 2410.04332:
    expand, route, ablate, then train on retained text). The blocks of `part` are off in each step
    and stay as they are; inside they must be switched off as well, by `routed.remove([part])`.

    Args:
        rows_of: rows of a step, of the retained domains.
        num_steps, lr and the others: as `fine_tune` takes them.
    """
    with restored(token_losses):
        fine_tune(
            token_losses,
            rows_of,
            num_steps,
            lr=lr,
            seed=seed,
            device=device,
            routing=lambda: routed.remove([part]),
            micro_batch_sequences=micro_batch_sequences,
            num_processes=num_processes,
        )
        yield


def _drop_gathered(model: nn.Module) -> None:
    """Parameters are the parts that this process keeps.

    An evaluation leaves those of FSDP's outermost module gathered, in copies that nobody trains.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


@contextlib.contextmanager
def seeded(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Inside, torch draws what follows from seed and step; afterwards it continues as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + step)
        yield
