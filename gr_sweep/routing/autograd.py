"""Matrix products that compute only what routing lets through: slice, skip, scale.

The gradients are those of Cloud et al. 2024 (arXiv 2410.04332), with the two edges told apart
(docs/routing.md, "Edges"). A term with factor 0 is never computed. Products are written into slices
of one preallocated result: the first to reach a slice writes it, later ones add to it.

In a *column* map (gate, up, q, k, v) the units are output features; in a *row* map (down, o) they
are input features, and the transpose of its weight is used.
"""

# P = N * T positions (N sequences, sorted by row group), U = units' features, X = the other
# features of a map, D = residual width, F = MLP hidden units, I and O = input and output features.

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gr_sweep.routing.cover import Cover, Tile


class LinearCovers(NamedTuple):
    """The cells (rows x units) that the three matrix products of a linear map cover. Never dense:
    the gradient that arrives belongs to the caller and cannot be cleared."""

    forward: Cover
    """Cells that are on."""
    weight: Cover
    """Cells whose gradient reaches the weight, times the tile's factor."""
    input: Cover
    """Cells whose gradient reaches the input, times the tile's factor."""
    bias: Cover
    """For a row map: rows whose gradient reaches the bias, which belongs to no unit."""


class MlpCovers(NamedTuple):
    """The rows and units that the nine matrix products of a gated MLP cover."""

    hidden: Cover
    """Cells that are on."""
    out: Cover
    """The same, summed over units."""
    needed: Cover
    """Cells whose gradient the weights or the input need."""
    weight: Cover
    """Cells whose gradient reaches gate and up, times the tile's factor."""
    down: Cover
    """The same for `down`; it differs from `weight` only if `foreign_outputs` is given."""
    input: Cover
    """Cells whose gradient reaches the input, times the tile's factor."""
    bias: Cover
    """Rows whose gradient reaches the bias of `down`, which belongs to no unit."""


class SlicedLinear(torch.autograd.Function):
    """`x_PI @ weight_OI.T + bias_O`, units along O, or along I in a row map.

    In a column map outputs of units that are off are 0; in a row map inputs of units that are off
    are not read.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_PI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        covers: LinearCovers,
        is_row: bool,
    ) -> Tensor:
        ctx.save_for_backward(x_PI, weight_OI)
        ctx.covers, ctx.is_row = covers, is_row
        if not is_row:
            return _cells(x_PI, weight_OI, covers.forward, bias_O)
        y_PO = _over_units(x_PI, weight_OI.t(), covers.forward)
        if bias_O is not None:
            y_PO += bias_O
        return y_PO

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy_PO,) = grads
        x_PI, weight_OI = ctx.saved_tensors
        covers: LinearCovers = ctx.covers
        is_row: bool = ctx.is_row
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        dx_PI = dweight_OI = dbias_O = None
        if needs_x and is_row:
            dx_PI = _cells(dy_PO, weight_OI.t(), covers.input)
        elif needs_x:
            dx_PI = _over_units(dy_PO, weight_OI, covers.input)
        if needs_weight:
            h_PU, x_PX = (x_PI, dy_PO) if is_row else (dy_PO, x_PI)
            dweight_OI = _over_rows(h_PU, x_PX, covers.weight, is_row=is_row)
        if needs_bias:
            dbias_O = _bias_gradient(dy_PO, covers.bias if is_row else covers.weight, is_row=is_row)
        return dx_PI, dweight_OI, dbias_O, None, None


class GatedMlp(torch.autograd.Function):
    """`(silu(x @ gate.T + bias) * (x @ up.T + bias)) @ down.T + bias`, units along F.

    Elementwise work skips foreign cells too, and the backward pass recomputes the hidden activation
    (one multiplication): three matrices [P, F] are saved, where plain autograd saves four.
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
        gate_PF, up_PF = _scratch(x_PD, size, covers), _scratch(x_PD, size, covers)
        silu_PF = _scratch(x_PD, size, covers) if is_training else gate_PF
        hidden_PF = _scratch(x_PD, size, covers) if is_training else gate_PF
        for tile in covers.hidden.tiles:
            cells = tile.rows, tile.units
            _write(gate_PF[cells], x_PD[tile.rows], gate_FD[tile.units].t(), tile)
            _write(up_PF[cells], x_PD[tile.rows], up_FD[tile.units].t(), tile)
            if gate_bias_F is not None:
                gate_PF[cells] += gate_bias_F[tile.units]
            if up_bias_F is not None:
                up_PF[cells] += up_bias_F[tile.units]
            _into(silu_PF[cells], torch.ops.aten.silu, gate_PF[cells])
            _into(hidden_PF[cells], torch.mul, silu_PF[cells], up_PF[cells])
        _clear(hidden_PF, covers.out)
        y_PD = _over_units(hidden_PF, down_DF.t(), covers.out)
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
        scratch_PF = _scratch(gate_PF, gate_PF.shape, covers)
        if needs[3]:
            for tile in covers.down.tiles:
                cells = tile.rows, tile.units
                # The hidden activation.
                _into(scratch_PF[cells], torch.mul, silu_PF[cells], up_PF[cells])
            _clear(scratch_PF, covers.down)
            found[3] = _over_rows(scratch_PF, dy_PD, covers.down, is_row=True)
        if needs[6]:
            found[6] = _bias_gradient(dy_PD, covers.bias, is_row=True)
        dgate_PF, dup_PF = _scratch(gate_PF, gate_PF.shape, covers), scratch_PF
        for tile in covers.needed.tiles:
            cells = tile.rows, tile.units
            dhidden = dgate_PF[cells]
            _write(dhidden, dy_PD[tile.rows], down_DF[:, tile.units], tile)
            _into(dup_PF[cells], torch.mul, dhidden, silu_PF[cells])
            dhidden *= up_PF[cells]
            backward = torch.ops.aten.silu_backward
            _into(dhidden, backward, dhidden, gate_PF[cells], out_name="grad_input")

        def to_weights() -> None:
            for weight, bias, d_PF in ((1, 4, dgate_PF), (2, 5, dup_PF)):
                _clear(d_PF, covers.weight)
                if needs[weight]:
                    found[weight] = _over_rows(d_PF, x_PD, covers.weight)
                if needs[bias]:
                    found[bias] = _bias_gradient(d_PF, covers.weight)

        def to_input() -> None:
            if needs[0]:
                _clear(dgate_PF, covers.input)
                _clear(dup_PF, covers.input)
                dx_PD = _over_units(dgate_PF, gate_FD, covers.input)
                for tile in covers.input.tiles:
                    d, weight = dup_PF[tile.rows, tile.units], up_FD[tile.units]
                    dx_PD[tile.rows].addmm_(d, weight, alpha=tile.factor)
                found[0] = dx_PD

        # The one that clears fewer cells goes first: it reads cells that the other may clear.
        if covers.input.num_cleared <= covers.weight.num_cleared:
            to_input()
            to_weights()
        else:
            to_weights()
            to_input()
        return tuple(found)


class Scaled(torch.autograd.Function):
    """`x * value`, with the gradient of x times `factor`: both are of a shape that broadcasts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x * value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] * ctx.saved_tensors[0], None, None


def apply(
    function: type[torch.autograd.Function],
    x: Tensor,
    parameters: Sequence[Tensor | None],
    *how: Any,
) -> Tensor:
    """The function on `x` [N, ..., I] as [P, I], in autocast's type if autocast is on.

    Args:
        how: last arguments of the function, such as its covers or masks.
    """
    dtype = compute_dtype(x)
    x, parameters = x.to(dtype), [None if p is None else p.to(dtype) for p in parameters]
    if not torch.is_grad_enabled():
        # The function cannot see that: it looks at which inputs require a gradient, and would keep
        # tensors that nobody reads.
        parameters = [None if p is None else p.detach() for p in parameters]
    y: Tensor = function.apply(x.reshape(-1, x.shape[-1]), *parameters, *how)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], y.shape[-1])


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type of products with `x`: autocast's if autocast is on."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _cells(x_PX: Tensor, weight_UX: Tensor, cover: Cover, bias_U: Tensor | None = None) -> Tensor:
    """[P, U]: `x @ weight.T + bias` in the cells of the cover, 0 elsewhere."""
    y_PU = _output(x_PX, (x_PX.shape[0], weight_UX.shape[0]), cover)
    for tile in cover.tiles:
        y = y_PU[tile.rows, tile.units]
        _write(y, x_PX[tile.rows], weight_UX[tile.units].t(), tile)
        if bias_U is not None:
            y += bias_U[tile.units]
    return y_PU


def _over_units(h_PU: Tensor, weight_UX: Tensor, cover: Cover) -> Tensor:
    """`h @ weight`, summed over the units of each row's tiles; 0 for a row without a tile."""
    out_PX = _output(h_PU, (h_PU.shape[0], weight_UX.shape[1]), cover)
    for tile in cover.tiles:
        _write(out_PX[tile.rows], h_PU[tile.rows, tile.units], weight_UX[tile.units], tile)
    return out_PX


def _over_rows(h_PU: Tensor, x_PX: Tensor, cover: Cover, *, is_row: bool = False) -> Tensor:
    """`h.T @ x`, summed over the rows of each unit's tiles; 0 for a unit without a tile. [U, X], or
    [X, U] for the weight of a row map."""
    size = h_PU.shape[1], x_PX.shape[1]
    dweight = _output(h_PU, size[::-1] if is_row else size, cover)
    out_UX = dweight.t() if is_row else dweight
    for tile in cover.tiles:
        _write(out_UX[tile.units], h_PU[tile.rows, tile.units].t(), x_PX[tile.rows], tile)
    return dweight


def _bias_gradient(dy_PO: Tensor, cover: Cover, *, is_row: bool = False) -> Tensor:
    """Gradient of a bias whose entries belong to units, or in a row map to the rest."""
    dbias_O = dy_PO.new_zeros(dy_PO.shape[1])
    for tile in cover.tiles:
        columns = slice(None) if is_row else tile.units
        dbias_O[columns] += tile.factor * dy_PO[tile.rows, columns].sum(0)
    return dbias_O


def _write(out: Tensor, a: Tensor, b: Tensor, tile: Tile) -> None:
    """Writes `a @ b`, times the tile's factor, to the slice `out`, or adds it."""
    out.addmm_(a, b, beta=float(tile.adds), alpha=tile.factor)  # beta 0: the old one is not read


def _into(
    out: Tensor, operation: Callable[..., Any], *inputs: Tensor, out_name: str = "out"
) -> None:
    """Writes the operation's result to the slice `out`."""
    if torch.compiler.is_compiling():
        # A compiler does not know `out` arguments that are slices, and fuses the copy.
        out.copy_(operation(*inputs))
    else:
        operation(*inputs, **{out_name: out})


def _output(like: Tensor, size: Sequence[int], cover: Cover) -> Tensor:
    """Memory for a result; 0 where no tile writes."""
    return like.new_zeros(size) if cover.has_gaps else like.new_empty(size)


def _scratch(like: Tensor, size: Sequence[int], covers: MlpCovers) -> Tensor:
    """Memory for the activation of every unit, of which slices are written and read.

    On CPUs with matrix instructions for bfloat16 (seen with torch 2.13, oneDNN on AMX) a product
    reads one column past a slice of odd width and multiplies it by 0, so that column must be
    finite.
    """
    if like.device.type == "cpu" and like.dtype == torch.bfloat16:
        tiles = [tile for cover in covers[:-1] for tile in cover.tiles]
        if any((tile.units.stop - tile.units.start) % 2 for tile in tiles):
            return like.new_zeros(size)
    return like.new_empty(size)


def _clear(x_PU: Tensor, cover: Cover) -> None:
    """Sets to 0 what a dense product must not read."""
    for tile in cover.clears:
        x_PU[tile.rows, tile.units].zero_()
