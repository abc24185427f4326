"""RMU: unlearning of a trained model, a weak baseline for routing.

Representation misdirection (Li et al. 2024, arXiv 2403.03218, section 4): in one layer, activations
on text to forget are pushed in a random direction, and those on other text are kept in place.

N rows, T positions, D residual width.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gr_sweep.eval.finetune import restored, warmup
from gr_sweep.eval.text import Rows
from gr_sweep.model.families import family_of
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.units import decoder_layers
from gr_sweep.routing.kinds import MLP

STEERING = 5.0
"""Norm that activations on forgotten text are pushed to, relative to their mean norm before. An
absolute norm depends on the model: 6.5 (theirs for Zephyr 7B) and 20 (SGTM's for 254M) belong to
one layer of one model. Adaptive RMU is relative too (Huu-Tien et al. 2024, arXiv 2408.06223)."""
RETAIN_WEIGHT = 100.0
"""Weight of the retain loss: SGTM's (scripts/wiki/rmu.sh; theirs is 1200)."""
LAYERS = 3
"""Layers whose MLP output matrix, or that of every expert, is updated; the activations of the last
of them are read."""


@contextlib.contextmanager
def unlearned(
    token_losses: TokenLosses,
    forget_rows: Rows,
    retain_rows: Rows,
    num_steps: int,
    *,
    seed: int,
    lr: float,
) -> Iterator[None]:
    """Inside, the model has unlearned; afterwards its weights are restored.

    The layer that is read is the last of the first half, like SGTM's layer 7 of 16, counted from 0
    (theirs is 7 of 32). The loss is MSE(h_forget, c u) + `RETAIN_WEIGHT` MSE(h_retain, h_retain of
    the original model), where u is fixed, uniform in 0..1 and normalised.

    Args:
        lr: of AdamW. They and SGTM use 5e-5, which changes nothing at a few million parameters;
            training's own rate unlearns in about a hundred steps.
    """
    model = token_losses.model
    family = family_of(model.config)
    layers = decoder_layers(model)
    last = max(1, len(layers) // 2) - 1
    name = f"{family.mixture}.experts.down_proj"
    if family.mixture is None:
        name = f"{family.linears[MLP].row}.weight"
    updated = layers[max(0, last + 1 - LAYERS) : last + 1]
    weights: list[Any] = [layer.get_parameter(name) for layer in updated]
    caught: list[Any] = []
    hook = layers[last].register_forward_hook(lambda module, inputs, output: caught.append(output))

    def read(rows_NS: np.ndarray) -> Tensor:
        """The output of the layer [N, T, D], in float32 or wider."""
        token_losses.hidden_states(torch.from_numpy(rows_NS[:, :-1]).to(token_losses.device))
        output = caught.pop()
        found_NTD: Tensor = output[0] if isinstance(output, tuple) else output
        return found_NTD.to(torch.promote_types(found_NTD.dtype, torch.float32))

    @torch.no_grad()
    def exchange() -> None:
        """Exchanges the weights' values with those of `others`."""
        for weight, other in zip(weights, others, strict=True):
            value = weight.clone()
            weight.copy_(other)
            other.copy_(value)

    with restored(token_losses):
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_()
        with torch.no_grad():
            before_NTD = read(forget_rows(0))
        direction_D = torch.rand(
            before_NTD.shape[-1], generator=torch.Generator().manual_seed(seed)
        )
        direction_D = (direction_D / direction_D.norm()).to(before_NTD)
        target_D = STEERING * before_NTD.norm(dim=-1).mean() * direction_D
        others = [weight.detach().clone() for weight in weights]
        optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
        for step in range(num_steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * warmup(step)
            retain = retain_rows(step)
            exchange()  # for the weights before
            with torch.no_grad():
                retained_NTD = read(retain)
            exchange()
            forget_NTD = read(forget_rows(step))
            loss = nn.functional.mse_loss(forget_NTD, target_D.expand_as(forget_NTD))
            loss = loss + RETAIN_WEIGHT * nn.functional.mse_loss(read(retain), retained_NTD)
            (loss / token_losses.num_processes).backward()
            optimizer.step()
            optimizer.zero_grad()
        hook.remove()
        yield
