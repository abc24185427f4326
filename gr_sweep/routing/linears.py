"""Modules that route: a network's own linears, norms and embeddings, changed in class and nothing
else.

Parameters, state_dict keys and tying stay as they are; what a module needs to know of the
micro-batch comes from the `RoutingState` that all modules of a network share. Without an active
routing each is the plain module.

N sequences, T positions, P = N * T, H heads, I and O input and output features, L labels.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import PlanError
from gr_sweep.routing.autograd import (
    ColumnLinear,
    GatedMlp,
    LinearCovers,
    MlpCovers,
    RowLinear,
)
from gr_sweep.routing.edges import RouteWeights
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.rows import Cover, Output, RowGroup, cover
from gr_sweep.routing.token_mask import LinearMasks, MaskedColumnLinear, MaskedRowLinear

Units = tuple[slice, ...]
"""The features of each block, in the plan's order of blocks."""


class Routing(Protocol):
    """How the rows or tokens of one micro-batch are routed."""

    def is_plain(self, x: Tensor) -> bool:
        """Whether nothing is cut and nothing off, so that a module given `x` is the plain one."""

    def prepare(self, kinds: "Iterable[tuple[str, Units]]") -> None:
        """Works out beforehand what maps of these roles and units will ask for."""

    def column(self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
        """`linear`, with units along the outputs."""

    def row(self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
        """`linear`, with units along the inputs; the bias belongs to the rest."""

    def gated_mlp(
        self, x: Tensor, gate: nn.Linear, up: nn.Linear, down: nn.Linear, units: Units
    ) -> Tensor:
        """`down(silu(gate(x)) * up(x))`; the bias of `down` belongs to the rest."""

    def rest(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`linear`, all of whose parameters belong to the rest."""

    def rest_factor(self, like: Tensor) -> "Sequence[tuple[int, float]] | Tensor | None":
        """Factor of the rest's gradients; None where all are 1.

        Runs of sequences, (how many, factor), one after the other; or a tensor [N, T]. `like` is
        [N, T, ...].
        """

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
        self._outputs = [
            _times(on, weights.outputs[d]) for on, d in zip(self._on, domains, strict=True)
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
        self._cuts_nothing = _all_ones(self._weight, self._outputs, self._act, [self._rest])
        self._rest_runs = tuple(
            (sum(count for _, count in run), factor)
            for factor, run in itertools.groupby(
                (
                    (factor, 0 if part.stop is None else part.stop - part.start)
                    for factor, part in zip(self._rest, rows, strict=True)
                ),
                key=lambda pair: pair[0],
            )
        )
        self._num_rows = rows[-1].stop if rows else 0
        self._counts = dict.fromkeys(domains, 0)
        for domain, part in zip(domains, rows, strict=True):
            self._counts[domain] += 0 if part.stop is None else part.stop - part.start
        self._covers: dict[tuple[Any, ...], LinearCovers | MlpCovers] = {}
        self._covers_of_positions: dict[tuple[Any, ...], LinearCovers | MlpCovers] = {}
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

    def is_plain(self, x: Tensor) -> bool:
        self._check_rows(x)
        return self._cuts_nothing

    def column(self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
        return _linear(ColumnLinear, x, weight, bias, self._covers_of("column", x, units))

    def row(self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
        return _linear(RowLinear, x, weight, bias, self._covers_of("row", x, units))

    def gated_mlp(
        self, x: Tensor, gate: nn.Linear, up: nn.Linear, down: nn.Linear, units: Units
    ) -> Tensor:
        weights = (gate.weight, up.weight, down.weight, gate.bias, up.bias, down.bias)
        return _apply(GatedMlp, x, weights, self._covers_of("mlp", x, units))

    def rest(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        units = (slice(0, weight.shape[0]),)
        return _linear(ColumnLinear, x, weight, bias, self._covers_of("rest", x, units))

    def rest_factor(self, like: Tensor) -> Sequence[tuple[int, float]] | None:
        self._check_rows(like)
        return None if all(factor == 1.0 for _, factor in self._rest_runs) else self._rest_runs

    def head_factor(self, like: Tensor, heads: Units) -> Tensor | None:
        self._check_rows(like)
        if torch.compiler.is_compiling():  # as in _covers_of
            return self._make_head_factor(like, heads)
        key = ("heads", like.device, like.dtype, *((part.start, part.stop) for part in heads))
        if key not in self._factors:
            self._factors[key] = self._make_head_factor(like, heads)
        return self._factors[key]

    def _make_head_factor(self, like: Tensor, heads: Units) -> Tensor | None:
        lines = _spread(self._through_heads, heads)
        if all(factor == 1.0 for line in lines for factor in line):
            return None
        rows = [
            line
            for line, part in zip(lines, self._rows, strict=True)
            for _ in range(*part.indices(like.shape[0]))
        ]
        return torch.tensor(rows, dtype=like.dtype, device=like.device)[:, None, :, None]

    def _check_rows(self, x: Tensor) -> None:
        if self._num_rows is not None and x.shape[0] != self._num_rows:
            raise PlanError(
                f"batch({self._counts}) says {self._num_rows} sequences, "
                f"the model was given {x.shape[0]}"
            )

    def prepare(self, kinds: Iterable[tuple[str, Units]]) -> None:
        for role, units in kinds:
            self._in_sequences(role, units)

    def _covers_of(self, role: str, x: Tensor, units: Units) -> Any:
        """What the products of a map with this role cover, for an input `x` [N, ..., I]."""
        self._check_rows(x)
        positions = x[0, ..., 0].numel() if x.dim() > 2 else 1
        width, device = x.shape[-1], x.device.type
        covers = self._in_sequences(role, units)
        if torch.compiler.is_compiling():  # what is traced may not depend on an earlier call
            return covers.in_positions(positions, width=width, device=device)
        key = (role, positions, width, device, *((part.start, part.stop) for part in units))
        if key not in self._covers_of_positions:
            self._covers_of_positions[key] = covers.in_positions(
                positions, width=width, device=device
            )
        return self._covers_of_positions[key]

    def _in_sequences(self, role: str, units: Units) -> LinearCovers | MlpCovers:
        key = (role, *((part.start, part.stop) for part in units))
        if key not in self._covers:
            self._covers[key] = self._make_covers(role, units)
        return self._covers[key]

    def _make_covers(self, role: str, units: Units) -> LinearCovers | MlpCovers:
        def of(table: Sequence[Sequence[float]], output: Output) -> Cover:
            return cover(table, self._rows, units, output)

        rest = [[factor] for factor in self._rest]
        whole = [[1.0]] * len(self._rows)
        bias = cover(rest, self._rows, (slice(0, 1),), Output.units)
        if role == "mlp":
            return MlpCovers(
                hidden=of(self._on, Output.cells),
                out=of(self._on, Output.rows),
                needed=of(self._needed, Output.cells),
                weight=of(self._weight, Output.units),
                down=of(self._outputs, Output.units),
                input=of(self._act, Output.rows),
                bias=bias,
                is_input_wider=all(
                    act != 0.0 or weight == 0.0
                    for lines in zip(self._act, self._weight, strict=True)
                    for act, weight in zip(*lines, strict=True)
                ),
            )
        tables = {
            "column": (self._on, self._weight, self._act),
            "row": (self._on, self._outputs, self._needed),
            "rest": (whole, rest, whole),
        }
        forward, weight, input = tables[role]
        is_row = role == "row"
        return LinearCovers(
            forward=of(forward, Output.rows if is_row else Output.cells),
            weight=of(weight, Output.units),
            input=of(input, Output.cells if is_row else Output.rows),
            bias=bias,
        )


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
        self._on, self._weight, self._outputs, self._act = [], [], [], []
        for domain in domains:
            others = plan.always_off(domain)
            if foreign_dropout == 1.0 and domain != UNLABELLED:
                others = frozenset(plan.domains) - {domain}
            off = plan.off_blocks(others)
            on = [float(block not in off) for block in blocks]
            self._on.append(on)
            self._weight.append(_times(on, weights.weight_edge[domain]))
            self._outputs.append(_times(on, weights.outputs[domain]))
            self._act.append(_times(on, weights.act_edge[domain]))
        self._rest = [weights.rest[domain] for domain in domains]
        self._cuts_nothing = _all_ones(self._weight, self._outputs, self._act, [self._rest])

    def is_plain(self, x: Tensor) -> bool:
        self._check_tokens(x)
        return self._cuts_nothing

    def prepare(self, kinds: Iterable[tuple[str, Units]]) -> None:
        pass  # masks are made of labels, a micro-batch at a time

    def column(self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
        masks = self._masks(x, units, self._weight, self._act)
        return _linear(MaskedColumnLinear, x, weight, bias, masks)

    def row(self, x: Tensor, weight: Tensor, bias: Tensor | None, units: Units) -> Tensor:
        # Never skipped, even where both edges are cut at this position: what flows back through
        # attention reaches k and v of other positions, whose own labels decide.
        masks = self._masks(x, units, self._outputs, self._on)
        return _linear(MaskedRowLinear, x, weight, bias, masks)

    def gated_mlp(
        self, x: Tensor, gate: nn.Linear, up: nn.Linear, down: nn.Linear, units: Units
    ) -> Tensor:
        gated = torch.nn.functional.silu(self.column(x, gate.weight, gate.bias, units))
        hidden = gated * self.column(x, up.weight, up.bias, units)
        return self.row(hidden, down.weight, down.bias, units)

    def rest(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ones_P1 = torch.ones_like(self._per_token([[1.0]] * len(self._rest), x).flatten(0, 1))
        rest_P1 = self._per_token([[factor] for factor in self._rest], x).flatten(0, 1)
        return _linear(
            MaskedColumnLinear,
            x,
            weight,
            bias,
            LinearMasks(ones_P1, rest_P1, ones_P1, ones_P1[:, 0]),
        )

    def rest_factor(self, like: Tensor) -> Tensor | None:
        if all(factor == 1.0 for factor in self._rest):
            return None
        # `like` may be token ids: the factor's own type is the widest, the user's narrows it.
        like = like.new_empty(like.shape[:2], dtype=torch.float64)
        return self._per_token([[factor] for factor in self._rest], like)[..., 0]

    def head_factor(self, like: Tensor, heads: Units) -> Tensor | None:
        lines = [
            _times([rest] * len(act), act) for rest, act in zip(self._rest, self._act, strict=True)
        ]
        return self._per_token(_spread(lines, heads), like)[..., None]

    def _masks(
        self,
        x: Tensor,
        units: Units,
        weights: Sequence[Sequence[float]],
        inputs: Sequence[Sequence[float]],
    ) -> LinearMasks:
        def mask_PU(table: Sequence[Sequence[float]]) -> Tensor:
            return self._per_token(_spread(table, units), x).flatten(0, 1)

        rest_P = self._per_token([[factor] for factor in self._rest], x).flatten()
        return LinearMasks(mask_PU(self._on), mask_PU(weights), mask_PU(inputs), rest_P)

    def _per_token(self, table: Sequence[Sequence[float]], like: Tensor) -> Tensor:
        """[N, T, columns of the table]: each token's row of the table."""
        self._check_tokens(like)
        table_LC = torch.tensor(table, dtype=like.dtype, device=like.device)
        return table_LC[self._labels_NT.to(like.device)]

    def _check_tokens(self, x: Tensor) -> None:
        if x.shape[:2] != self._labels_NT.shape:
            raise PlanError(
                f"labels_NT is {tuple(self._labels_NT.shape)}, "
                f"the model was given {tuple(x.shape[:2])}"
            )


class RoutingState:
    """What the routed modules of one network share."""

    def __init__(self) -> None:
        self.active: Routing | None = None
        self._kinds: dict[tuple[Any, ...], tuple[str, Units]] = {}

    def register(self, role: str, units: Units) -> None:
        """Tells of a module that will ask the active routing for its role and units."""
        self._kinds[role, *((part.start, part.stop) for part in units)] = (role, units)

    @contextlib.contextmanager
    def routing(self, routing: Routing) -> Iterator[None]:
        """Routes what is computed inside.

        Raises:
            PlanError: inside another batch, keep or remove.
        """
        if self.active is not None:
            raise PlanError("batch, keep and remove cannot be nested; leave one before the next")
        routing.prepare(self._kinds.values())
        self.active = routing
        try:
            yield
        finally:
            self.active = None


class RoutedModule(nn.Module):
    """What the routed classes below have in common; none is ever constructed, see `swap_class`."""

    _state: RoutingState
    _units: Units
    _role: str | None = None
    """What it is to a routing, where it is a linear map or made of such."""

    def _routing_of(self, input: Tensor) -> Routing | None:
        """What routes this call; None where the module is the plain one.

        So too where a routing cuts nothing: sliced products add up in another order, and a run that
        cuts nothing is to be the dense run bit for bit.
        """
        routing = self._state.active
        return None if routing is None or routing.is_plain(input) else routing


class RoutedColumnLinear(RoutedModule, nn.Linear):
    """gate, up, q, k, v: rows of the weight belong to units."""

    _role = "column"

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        if routing is None:
            return super().forward(input)
        return routing.column(input, self.weight, self.bias, self._units)


class RoutedRowLinear(RoutedModule, nn.Linear):
    """down, o: columns of the weight belong to units, the bias to the rest."""

    _role = "row"

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        if routing is None:
            return super().forward(input)
        return routing.row(input, self.weight, self.bias, self._units)


class RoutedRestLinear(RoutedModule, nn.Linear):
    """A linear that the plan does not split, where the core is foreign to somebody."""

    _role = "rest"

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        if routing is None:
            return super().forward(input)
        return routing.rest(input, self.weight, self.bias)


class RoutedGatedMlp(RoutedModule):
    """A whole gated MLP with SiLU."""

    _role = "mlp"
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        if routing is None:
            return super().forward(input)  # type: ignore[no-any-return]
        return routing.gated_mlp(input, self.gate_proj, self.up_proj, self.down_proj, self._units)


class RoutedRest(RoutedModule):
    """Norms and embeddings, where the core is foreign to somebody.

    The parameters' gradient is multiplied, the input's is not: `f * y + (1 - f) * y of frozen
    parameters`, which where f is 0 or 1 is just one of the two.
    """

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        factor = None if routing is None else routing.rest_factor(input)
        if factor is None:
            return self._plain(input)
        if isinstance(factor, Tensor):
            return self._mixed(input, factor)
        parts = torch.split(input, [count for count, _ in factor])
        found = [self._of_run(part, f) for part, (_, f) in zip(parts, factor, strict=True)]
        if all(f == 0.0 for _, f in factor):
            # No row teaches them, and still the parameters get a gradient, of zeros: of processes
            # that share a micro-batch, all have one or none does.
            found.append(self._plain(input[:0]))
        return torch.cat(found)

    def _plain(self, input: Tensor) -> Tensor:
        return super().forward(input)  # type: ignore[no-any-return]

    def _of_run(self, input: Tensor, factor: float) -> Tensor:
        if factor == 1.0:
            return self._plain(input)
        if factor == 0.0:
            return self._of_frozen(input)
        return factor * self._plain(input) + (1 - factor) * self._of_frozen(input)

    def _of_frozen(self, input: Tensor) -> Tensor:
        with _frozen(self):
            return self._plain(input)

    def _mixed(self, input: Tensor, factor: Tensor) -> Tensor:
        learned = self._plain(input)
        factor = factor.to(learned.dtype).view(
            *factor.shape, *(1,) * (learned.dim() - factor.dim())
        )
        return factor * learned + (1 - factor) * self._of_frozen(input)


class RoutedHeadNorm(RoutedRest):
    """A norm over head features inside split attention: it lies upstream of its heads, and is
    shared by them."""

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        factor = None if routing is None else routing.head_factor(input, self._units)
        return self._plain(input) if factor is None else self._mixed(input, factor)


def check_linear(module: nn.Module) -> None:
    """
    Raises:
        PlanError: a linear map of a kind of its own (quantised, adapted), whose products are
            unknown here.
    """
    plain = type(module)
    if plain is not nn.Linear:
        raise PlanError(f"routing knows torch.nn.Linear, not {plain.__module__}.{plain.__name__}")


def swap_class(
    module: nn.Module, routed: type[RoutedModule], state: RoutingState, units: Units = ()
) -> None:
    """Makes `module` a routed one, in place. Raises as `check_linear`, of a linear."""
    if issubclass(routed, nn.Linear):
        check_linear(module)
        module.__class__ = routed
    else:
        module.__class__ = _routed_class(routed, type(module))
    module._state, module._units = state, units  # type: ignore[assignment]
    if routed._role is not None:
        state.register(routed._role, units)


_ROUTED_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def _routed_class(routed: type[RoutedModule], plain: type[nn.Module]) -> type[nn.Module]:
    """One class for all modules of a kind: layers that are compiled one by one share a graph."""
    if (routed, plain) not in _ROUTED_CLASSES:
        made = type("Routed" + plain.__name__, (routed, plain), {})
        _ROUTED_CLASSES[routed, plain] = made
    return _ROUTED_CLASSES[routed, plain]


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
    parameters: Sequence[Tensor | None],
    how: Any,
) -> Tensor:
    """The function on `x` [N, ..., I] as [P, I], in autocast's type where autocast is on."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
        parameters = [None if p is None else p.to(dtype) for p in parameters]
    if not torch.is_grad_enabled():
        # Within the function that cannot be seen: it goes by what asks for a gradient, and would
        # keep what nobody reads.
        parameters = [None if p is None else p.detach() for p in parameters]
    y: Tensor = function.apply(x.reshape(-1, x.shape[-1]), *parameters, how)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], y.shape[-1])


def _linear(
    function: type[torch.autograd.Function],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    how: Any,
) -> Tensor:
    return _apply(function, x, (weight, bias), how)


def _times(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x * y for x, y in zip(a, b, strict=True)]


def _all_ones(*tables: Sequence[Sequence[float]]) -> bool:
    return all(factor == 1.0 for table in tables for line in table for factor in line)


def _each(part: slice) -> range:
    return range(part.start, part.stop)


def _spread(table: Sequence[Sequence[float]], units: Units) -> list[list[float]]:
    """A column a feature, from a column a block."""
    return [
        [factor for factor, part in zip(line, units, strict=True) for _ in _each(part)]
        for line in table
    ]
