"""gr-sweep: which partition of the data, routed over which edges, separates best at the least cost.

Importing this is cheap: torch is loaded when `RoutePlan` or `route_model` is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gr_sweep.model.route import route_model
    from gr_sweep.routing.plan import RoutePlan

__version__ = "0.1.0"

__all__ = ["RoutePlan", "__version__", "route_model"]


def __getattr__(name: str) -> Any:
    if name == "RoutePlan":
        from gr_sweep.routing.plan import RoutePlan

        return RoutePlan
    if name == "route_model":
        from gr_sweep.model.route import route_model

        return route_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
