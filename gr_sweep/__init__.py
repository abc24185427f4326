"""gr-sweep: which partition of the data, routed over which edges, separates best at the least cost.

`RoutePlan` and `route_model` route a model of one's own; `results` and `history` read the folder of
a sweep into data frames. Importing this is cheap: torch is loaded when one of the first two is
first asked for, and pandas when one of the others is called.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gr_sweep.model.route import route_model
    from gr_sweep.report.frames import history, results
    from gr_sweep.routing.plan import RoutePlan

__version__ = "0.1.0"

__all__ = ["RoutePlan", "__version__", "history", "results", "route_model"]

_MODULES = {
    "RoutePlan": "gr_sweep.routing.plan",
    "history": "gr_sweep.report.frames",
    "results": "gr_sweep.report.frames",
    "route_model": "gr_sweep.model.route",
}
"""Where each name is, which is imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
