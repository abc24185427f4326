"""Modules that route: a network's own linears, norms and embeddings with another class.

Only the class of a module changes: parameters, state_dict keys and tying stay as they are. What a
module needs to know of the micro-batch is in the `RoutingState` that all modules of a network
share. Without an active routing each module is the plain one.

N sequences, T positions.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gr_sweep.errors import PlanError
from gr_sweep.routing.row_routing import RowRouting, Units
from gr_sweep.routing.token_routing import TokenRouting

Routing = RowRouting | TokenRouting
"""How the sequences, or the tokens, of one micro-batch are routed."""


class RoutingState:
    """What the routed modules of one network share."""

    def __init__(self) -> None:
        self.active: Routing | None = None
        self.roles: list[tuple[str, Units]] = []
        """Roles and units that modules will ask the active routing for."""

    @contextlib.contextmanager
    def routing(self, routing: Routing) -> Iterator[None]:
        """Routes what is computed inside.

        Raises:
            PlanError: inside another batch, keep or remove.
        """
        if self.active is not None:
            raise PlanError("batch, keep and remove cannot be nested; leave one before the next")
        if isinstance(routing, RowRouting):
            routing.prepare(self.roles)
        self.active = routing
        try:
            yield
        finally:
            self.active = None


class RoutedModule(nn.Module):
    """Base of the routed classes. None of them is ever constructed; see `swap_class`."""

    _state: RoutingState
    _units: Units
    _role: str

    def _routing_of(self, input: Tensor) -> Routing | None:
        """The routing of this call; None if the module is the plain one.

        That includes a routing that cuts nothing: sliced products add up in another order, and a
        run that cuts nothing must be bit for bit the dense run.
        """
        routing = self._state.active
        return None if routing is None or routing.is_plain(input) else routing


class RoutedLinear(RoutedModule, nn.Linear):
    """A linear map; see `RowRouting.linear` for its roles."""

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        if routing is None:
            return super().forward(input)
        return routing.linear(self._role, input, self.weight, self.bias, self._units)


class RoutedGatedMlp(RoutedModule):
    """A whole gated MLP with SiLU."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        if routing is None:
            return super().forward(input)  # type: ignore[no-any-return]
        return routing.gated_mlp(input, self.gate_proj, self.up_proj, self.down_proj, self._units)


class RoutedRest(RoutedModule):
    """A norm or an embedding of a network whose core is foreign to some domain.

    The gradient of its parameters is multiplied by a factor f, that of its input is not:
    `f * y + (1 - f) * y with frozen parameters`, which is one of the two if f is 0 or 1.
    """

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        factor = None if routing is None else routing.rest_factor(input)
        if factor is None:
            return self._plain(input)
        if isinstance(factor, Tensor):
            return self._scaled(input, factor)
        parts = torch.split(input, [count for count, _ in factor])
        found = [self._scaled(part, f) for part, (_, f) in zip(parts, factor, strict=True)]
        if all(f == 0.0 for _, f in factor):
            # Parameters that learn from no row still get a gradient, of zeros: of processes that
            # share a micro-batch, either all have one or none has.
            found.append(self._plain(input[:0]))
        return torch.cat(found)

    def _plain(self, input: Tensor) -> Tensor:
        return super().forward(input)  # type: ignore[no-any-return]

    def _scaled(self, input: Tensor, factor: float | Tensor) -> Tensor:
        if not isinstance(factor, Tensor) and factor in (0.0, 1.0):
            return self._plain(input) if factor else self._of_frozen(input)
        learned = self._plain(input)
        if isinstance(factor, Tensor):
            shape = *factor.shape, *(1,) * (learned.dim() - factor.dim())
            factor = factor.to(learned.dtype).view(shape)
        return factor * learned + (1 - factor) * self._of_frozen(input)

    def _of_frozen(self, input: Tensor) -> Tensor:
        own = self._parameters
        self._parameters = {
            name: p if p is None else p.detach()  # type: ignore[misc]
            for name, p in own.items()
        }
        try:
            return self._plain(input)
        finally:
            self._parameters = own


class RoutedHeadNorm(RoutedRest):
    """A norm over the features of each head inside split attention. It is upstream of its heads,
    and they share it."""

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        factor = None if routing is None else routing.head_factor(input, self._units)
        return self._plain(input) if factor is None else self._scaled(input, factor)


class _HeadsFirst(RoutedModule):
    """Mixin for a norm of heads whose input is [N, H, T, W] instead of [N, T, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = super().forward(input.transpose(1, 2))
        return found.transpose(1, 2)


class RoutedRestHeadsFirst(_HeadsFirst, RoutedRest):
    """`RoutedRest` for such a norm inside attention that is not split."""


class RoutedHeadNormHeadsFirst(_HeadsFirst, RoutedHeadNorm):
    """`RoutedHeadNorm` for such a norm."""


def check_linear(module: nn.Module) -> None:
    """
    Raises:
        PlanError: a linear map of another class (quantised, with adapters), whose products routing
            does not know.
    """
    plain = type(module)
    if plain is not nn.Linear:
        raise PlanError(f"expected torch.nn.Linear, got {plain.__module__}.{plain.__name__}")


def swap_class(
    module: nn.Module,
    routed: type[RoutedModule],
    state: RoutingState,
    units: Units = (),
    role: str = "",
) -> None:
    """Makes `module` a routed one, in place.

    Args:
        role: what the module asks a routing for, if it is a linear map or made of linear maps.

    Raises:
        PlanError: as `check_linear`, for a linear.
    """
    if issubclass(routed, nn.Linear):
        check_linear(module)
        module.__class__ = routed
    else:
        module.__class__ = _routed_class(routed, type(module))
    module._state, module._units, module._role = state, units, role  # type: ignore[assignment]
    if role and (role, units) not in state.roles:
        state.roles.append((role, units))


_ROUTED_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}
"""One class for all modules of a kind: layers that are compiled one by one share a graph."""


def _routed_class(routed: type[RoutedModule], plain: type[nn.Module]) -> type[nn.Module]:
    if (routed, plain) not in _ROUTED_CLASSES:
        made = type("Routed" + plain.__name__, (routed, plain), {})
        _ROUTED_CLASSES[routed, plain] = made
    return _ROUTED_CLASSES[routed, plain]


def unswap_class(module: nn.Module) -> None:
    """Gives a routed module its plain class back; leaves other modules alone."""
    if isinstance(module, RoutedModule):
        module.__class__ = type(module).__bases__[1]
        del module._state, module._units, module._role
