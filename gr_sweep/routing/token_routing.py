"""Routing by token, the general and slower path: labels may change inside a sequence.

Every product is computed whole and then masked, with one factor per token: each map acts on single
positions, so the token's own label decides.

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
from gr_sweep.routing.autograd import apply
from gr_sweep.routing.base import (
    BaseRouting,
    Columns,
    ExpertRouting,
    ExpertRun,
    OutputRun,
    Units,
)
from gr_sweep.routing.edges import GroupFactors, RouteWeights
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.rows import RowGroup, lines_of


class LinearMasks(NamedTuple):
    """Factors of a linear map's three products: a row per position, a column per unit's feature."""

    forward_PU: Tensor
    """1 if the unit is on for the token, else 0."""
    weight_PU: Tensor
    """On the gradient that reaches the weight."""
    input_PU: Tensor
    """On the gradient that reaches the input; of a row map 1 if the unit is on, else 0."""
    bias_P1: Tensor
    """Of a row map: on the gradient that reaches the bias."""


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


class TokenRouting(BaseRouting):
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
        lines = lines_of(plan, groups)
        super().__init__(GroupFactors(plan, weights, lines))
        self._uncut = GroupFactors(plan, replace(weights, edges="none"), lines)
        self._groups_NT, self._cut_NT = groups_NT, cut_NT
        self.num_rows = len(groups_NT)

    @classmethod
    def of_labels(
        cls, plan: RoutePlan, weights: RouteWeights, labels_NT: Tensor, foreign_dropout: float
    ) -> "TokenRouting":
        """Routing by a label for each token: an index into `plan.domains`, or -1 for none.

        Raises:
            PlanError: labels out of range, or a foreign dropout other than 0 and 1.
        """
        if foreign_dropout not in (0.0, 1.0):
            raise PlanError(
                f"expected foreign_dropout to be 0 or 1 with labels per token, got "
                f"{foreign_dropout}: values in between apply to whole sequences"
            )
        is_known = (labels_NT >= -1) & (labels_NT < len(plan.domains))
        if labels_NT.is_floating_point() or not is_known.all():
            raise PlanError(
                f"expected labels_NT to be whole numbers from -1 (unlabelled) to "
                f"{len(plan.domains) - 1}"
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
        if next_NT is None:
            raise PlanError("token_cuts need next_NT, the token that each position predicts")
        counts = [group.count for group in groups]
        [whole, *_] = (torch.ones_like(cut_V) for cut_V in cuts.values())
        of_groups = zip(groups, torch.split(next_NT, counts), strict=True)
        cut_NT = torch.cat([cuts.get(g.domain, whole)[tokens] for g, tokens in of_groups])
        groups_N = torch.arange(len(groups)).repeat_interleave(torch.tensor(counts))
        groups_NT = groups_N.to(next_NT.device)[:, None].expand(next_NT.shape)
        return cls(plan, weights, groups, groups_NT, cut_NT)

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
        one, rest_P1 = x.new_ones(1, 1), self._of_role(role, x).flatten()[:, None]

        def factor(table: str) -> Tensor:
            found = self._per_feature(table, [units], x)
            return one if found is None else found.flatten(0, 1)

        if role == "column":
            masks = LinearMasks(factor("on"), factor("weight"), factor("act"), rest_P1)
        elif role == "row":
            # The input product is never skipped, even if both edges are cut at this position: what
            # flows back through attention reaches k and v of other positions, whose labels decide.
            masks = LinearMasks(factor("on"), factor("outputs"), factor("on"), rest_P1)
        else:
            masks = LinearMasks(one, rest_P1, one, rest_P1)
        return apply(MaskedLinear, x, (weight, bias), masks, role == "row")

    def rest_factor(self, like: Tensor, role: str) -> Tensor | None:
        """Factor on the gradients of parameters of this role [N, T]; None if all are 1."""
        if all(factor == 1.0 for factor in self._factors.of_role(role)):
            return None
        # `like` may be token ids; the caller narrows the factor to its own type.
        return self._of_role(role, like.new_empty(0, dtype=torch.float64))

    def output_runs(self, like: Tensor, parts: Sequence[Units]) -> list[OutputRun]:
        outputs = [self._per_feature("outputs", [units], like) for units in parts]
        columns: list[list[Columns]] = [
            [(slice(None), 1.0 if factor is None else factor)] for factor in outputs
        ]
        factor = self.rest_factor(like, "embedding")
        return [OutputRun(like.shape[0], 1.0 if factor is None else factor, columns)]

    def experts(self, like: Tensor, units: Units) -> ExpertRouting:
        tables = [self._per_position(name, like) for name in ("weight", "outputs", "act")]
        if not units:
            rest_NT1 = self._of_role("rest", like)[..., None]
            tables = [rest_NT1, rest_NT1, torch.ones_like(rest_NT1)]
        of_blocks = zip(*(table.flatten(0, 1).unbind(-1) for table in tables), strict=True)
        runs = [[ExpertRun(slice(0, 1), *factors)] for factors in of_blocks]
        groups_P = torch.zeros(like.shape[:2].numel(), dtype=torch.int64, device=like.device)
        on = self._per_feature("on", [units], like) if units else None
        return ExpertRouting(1, groups_P, on, runs)

    def _of_role(self, role: str, like: Tensor) -> Tensor:
        """[N, T]: each token's factor on parameters of modules with this role."""
        return self._per_position("embedding" if role == "embedding" else "rest", like)

    def _per_position(self, table: str, like: Tensor) -> Tensor:
        if table == "through_heads":  # a product of two, each of which may be cut in part
            return self._of_role("rest", like)[..., None] * self._per_position("act", like)

        def lines(factors: GroupFactors) -> Tensor:
            table_G = torch.tensor(getattr(factors, table), dtype=like.dtype, device=like.device)
            return table_G[self._groups_NT.to(like.device)]

        cut = lines(self._factors)
        if self._cut_NT is None:
            return cut
        uncut = lines(self._uncut)
        share = self._cut_NT.view(*self._cut_NT.shape, *[1] * (cut.dim() - 2))
        return (uncut + share * (cut - uncut)).to(like.dtype)
