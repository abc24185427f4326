"""The general, slower path: labels that change inside a sequence, one factor a token.

N sequences, T positions, P = N * T, I and O input and output features. Every product is computed
whole and then masked. MLP units, q and o follow the position of their output, k and v their own
position; since each of these maps acts on positions one by one, that is the token's own label in
every case.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearMasks:
    """Factors of a linear map's three products, a row a position and a column a unit's feature."""

    forward_PU: Tensor
    """1 where the unit is on for the token, else 0."""
    weight_PU: Tensor
    """Factor of the gradient that reaches the weight."""
    input_PU: Tensor
    """Factor of the gradient that reaches the input; of a row map 1 where the unit is on, else
    0."""
    bias_P: Tensor
    """Of a row map: factor of the gradient that reaches the bias."""


class MaskedColumnLinear(torch.autograd.Function):
    """`ColumnLinear` with masks instead of tiles."""

    @staticmethod
    def forward(
        ctx: Any, x_PI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, masks: LinearMasks
    ) -> Tensor:
        ctx.save_for_backward(x_PI, weight_OI)
        ctx.masks, ctx.has_bias = masks, bias_O is not None
        return torch.nn.functional.linear(x_PI, weight_OI, bias_O) * masks.forward_PU.to(x_PI.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        (dy_PO,) = grads
        x_PI, weight_OI = ctx.saved_tensors
        dlearned_PO = dy_PO * ctx.masks.weight_PU.to(dy_PO.dtype)
        dx_PI = (dy_PO * ctx.masks.input_PU.to(dy_PO.dtype)) @ weight_OI
        return dx_PI, dlearned_PO.t() @ x_PI, dlearned_PO.sum(0) if ctx.has_bias else None, None


class MaskedRowLinear(torch.autograd.Function):
    """`RowLinear` with masks instead of tiles."""

    @staticmethod
    def forward(
        ctx: Any, x_PI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, masks: LinearMasks
    ) -> Tensor:
        ctx.save_for_backward(x_PI, weight_OI)
        ctx.masks, ctx.has_bias = masks, bias_O is not None
        return torch.nn.functional.linear(x_PI * masks.forward_PU.to(x_PI.dtype), weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        (dy_PO,) = grads
        x_PI, weight_OI = ctx.saved_tensors
        masks: LinearMasks = ctx.masks
        dx_PI = (dy_PO @ weight_OI) * masks.input_PU.to(dy_PO.dtype)
        dweight_OI = dy_PO.t() @ (x_PI * masks.weight_PU.to(dy_PO.dtype))
        dbias_O = (dy_PO * masks.bias_P[:, None].to(dy_PO.dtype)).sum(0) if ctx.has_bias else None
        return dx_PI, dweight_OI, dbias_O, None
