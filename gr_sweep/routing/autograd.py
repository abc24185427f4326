"""Matrix products that compute only what routing lets through: slice, skip, scale.

The gradients are those of Cloud et al. 2024 (arXiv 2410.04332), with the two edges told apart
(docs/routing.md, "Edges"). A term with factor 0 is never computed. Products are written straight
into slices of one preallocated result: the first product to reach a slice writes it, later ones add
to it, and slices that none reaches are set to 0. So nothing is cleared first, copied, or summed in
a buffer.

In a *column* map (gate, up, q, k, v) the units are output features; in a *row* map (down, o) they
are input features. All three functions below are made of the same three products, `_cells`,
`_over_units` and `_over_rows`; a row map passes the transpose of its weight.
"""

# P = N * T positions (N sequences, sorted by row group), U = units' features, X = the other
# features of a map, D = residual width, F = MLP hidden units, I and O = input and output features.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gr_sweep.routing.cover import Cover, Tile


@dataclass(frozen=True)
class LinearCovers:
    """The rows and units that the three matrix products of a linear map cover."""

    forward: Cover
    """Rows and units that are on."""
    weight: Cover
    """Rows and units whose gradient reaches the weight, times the tile's factor."""
    input: Cover
    """Rows and units whose gradient reaches the input, times the tile's factor."""
    bias: Cover
    """For a row map: rows whose gradient reaches the bias, which belongs to no unit."""

    def in_positions(self, positions: int, *, width: int, device: str) -> "LinearCovers":
        """The same with rows that count positions, `positions` per sequence.

        The input belongs to the caller and cannot be cleared, so nothing becomes dense here.
        """
        return LinearCovers(
            self.forward.in_positions(positions),
            self.weight.in_positions(positions),
            self.input.in_positions(positions),
            self.bias.in_positions(positions),
        )


@dataclass(frozen=True)
class MlpCovers:
    """The rows and units that the nine matrix products of a gated MLP cover."""

    hidden: Cover
    """Cells (rows x units) that are on."""
    out: Cover
    """The same, summed over units."""
    needed: Cover
    """Cells whose gradient the weights or the input need."""
    weight: Cover
    """Rows and units whose gradient reaches gate and up, times the tile's factor."""
    down: Cover
    """The same for `down`; it differs from `weight` only if `foreign_outputs` is given."""
    input: Cover
    """Rows and units whose gradient reaches the input, times the tile's factor."""
    bias: Cover
    """Rows whose gradient reaches the bias of `down`, which belongs to no unit."""
    is_input_wider: bool
    """Whether every cell that reaches gate and up reaches the input too."""

    def in_positions(self, positions: int, *, width: int, device: str) -> "MlpCovers":
        """The same with rows that count positions; `width` is the residual width."""

        def sized(cover: Cover, products: int, calls: int) -> Cover:
            return cover.in_positions(positions, width=products * width, calls=calls, device=device)

        return MlpCovers(
            hidden=sized(self.hidden, products=2, calls=4),
            out=sized(self.out, products=1, calls=1),
            needed=sized(self.needed, products=1, calls=4),
            # Sized together: three products, and the hidden activation that is computed again.
            weight=sized(self.weight, products=3, calls=4),
            down=sized(self.down, products=3, calls=4),
            input=sized(self.input, products=2, calls=2),
            bias=self.bias.in_positions(positions),
            is_input_wider=self.is_input_wider,
        )


def _write(out: Tensor, a: Tensor, b: Tensor, tile: Tile | None = None) -> None:
    """Writes `a @ b` to the slice `out`; a tile multiplies it and may add it instead."""
    if tile is None:
        out.addmm_(a, b, beta=0.0)  # beta 0: the old content is not read
    else:
        out.addmm_(a, b, beta=float(tile.adds), alpha=tile.factor)


def _cells(x_PX: Tensor, weight_UX: Tensor, cover: Cover, bias_U: Tensor | None = None) -> Tensor:
    """[P, U]: `x @ weight.T + bias` in the cells of the cover, 0 elsewhere. Factors are ignored."""
    size = x_PX.shape[0], weight_UX.shape[0]
    is_whole = len(cover.tiles) == 1 and _is_whole(cover.tiles[0], *size)
    y_PU = (x_PX.new_empty if is_whole else x_PX.new_zeros)(size)
    for tile in cover.tiles:
        y = y_PU[tile.rows, tile.units]
        _write(y, x_PX[tile.rows], weight_UX[tile.units].t())
        if bias_U is not None:
            y += bias_U[tile.units]
    return y_PU


def _over_units(out_PX: Tensor, h_PU: Tensor, weight_UX: Tensor, cover: Cover) -> Tensor:
    """`h @ weight`, summed over the units of each row's tiles; 0 for a row without a tile."""
    for gap in cover.gaps:
        out_PX[gap].zero_()
    for tile in cover.tiles:
        _write(out_PX[tile.rows], h_PU[tile.rows, tile.units], weight_UX[tile.units], tile)
    return out_PX


def _over_rows(out_UX: Tensor, h_PU: Tensor, x_PX: Tensor, cover: Cover) -> Tensor:
    """`h.T @ x`, summed over the rows of each unit's tiles; 0 for a unit without a tile."""
    for gap in cover.gaps:
        out_UX[gap].zero_()
    for tile in cover.tiles:
        _write(out_UX[tile.units], h_PU[tile.rows, tile.units].t(), x_PX[tile.rows], tile)
    return out_UX


def _over_rows_transposed(out_XU: Tensor, h_PU: Tensor, x_PX: Tensor, cover: Cover) -> Tensor:
    """`_over_rows` for the weight of a row map, whose columns are units."""
    for gap in cover.gaps:
        out_XU[:, gap].zero_()
    for tile in cover.tiles:
        _write(out_XU[:, tile.units], x_PX[tile.rows].t(), h_PU[tile.rows, tile.units], tile)
    return out_XU


def _unit_bias(dy_PU: Tensor, cover: Cover) -> Tensor:
    """Gradient of a bias whose entries belong to units."""
    dbias_U = dy_PU.new_zeros(dy_PU.shape[1])
    for tile in cover.tiles:
        dbias_U[tile.units] += tile.factor * dy_PU[tile.rows, tile.units].sum(0)
    return dbias_U


def _rest_bias(dy_PO: Tensor, cover: Cover) -> Tensor:
    """Gradient of a bias that belongs to the rest."""
    dbias_O = dy_PO.new_zeros(dy_PO.shape[1])
    for tile in cover.tiles:
        dbias_O += tile.factor * dy_PO[tile.rows].sum(0)
    return dbias_O


class ColumnLinear(torch.autograd.Function):
    """`x_PI @ weight_OI.T + bias_O`, units along O; outputs of units that are off are 0."""

    @staticmethod
    def forward(
        ctx: Any, x_PI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, covers: LinearCovers
    ) -> Tensor:
        ctx.save_for_backward(x_PI, weight_OI)
        ctx.covers, ctx.has_bias = covers, bias_O is not None
        return _cells(x_PI, weight_OI, covers.forward, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_PO,) = grads
        x_PI, weight_OI = ctx.saved_tensors
        covers: LinearCovers = ctx.covers
        dx_PI = dweight_OI = dbias_O = None
        if ctx.needs_input_grad[0]:
            dx_PI = _over_units(torch.empty_like(x_PI), dy_PO, weight_OI, covers.input)
        if ctx.needs_input_grad[1]:
            dweight_OI = _over_rows(torch.empty_like(weight_OI), dy_PO, x_PI, covers.weight)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            dbias_O = _unit_bias(dy_PO, covers.weight)
        return dx_PI, dweight_OI, dbias_O, None


class RowLinear(torch.autograd.Function):
    """`x_PI @ weight_OI.T + bias_O`, units along I; inputs of units that are off are not read."""

    @staticmethod
    def forward(
        ctx: Any, x_PI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, covers: LinearCovers
    ) -> Tensor:
        ctx.save_for_backward(x_PI, weight_OI)
        ctx.covers, ctx.has_bias = covers, bias_O is not None
        y_PO = x_PI.new_empty(x_PI.shape[0], weight_OI.shape[0])
        _over_units(y_PO, x_PI, weight_OI.t(), covers.forward)
        if bias_O is not None:
            y_PO += bias_O
        return y_PO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_PO,) = grads
        x_PI, weight_OI = ctx.saved_tensors
        covers: LinearCovers = ctx.covers
        dx_PI = dweight_OI = dbias_O = None
        if ctx.needs_input_grad[0]:
            dx_PI = _cells(dy_PO, weight_OI.t(), covers.input)
        if ctx.needs_input_grad[1]:
            empty_OI = torch.empty_like(weight_OI)
            dweight_OI = _over_rows_transposed(empty_OI, x_PI, dy_PO, covers.weight)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            dbias_O = _rest_bias(dy_PO, covers.bias)
        return dx_PI, dweight_OI, dbias_O, None


class GatedMlp(torch.autograd.Function):
    """`(silu(x @ gate.T + bias) * (x @ up.T + bias)) @ down.T + bias`, units along F.

    One function for the whole MLP, since routing cuts the same cells of all three maps. Elementwise
    work skips foreign cells too, and the backward pass recomputes the hidden activation (one
    multiplication) instead of keeping it: three matrices [P, F] are saved, where plain autograd
    saves four.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_PD: Tensor,
        gate_FD: Tensor,
        up_FD: Tensor,
        down_DF: Tensor,
        gate_bias_F: Tensor | None,
        up_bias_F: Tensor | None,
        down_bias_D: Tensor | None,
        covers: MlpCovers,
    ) -> Tensor:
        size = (x_PD.shape[0], gate_FD.shape[0])
        is_training = any(ctx.needs_input_grad)
        # Cells that are off are neither written nor read.
        gate_PF, up_PF = _scratch(x_PD, size), _scratch(x_PD, size)
        silu_PF = _scratch(x_PD, size) if is_training else gate_PF
        hidden_PF = _scratch(x_PD, size) if is_training else gate_PF
        for tile in covers.hidden.tiles:
            cells = tile.rows, tile.units
            _write(gate_PF[cells], x_PD[tile.rows], gate_FD[tile.units].t())
            _write(up_PF[cells], x_PD[tile.rows], up_FD[tile.units].t())
            if gate_bias_F is not None:
                gate_PF[cells] += gate_bias_F[tile.units]
            if up_bias_F is not None:
                up_PF[cells] += up_bias_F[tile.units]
            _silu(silu_PF[cells], gate_PF[cells])
            _multiply(hidden_PF[cells], silu_PF[cells], up_PF[cells])
        _clear(hidden_PF, covers.out)
        y_PD = _over_units(torch.empty_like(x_PD), hidden_PF, down_DF.t(), covers.out)
        if down_bias_D is not None:
            y_PD += down_bias_D
        if is_training:
            ctx.save_for_backward(x_PD, gate_FD, up_FD, down_DF, gate_PF, up_PF, silu_PF)
            ctx.covers = covers
        return y_PD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_PD,) = grads
        x_PD, gate_FD, up_FD, down_DF, gate_PF, up_PF, silu_PF = ctx.saved_tensors
        covers: MlpCovers = ctx.covers
        needs = ctx.needs_input_grad
        found: list[Tensor | None] = [None] * len(needs)
        scratch_PF = _scratch(gate_PF, gate_PF.shape)
        if needs[3]:
            for tile in covers.down.tiles:
                cells = tile.rows, tile.units
                _multiply(scratch_PF[cells], silu_PF[cells], up_PF[cells])  # the hidden activation
            _clear(scratch_PF, covers.down)
            empty_DF = torch.empty_like(down_DF)
            found[3] = _over_rows_transposed(empty_DF, scratch_PF, dy_PD, covers.down)
        if needs[6]:
            found[6] = _rest_bias(dy_PD, covers.bias)
        if not any(needs[index] for index in (0, 1, 2, 4, 5)):
            return tuple(found)
        dgate_PF, dup_PF = _scratch(gate_PF, gate_PF.shape), scratch_PF
        for tile in covers.needed.tiles:
            cells = tile.rows, tile.units
            dhidden = dgate_PF[cells]
            _write(dhidden, dy_PD[tile.rows], down_DF[:, tile.units])
            _multiply(dup_PF[cells], dhidden, silu_PF[cells])
            dhidden *= up_PF[cells]
            _silu_backward_(dhidden, gate_PF[cells])

        def to_weights() -> None:
            for weight, bias, weight_FD, d_PF in ((1, 4, gate_FD, dgate_PF), (2, 5, up_FD, dup_PF)):
                _clear(d_PF, covers.weight)
                if needs[weight]:
                    empty_FD = torch.empty_like(weight_FD)
                    found[weight] = _over_rows(empty_FD, d_PF, x_PD, covers.weight)
                if needs[bias]:
                    found[bias] = _unit_bias(d_PF, covers.weight)

        def to_input() -> None:
            _clear(dgate_PF, covers.input)
            _clear(dup_PF, covers.input)
            dx_PD = _over_units(torch.empty_like(x_PD), dgate_PF, gate_FD, covers.input)
            for tile in covers.input.tiles:
                d, weight = dup_PF[tile.rows, tile.units], up_FD[tile.units]
                dx_PD[tile.rows].addmm_(d, weight, alpha=tile.factor)
            found[0] = dx_PD

        # The one that clears fewer cells goes first: it reads cells that the other may clear.
        if needs[0] and covers.is_input_wider:
            to_input()
        to_weights()
        if needs[0] and not covers.is_input_wider:
            to_input()
        return tuple(found)


def apply(
    function: type[torch.autograd.Function],
    x: Tensor,
    parameters: Sequence[Tensor | None],
    how: Any,
) -> Tensor:
    """The function on `x` [N, ..., I] as [P, I], in autocast's type if autocast is on.

    Args:
        how: last argument of the function, its covers or masks.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
        parameters = [None if p is None else p.to(dtype) for p in parameters]
    if not torch.is_grad_enabled():
        # The function cannot see that: it looks at which inputs require a gradient, and would keep
        # tensors that nobody reads.
        parameters = [None if p is None else p.detach() for p in parameters]
    y: Tensor = function.apply(x.reshape(-1, x.shape[-1]), *parameters, how)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], y.shape[-1])


def _scratch(like: Tensor, size: Any) -> Tensor:
    """Memory for the activation of every unit, of which slices are written and read.

    On CPUs with matrix instructions for bfloat16 (seen with torch 2.13, oneDNN on AMX) a product
    reads one column past a slice of odd width and multiplies it by 0, so that column must be
    finite.
    """
    if like.device.type == "cpu" and like.dtype == torch.bfloat16:
        return like.new_zeros(size)
    return like.new_empty(size)


def _clear(x_PU: Tensor, cover: Cover) -> None:
    """Sets to 0 what a dense product must not read."""
    for tile in cover.clears:
        x_PU[tile.rows, tile.units].zero_()


# A compiler does not know `out` arguments that are slices, and fuses the copy.


def _silu(out: Tensor, x: Tensor) -> None:
    if torch.compiler.is_compiling():
        out.copy_(torch.nn.functional.silu(x))
    else:
        torch.ops.aten.silu.out(x, out=out)


def _silu_backward_(dy: Tensor, x: Tensor) -> None:
    """In place."""
    if torch.compiler.is_compiling():
        dy.copy_(torch.ops.aten.silu_backward(dy, x))
    else:
        torch.ops.aten.silu_backward.grad_input(dy, x, grad_input=dy)


def _multiply(out: Tensor, a: Tensor, b: Tensor) -> None:
    if torch.compiler.is_compiling():
        out.copy_(a * b)
    else:
        torch.mul(a, b, out=out)


def _is_whole(tile: Tile, num_rows: int, num_units: int) -> bool:
    rows, units = tile.rows.indices(num_rows), tile.units.indices(num_units)
    return rows == (0, num_rows, 1) and units == (0, num_units, 1)
