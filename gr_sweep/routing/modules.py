"""Modules that route: a network's own linears, norms and embeddings with another class.

Only the class of a module changes: parameters, state_dict keys and tying stay as they are. What a
module needs to know of the micro-batch is in the `RoutingState` that all modules of a network
share. Without an active routing each module is the plain one.

N sequences, T positions.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gr_sweep.errors import PlanError
from gr_sweep.routing.base import Units
from gr_sweep.routing.edges import OUTSIDE_UNITS
from gr_sweep.routing.row_routing import RowRouting
from gr_sweep.routing.token_routing import TokenRouting

Routing = RowRouting | TokenRouting
"""How the sequences, or the tokens, of one micro-batch are routed."""


class RoutingState:
    """What the routed modules of one network share."""

    def __init__(self) -> None:
        self.active: Routing | None = None
        """The current routing; None outside of contexts."""
        self.roles: list[tuple[str, Units]] = []
        """Roles and units that modules will ask the active routing for."""
        self._was_routed = False
        self._runs = 0

    def __deepcopy__(self, memo: Any) -> "RoutingState":
        """A copy of a model is not routed."""
        return RoutingState()

    @contextlib.contextmanager
    def routing(self, routing: Routing) -> Iterator[None]:
        """Routes what is computed inside, in any thread.

        Raises:
            PlanError: inside another batch, keep or remove.
        """
        if self.active is not None:
            raise PlanError("batch, keep and remove cannot be nested; leave one before the next")
        if isinstance(routing, RowRouting):
            routing.prepare(self.roles)
        self.active, self._was_routed = routing, True
        try:
            yield
        finally:
            self.active = None

    def run(
        self, routing: Routing | None, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Calls the function as it was called when `routing` was active."""
        before, self.active = self.active, routing
        self._runs += 1
        try:
            return function(*args, **kwargs)
        finally:
            self.active = before
            self._runs -= 1

    def current(self) -> Routing | None:
        """The routing of a call of a module.

        Raises:
            PlanError: the backward pass repeats a forward pass that `Recorded` does not wrap, after
                its context has ended.
        """
        if torch.compiler.is_compiling() or self.active is not None:
            return self.active
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and self._was_routed and not self._runs:
            raise PlanError(
                "the backward pass recomputes a layer, and its routing is not known: call backward "
                "in the context, or use gradient_checkpointing_enable of the model before it"
            )
        return None

    def record(self, model: nn.Module) -> None:
        """Wraps the activation checkpointing of decoder layers that have it on."""
        for layer in model.modules():
            checkpoint = vars(layer).get("_gradient_checkpointing_func")
            if checkpoint is not None and not isinstance(checkpoint, Recorded):
                layer._gradient_checkpointing_func = Recorded(checkpoint, self)  # type: ignore[assignment]


class Recorded:
    """Activation checkpointing of a layer of transformers, whose recomputation has the routing of
    the original call, wherever and whenever it runs."""

    def __init__(self, checkpoint: Callable[..., Any], state: RoutingState) -> None:
        self.checkpoint, self.state = checkpoint, state

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # one graph with its recomputation
            return self.checkpoint(function, *args, **kwargs)
        run = functools.partial(self.state.run, self.state.active, function)
        return self.checkpoint(run, *args, **kwargs)


class RoutedModule(nn.Module):
    """Base of the routed classes. None of them is ever constructed; see `gr_sweep.routing.swap`."""

    _state: RoutingState
    _parts: tuple[Units, ...]
    _role: str

    def _routing_of(self, input: Tensor) -> Routing | None:
        """The routing of this call; None if the module is the plain one.

        That includes a routing that cuts nothing: sliced products add up in another order, and a
        run that cuts nothing must be bit for bit the dense run.
        """
        routing = self._state.current()
        return None if routing is None or routing.is_plain(input) else routing

    def _added(self, input: Tensor) -> Tensor:
        """What adapters beside the module add to its output."""
        adapters: Any = self._modules["adapter"]
        added: Tensor = sum(each(input) for each in adapters.values())
        return added


class RoutedLinear(RoutedModule):
    """A linear map; see `RowRouting.linear` for its roles.

    It is a `torch.nn.Linear`, or a `Conv1D` of transformers (GPT-2), whose weight is [I, O]. A
    column map may be several in one matrix, such as q, k and v, each with its own units.
    """

    @property
    def units(self) -> Units:
        """Those of the map, which is the only one in its matrix."""
        [units] = self._parts
        return units

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        y = self._mapped(routing, input)
        if "adapter" not in self._modules:
            return y
        if routing is not None and self._role == "row":
            input = routing.scaled(input, "row", self._parts)
        added = self._added(input)
        if routing is not None and self._role == "column":
            added = routing.scaled(added, "column", self._parts)
        return y + added

    def _mapped(self, routing: Routing | None, input: Tensor) -> Tensor:
        """The output without adapters."""
        if routing is None or (
            self._role in OUTSIDE_UNITS and routing.rest_factor(input, self._role) is None
        ):
            return super().forward(input)  # type: ignore[no-any-return]
        sizes = [units[-1].stop for units in self._parts]
        found = [
            routing.linear(self._role, input, weight, bias, units)
            for (weight, bias), units in zip(_maps(self, sizes), self._parts, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found, -1)


def _maps(linear: nn.Module, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor | None]]:
    """Weight [O, I] and bias of maps that are one matrix, with so many outputs each."""
    weight: Any = linear.weight if isinstance(linear, nn.Linear) else linear.weight.t()  # type: ignore[operator]
    bias: Any = linear.bias
    if len(sizes) == 1:
        return [(weight, bias)]
    biases = [None] * len(sizes) if bias is None else bias.split(sizes)
    return list(zip(weight.split(sizes), biases, strict=True))


class RoutedGatedMlp(RoutedModule):
    """A whole gated MLP with SiLU; gate and up are two linear maps or one matrix."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    gate_up_proj: nn.Linear
    down_proj: nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        is_watched = any(_is_watched(child) for child in self.children())
        if not isinstance(routing, RowRouting) or is_watched:  # one linear map after the other
            return super().forward(input)  # type: ignore[no-any-return]
        [units] = self._parts
        size = units[-1].stop
        if hasattr(self, "gate_up_proj"):
            gate, up = _maps(self.gate_up_proj, [size, size])
        else:
            [gate], [up] = _maps(self.gate_proj, [size]), _maps(self.up_proj, [size])
        down = self.down_proj
        weights = (gate[0], up[0], down.weight, gate[1], up[1], down.bias)
        return routing.gated_mlp(input, weights, units)


def _is_watched(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class's forward pass, or has adapters."""
    hooks = (
        module._forward_hooks or module._forward_pre_hooks,
        module._backward_hooks or module._backward_pre_hooks,
    )
    return any(hooks) or "adapter" in module._modules


class RoutedRest(RoutedModule):
    """A norm or an embedding of a network whose core is foreign to some domain.

    The gradient of its parameters is multiplied by a factor f, that of its input is not:
    `f * y + (1 - f) * y with frozen parameters`, which is one of the two if f is 0 or 1.

    With parts it is a norm of the features of each head in split attention, which stands upstream
    of its heads.
    """

    def forward(self, input: Tensor) -> Tensor:
        y = self._of_rest(input)
        if "adapter" not in self._modules:
            return y
        # Gemma's embeddings are scaled.
        return y + self._added(input) * getattr(self, "embed_scale", 1.0)

    def _of_rest(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        if routing is None:
            return self._plain(input)
        factor: Any = (
            routing.head_factor(input, self._parts[0])
            if self._parts
            else routing.rest_factor(input, self._role)
        )
        if factor is None or isinstance(factor, Tensor):
            return self._scaled(input, 1.0 if factor is None else factor)
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


class RoutedHeadsFirst(RoutedRest):
    """A norm of heads whose input is [N, H, T, W] instead of [N, T, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class RoutedPositions(RoutedRest):
    """An embedding of positions. Its input [1, T] is that of every sequence of the micro-batch."""

    def forward(self, input: Tensor) -> Tensor:
        routing = self._state.current()
        if routing is None or routing.num_rows is None:
            return self._plain(input)
        of_rows = input.expand(routing.num_rows, -1)
        return self._plain(input) if routing.is_plain(of_rows) else super().forward(of_rows)


class RoutedFeatures(RoutedModule):
    """Features that are units: of a table, the A of an embedding's adapter; or without parameters,
    such as copies of the residual stream."""

    def forward(self, input: Tensor) -> Tensor:
        routing, y = self._routing_of(input), super().forward(input)
        role = "lookup" if isinstance(self, nn.Embedding) else "column"
        return y if routing is None else routing.scaled(y, role, self._parts)
