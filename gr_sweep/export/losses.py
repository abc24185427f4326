"""Held-out losses of the network that an export keeps, as the run has measured them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gr_sweep.metrics import keys
from gr_sweep.routing.plan import RoutePlan


@dataclass(frozen=True)
class Loss:
    """Nats per token, with its 95 % interval where there is one."""

    nats: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class DomainLoss:
    """Held-out loss of the full and of the extracted model on one domain."""

    full: Loss
    extracted: Loss | None
    """None where the run has not read this network."""


def losses_of(
    summary: Mapping[str, Any], plan: RoutePlan, off: tuple[int, ...]
) -> dict[str, DomainLoss]:
    """By domain; empty for a run that is not finished.

    The extracted network is the one that the run has read as keep(d) or as remove(e), if the same
    blocks are off in one of them. What `method.recovery` trained on after a removal is another.
    """
    extracted = _key_of(summary, plan, off)
    found = {}
    # Rounds of training may have split the labels of the plan further than those of the text.
    for domain in summary.get("domains", plan.domains):
        full = _loss(summary, keys.loss_full(domain))
        if full is not None:
            key = None if extracted is None else extracted(domain)
            found[domain] = DomainLoss(full, None if key is None else _loss(summary, key))
    return found


def _key_of(
    summary: Mapping[str, Any], plan: RoutePlan, off: tuple[int, ...]
) -> Callable[[str], str] | None:
    """Domain to the metric of the network in which just the blocks `off` are off."""
    if not off:
        return keys.loss_full
    removed = [node for node in plan.removable() if plan.removed_by([node]) == off]
    kept = [node for node in plan.nodes if plan.kept_off([node]) == off]
    has_recovered = summary.get("config", {}).get("method", {}).get("recovery", 0.0) > 0
    if removed and has_recovered:
        return None
    if kept:
        return lambda domain: keys.loss_kept(kept[0], domain)
    if removed:
        return lambda domain: keys.loss_removed(removed[0], domain)
    return None


def _loss(summary: Mapping[str, Any], key: str) -> Loss | None:
    value = summary.get("metrics", {}).get(key)
    if value is None:
        return None
    interval = summary.get("intervals", {}).get(key)
    return Loss(value, None if interval is None else (interval[0], interval[1]))
