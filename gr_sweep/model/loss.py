"""The loss of a language model without its logits: unembedding and cross-entropy over chunks.

Only the logits of one chunk of positions exist at a time. If a gradient is needed, they are
multiplied into the gradients of hidden states and unembedding at once: the three products of the
dense computation, none of them twice. The fused kernels of Liger (Hsu et al. 2024, arXiv
2410.10989, section 3.2) do the same in Triton; this is plain PyTorch, works on a CPU too, and skips
the unembedding's gradient for domains to which the core is foreign.

N sequences of the micro-batch, T positions, S = T + 1, P = N * T, C positions of a chunk, D
residual width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from gr_sweep.errors import PlanError
from gr_sweep.model.route import RoutedModel
from gr_sweep.routing.autograd import compute_dtype
from gr_sweep.routing.modules import Routing

IGNORED = -100
"""Target without a loss or a gradient, as torch's `ignore_index`."""

_CHUNK_CPU = (32 << 20, 512)
_CHUNK_GPU = (256 << 20, 2048)
"""Bytes of a chunk's float32 logits, and the fewest positions of a chunk: products over fewer rows
are slow, and every chunk reads and writes the unembedding's gradient once. Measured on two CPU
cores at vocabularies of 2,048 and 32,000; for a GPU estimated from its bandwidth: with 2,048
positions per chunk that traffic takes about a tenth of the time of the three products."""

Runs = Sequence[tuple[int, float | Tensor]]
"""Runs of positions and the factor on the unembedding's gradient; a tensor [P, 1] is a run of all
positions."""


class _WholeRows(DynamicCache):  # type: ignore[misc]
    """A cache that keeps nothing. It tells transformers that a row is one sequence, for which
    attention needs no mask.

    Otherwise transformers searches the positions for several sequences in a row, for which the host
    waits for the device. If it cannot search, compiled or on fake tensors, it makes a mask
    [N, 1, T, T], which rules out flash attention.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class TokenLosses(nn.Module):
    """From tokens to losses, with embedding and cross-entropy, as one module.

    Its forward pass is everything that a training step computes, so compiling or sharding this
    module covers everything. The model inside is the routed model itself, with its parameter names
    and state_dict.
    """

    def __init__(self, routed: RoutedModel, *, device_type: str | None = None) -> None:
        """
        Args:
            routed: the model.
            device_type: device whose chunk size is used; None for that of the weights. An estimate
                has the tensors of a GPU on a CPU.

        Raises:
            PlanError: an unembedding that is not a linear map, or has a bias.
        """
        super().__init__()
        model: Any = routed.model
        unembedding = model.get_output_embeddings()
        if not isinstance(unembedding, nn.Linear) or unembedding.bias is not None:
            raise PlanError(
                f"expected an unembedding that is a linear map without bias; "
                f"{type(model).__name__} has another one"
            )
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                # A recomputed layer may see `_WholeRows` again, which keeps nothing.
                module._can_checkpoint_with_cache = True
        self.model: Any = model
        self._routed: RoutedModel = routed
        # Granite divides its logits, Gemma 2 bounds them.
        self.divisor: float = getattr(model.config, "logits_scaling", 1.0)
        self.cap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self._device_type: str | None = device_type

    def forward(self, tokens_NS: Tensor, targets_NT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Losses of the next tokens in nats.

        Args:
            tokens_NS: int64 [N, T + 1]; every token except the first is predicted from the ones
                before it. [N, T] if targets are given.
            targets_NT: int64 [N, T], the target of each position; -100 for none.

        Returns:
            The sum, which is differentiable, and the detached loss of each position [N, T]; in
            float32, or in float64 for a model in float64.
        """
        if targets_NT is None:
            tokens_NS, targets_NT = tokens_NS[:, :-1], tokens_NS[:, 1:]
        hidden_NTD = self.model.base_model(
            input_ids=tokens_NS, past_key_values=_WholeRows(), use_cache=False
        ).last_hidden_state
        weight_VD = self.model.get_output_embeddings().weight
        if self.divisor != 1.0:
            hidden_NTD = hidden_NTD / self.divisor
        return linear_cross_entropy(
            hidden_NTD,
            weight_VD,
            targets_NT,
            self._routed.active,
            cap=self.cap,
            device_type=self._device_type,
        )


def linear_cross_entropy(
    hidden_NTD: Tensor,
    weight_VD: Tensor,
    targets_NT: Tensor,
    routing: Routing | None = None,
    *,
    cap: float | None = None,
    device_type: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`cross_entropy(hidden @ weight.T, targets)` in nats: the sum, and detached by position.

    Products are in autocast's type if autocast is on; everything after the logits, and the weight's
    gradient, is in float32 or wider. The backward pass can run only once: it scales in place.

    Args:
        targets_NT: int64; -100 is ignored.
        routing: decides which positions the weight, an embedding, learns from.
        cap: logits x become `cap * tanh(x / cap)`, as in `capped`.
        device_type: as in `TokenLosses`.
    """
    factor = None if routing is None else routing.rest_factor(hidden_NTD, "embedding")
    runs: Runs = [(targets_NT.numel(), 1.0)]
    if isinstance(factor, Tensor):
        runs = [(targets_NT.numel(), factor.flatten()[:, None])]
    elif factor is not None:
        runs = [(count * targets_NT.shape[1], value) for count, value in factor]
    if not torch.is_grad_enabled():  # the function looks at which inputs require a gradient
        hidden_NTD, weight_VD = hidden_NTD.detach(), weight_VD.detach()
    dtype = compute_dtype(hidden_NTD)
    most = chunk_positions(weight_VD.shape[0], device_type or weight_VD.device.type)
    loss_sum, losses_P = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_NTD.flatten(0, 1), weight_VD, targets_NT.flatten(), _chunks(runs, most), dtype, cap
    )
    return loss_sum, losses_P.view(targets_NT.shape)


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """The logits, bounded by Gemma 2's cap (Gemma Team 2024, arXiv 2408.00118, section 2) if there
    is one."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def chunk_positions(vocab_size: int, device: str) -> int:
    """Positions per chunk, on a device of this type."""
    most_bytes, least = _CHUNK_CPU if device == "cpu" else _CHUNK_GPU
    return max(least, most_bytes // (4 * vocab_size))


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum of the losses and the losses [P]; the forward pass computes the gradients too.

    It uses plain slices and shapes and no custom operator: a compiler sees the products, and keeps
    the same as the eager pass, the two gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: Tensor,
        weight_VD: Tensor,
        targets_P: Tensor,
        chunks: Sequence[tuple[slice, float | Tensor]],
        dtype: torch.dtype,
        cap: float | None,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(dtype, torch.float32)
        cast_VD = weight_VD.to(dtype)
        kept_P1 = (targets_P != IGNORED)[:, None]
        targets_P1 = targets_P.clamp_min(0)[:, None]
        losses_P = hidden_PD.new_empty(len(targets_P), dtype=exact)
        hidden_wanted, weight_wanted, *_ = ctx.needs_input_grad
        dhidden_PD = torch.empty_like(hidden_PD) if hidden_wanted else None
        # Zeros where no position teaches it: all processes of a job have gradients of the same
        # parameters.
        dweight_VD = torch.zeros_like(weight_VD, dtype=exact) if weight_wanted else None
        for chunk, factor in chunks:
            hidden_CD = hidden_PD[chunk].to(dtype)
            kept_C1, targets_C1 = kept_P1[chunk], targets_P1[chunk]
            logits_CV = capped((hidden_CD @ cast_VD.t()).to(exact), cap)
            log_probs_CV = torch.log_softmax(logits_CV, -1)
            slope_CV = None if cap is None else 1 - (logits_CV / cap).square_()
            del logits_CV
            losses_P[chunk] = -(log_probs_CV.gather(1, targets_C1) * kept_C1)[:, 0]
            if hidden_wanted or weight_wanted:
                dlogits_CV = log_probs_CV.exp_()
                dlogits_CV.scatter_add_(1, targets_C1, -torch.ones_like(targets_C1, dtype=exact))
                if slope_CV is not None:
                    dlogits_CV *= slope_CV
                dlogits_CV = dlogits_CV.to(dtype)
                # Ignored positions are cleared in the narrow tensors, not in the logits.
                if dhidden_PD is not None:
                    dhidden_PD[chunk] = (dlogits_CV @ cast_VD).to(hidden_PD.dtype) * kept_C1
                if dweight_VD is not None and (isinstance(factor, Tensor) or factor != 0.0):
                    learned_CD, alpha = hidden_CD * kept_C1, 1.0
                    if isinstance(factor, Tensor):
                        learned_CD = learned_CD * factor.to(dtype)
                    else:
                        alpha = factor
                    if dtype == exact:
                        dweight_VD.addmm_(dlogits_CV.t(), learned_CD, alpha=alpha)
                    else:
                        dweight_VD.add_(dlogits_CV.t() @ learned_CD, alpha=alpha)
                del dlogits_CV
            del log_probs_CV, slope_CV  # before the next chunk's logits are made
        if dweight_VD is not None:
            dweight_VD = dweight_VD.to(weight_VD.dtype)
        ctx.save_for_backward(dhidden_PD, dweight_VD)
        ctx.mark_non_differentiable(losses_P)
        return losses_P.sum(), losses_P

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a second pass through the same graph is an error of torch.
        dhidden_PD, dweight_VD = (d if d is None else d.mul_(grads[0]) for d in ctx.saved_tensors)
        return dhidden_PD, dweight_VD, None, None, None, None


def _chunks(runs: Runs, most: int) -> list[tuple[slice, float | Tensor]]:
    """Neighbouring positions, at most `most` and about equally many, and their factor; no chunk
    spans two runs."""
    chunks: list[tuple[slice, float | Tensor]] = []
    first = 0
    for count, factor in runs:
        num_chunks = -(-count // most)
        for index in range(num_chunks):
            stops = index * count // num_chunks, (index + 1) * count // num_chunks
            chunk = slice(first + stops[0], first + stops[1])
            chunks.append((chunk, factor[chunk] if isinstance(factor, Tensor) else factor))
        first += count
    return chunks
