"""Replaces the classes of modules by routed ones, and detects later changes to these modules.

Checks come before changes: a network that cannot be routed is left as it was.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gr_sweep.errors import PlanError
from gr_sweep.routing.base import Units
from gr_sweep.routing.modules import RoutedLinear, RoutedModule, RoutingState, plain_class

_CONV1D = "transformers.pytorch_utils.Conv1D"


class Swap(NamedTuple):
    """A module that becomes a routed one."""

    module: nn.Module
    routed: type[RoutedModule]
    parts: tuple[Units, ...] = ()
    """The units of each of its maps."""
    role: str = ""
    """What the module asks a routing for, if it is a linear map or made of linear maps."""

    def fault(self) -> str:
        """How the module has changed since it was swapped; "" if it has not."""
        module, routed, parts, role = self
        if not isinstance(module, routed) or "parametrizations" in module._modules:
            return f"it is a {_named(type(module))}"
        if "forward" in vars(module):
            return "its forward pass was replaced"
        for name, parameter in module._parameters.items():
            is_own_class = type(parameter) not in (nn.Parameter, DTensor)
            if is_own_class and is_traceable_wrapper_subclass(parameter):
                return f"its {name} is a {_named(type(parameter))}"
        if issubclass(routed, RoutedLinear):
            weight = module._parameters.get("weight")
            if weight is None:
                return "its weight is computed from others"
            # Other libraries keep what they shard flat.
            dim = int((role == "row") == isinstance(module, nn.Linear))
            wanted = sum(units[-1].stop for units in parts)
            size = weight.shape[dim] if weight.dim() == 2 else wanted
            if size != wanted:
                return f"its weight has {size} features instead of {wanted}"
        return ""


_WRAPPERS = re.compile(r"(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
"""Parts of names that are no place in a model: of compiled, recomputed and sharded modules."""


class InPlace:
    """The places of swapped modules in a model, to detect that one was replaced."""

    def __init__(self, model: nn.Module, swaps: Sequence[Swap], *, all_are_routed: bool) -> None:
        """`all_are_routed`: whether the swaps are all modules with parameters."""
        self._model = model
        self._swaps = swaps
        self._all_are_routed = all_are_routed
        names = {module: name for name, module in model.named_modules()}
        # With their children, such as an MLP's activation.
        modules = (m for swap in swaps for m in (swap.module, *swap.module.children()))
        self._places = {_WRAPPERS.sub("", names[module]): module for module in modules}

    def check(self) -> None:
        """
        Raises:
            PlanError: a module was replaced or changed, or one was added to a network in which all
                are routed.
        """
        now = {_WRAPPERS.sub("", name): module for name, module in self._model.named_modules()}
        for name, module in self._places.items():
            if (found := now.get(name)) is not module:
                self._refuse(
                    name, "it is gone" if found is None else f"it is a {_named(type(found))}"
                )
        for swap in self._swaps:
            if fault := swap.fault():
                self._refuse(name_of(self._model, swap.module), fault)
        for module in self._model.modules() if self._all_are_routed else ():
            is_plain = not isinstance(module, RoutedModule)
            if is_plain and any(p is not None for p in module._parameters.values()):
                self._refuse(name_of(self._model, module), "it was added")

    def _refuse(self, name: str, fault: str) -> None:
        raise PlanError(
            f"{name} has changed since route_model: {fault}; add adapters, resize or quantise "
            f"before it, or call unroute() first"
        )


def check_swaps(model: nn.Module, swaps: Iterable[Swap]) -> None:
    """Checks modules before any of them changes.

    Raises:
        PlanError: a linear map of another class (quantised, with adapters), whose products routing
            does not know; a module or a parameter of units in two places; a module whose `forward`
            is not that of its class.
    """
    seen: set[Any] = set()
    for module, routed, _, role in swaps:
        if issubclass(routed, RoutedLinear):
            check_linear(model, module)
        if "forward" in vars(module):
            raise PlanError(
                f"the forward pass of {name_of(model, module)} was replaced (by fused kernels, or "
                f"for a device_map of several devices) and would bypass routing; load the model "
                f"without"
            )
        own = [module, *(module.parameters(recurse=False) if role in ("row", "column") else ())]
        if not seen.isdisjoint(own):
            raise PlanError(
                f"{name_of(model, module)}, or its weight, is in two places that are routed"
            )
        seen.update(own)


def check_linear(model: nn.Module, module: nn.Module) -> None:
    """Raises PlanError if a module of the model is not exactly a `torch.nn.Linear` or `Conv1D`."""
    # Named, not imported: transformers is slow to import.
    if type(module) is not nn.Linear and _named(type(module)) != _CONV1D:
        raise PlanError(
            f"expected {name_of(model, module)} to be torch.nn.Linear, got {_named(type(module))}; "
            f"merge adapters before routing, and load without quantisation"
        )


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def name_of(model: nn.Module, module: nn.Module) -> str:
    """The name of a module of the model."""
    return str(next(name for name, other in model.named_modules() if other is module))


def swap_class(swap: Swap, state: RoutingState) -> None:
    """Makes the module a routed one, in place."""
    module, routed, parts, role = swap
    module.__class__ = _routed_class(routed, type(module))
    module._state, module._parts, module._role = state, parts, role  # type: ignore[assignment]
    for units in parts if role else ():
        if (role, units) not in state.roles:
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
        module.__class__ = plain_class(module)
        del module._state, module._parts, module._role
