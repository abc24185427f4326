"""Matrix products that compute no more than routing lets through: slice, skip, scale.

N sequences of the micro-batch (sorted by row group), P = N * T positions, I and O input and output
features of a linear map. Gradients are those of Cloud et al. 2024 (arXiv 2410.04332) with the two
edges told apart (DESIGN: edges); a term whose factor is 0 is never computed.

Both functions are linear maps `x @ weight.T + bias`. In a *column* map (gate, up, q, k, v) the
units are output features, in a *row* map (down, o) they are input features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gr_sweep.routing.rows import Tile


@dataclass(frozen=True)
class LinearTiles:
    """What the three matrix products of a linear map cover. Rows of tiles count positions, not
    sequences."""

    forward: Sequence[Tile]
    """Rows and units that are on."""
    weight: Sequence[Tile]
    """Rows and units whose gradient reaches the weight, times the tile's factor."""
    input: Sequence[Tile]
    """Rows and units whose gradient reaches the input, times the tile's factor."""
    bias: Sequence[Tile] = ()
    """Of a row map: rows whose gradient reaches the bias, which belongs to no unit."""


def _covers(tiles: Sequence[Tile], num_rows: int, num_units: int) -> bool:
    """Whether one tile of factor 1 is the whole product."""
    if len(tiles) != 1 or tiles[0].factor != 1.0:
        return False
    rows, units = tiles[0].rows.indices(num_rows), tiles[0].units.indices(num_units)
    return rows == (0, num_rows, 1) and units == (0, num_units, 1)


class ColumnLinear(torch.autograd.Function):
    """`x_PI @ weight_OI.T + bias_O`, units along O; outputs of units that are off are 0."""

    @staticmethod
    def forward(
        ctx: Any, x_PI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, tiles: LinearTiles
    ) -> Tensor:
        ctx.save_for_backward(x_PI, weight_OI)
        ctx.tiles = tiles
        ctx.has_bias = bias_O is not None
        num_rows, num_units = x_PI.shape[0], weight_OI.shape[0]
        if _covers(tiles.forward, num_rows, num_units):
            return torch.nn.functional.linear(x_PI, weight_OI, bias_O)
        y_PO = x_PI.new_zeros(num_rows, num_units)
        for tile in tiles.forward:
            bias = None if bias_O is None else bias_O[tile.units]
            y_PO[tile.rows, tile.units] = torch.nn.functional.linear(
                x_PI[tile.rows], weight_OI[tile.units], bias
            )
        return y_PO

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (dy_PO,) = grads
        x_PI, weight_OI = ctx.saved_tensors
        tiles: LinearTiles = ctx.tiles
        dx_PI = dweight_OI = dbias_O = None
        if ctx.needs_input_grad[0]:
            if _covers(tiles.input, *dy_PO.shape):
                dx_PI = dy_PO @ weight_OI
            else:
                dx_PI = torch.zeros_like(x_PI)
                for tile in tiles.input:
                    dx_PI[tile.rows].addmm_(
                        dy_PO[tile.rows, tile.units], weight_OI[tile.units], alpha=tile.factor
                    )
        if ctx.needs_input_grad[1]:
            if _covers(tiles.weight, *dy_PO.shape):
                dweight_OI = dy_PO.t() @ x_PI
            else:
                dweight_OI = torch.zeros_like(weight_OI)
                for tile in tiles.weight:
                    dweight_OI[tile.units].addmm_(
                        dy_PO[tile.rows, tile.units].t(), x_PI[tile.rows], alpha=tile.factor
                    )
        if ctx.has_bias and ctx.needs_input_grad[2]:
            dbias_O = dy_PO.new_zeros(dy_PO.shape[1])
            for tile in tiles.weight:
                dbias_O[tile.units] += tile.factor * dy_PO[tile.rows, tile.units].sum(0)
        return dx_PI, dweight_OI, dbias_O, None


class RowLinear(torch.autograd.Function):
    """`x_PI @ weight_OI.T + bias_O`, units along I; inputs of units that are off are not read."""

    @staticmethod
    def forward(
        ctx: Any, x_PI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, tiles: LinearTiles
    ) -> Tensor:
        ctx.save_for_backward(x_PI, weight_OI)
        ctx.tiles = tiles
        ctx.has_bias = bias_O is not None
        num_rows, num_outputs = x_PI.shape[0], weight_OI.shape[0]
        if _covers(tiles.forward, num_rows, x_PI.shape[1]):
            return torch.nn.functional.linear(x_PI, weight_OI, bias_O)
        y_PO = x_PI.new_zeros(num_rows, num_outputs)
        for tile in tiles.forward:
            y_PO[tile.rows].addmm_(x_PI[tile.rows, tile.units], weight_OI[:, tile.units].t())
        if bias_O is not None:
            y_PO += bias_O
        return y_PO

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (dy_PO,) = grads
        x_PI, weight_OI = ctx.saved_tensors
        tiles: LinearTiles = ctx.tiles
        dx_PI = dweight_OI = dbias_O = None
        if ctx.needs_input_grad[0]:
            if _covers(tiles.input, *x_PI.shape):
                dx_PI = dy_PO @ weight_OI
            else:
                dx_PI = torch.zeros_like(x_PI)
                for tile in tiles.input:
                    dx_PI[tile.rows, tile.units] = dy_PO[tile.rows] @ weight_OI[:, tile.units]
        if ctx.needs_input_grad[1]:
            if _covers(tiles.weight, *x_PI.shape):
                dweight_OI = dy_PO.t() @ x_PI
            else:
                dweight_OI = torch.zeros_like(weight_OI)
                for tile in tiles.weight:
                    dweight_OI[:, tile.units].addmm_(
                        dy_PO[tile.rows].t(), x_PI[tile.rows, tile.units], alpha=tile.factor
                    )
        if ctx.has_bias and ctx.needs_input_grad[2]:
            dbias_O = dy_PO.new_zeros(dy_PO.shape[1])
            for tile in tiles.bias:
                dbias_O += tile.factor * dy_PO[tile.rows].sum(0)
        return dx_PI, dweight_OI, dbias_O, None
