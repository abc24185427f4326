"""Modules that route: a network's own linears, norms and embeddings, changed in class and nothing
else.

Parameters, state_dict keys and tying stay as they are; what a module needs to know of the
micro-batch comes from the `RoutingState` that all modules of a network share. Without an active
routing each is the plain module.

N sequences, T positions, P = N * T, H heads, I and O input and output features, L labels.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import PlanError
from gr_sweep.routing.autograd import ColumnLinear, LinearTiles, RowLinear
from gr_sweep.routing.edges import RouteWeights
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.rows import RowGroup, Tile, tiles
from gr_sweep.routing.token_mask import LinearMasks, MaskedColumnLinear, MaskedRowLinear

Units = tuple[slice, ...]
"""The features of each block, in the plan's order of blocks."""


class Routing(Protocol):
    """How the rows or tokens of one micro-batch are routed."""

    def column(self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
        """`linear`, with units along the outputs."""

    def row(self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
        """`linear`, with units along the inputs; the bias belongs to the rest."""

    def rest(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`linear`, all of whose parameters belong to the rest."""

    def rest_factor(self, like: Tensor) -> Tensor | None:
        """Factor of the rest's gradients, to broadcast with `like` [N, T, ...]; None where all are
        1."""

    def head_factor(self, like: Tensor, heads: Units) -> Tensor | None:
        """Factor of the gradients that the rest gets through the heads of `like` [N, T, H, ...]."""


class RowRouting:
    """Sequences sorted into row groups: static slices, foreign work skipped."""

    def __init__(
        self,
        plan: RoutePlan,
        weights: RouteWeights,
        rows: Sequence[slice],
        domains: Sequence[str],
        off: Sequence[Sequence[int]],
    ) -> None:
        """A group for each of `rows`, with its domain and the indices of its switched-off
        blocks."""
        blocks = range(len(plan.blocks))
        self._rows = tuple(rows)
        self._on = [[float(block not in blocks_off) for block in blocks] for blocks_off in off]
        self._weight = [
            _times(on, weights.weight_edge[d]) for on, d in zip(self._on, domains, strict=True)
        ]
        self._act = [
            _times(on, weights.act_edge[d]) for on, d in zip(self._on, domains, strict=True)
        ]
        self._through_heads = [
            _times([weights.rest[d]] * len(blocks), weights.act_edge[d]) for d in domains
        ]
        self._needed = [
            [float(w != 0.0 or a != 0.0) for w, a in zip(*edges, strict=True)]
            for edges in zip(self._weight, self._act, strict=True)
        ]
        self._rest = [weights.rest[domain] for domain in domains]
        self._num_rows = rows[-1].stop if rows else 0
        self._counts = dict.fromkeys(domains, 0)
        for domain, part in zip(domains, rows, strict=True):
            self._counts[domain] += 0 if part.stop is None else part.stop - part.start
        self._tiles: dict[tuple[Any, ...], LinearTiles] = {}
        self._factors: dict[tuple[Any, ...], Tensor | None] = {}

    @classmethod
    def of_groups(
        cls, plan: RoutePlan, weights: RouteWeights, groups: Sequence[RowGroup]
    ) -> "RowRouting":
        """Routing of a training micro-batch."""
        stops = list(itertools.accumulate(group.count for group in groups))
        rows = [slice(stop - group.count, stop) for group, stop in zip(groups, stops, strict=True)]
        off = [plan.off_blocks(group.off) for group in groups]
        return cls(plan, weights, rows, [group.domain for group in groups], off)

    @classmethod
    def of_blocks_off(
        cls, plan: RoutePlan, weights: RouteWeights, off: Sequence[int]
    ) -> "RowRouting":
        """Any number of rows, the given blocks switched off, nothing cut."""
        return cls(plan, weights, [slice(None)], [UNLABELLED], [off])

    def column(self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
        tiling = self._tiling("column", units, self._positions(x))
        return _apply(ColumnLinear, x, weight, bias, tiling)

    def row(self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
        tiling = self._tiling("row", units, self._positions(x))
        return _apply(RowLinear, x, weight, bias, tiling)

    def rest(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        tiling = self._tiling("rest", (slice(0, weight.shape[0]),), self._positions(x))
        return _apply(ColumnLinear, x, weight, bias, tiling)

    def rest_factor(self, like: Tensor) -> Tensor | None:
        self._positions(like)
        key = ("rest", like.device, like.dtype, like.dim())
        if key not in self._factors:
            self._factors[key] = None
            if any(factor != 1.0 for factor in self._rest):
                self._factors[key] = self._per_row([[factor] for factor in self._rest], like).view(
                    -1, *(1,) * (like.dim() - 1)
                )
        return self._factors[key]

    def head_factor(self, like: Tensor, heads: Units) -> Tensor | None:
        self._positions(like)
        key = ("heads", like.device, like.dtype, *((part.start, part.stop) for part in heads))
        if key not in self._factors:
            lines = _spread(self._through_heads, heads)
            self._factors[key] = None
            if any(factor != 1.0 for line in lines for factor in line):
                self._factors[key] = self._per_row(lines, like)[:, None, :, None]
        return self._factors[key]

    def _per_row(self, lines: Sequence[Sequence[float]], like: Tensor) -> Tensor:
        counts = [len(range(*part.indices(like.shape[0]))) for part in self._rows]
        table = torch.tensor(lines, dtype=like.dtype, device=like.device)
        return table.repeat_interleave(torch.tensor(counts, device=like.device), dim=0)

    def _positions(self, x: Tensor) -> int:
        """Positions a sequence in `x` [N, ..., I]."""
        if self._num_rows is not None and x.shape[0] != self._num_rows:
            raise PlanError(
                f"batch({self._counts}) says {self._num_rows} sequences, "
                f"the model was given {x.shape[0]}"
            )
        return x[0, ..., 0].numel() if x.dim() > 2 else 1

    def _tiling(self, role: str, units: Units, positions: int) -> LinearTiles:
        key = (role, positions, *((part.start, part.stop) for part in units))
        if key not in self._tiles:

            def cut(table: Sequence[Sequence[float]], parts: Units) -> tuple[Tile, ...]:
                return tuple(
                    _in_positions(tile, positions) for tile in tiles(table, self._rows, parts)
                )

            whole = [[1.0]] * len(self._rows)
            rest = [[factor] for factor in self._rest]
            if role == "column":
                self._tiles[key] = LinearTiles(
                    cut(self._on, units), cut(self._weight, units), cut(self._act, units)
                )
            elif role == "row":
                self._tiles[key] = LinearTiles(
                    cut(self._on, units),
                    cut(self._weight, units),
                    cut(self._needed, units),
                    cut(rest, (slice(0, 1),)),
                )
            else:
                self._tiles[key] = LinearTiles(
                    cut(whole, units), cut(rest, units), cut(whole, units)
                )
        return self._tiles[key]


class TokenRouting:
    """A label a token: everything is computed and masked."""

    def __init__(
        self, plan: RoutePlan, weights: RouteWeights, labels_NT: Tensor, foreign_dropout: float
    ) -> None:
        """Labels are indices into `plan.domains`, -1 where a token is unlabelled."""
        if foreign_dropout not in (0.0, 1.0):
            raise PlanError(
                f"labels a token need foreign_dropout 0 or 1, not {foreign_dropout}: "
                "shares in between are dealt out to whole sequences"
            )
        if labels_NT.dim() != 2 or labels_NT.min() < -1 or labels_NT.max() >= len(plan.domains):
            raise PlanError(
                "labels_NT must be [sequences, positions] with "
                f"-1 (unlabelled) to {len(plan.domains) - 1}"
            )
        self._labels_NT = labels_NT
        domains = (*plan.domains, UNLABELLED)  # index -1 is the last row of every table
        blocks = range(len(plan.blocks))
        self._on, self._weight, self._act = [], [], []
        for domain in domains:
            others = [label for label in plan.domains if label != domain]
            off = plan.off_blocks(others) if foreign_dropout == 1.0 and domain != UNLABELLED else ()
            on = [float(block not in off) for block in blocks]
            self._on.append(on)
            self._weight.append(_times(on, weights.weight_edge[domain]))
            self._act.append(_times(on, weights.act_edge[domain]))
        self._rest = [weights.rest[domain] for domain in domains]

    def column(self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
        return _apply(MaskedColumnLinear, x, weight, bias, self._masks(x, units, self._act))

    def row(self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
        # Never skipped, even where both edges are cut at this position: what flows back through
        # attention reaches k and v of other positions, whose own labels decide.
        return _apply(MaskedRowLinear, x, weight, bias, self._masks(x, units, self._on))

    def rest(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ones_P1 = torch.ones_like(self._per_token([[1.0]] * len(self._rest), x).flatten(0, 1))
        rest_P1 = self._per_token([[factor] for factor in self._rest], x).flatten(0, 1)
        return _apply(
            MaskedColumnLinear,
            x,
            weight,
            bias,
            LinearMasks(ones_P1, rest_P1, ones_P1, ones_P1[:, 0]),
        )

    def rest_factor(self, like: Tensor) -> Tensor | None:
        if all(factor == 1.0 for factor in self._rest):
            return None
        factor_NT1 = self._per_token([[factor] for factor in self._rest], like)
        return factor_NT1.view(*factor_NT1.shape[:2], *(1,) * (like.dim() - 2))

    def head_factor(self, like: Tensor, heads: Units) -> Tensor | None:
        lines = [
            _times([rest] * len(act), act) for rest, act in zip(self._rest, self._act, strict=True)
        ]
        return self._per_token(_spread(lines, heads), like)[..., None]

    def _masks(self, x: Tensor, units: Units, inputs: Sequence[Sequence[float]]) -> LinearMasks:
        def mask_PU(table: Sequence[Sequence[float]]) -> Tensor:
            return self._per_token(_spread(table, units), x).flatten(0, 1)

        rest_P = self._per_token([[factor] for factor in self._rest], x).flatten()
        return LinearMasks(mask_PU(self._on), mask_PU(self._weight), mask_PU(inputs), rest_P)

    def _per_token(self, table: Sequence[Sequence[float]], like: Tensor) -> Tensor:
        """[N, T, columns of the table]: each token's row of the table."""
        if like.shape[:2] != self._labels_NT.shape:
            raise PlanError(
                f"labels_NT is {tuple(self._labels_NT.shape)}, "
                f"the model was given {tuple(like.shape[:2])}"
            )
        table_LC = torch.tensor(table, dtype=like.dtype, device=like.device)
        return table_LC[self._labels_NT.to(like.device)]


class RoutingState:
    """What the routed modules of one network share."""

    def __init__(self) -> None:
        self.active: Routing | None = None

    @contextlib.contextmanager
    def routing(self, routing: Routing) -> Iterator[None]:
        """Routes what is computed inside.

        Raises:
            PlanError: inside another batch, keep or remove.
        """
        if self.active is not None:
            raise PlanError("batch, keep and remove cannot be nested; leave one before the next")
        self.active = routing
        try:
            yield
        finally:
            self.active = None


class RoutedModule(nn.Module):
    """What the routed classes below have in common; none is ever constructed, see `swap_class`."""

    _state: RoutingState
    _units: Units


class RoutedColumnLinear(RoutedModule, nn.Linear):
    """gate, up, q, k, v: rows of the weight belong to units."""

    def forward(self, input: Tensor) -> Tensor:
        routing = self._state.active
        if routing is None:
            return super().forward(input)
        return routing.column(input, self.weight, self.bias, self._units)


class RoutedRowLinear(RoutedModule, nn.Linear):
    """down, o: columns of the weight belong to units, the bias to the rest."""

    def forward(self, input: Tensor) -> Tensor:
        routing = self._state.active
        if routing is None:
            return super().forward(input)
        return routing.row(input, self.weight, self.bias, self._units)


class RoutedRestLinear(RoutedModule, nn.Linear):
    """A linear that the plan does not split, where the core is foreign to somebody."""

    def forward(self, input: Tensor) -> Tensor:
        routing = self._state.active
        if routing is None:
            return super().forward(input)
        return routing.rest(input, self.weight, self.bias)


class RoutedRest(RoutedModule):
    """Norms and embeddings, where the core is foreign to somebody: `f * y + (1 - f) * y of frozen
    parameters`."""

    def forward(self, input: Tensor) -> Tensor:
        learned: Tensor = super().forward(input)
        routing = self._state.active
        factor = None if routing is None else routing.rest_factor(learned)
        return learned if factor is None else self._mixed(learned, factor, input)

    def _mixed(self, learned: Tensor, factor: Tensor, input: Tensor) -> Tensor:
        with _frozen(self):
            frozen: Tensor = super().forward(input)
        factor = factor.to(learned.dtype)
        return factor * learned + (1 - factor) * frozen


class RoutedHeadNorm(RoutedRest):
    """A norm over head features inside split attention: it lies upstream of its heads, and is
    shared by them."""

    def forward(self, input: Tensor) -> Tensor:
        learned: Tensor = super(RoutedRest, self).forward(input)
        routing = self._state.active
        factor = None if routing is None else routing.head_factor(learned, self._units)
        return learned if factor is None else self._mixed(learned, factor, input)


def swap_class(
    module: nn.Module, routed: type[RoutedModule], state: RoutingState, units: Units = ()
) -> None:
    """Makes `module` a routed one, in place.

    Raises:
        PlanError: a linear map of a kind of its own (quantised, adapted), whose products are
            unknown here.
    """
    plain = type(module)
    if issubclass(routed, nn.Linear):
        if plain is not nn.Linear:
            raise PlanError(
                f"routing knows torch.nn.Linear, not {plain.__module__}.{plain.__name__}"
            )
        module.__class__ = routed
    else:
        module.__class__ = type("Routed" + plain.__name__, (routed, plain), {})
    module._state, module._units = state, units  # type: ignore[assignment]


def unswap_class(module: nn.Module) -> None:
    """Gives a routed module its plain class back; leaves others alone."""
    if not isinstance(module, RoutedModule):
        return
    module.__class__ = type(module).__bases__[1]
    del module._state, module._units


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Inside, the module's own parameters get no gradient."""
    own = module._parameters
    module._parameters = {
        name: p if p is None else p.detach()  # type: ignore[misc]
        for name, p in own.items()
    }
    try:
        yield
    finally:
        module._parameters = own


def _apply(
    function: type[torch.autograd.Function],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    how: Any,
) -> Tensor:
    """The function on `x` [N, ..., I] as [P, I], in autocast's type where autocast is on."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    y: Tensor = function.apply(x.reshape(-1, x.shape[-1]), weight, bias, how)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], weight.shape[0])


def _times(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x * y for x, y in zip(a, b, strict=True)]


def _each(part: slice) -> range:
    return range(part.start, part.stop)


def _spread(table: Sequence[Sequence[float]], units: Units) -> list[list[float]]:
    """A column a feature, from a column a block."""
    return [
        [factor for factor, part in zip(line, units, strict=True) for _ in _each(part)]
        for line in table
    ]


def _in_positions(tile: Tile, positions: int) -> Tile:
    rows = tile.rows
    if rows.stop is not None:
        rows = slice(rows.start * positions, rows.stop * positions)
    return Tile(rows, tile.units, tile.factor)
