"""Held-out losses of the network that an export keeps, as the run has measured them, and of a dense
model of its size where the sweep has trained one on the kept domain alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gr_sweep.domains import expand, is_under
from gr_sweep.errors import DataError
from gr_sweep.export.run import Run
from gr_sweep.jobdir import DOCUMENT_LOSSES
from gr_sweep.metrics import registry
from gr_sweep.metrics.bootstrap import Estimates
from gr_sweep.metrics.losses import DocumentLoss, LossTables, View, read_losses
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
    alone: Loss | None = None
    """Of the dense run as wide as the extracted model, on its domain alone; None where there is
    none."""


@dataclass(frozen=True)
class Alone:
    """A dense run of the same sweep, on one domain alone."""

    name: str
    width: int
    """MLP hidden units a layer."""
    rows: Sequence[DocumentLoss]
    seed: int
    """Of its intervals, and how many times its documents are resampled for them."""
    resamples: int


def losses_of(
    summary: Mapping[str, Any],
    plan: RoutePlan,
    off: tuple[int, ...],
    keep: Sequence[str] = (),
    last_round: Mapping[str, Any] | None = None,
) -> dict[str, DomainLoss]:
    """By domain, and by the kept labels that rounds of training have divided a domain into; empty
    for a run that is not finished.

    The extracted network is the one that the run has read as keep(d) or as remove(e), if the same
    blocks are off in one of them. What `method.recovery` trained on after a removal is another.

    Args:
        off: indices of the blocks that are taken out for `keep`.
        last_round: of such a run, what round.json says: losses by the labels of the plan.
    """
    found: dict[str, DomainLoss] = {}
    # Rounds of training may have split the labels of the plan further than those of the text.
    for domain in summary.get("domains", plan.domains):
        _add(found, summary, plan, off, domain)
        below = [node for node in keep if node != domain and is_under(node, domain)]
        if last_round is not None and below:
            for label in expand(below, plan.domains):
                _add(found, last_round, plan, off, label)
    return found


def _add(
    found: dict[str, DomainLoss],
    summary: Mapping[str, Any],
    plan: RoutePlan,
    off: tuple[int, ...],
    domain: str,
) -> None:
    full = _loss(summary, registry.LOSS_FULL(domain))
    if full is not None:
        extracted = _key_of(summary, plan, off)
        key = None if extracted is None else extracted(domain)
        found[domain] = DomainLoss(full, None if key is None else _loss(summary, key))


def with_alone(
    losses: Mapping[str, DomainLoss],
    run: Run,
    plan: RoutePlan,
    keep: Sequence[str],
    width: int,
    alone: Mapping[str, Alone],
) -> tuple[dict[str, DomainLoss], str]:
    """The losses with those of the dense run that has MLPs of `width` and was trained on the kept
    domain alone, and the name of that run; without one as they are, and "".

    Its losses are those on the run's own documents, of the domain and of its kept labels.

    Args:
        alone: by domain of the partition.
    """
    plain = dict(losses), ""
    kept = expand(keep, plan.domains) if keep else ()
    over = [d for d in run.summary.get("domains", ()) if all(is_under(at, d) for at in kept)]
    if not kept or not over:
        return plain
    domain = max(over, key=len)
    other = alone.get(domain)
    # Of a domain that was divided the baseline is as large as one of its parts, not as all.
    if other is None or other.width != width:
        return plain
    found = dict(losses)
    try:
        last = run.last_round(plan)
        for name in [name for name in losses if is_under(name, domain)]:
            # What is below the domain is a label of the last round (`losses_of`).
            place = run.folder if name == domain or last is None else last[0]
            found[name] = replace(losses[name], alone=_of_alone(other, domain, place, name))
    except DataError:
        return plain
    return found, other.name


def _of_alone(other: Alone, domain: str, place: Path, label: str) -> Loss | None:
    """Loss of a run on the domain, on those documents that have a label in the table in `place`."""
    rows = [row for row in read_losses(place / DOCUMENT_LOSSES) if row.domain == label]
    theirs = [row._replace(domain=label) for row in other.rows if row.domain == domain]
    tables = LossTables(
        rows, [label], {"alone": theirs}, seed=other.seed, resamples=other.resamples
    )
    estimates = Estimates()
    key = registry.LOSS_FULL(label)
    estimates.add(key, tables.loss(label, View.full, run="alone"))
    return _loss({"metrics": estimates.metrics, "intervals": estimates.intervals}, key)


def _key_of(
    summary: Mapping[str, Any], plan: RoutePlan, off: tuple[int, ...]
) -> Callable[[str], str] | None:
    """Domain to the metric of the network in which just the blocks `off` are off."""
    if not off:
        return registry.LOSS_FULL
    removed = [node for node in plan.removable() if plan.removed_by([node]) == off]
    kept = [node for node in plan.nodes if plan.kept_off([node]) == off]
    has_recovered = summary.get("config", {}).get("method", {}).get("recovery", 0.0) > 0
    if removed and has_recovered:
        return None
    if kept:
        return lambda domain: registry.LOSS_KEPT(kept[0], domain)
    if removed:
        return lambda domain: registry.LOSS_REMOVED(removed[0], domain)
    return None


def _loss(summary: Mapping[str, Any], key: str) -> Loss | None:
    value = summary.get("metrics", {}).get(key)
    if value is None:
        return None
    interval = summary.get("intervals", {}).get(key)
    return Loss(value, None if interval is None else (interval[0], interval[1]))
