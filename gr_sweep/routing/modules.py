"""Modules that route: a network's own linears, norms and embeddings with another class.

Only the class of a module changes: parameters, state_dict keys and tying stay as they are. What a
module needs to know of the micro-batch is in the `RoutingState` that all modules of a network
share. Without an active routing each module is the plain one.

N sequences, T positions.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from gr_sweep.errors import PlanError
from gr_sweep.routing.base import Units
from gr_sweep.routing.edges import OUTSIDE_UNITS
from gr_sweep.routing.row_routing import RowRouting
from gr_sweep.routing.token_routing import TokenRouting

Routing = RowRouting | TokenRouting
"""How the sequences, or the tokens, of one micro-batch are routed."""


class _OfThread(threading.local):
    """What holds in one thread: `torch.compile` can read this, and no `ContextVar`."""

    active: Routing | None = None
    is_recorded: bool = False
    """Whether what runs is a forward pass, or its repetition, that `Recorded` wraps."""


_ROUTINGS: ContextVar[Mapping["RoutingState", Routing]] = ContextVar("routings")
"""The routings of the caller of `backward`, which torch passes to the threads of autograd."""


class RoutingState:
    """What the routed modules of one network share."""

    def __init__(self) -> None:
        self._of_thread = _OfThread()
        self._was_used = self._is_over = False
        self._entered: list[Routing] = []
        """The routings that are active in any thread."""
        self.roles: list[tuple[str, Units]] = []
        """Roles and units that modules will ask the active routing for."""

    @property
    def active(self) -> Routing | None:
        """The routing of what this thread computes."""
        return self._of_thread.active

    @contextlib.contextmanager
    def routing(self, routing: Routing) -> Iterator[None]:
        """Routes what this thread computes inside.

        Raises:
            PlanError: inside another batch, keep or remove.
        """
        if self.active is not None:
            raise PlanError("batch, keep and remove cannot be nested; leave one before the next")
        if isinstance(routing, RowRouting):
            routing.prepare(self.roles)
        self._was_used = True
        others = _ROUTINGS.get({})
        _ROUTINGS.set({**others, self: routing})
        self._of_thread.active = routing
        self._entered.append(routing)
        try:
            yield
        finally:
            self._entered.remove(routing)
            self._of_thread.active = None
            _ROUTINGS.set(others)

    def record(self, model: nn.Module) -> None:
        """Wraps the activation checkpointing of decoder layers that have it on."""
        for layer in model.modules():
            checkpoint = vars(layer).get("_gradient_checkpointing_func")
            if checkpoint is not None and not isinstance(checkpoint, Recorded):
                layer._gradient_checkpointing_func = Recorded(checkpoint, self)  # type: ignore[assignment]

    def unrecord(self, model: nn.Module) -> None:
        """Takes back what `record` did, once and for all."""
        self._is_over = True
        for layer in model.modules():
            recorded = vars(layer).get("_gradient_checkpointing_func")
            if isinstance(recorded, Recorded):
                layer._gradient_checkpointing_func = recorded.checkpoint  # type: ignore[assignment]

    def run(
        self, routing: Routing | None, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Calls the function as it was called when `routing` was active, in any thread.

        Raises:
            PlanError: the network has another routing by now, or none.
        """
        if routing is not None and self._is_over:
            raise PlanError("call backward before the model gets another plan or is unrouted")
        here = self._of_thread
        before = here.active, here.is_recorded
        here.active, here.is_recorded = routing, True
        try:
            return function(*args, **kwargs)
        finally:
            here.active, here.is_recorded = before

    def of_recomputation(self) -> Routing | None:
        """The routing of a call outside any context of this thread: None, unless the backward pass
        repeats a forward pass.

        Raises:
            PlanError: it repeats one that `Recorded` does not wrap, after the context has ended.
        """
        in_backward = torch._C._current_graph_task_id() != -1
        if not self._was_used or self._of_thread.is_recorded or not in_backward:
            return None
        if torch._C._is_key_in_tls("context"):
            caller = torch._C._get_obj_in_tls("context").get(_ROUTINGS, {})
            if self in caller:
                return caller[self]  # type: ignore[no-any-return]
        elif len(self._entered) == 1:  # a torch that does not hand the caller's context on
            return self._entered[0]
        raise PlanError(
            "the backward pass recomputes a layer, and its routing is not known: call backward in "
            "the context, or use gradient_checkpointing_enable of the model before the context"
        )


class Recorded:
    """Activation checkpointing of a layer of transformers, whose recomputation has the routing of
    the original call, wherever and whenever it runs."""

    def __init__(self, checkpoint: Callable[..., Any], state: RoutingState) -> None:
        self.checkpoint = checkpoint
        self.state = state

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # one graph with its recomputation
            return self.checkpoint(function, *args, **kwargs)
        run = functools.partial(self.state.run, self.state.active, function)
        return self.checkpoint(run, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the module is a plain one."""
        return functools.partial, (self.checkpoint,)


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
        routing = self._active()
        return None if routing is None or routing.is_plain(input) else routing

    def _added(self, input: Tensor) -> Tensor | None:
        """What adapters beside the module add to its output; None without adapters."""
        adapters: Any = self._modules.get("adapter")
        return None if adapters is None else sum(each(input) for each in adapters.values())

    def _active(self) -> Routing | None:
        routing = self._state.active
        if routing is None and not torch.compiler.is_compiling():
            routing = self._state.of_recomputation()
        return routing

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """A copy (`copy.deepcopy`, `pickle`, `torch.save`) is the plain module. With adapters,
        which that does not have, the copy refuses to be called until it is routed."""
        state = {name: value for name, value in vars(self).items() if name not in _OWN}
        if "adapter" in self._modules:
            state["forward"] = not_routed
        return object.__new__, (plain_class(self),), state

    def _replicate_for_data_parallel(self) -> Any:
        if self._state.active is not None:
            raise PlanError(
                "torch.nn.DataParallel divides sequences among threads, which are not routed; use "
                "one device, or DistributedDataParallel"
            )
        return super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]


_OWN = ("_state", "_parts", "_role")


def not_routed(*args: Any, **kwargs: Any) -> None:
    """The forward pass of a copy with adapters."""
    raise PlanError(
        "a copy of a model with adapters has to be routed by its plan (route_model); copy the "
        "RoutedModel instead, or use extract() for a plain model"
    )


def plain_class(module: RoutedModule) -> Any:
    """The class that a module had before it was routed."""
    kind = type(module)
    first, second = kind.__bases__
    if issubclass(first, RoutedModule):
        return second
    # `fully_shard` has put a class of its own before the routed one.
    return type(kind.__name__, (first, second.__bases__[1]), dict(vars(kind)))


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
        if routing is not None and self._role == "row" and "adapter" in self._modules:
            input = routing.scaled(input, "row", self._parts)
        added = self._added(input)
        if added is None:
            return y
        if routing is not None and self._role == "column":
            added = routing.scaled(added, "column", self._parts)
        return y + added

    def _mapped(self, routing: Routing | None, input: Tensor) -> Tensor:
        """The output without adapters."""
        is_plain = routing is None or (
            self._role in OUTSIDE_UNITS and routing.rest_factor(input, self._role) is None
        )
        if routing is None or is_plain:
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
        if routing is None or any(_is_watched(child) for child in self.children()):
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
        _has_any_global_hook(),  # type: ignore[no-untyped-call]
    )
    return any(hooks) or "forward" in module.__dict__ or "adapter" in module._modules


class RoutedRest(RoutedModule):
    """A norm or an embedding of a network whose core is foreign to some domain.

    The gradient of its parameters is multiplied by a factor f, that of its input is not:
    `f * y + (1 - f) * y with frozen parameters`, which is one of the two if f is 0 or 1.
    """

    def forward(self, input: Tensor) -> Tensor:
        added = self._added(input)
        y = self._of_rest(input)
        # Gemma's embeddings are scaled.
        return y if added is None else y + added * getattr(self, "embed_scale", 1.0)

    def _of_rest(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        factor = None if routing is None else routing.rest_factor(input, self._role)
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


class RoutedPositions(RoutedRest):
    """An embedding of positions. Its input [1, T] is that of every sequence of the micro-batch."""

    def forward(self, input: Tensor) -> Tensor:
        routing = self._active()
        if routing is None or routing.num_rows is None:
            return self._plain(input)
        of_rows = input.expand(routing.num_rows, -1)
        return self._plain(input) if routing.is_plain(of_rows) else super().forward(of_rows)


class RoutedHeadNorm(RoutedRest):
    """A norm over the features of each head inside split attention. It is upstream of its heads,
    and they share it."""

    def forward(self, input: Tensor) -> Tensor:
        routing = self._routing_of(input)
        factor = None if routing is None else routing.head_factor(input, self._parts[0])
        return self._plain(input) if factor is None else self._scaled(input, factor)


class RoutedLookup(RoutedModule):
    """A table whose columns are units: the A of an embedding's adapter."""

    _role_of_output = "lookup"

    def forward(self, input: Tensor) -> Tensor:
        routing, y = self._routing_of(input), super().forward(input)
        return y if routing is None else routing.scaled(y, self._role_of_output, self._parts)


class RoutedFeatures(RoutedLookup):
    """Features without parameters that are units, such as copies of the residual stream."""

    _role_of_output = "column"


class _HeadsFirst(RoutedModule):
    """Mixin for a norm of heads whose input is [N, H, T, W] instead of [N, T, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = super().forward(input.transpose(1, 2))
        return found.transpose(1, 2)


class RoutedRestHeadsFirst(_HeadsFirst, RoutedRest):
    """`RoutedRest` for such a norm inside attention that is not split."""


class RoutedHeadNormHeadsFirst(_HeadsFirst, RoutedHeadNorm):
    """`RoutedHeadNorm` for such a norm."""
