"""Routing by token, the general and slower path: labels may change inside a sequence.

Every product is computed whole and then masked, with one factor per token. MLP units, q and o
follow the position of their output, k and v their own position; each of these maps acts on single
positions, so in every case that is the token's own label.

N sequences, T positions, P = N * T, I and O input and output features, U features of units, V
vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import PlanError
from gr_sweep.routing.autograd import Scaled, apply
from gr_sweep.routing.edges import OUTSIDE_UNITS, GroupFactors, RouteWeights
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.row_routing import (
    Columns,
    ExpertRouting,
    ExpertRun,
    OutputRun,
    Units,
    bounds,
)
from gr_sweep.routing.rows import RowGroup, lines_of


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
        self,
        plan: RoutePlan,
        weights: RouteWeights,
        groups: Sequence[RowGroup],
        groups_NT: Tensor,
        cut_NT: Tensor | None = None,
    ) -> None:
        """
        Args:
            groups_NT: each token's index in `groups`, whose counts do not matter.
            cut_NT: how far each token is cut, from 0 to 1: a route weight w becomes
                1 + cut * (w - 1). None: 1.
        """
        self._groups_NT, self._cut_NT = groups_NT, cut_NT
        self.num_rows = len(groups_NT)
        lines = lines_of(plan, groups)
        self._factors = GroupFactors(plan, weights, *lines)
        self._uncut = GroupFactors(plan, replace(weights, edges="none"), *lines)
        self._cache: dict[tuple[Any, ...], Tensor] = {}

    @classmethod
    def of_labels(
        cls, plan: RoutePlan, weights: RouteWeights, labels_NT: Tensor, foreign_dropout: float
    ) -> "TokenRouting":
        """Routing by a label for each token.

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
        groups = []
        for domain in (*plan.domains, UNLABELLED):  # index -1 is the last one
            off = plan.always_off(domain)
            if foreign_dropout == 1.0 and domain != UNLABELLED:
                off = frozenset(plan.domains) - {domain}
            groups.append(RowGroup(domain, off, 1))
        return cls(plan, weights, groups, labels_NT)

    @classmethod
    def of_groups(
        cls,
        plan: RoutePlan,
        weights: RouteWeights,
        groups: Sequence[RowGroup],
        next_NT: Tensor | None,
        cuts: Mapping[str, Tensor],
    ) -> "TokenRouting":
        """Routing of a training micro-batch, each of whose tokens is cut as far as the next one
        says.

        Args:
            next_NT: int64, the token that each position predicts.
            cuts: by domain how far a next token cuts, float [V]; of other domains it is 1.
        """
        counts = [group.count for group in groups]
        if next_NT is None or len(next_NT) != sum(counts):
            raise PlanError(
                f"token_cuts need next_NT, the token that each position of {sum(counts)} sequences "
                "predicts"
            )
        [whole, *_] = (torch.ones_like(cut_V) for cut_V in cuts.values())
        of_groups = zip(groups, torch.split(next_NT, counts), strict=True)
        cut_NT = torch.cat([cuts.get(g.domain, whole)[tokens] for g, tokens in of_groups])
        of_rows = [index for index, count in enumerate(counts) for _ in range(count)]
        groups_N = torch.tensor(of_rows, device=next_NT.device)
        return cls(plan, weights, groups, groups_N[:, None].expand(next_NT.shape), cut_NT)

    def is_plain(self, x: Tensor) -> bool:
        if x.shape[:2] != self._groups_NT.shape:
            raise PlanError(
                f"the labels are {tuple(self._groups_NT.shape)}, but the model was given "
                f"{tuple(x.shape[:2])}"
            )
        return self._factors.cuts_nothing

    def linear(
        self, role: str, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units
    ) -> Tensor:
        rest_P1 = self._rest(role, x).flatten(0, 1)[:, None]
        forward = input = x.new_ones(1, 1)
        learned = rest_P1
        if role not in OUTSIDE_UNITS:
            tables = {
                "column": ("on", "weight", "act"),
                # The input product is never skipped, even if both edges are cut at this position:
                # what flows back through attention reaches k and v of other positions, whose labels
                # decide.
                "row": ("on", "outputs", "on"),
            }[role]
            forward, learned, input = (
                self._per_token(table, x, units).flatten(0, 1) for table in tables
            )
        masks = LinearMasks(forward, learned, input, rest_P1)
        return apply(MaskedLinear, x, (weight, bias), masks, role == "row")

    def gated_mlp(self, x: Tensor, weights: Sequence[Tensor | None], units: Units) -> Tensor:
        gate, up, down, *biases = weights
        assert gate is not None and up is not None and down is not None
        gated = torch.nn.functional.silu(self.linear("column", x, gate, biases[0], units))
        hidden = gated * self.linear("column", x, up, biases[1], units)
        return self.linear("row", hidden, down, biases[2], units)

    def rest_factor(self, like: Tensor, role: str) -> Tensor | None:
        """Factor on the gradients of parameters of this role [N, T]; None if all are 1."""
        if all(factor == 1.0 for factor in self._factors.outside_units(role)):
            return None
        # `like` may be token ids; the caller narrows the factor to its own type.
        return self._rest(role, like.new_empty(0, dtype=torch.float64))

    def head_factor(self, like: Tensor, heads: Units) -> Tensor | None:
        rest_NT1 = self._rest("rest", like)[..., None]  # `through_heads` is the product of both
        return (rest_NT1 * self._per_token("act", like, heads))[..., None]

    def scaled(self, x: Tensor, role: str, parts: Sequence[Units]) -> Tensor:
        table = {"lookup": "weight", "column": "act", "row": "on"}[role]
        on, factor = (
            torch.cat([self._per_token(name, x, units) for units in parts], -1)
            for name in ("on", table)
        )
        return Scaled.apply(x, on, factor)  # type: ignore[no-untyped-call, no-any-return]

    def output_runs(self, like: Tensor, parts: Sequence[Units]) -> list[OutputRun]:
        outputs = [self._per_token("outputs", like, units) for units in parts]
        columns: list[list[Columns]] = [[(slice(None), factor)] for factor in outputs]
        factor = self.rest_factor(like, "embedding")
        return [OutputRun(like.shape[0], 1.0 if factor is None else factor, columns)]

    def experts(self, like: Tensor, units: Units) -> ExpertRouting:
        zeros_P = torch.zeros(like.shape[:2], dtype=torch.int64, device=like.device).flatten()
        if not units:
            rest_P = self._rest("rest", like).flatten()
            return ExpertRouting(1, zeros_P, None, [[ExpertRun(slice(0, 1), rest_P, rest_P, 1.0)]])
        tables = [self._mixed(name, like).flatten(0, 1) for name in ("weight", "outputs", "act")]
        of_blocks = [
            [ExpertRun(slice(0, 1), *(table_PB[:, block] for table_PB in tables))]
            for block in range(len(units))
        ]
        return ExpertRouting(1, zeros_P, self._per_token("on", like, units), of_blocks)

    def _rest(self, role: str, like: Tensor) -> Tensor:
        """[N, T]: each token's factor on parameters that belong to no unit."""
        return self._mixed("embeddings" if role == "embedding" else "rest", like)

    def _per_token(self, table: str, like: Tensor, units: Units) -> Tensor:
        """[N, T, U]: each token's factors from a table of `GroupFactors`. Layers share them."""
        key = table, bounds(units), like.dtype, like.device
        found = self._cache.get(key)
        if found is None:
            widths = [part.stop - part.start for part in units]
            repeats_B = torch.tensor(widths, device=like.device)
            found = self._mixed(table, like)
            found = found.repeat_interleave(repeats_B, -1, output_size=sum(widths))
            if not torch.compiler.is_compiling():
                self._cache[key] = found
        return found

    def _mixed(self, table: str, like: Tensor) -> Tensor:
        """[N, T, ...]: each token's line of a table, between the uncut and the cut one."""

        def lines(factors: GroupFactors) -> Tensor:
            table_G = torch.tensor(getattr(factors, table), dtype=like.dtype, device=like.device)
            return table_G[self._groups_NT.to(like.device)]

        cut = lines(self._factors)
        if self._cut_NT is None:
            return cut
        uncut = lines(self._uncut)
        share = self._cut_NT.view(*self._cut_NT.shape, *[1] * (cut.dim() - 2))
        return (uncut + share * (cut - uncut)).to(like.dtype)
