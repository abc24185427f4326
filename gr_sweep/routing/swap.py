"""Replaces the classes of modules by routed ones, and detects later changes to these modules.

Checks come before changes: a network that cannot be routed is left as it was.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from torch import nn

from gr_sweep.errors import PlanError
from gr_sweep.routing.base import Units
from gr_sweep.routing.modules import Recorded, RoutedLinear, RoutedModule, RoutingState

_CONV1D = "transformers.pytorch_utils.Conv1D"


class Swap(NamedTuple):
    """A module that becomes a routed one."""

    module: nn.Module
    routed: type[RoutedModule]
    parts: tuple[Units, ...] = ()
    """The units of each of its maps."""
    role: str = ""
    """What the module asks a routing for, if it is a linear map or made of linear maps."""


_WRAPPERS = re.compile(r"(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
"""Parts of names that are no place in a model: of compiled, recomputed and sharded modules."""


class InPlace:
    """The places of swapped modules in a model, to detect that one was replaced."""

    def __init__(self, model: nn.Module, swaps: Sequence[Swap]) -> None:
        self._model = model
        swapped = {swap.module: swap for swap in swaps}
        self._swaps = {n: swapped[m] for n, m in _places(model).items() if m in swapped}

    def check(self) -> None:
        """
        Raises:
            PlanError: a module was replaced or changed.
        """
        now = _places(self._model)
        for name, (module, routed, *_) in self._swaps.items():
            fault = "its forward pass was replaced" if "forward" in vars(module) else ""
            if now.get(name) is not module or not isinstance(module, routed):
                fault = f"it is {_named(type(now[name])) if name in now else 'gone'}"
            if fault:
                raise PlanError(
                    f"{name} has changed since route_model: {fault}; add adapters, resize or "
                    f"quantise before it, or call unroute() first"
                )


def _places(model: nn.Module) -> dict[str, nn.Module]:
    return {_WRAPPERS.sub("", name): module for name, module in model.named_modules()}


def check_swaps(model: nn.Module, swaps: Iterable[Swap]) -> None:
    """Checks modules before any of them changes.

    Raises:
        PlanError: a linear map of another class (quantised, with adapters), whose products routing
            does not know; a module whose `forward` is not that of its class.
    """
    for module, routed, *_ in swaps:
        if issubclass(routed, RoutedLinear):
            check_linear(model, module)
        if "forward" in vars(module):
            raise PlanError(
                f"the forward pass of {_name_of(model, module)} was replaced (by fused kernels, or "
                f"for a device_map of several devices) and would bypass routing; load the model "
                f"without"
            )


def check_linear(model: nn.Module, module: nn.Module) -> None:
    """Raises PlanError if a module of the model is not exactly a `torch.nn.Linear` or `Conv1D`."""
    # Named, not imported: transformers is slow to import.
    if type(module) is not nn.Linear and _named(type(module)) != _CONV1D:
        raise PlanError(
            f"expected {_name_of(model, module)} to be torch.nn.Linear, got "
            f"{_named(type(module))}; merge adapters before routing, and load without quantisation"
        )


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _name_of(model: nn.Module, module: nn.Module) -> str:
    return str(next(name for name, other in model.named_modules() if other is module))


def swap_class(swap: Swap, state: RoutingState) -> None:
    """Makes the module a routed one, in place."""
    module, routed, parts, role = swap
    module.__class__ = _routed_class(routed, type(module))  # type: ignore[arg-type]
    module._state, module._parts, module._role = state, parts, role  # type: ignore[assignment]
    for units in parts if role else ():
        if (role, units) not in state.roles:
            state.roles.append((role, units))


@cache
def _routed_class(routed: type[RoutedModule], plain: type[nn.Module]) -> type[nn.Module]:
    """One class for all modules of a kind: layers that are compiled one by one share a graph."""
    return type("Routed" + plain.__name__, (routed, plain), {})


def unswap(model: nn.Module) -> None:
    """Gives the routed modules of a model their plain classes back."""
    for module in model.modules():
        recorded = vars(module).get("_gradient_checkpointing_func")
        if isinstance(recorded, Recorded):
            module._gradient_checkpointing_func = recorded.checkpoint  # type: ignore[assignment]
        if not isinstance(module, RoutedModule):
            continue
        kind: Any = type(module)
        first, second = kind.__bases__
        if issubclass(first, RoutedModule):
            module.__class__ = second
        else:
            # `fully_shard` has put a class of its own before the routed one.
            bases = (first, second.__bases__[1])
            module.__class__ = type(kind.__name__, bases, dict(vars(kind)))
        del module._state, module._parts, module._role
