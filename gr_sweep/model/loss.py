"""The loss of a language model without its logits: unembedding and cross-entropy over chunks.

The logits of one chunk of positions are there at a time, and where a gradient is asked for, what
they send back is multiplied into the gradients of hidden states and unembedding at once: the three
products of the dense computation, none twice. So do the fused kernels of Liger (Hsu et al. 2024,
arXiv 2410.10989, section 3.2), which are Triton; this is plain PyTorch, for a CPU too, and knows
that a domain to which the core is foreign sends nothing to the unembedding.

N sequences of the micro-batch, T positions, S = T + 1, P = N * T, C positions of a chunk, D
residual width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from gr_sweep.errors import PlanError
from gr_sweep.model.route import RoutedModel
from gr_sweep.routing.modules import Routing

IGNORED = -100
"""Target that counts in no loss and sends nothing back, as torch's `ignore_index`."""

_CHUNK_CPU = (32 << 20, 512)
_CHUNK_GPU = (256 << 20, 2048)
"""Bytes of a chunk's float32 logits, and positions that it has at least, whatever the vocabulary:
products over fewer rows are slow, and every chunk reads and writes the unembedding's gradient once.
Measured on two CPU cores at vocabularies of 2,048 and 32,000; for a GPU taken from its bandwidth:
with 2,048 positions a chunk that traffic is some tenth of the time of the three products."""

Factor = Sequence[tuple[int, float]] | Tensor | None
"""What multiplies the unembedding's gradient, as `Routing.rest_factor` gives it, but a run counts
positions and a tensor is [P]."""


class _WholeRows(DynamicCache):
    """Keeps nothing. It says that a row is one sequence, for which attention needs no mask.

    Without it transformers looks in the positions for several sequences in a row, where the host
    waits for the device; and where it cannot look, compiled or on fake tensors, it makes a mask
    [N, 1, T, T], with which there is no flash attention.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class TokenLosses(nn.Module):
    """Tokens to losses, from the embedding to the cross-entropy, as one module.

    Its forward pass is everything that a training step computes, so that what wraps it (compiling,
    gathering of sharded parameters) wraps everything. The model within is the routed one as it
    stands: routing, parameter names and state_dict are its own.
    """

    def __init__(self, routed: RoutedModel) -> None:
        """
        Raises:
            PlanError: an unembedding that is no linear map, or has a bias.
        """
        super().__init__()
        model: Any = routed.model
        unembedding = model.get_output_embeddings()
        if not isinstance(unembedding, nn.Linear) or unembedding.bias is not None:
            raise PlanError(
                f"the loss needs an unembedding that is a linear map without bias, which "
                f"{type(model).__name__} has not; use a family that routing knows"
            )
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                # A layer that is computed again may see `_WholeRows` again: it keeps nothing.
                module._can_checkpoint_with_cache = True
        self.model: Any = model
        self._routed: RoutedModel = routed

    def forward(self, tokens_NS: Tensor, targets_NT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Losses in nats of the next tokens.

        Args:
            tokens_NS: int64 [N, T + 1], each but the first predicted from those before it; [N, T]
                where targets are given.
            targets_NT: int64 [N, T], what each position predicts; -100 for nothing.

        Returns:
            The sum, through which gradients flow, and the loss of each position [N, T], detached;
            float32, or float64 of a model in float64.
        """
        if targets_NT is None:
            tokens_NS, targets_NT = tokens_NS[:, :-1], tokens_NS[:, 1:]
        hidden_NTD = self.model.base_model(
            input_ids=tokens_NS, past_key_values=_WholeRows(), use_cache=False
        ).last_hidden_state
        weight_VD = self.model.get_output_embeddings().weight
        return linear_cross_entropy(hidden_NTD, weight_VD, targets_NT, self._routed.active)


def linear_cross_entropy(
    hidden_NTD: Tensor, weight_VD: Tensor, targets_NT: Tensor, routing: Routing | None = None
) -> tuple[Tensor, Tensor]:
    """`cross_entropy(hidden @ weight.T, targets)` in nats: the sum, and by position, detached.

    Products are in autocast's type where autocast is on; what follows the logits, and the weight's
    gradient, is in float32 or wider. The backward pass can be run once: it scales in place.

    Args:
        targets_NT: int64; -100 counts nothing.
        routing: says which positions the weight, a part of the rest, learns from.
    """
    factor = None if routing is None else routing.rest_factor(hidden_NTD)
    if isinstance(factor, Tensor):
        factor = factor.flatten()
    elif factor is not None:
        factor = [(count * targets_NT.shape[1], value) for count, value in factor]
    dtype = hidden_NTD.dtype
    if torch.is_autocast_enabled(hidden_NTD.device.type):
        dtype = torch.get_autocast_dtype(hidden_NTD.device.type)
    wanted = (
        torch.is_grad_enabled() and hidden_NTD.requires_grad,
        torch.is_grad_enabled() and weight_VD.requires_grad,
    )
    loss_sum, losses_P = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_NTD.flatten(0, 1), weight_VD, targets_NT.flatten(), factor, dtype, wanted
    )
    return loss_sum, losses_P.view(targets_NT.shape)


def chunk_positions(vocab_size: int, device: str) -> int:
    """Positions whose logits are there at a time, on a device of this type."""
    most_bytes, least = _CHUNK_CPU if device == "cpu" else _CHUNK_GPU
    return max(least, most_bytes // (4 * vocab_size))


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the losses, and the losses [P]; the gradients are computed with them.

    Plain slices and shapes, no operator of its own: a compiler sees the products, and keeps of them
    what the eager pass keeps, the two gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: Tensor,
        weight_VD: Tensor,
        targets_P: Tensor,
        factor: Factor,
        dtype: torch.dtype,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        hidden_wanted, weight_wanted = wanted
        exact = torch.promote_types(dtype, torch.float32)
        cast_VD = weight_VD.to(dtype)
        kept_P1 = (targets_P != IGNORED)[:, None]
        targets_P1 = targets_P.clamp_min(0)[:, None]
        losses: list[Tensor] = []
        dhidden: list[Tensor] = []
        dweight_VD: Tensor | None = None
        most = chunk_positions(weight_VD.shape[0], weight_VD.device.type)
        for chunk, chunk_factor in _chunks(factor, targets_P.shape[0], most):
            hidden_CD = hidden_PD[chunk].to(dtype)
            kept_C1, targets_C1 = kept_P1[chunk], targets_P1[chunk]
            log_probs_CV = torch.log_softmax((hidden_CD @ cast_VD.t()).to(exact), -1)
            losses.append(-(log_probs_CV.gather(1, targets_C1) * kept_C1)[:, 0])
            if hidden_wanted or weight_wanted:
                dlogits_CV = log_probs_CV.exp_()
                dlogits_CV.scatter_add_(1, targets_C1, -torch.ones_like(targets_C1, dtype=exact))
                dlogits_CV = dlogits_CV.to(dtype)
                # What is ignored is cleared where it is narrow, not in the logits.
                if hidden_wanted:
                    dhidden.append((dlogits_CV @ cast_VD).to(hidden_PD.dtype) * kept_C1)
                if weight_wanted and (isinstance(chunk_factor, Tensor) or chunk_factor != 0.0):
                    learned_CD, alpha = hidden_CD * kept_C1, 1.0
                    if isinstance(chunk_factor, Tensor):
                        learned_CD = learned_CD * chunk_factor.to(dtype)
                    else:
                        alpha = chunk_factor
                    dweight_VD = _add_product(dweight_VD, dlogits_CV.t(), learned_CD, alpha)
                del dlogits_CV
            del log_probs_CV  # before the next chunk's logits are made
        losses_P = _joined(losses)
        if dweight_VD is not None:
            dweight_VD = dweight_VD.to(weight_VD.dtype)
        elif weight_wanted:
            # Zeros, not nothing: all processes of a job have gradients of the same parameters.
            dweight_VD = torch.zeros_like(weight_VD)
        ctx.save_for_backward(_joined(dhidden) if hidden_wanted else None, dweight_VD)
        ctx.mark_non_differentiable(losses_P)
        return losses_P.sum(), losses_P

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a second pass through the same graph finds them changed, and torch refuses it.
        dhidden_PD, dweight_VD = (d if d is None else d.mul_(grads[0]) for d in ctx.saved_tensors)
        return dhidden_PD, dweight_VD, None, None, None, None


def _chunks(
    factor: Factor, num_positions: int, most: int
) -> Iterator[tuple[slice, float | Tensor]]:
    """Neighbouring positions, at most `most` and about equally many, and their factor.

    None crosses from one run of the factor to the next.
    """
    runs = [(num_positions, 1.0)] if factor is None or isinstance(factor, Tensor) else factor
    first = 0
    for count, value in runs:
        num_chunks = -(-count // most)
        for index in range(num_chunks):
            chunk = slice(
                first + index * count // num_chunks, first + (index + 1) * count // num_chunks
            )
            yield chunk, factor[chunk, None] if isinstance(factor, Tensor) else value
        first += count


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, alpha: float) -> Tensor:
    """`total + alpha * left @ right`, in place and in float32 or wider."""
    if total is None:
        product = (left @ right).to(torch.promote_types(left.dtype, torch.float32))
        return product if alpha == 1.0 else product.mul_(alpha)
    if total.dtype == left.dtype:
        return total.addmm_(left, right, alpha=alpha)
    return total.add_(left @ right, alpha=alpha)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
