"""Matrix products that compute no more than routing lets through: slice, skip, scale.

Gradients are those of Cloud et al. 2024 (arXiv 2410.04332) with the two edges told apart (DESIGN:
edges); a term whose factor is 0 is never computed. Products are written straight into slices of one
preallocated result: the first to reach a slice writes it, later ones add, and what none reaches is
set to 0, so that nothing is cleared first, copied, or added up in a buffer of its own.

In a *column* map (gate, up, q, k, v) the units are output features, in a *row* map (down, o) they
are input features.
"""

# N = sequences of the micro-batch (sorted by row group), P = N * T positions, D = residual width,
# F = MLP hidden units, I and O = input and output features of a linear map.

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gr_sweep.routing.rows import Cover, Output, Tile


@dataclass(frozen=True)
class LinearCovers:
    """What the three matrix products of a linear map cover. Rows are those of the
    matrices that are multiplied."""

    forward: Cover
    """Rows and units that are on."""
    weight: Cover
    """Rows and units whose gradient reaches the weight, times the tile's factor."""
    input: Cover
    """Rows and units whose gradient reaches the input, times the tile's factor."""
    bias: Cover
    """Of a row map: rows whose gradient reaches the bias, which belongs to no unit."""

    def in_positions(self, positions: int, *, width: int, device: str) -> "LinearCovers":
        """With rows that count positions, so many a sequence. What comes in is not ours to clear,
        so nothing here is dense instead."""
        return LinearCovers(
            self.forward.in_positions(positions),
            self.weight.in_positions(positions),
            self.input.in_positions(positions),
            self.bias.in_positions(positions),
        )


@dataclass(frozen=True)
class MlpCovers:
    """What the nine matrix products of a gated MLP cover. Rows are those of the matrices."""

    hidden: Cover
    """Cells, rows x units, that are on."""
    out: Cover
    """The same, summed over units."""
    needed: Cover
    """Cells whose gradient anyone reads: the weights, or the input."""
    weight: Cover
    """Rows and units whose gradient reaches the weights of gate and up, times the tile's factor."""
    down: Cover
    """The same of `down`: mostly equal to it, since a block's parameters have one route weight
    unless `foreign_outputs` is given."""
    input: Cover
    """Rows and units whose gradient reaches the input, times the tile's factor."""
    bias: Cover
    """Rows whose gradient reaches the bias of `down`, which belongs to no unit."""

    is_input_wider: bool
    """Whether every cell that sends to gate and up sends to the input too."""

    def in_positions(self, positions: int, *, width: int, device: str) -> "MlpCovers":
        """With rows that count positions, so many a sequence; `width` is that of the residual."""

        def sized(cover: Cover, products: int, calls: int) -> Cover:
            return cover.in_positions(positions, width=products * width, calls=calls, device=device)

        return MlpCovers(
            hidden=sized(self.hidden, products=2, calls=4),
            out=sized(self.out, products=1, calls=1),
            needed=sized(self.needed, products=1, calls=4),
            # Sized together: three products and the hidden activation, computed again.
            weight=sized(self.weight, products=3, calls=4),
            down=sized(self.down, products=3, calls=4),
            input=sized(self.input, products=2, calls=2),
            bias=self.bias.in_positions(positions),
            is_input_wider=self.is_input_wider,
        )


Factors = Callable[[Tile], tuple[Tensor, Tensor]]
"""The two matrices whose product a tile is."""


def _clear(x_PU: Tensor, cover: Cover) -> None:
    """Makes what a dense product must not read 0."""
    for tile in cover.clears:
        x_PU[tile.rows, tile.units].zero_()


def _cells(like: Tensor, size: Sequence[int]) -> Tensor:
    """Room for the activation of every unit, of which slices are written and read.

    On CPUs with matrix instructions for bfloat16 (seen with torch 2.13, oneDNN on AMX) a product
    reads one column past a slice of odd width and multiplies it with 0: what is there must be
    finite.
    """
    if like.device.type == "cpu" and like.dtype == torch.bfloat16:
        return like.new_zeros(size)
    return like.new_empty(size)


def _weight_factors(dy_PO: Tensor, x_PI: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    return dy_PO[tile.rows, tile.units].t(), x_PI[tile.rows]


def _write(out: Tensor, a: Tensor, b: Tensor, tile: Tile | None = None) -> None:
    """`a @ b`, times the tile's factor, written or, where the tile adds, added to a slice `out`."""
    if tile is None:
        out.addmm_(a, b, beta=0.0)  # what was there is not read
    else:
        out.addmm_(a, b, beta=float(tile.adds), alpha=tile.factor)


def _silu(out: Tensor, x: Tensor) -> None:
    if torch.compiler.is_compiling():  # which knows no `out` that is a slice, and fuses the copy
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


def _sum(out: Tensor, cover: Cover, factors: Factors) -> Tensor:
    """A line of `out` for each row, or unit, of the cover's output, summed over the tiles."""
    for gap in cover.gaps:
        out[gap].zero_()
    for tile in cover.tiles:
        lines = tile.rows if cover.output is Output.rows else tile.units
        _write(out[lines], *factors(tile), tile)
    return out


def _sum_unit_columns(out_OI: Tensor, cover: Cover, factors: Factors) -> Tensor:
    """A column of a weight for each unit, summed over the rows of the tiles."""
    for gap in cover.gaps:
        out_OI[:, gap].zero_()
    for tile in cover.tiles:
        _write(out_OI[:, tile.units], *factors(tile), tile)
    return out_OI


def _unit_bias(dy_PO: Tensor, cover: Cover) -> Tensor:
    """Gradient of a bias whose entries belong to units."""
    dbias_O = dy_PO.new_zeros(dy_PO.shape[1])
    for tile in cover.tiles:
        dbias_O[tile.units] += tile.factor * dy_PO[tile.rows, tile.units].sum(0)
    return dbias_O


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
        ctx.covers = covers
        ctx.has_bias = bias_O is not None
        num_rows, num_units = x_PI.shape[0], weight_OI.shape[0]
        tiles = covers.forward.tiles
        is_whole = len(tiles) == 1 and _is_whole(tiles[0], num_rows, num_units)
        y_PO = (x_PI.new_empty if is_whole else x_PI.new_zeros)(num_rows, num_units)
        for tile in tiles:
            y_RU = y_PO[tile.rows, tile.units]
            _write(y_RU, x_PI[tile.rows], weight_OI[tile.units].t())
            if bias_O is not None:
                y_RU += bias_O[tile.units]
        return y_PO

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (dy_PO,) = grads
        x_PI, weight_OI = ctx.saved_tensors
        covers: LinearCovers = ctx.covers
        dx_PI = dweight_OI = dbias_O = None
        if ctx.needs_input_grad[0]:
            dx_PI = _sum(
                torch.empty_like(x_PI),
                covers.input,
                lambda tile: (dy_PO[tile.rows, tile.units], weight_OI[tile.units]),
            )
        if ctx.needs_input_grad[1]:
            dweight_OI = _sum(
                torch.empty_like(weight_OI),
                covers.weight,
                functools.partial(_weight_factors, dy_PO, x_PI),
            )
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
        ctx.covers = covers
        ctx.has_bias = bias_O is not None
        y_PO = _sum(
            x_PI.new_empty(x_PI.shape[0], weight_OI.shape[0]),
            covers.forward,
            lambda tile: (x_PI[tile.rows, tile.units], weight_OI[:, tile.units].t()),
        )
        if bias_O is not None:
            y_PO += bias_O
        return y_PO

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (dy_PO,) = grads
        x_PI, weight_OI = ctx.saved_tensors
        covers: LinearCovers = ctx.covers
        dx_PI = dweight_OI = dbias_O = None
        if ctx.needs_input_grad[0]:
            tiles = covers.input.tiles
            is_whole = len(tiles) == 1 and _is_whole(tiles[0], *x_PI.shape)
            dx_PI = (torch.empty_like if is_whole else torch.zeros_like)(x_PI)
            for tile in tiles:
                _write(dx_PI[tile.rows, tile.units], dy_PO[tile.rows], weight_OI[:, tile.units])
        if ctx.needs_input_grad[1]:
            dweight_OI = _sum_unit_columns(
                torch.empty_like(weight_OI),
                covers.weight,
                lambda tile: (dy_PO[tile.rows].t(), x_PI[tile.rows, tile.units]),
            )
        if ctx.has_bias and ctx.needs_input_grad[2]:
            dbias_O = _rest_bias(dy_PO, covers.bias)
        return dx_PI, dweight_OI, dbias_O, None


class GatedMlp(torch.autograd.Function):
    """`(silu(x @ gate.T + bias) * (x @ up.T + bias)) @ down.T + bias`, units along F.

    One function for the whole MLP, since routing cuts the same cells of all three maps: what is
    foreign is left out of the elementwise work too, and the hidden activation is computed again in
    the backward pass (one multiplication) instead of kept: three matrices [P, F] are saved, where
    plain autograd saves four.
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
        # What is off is written by nobody, and read by nobody.
        gate_PF, up_PF = _cells(x_PD, size), _cells(x_PD, size)
        silu_PF = _cells(x_PD, size) if is_training else gate_PF
        hidden_PF = _cells(x_PD, size) if is_training else gate_PF
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
        y_PD = _sum(
            torch.empty_like(x_PD),
            covers.out,
            lambda tile: (hidden_PF[tile.rows, tile.units], down_DF[:, tile.units].t()),
        )
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
        scratch_PF = _cells(gate_PF, gate_PF.shape)
        if needs[3]:

            def of_down(tile: Tile) -> tuple[Tensor, Tensor]:
                cells = tile.rows, tile.units
                _multiply(scratch_PF[cells], silu_PF[cells], up_PF[cells])  # the hidden activation
                _clear(scratch_PF, covers.down)
                return dy_PD[tile.rows].t(), scratch_PF[cells]

            found[3] = _sum_unit_columns(torch.empty_like(down_DF), covers.down, of_down)
        if needs[6]:
            found[6] = _rest_bias(dy_PD, covers.bias)
        if not any(needs[index] for index in (0, 1, 2, 4, 5)):
            return tuple(found)
        dgate_PF, dup_PF = _cells(gate_PF, gate_PF.shape), scratch_PF
        for tile in covers.needed.tiles:
            cells = tile.rows, tile.units
            dhidden_RU = dgate_PF[cells]
            _write(dhidden_RU, dy_PD[tile.rows], down_DF[:, tile.units])
            _multiply(dup_PF[cells], dhidden_RU, silu_PF[cells])
            dhidden_RU *= up_PF[cells]
            _silu_backward_(dhidden_RU, gate_PF[cells])

        def to_weights() -> None:
            for weight, bias, weight_FD, d_PF in ((1, 4, gate_FD, dgate_PF), (2, 5, up_FD, dup_PF)):
                _clear(d_PF, covers.weight)
                if needs[weight]:
                    found[weight] = _sum(
                        torch.empty_like(weight_FD),
                        covers.weight,
                        functools.partial(_weight_factors, d_PF, x_PD),
                    )
                if needs[bias]:
                    found[bias] = _unit_bias(d_PF, covers.weight)

        def to_input() -> None:
            _clear(dgate_PF, covers.input)
            _clear(dup_PF, covers.input)
            dx_PD = _sum(
                torch.empty_like(x_PD),
                covers.input,
                lambda tile: (dgate_PF[tile.rows, tile.units], gate_FD[tile.units]),
            )
            for tile in covers.input.tiles:
                dx_PD[tile.rows].addmm_(
                    dup_PF[tile.rows, tile.units], up_FD[tile.units], alpha=tile.factor
                )
            found[0] = dx_PD

        # What clears less goes first: it reads cells that the other may clear.
        if needs[0] and covers.is_input_wider:
            to_input()
        to_weights()
        if needs[0] and not covers.is_input_wider:
            to_input()
        return tuple(found)


def _is_whole(tile: Tile, num_rows: int, num_units: int) -> bool:
    rows, units = tile.rows.indices(num_rows), tile.units.indices(num_units)
    return rows == (0, num_rows, 1) and units == (0, num_units, 1)
