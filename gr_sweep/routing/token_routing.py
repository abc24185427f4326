"""Routing by token, the general and slower path: labels may change inside a sequence.

Every product is computed whole and then masked, with one factor per token. MLP units, q and o
follow the position of their output, k and v their own position; each of these maps acts on single
positions, so in every case that is the token's own label.

N sequences, T positions, P = N * T, I and O input and output features, U features of units.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import PlanError
from gr_sweep.routing.autograd import Scaled, apply
from gr_sweep.routing.edges import OUTSIDE_UNITS, GroupFactors, RouteWeights, Table, by_feature
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.row_routing import Columns, OutputRun, Units


class LinearMasks(NamedTuple):
    """Factors of a linear map's three products: a row per position, a column per unit's feature."""

    forward_PU: Tensor
    """1 if the unit is on for the token, else 0."""
    weight_PU: Tensor
    """Factor on the gradient that reaches the weight."""
    input_PU: Tensor
    """Factor on the gradient that reaches the input; of a row map 1 if the unit is on, else 0."""
    bias_P1: Tensor
    """Of a row map: factor on the gradient that reaches the bias."""


class MaskedLinear(torch.autograd.Function):
    """`SlicedLinear` with masks instead of tiles."""

    @staticmethod
    def forward(
        ctx: Any,
        x_PI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        masks: LinearMasks,
        is_row: bool,
    ) -> Tensor:
        ctx.save_for_backward(x_PI, weight_OI)
        ctx.masks, ctx.is_row, ctx.has_bias = masks, is_row, bias_O is not None
        on_PU = masks.forward_PU.to(x_PI.dtype)
        if is_row:
            return torch.nn.functional.linear(x_PI * on_PU, weight_OI, bias_O)
        return torch.nn.functional.linear(x_PI, weight_OI, bias_O) * on_PU

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_PO,) = grads
        x_PI, weight_OI = ctx.saved_tensors
        _, weight_PU, input_PU, bias_P1 = (mask.to(dy_PO.dtype) for mask in ctx.masks)
        if ctx.is_row:
            dx_PI = (dy_PO @ weight_OI) * input_PU
            dweight_OI = dy_PO.t() @ (x_PI * weight_PU)
            dbias_PO = dy_PO * bias_P1
        else:
            dx_PI = (dy_PO * input_PU) @ weight_OI
            dbias_PO = dy_PO * weight_PU
            dweight_OI = dbias_PO.t() @ x_PI
        return dx_PI, dweight_OI, dbias_PO.sum(0) if ctx.has_bias else None, None, None


class TokenRouting:
    """How the tokens of one micro-batch are routed; methods as in `RowRouting`."""

    def __init__(
        self, plan: RoutePlan, weights: RouteWeights, labels_NT: Tensor, foreign_dropout: float
    ) -> None:
        """
        Args:
            labels_NT: indices into `plan.domains`, -1 for unlabelled tokens.

        Raises:
            PlanError: labels of another shape or range, or a foreign dropout other than 0 and 1.
        """
        if foreign_dropout not in (0.0, 1.0):
            raise PlanError(
                f"expected foreign_dropout to be 0 or 1 with labels per token, got "
                f"{foreign_dropout}: values in between apply to whole sequences"
            )
        is_integer = isinstance(labels_NT, Tensor) and labels_NT.dtype in (torch.int64, torch.int32)
        if not (
            is_integer
            and labels_NT.dim() == 2
            and bool(((labels_NT >= -1) & (labels_NT < len(plan.domains))).all())
        ):
            raise PlanError(
                "expected labels_NT to be an int64 tensor [sequences, positions] with values from "
                f"-1 (unlabelled) to {len(plan.domains) - 1}"
            )
        self._labels_NT = labels_NT
        self.num_rows = len(labels_NT)
        domains = (*plan.domains, UNLABELLED)  # index -1 is the last line of every table
        off = []
        for domain in domains:
            others = plan.always_off(domain)
            if foreign_dropout == 1.0 and domain != UNLABELLED:
                others = frozenset(plan.domains) - {domain}
            off.append(plan.off_blocks(others))
        self._factors = GroupFactors(plan, weights, domains, off)

    def is_plain(self, x: Tensor) -> bool:
        if x.shape[:2] != self._labels_NT.shape:
            raise PlanError(
                f"labels_NT is {tuple(self._labels_NT.shape)}, but the model was given "
                f"{tuple(x.shape[:2])}"
            )
        return self._factors.cuts_nothing

    def linear(
        self, role: str, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units
    ) -> Tensor:
        factors = self._factors
        rest = [[factor] for factor in factors.outside_units(role)]
        whole = [[1.0]] * len(rest)
        forward, learned, input = {
            "column": (factors.on, factors.weight, factors.act),
            # The input product is never skipped, even if both edges are cut at this position: what
            # flows back through attention reaches k and v of other positions, whose labels decide.
            "row": (factors.on, factors.outputs, factors.on),
            "rest": (whole, rest, whole),
            "embedding": (whole, rest, whole),
        }[role]

        def mask_PU(table: Table) -> Tensor:
            # Of the rest, one column for all features.
            by_unit = table if role in OUTSIDE_UNITS else by_feature(table, units)
            return self._per_token(by_unit, x).flatten(0, 1)

        rest_P1 = self._per_token(rest, x).flatten(0, 1)
        masks = LinearMasks(mask_PU(forward), mask_PU(learned), mask_PU(input), rest_P1)
        return apply(MaskedLinear, x, (weight, bias), masks, role == "row")

    def gated_mlp(self, x: Tensor, weights: Sequence[Tensor | None], units: Units) -> Tensor:
        gate, up, down, *biases = weights
        assert gate is not None and up is not None and down is not None
        gated = torch.nn.functional.silu(self.linear("column", x, gate, biases[0], units))
        hidden = gated * self.linear("column", x, up, biases[1], units)
        return self.linear("row", hidden, down, biases[2], units)

    def rest_factor(self, like: Tensor, role: str) -> Tensor | None:
        """Factor on the gradients of parameters of this role [N, T]; None if all are 1."""
        factors = self._factors.outside_units(role)
        if all(factor == 1.0 for factor in factors):
            return None
        # `like` may be token ids; the caller narrows the factor to its own type.
        like = like.new_empty(like.shape[:2], dtype=torch.float64)
        return self._per_token([[factor] for factor in factors], like)[..., 0]

    def head_factor(self, like: Tensor, heads: Units) -> Tensor | None:
        return self._per_token(by_feature(self._factors.through_heads, heads), like)[..., None]

    def scaled(self, x: Tensor, role: str, parts: Sequence[Units]) -> Tensor:
        factors = self._factors
        table = {"lookup": factors.weight, "column": factors.act, "row": factors.on}[role]
        on, factor = (
            torch.cat([self._per_token(by_feature(each, units), x) for units in parts], -1)
            for each in (factors.on, table)
        )
        return Scaled.apply(x, on, factor)  # type: ignore[no-untyped-call, no-any-return]

    def output_runs(self, like: Tensor, parts: Sequence[Units]) -> list[OutputRun]:
        outputs = [
            self._per_token(by_feature(self._factors.outputs, units), like) for units in parts
        ]
        columns: list[list[Columns]] = [[(slice(None), factor)] for factor in outputs]
        factor = self.rest_factor(like, "embedding")
        return [OutputRun(like.shape[0], 1.0 if factor is None else factor, columns)]

    def _per_token(self, table: Table, like: Tensor) -> Tensor:
        """[N, T, columns of the table]: each token's line of the table."""
        table_LC = torch.tensor(table, dtype=like.dtype, device=like.device)
        return table_LC[self._labels_NT.to(like.device)]
