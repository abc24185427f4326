"""The loss of a language model without its logits: unembedding and cross-entropy over chunks.

Only the logits of one chunk of positions exist at a time. If a gradient is needed, they are
multiplied into the gradients of hidden states and unembedding at once: the three products of the
dense computation, none of them twice. The fused kernels of Liger (Hsu et al. 2024, arXiv
2410.10989, section 3.2) do the same in Triton; this is plain PyTorch, works on a CPU too, and skips
the unembedding's gradient for domains to which the core is foreign.

N sequences of the micro-batch, T positions, S = T + 1, P = N * T, C positions of a chunk, D
residual width, V vocabulary, U units of an adapter, X inputs of a map.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from gr_sweep.errors import PlanError
from gr_sweep.model.route import RoutedModel
from gr_sweep.routing.autograd import compute_dtype
from gr_sweep.routing.base import Columns, OutputRun, Units
from gr_sweep.routing.modules import Routing

Value = TypeVar("Value")

IGNORED = -100
"""Target without a loss or a gradient, as torch's `ignore_index`."""

_CHUNK_CPU = (32 << 20, 512)
_CHUNK_GPU = (256 << 20, 2048)
"""Bytes of a chunk's float32 logits, and the fewest positions of a chunk: products over fewer rows
are slow, and every chunk reads and writes the unembedding's gradient once. Measured on two CPU
cores; for a GPU estimated from its bandwidth: that traffic is a tenth of the products' time."""

Chunk = tuple[slice, Sequence[Sequence[Columns]]]
"""Neighbouring positions, and for the unembedding and each adapter the columns that they use."""


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
    module covers everything. The model inside is the routed model itself.
    """

    def __init__(self, routed: RoutedModel, *, device_type: str | None = None) -> None:
        """
        Args:
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

    @property
    def device(self) -> torch.device:
        """That of the weights."""
        return next(self.parameters()).device

    @property
    def num_processes(self) -> int:
        """Processes that share the parameters; their gradients are summed."""
        return torch.distributed.get_world_size() if isinstance(self, FSDPModule) else 1

    def call(self, function: Callable[..., Value], **inputs: Any) -> Value:
        """Calls a function that runs the model, such as its `generate`.

        It is a forward pass of this module, which gathers parameters that belong to no layer if
        processes share them. Layers that are compiled for training run eagerly.
        """
        self.called = function
        register_fsdp_forward_method(self, "called")
        try:
            with torch.compiler.set_stance("force_eager"):
                return self.called(**inputs)
        finally:
            del self.called

    def hidden_states(self, ids_NT: Tensor) -> Tensor:
        """The last hidden states [N, T, D] of token ids [N, T]."""
        base: Any = self.model.base_model
        found: Tensor = self.call(lambda: base(input_ids=ids_NT, use_cache=False)[0])
        return found

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
        unembedding = self.model.get_output_embeddings()
        adapters = [
            (adapter.A(hidden_NTD) / self.divisor, adapter.B.weight, adapter.B.units)
            for adapter in getattr(unembedding, "adapter", {}).values()
        ]
        if self.divisor != 1.0:
            hidden_NTD = hidden_NTD / self.divisor
        return linear_cross_entropy(
            hidden_NTD,
            unembedding.weight,
            targets_NT,
            self._routed.active,
            adapters,
            cap=self.cap,
            device_type=self._device_type,
        )


def linear_cross_entropy(
    hidden_NTD: Tensor,
    weight_VD: Tensor,
    targets_NT: Tensor,
    routing: Routing | None = None,
    adapters: Sequence[tuple[Tensor, Tensor, Units]] = (),
    *,
    cap: float | None = None,
    device_type: str | None = None,
) -> tuple[Tensor, Tensor]:
    """`cross_entropy(hidden @ weight.T, targets)` in nats: the sum, and detached by position.

    Products are in autocast's type if autocast is on; everything after the logits, and gradients of
    weights, are in float32 or wider. The backward pass can run only once: it scales in place.

    Args:
        targets_NT: int64; -100 is ignored.
        routing: decides which positions the weight, which belongs to the rest, learns from, and
            which the columns of the adapters' weights.
        adapters: maps whose logits are added: features [N, T, U], 0 where a unit is off; weight
            [V, U]; and each block's units.
        cap, device_type: as in `capped` and `TokenLosses`.
    """
    runs = [OutputRun(len(targets_NT), 1.0, [[(slice(None), 1.0)] for _ in adapters])]
    if routing is not None:
        runs = routing.output_runs(hidden_NTD, [units for _, _, units in adapters])
    tensors = [hidden_NTD.flatten(0, 1), weight_VD]
    for features_NTU, weight_VU, _ in adapters:
        tensors += [features_NTU.flatten(0, 1), weight_VU]
    if not torch.is_grad_enabled():  # the function looks at which inputs require a gradient
        tensors = [tensor.detach() for tensor in tensors]
    dtype = compute_dtype(hidden_NTD)
    most = chunk_positions(weight_VD.shape[0], device_type or weight_VD.device.type)
    chunks = _chunks(runs, targets_NT.shape[1], most)
    loss_sum, losses_P = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        targets_NT.flatten(), chunks, dtype, cap, *tensors
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
        targets_P: Tensor,
        chunks: Sequence[Chunk],
        dtype: torch.dtype,
        cap: float | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        inputs, weights = tensors[::2], tensors[1::2]
        exact = torch.promote_types(dtype, torch.float32)
        casts = [weight_VX.to(dtype) for weight_VX in weights]
        kept_P1 = (targets_P != IGNORED)[:, None]
        targets_P1 = targets_P.clamp_min(0)[:, None]
        losses_P = inputs[0].new_empty(len(targets_P), dtype=exact)
        needs = ctx.needs_input_grad[4:]
        # Zeros where no position teaches a weight: all processes of a job have gradients of the
        # same parameters. And where an input is off.
        dinputs = [
            torch.zeros_like(x) if needed else None
            for x, needed in zip(inputs, needs[::2], strict=True)
        ]
        dweights = [
            torch.zeros_like(w, dtype=exact) if needed else None
            for w, needed in zip(weights, needs[1::2], strict=True)
        ]
        for chunk, of_maps in chunks:
            terms = [(m, *columns) for m, of_map in enumerate(of_maps) for columns in of_map]
            kept_C1, targets_C1 = kept_P1[chunk], targets_P1[chunk]
            products = (
                (inputs[m][chunk, columns].to(dtype) @ casts[m][:, columns].t()).to(exact)
                for m, columns, _ in terms
            )
            logits_CV = capped(functools.reduce(torch.add, products), cap)
            log_probs_CV = torch.log_softmax(logits_CV, -1)
            slope_CV = None if cap is None else 1 - (logits_CV / cap).square_()
            del logits_CV
            losses_P[chunk] = -(log_probs_CV.gather(1, targets_C1) * kept_C1)[:, 0]
            if any(needs):
                dlogits_CV = log_probs_CV.exp_()
                dlogits_CV.scatter_add_(1, targets_C1, -torch.ones_like(targets_C1, dtype=exact))
                if slope_CV is not None:
                    dlogits_CV *= slope_CV
                dlogits_CV = dlogits_CV.to(dtype)
                for m, columns, factor in terms:
                    dx, dweight = dinputs[m], dweights[m]
                    # Ignored positions are cleared in the narrow tensors, not in the logits.
                    if dx is not None:
                        dx[chunk, columns] = (dlogits_CV @ casts[m][:, columns]).to(
                            dx.dtype
                        ) * kept_C1
                    if dweight is None or (not isinstance(factor, Tensor) and factor == 0.0):
                        continue
                    x_CX, alpha = inputs[m][chunk, columns].to(dtype) * kept_C1, 1.0
                    if isinstance(factor, Tensor):
                        x_CX = x_CX * factor.to(dtype)
                    else:
                        alpha = factor
                    dweight_VX = dweight[:, columns]
                    if dtype == exact:
                        dweight_VX.addmm_(dlogits_CV.t(), x_CX, alpha=alpha)
                    else:
                        dweight_VX.add_(dlogits_CV.t() @ x_CX, alpha=alpha)
                del dlogits_CV
            del log_probs_CV, slope_CV  # before the next chunk's logits are made
        gradients: list[Tensor | None] = []
        for dx, dweight, weight_VX in zip(dinputs, dweights, weights, strict=True):
            gradients += [dx, dweight if dweight is None else dweight.to(weight_VX.dtype)]
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses_P)
        return losses_P.sum(), losses_P

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # In place: a second pass through the same graph is an error of torch.
        found = (d if d is None else d.mul_(grads[0]) for d in ctx.saved_tensors)
        return None, None, None, None, *found


def _chunks(runs: Sequence[OutputRun], length: int, most: int) -> list[Chunk]:
    """The positions of rows of `length`: at most `most` in a chunk, about equally many, and none
    from two runs."""
    chunks: list[Chunk] = []
    first = 0
    for run in runs:
        count = run.num_rows * length
        num_chunks = -(-count // most)
        of_maps = [[(slice(None), run.factor)], *run.columns]
        for index in range(num_chunks):
            stops = index * count // num_chunks, (index + 1) * count // num_chunks
            chunk = slice(first + stops[0], first + stops[1])
            chunks.append(
                (chunk, [[(c, _of_chunk(f, chunk)) for c, f in of_map] for of_map in of_maps])
            )
        first += count
    return chunks


def _of_chunk(factor: float | Tensor, chunk: slice) -> float | Tensor:
    if isinstance(factor, Tensor):  # [N, T] or [N, T, U]
        return factor.flatten(0, 1)[chunk].view(chunk.stop - chunk.start, -1)
    return factor
