"""Matrices of the page as plain values: removal and transfer.

Knows how strongly a number is painted and nothing of HTML or of how numbers are measured.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from gr_sweep import domains
from gr_sweep.metrics import registry
from gr_sweep.report import figures, measures, tables
from gr_sweep.report.collect import Estimate, Job, Sweep, short_name, shown
from gr_sweep.report.measures import MISSING

_MANY_JOBS = 17
"""From here on tables are compact and intervals are tooltips."""
_MANY_DOMAINS = 5
"""From here on a matrix has no room for its intervals."""

_LEAST_TRANSFER = 0.2
"""Nats with the full colour at least, so that a hundredth does not look like a lot."""


class Scale:
    """One colour scale for all matrices of a kind, diverging at 0.

    Strength goes with the square root, so that half a nat is seen beside ten.
    """

    def __init__(self, estimates: Iterable[Estimate | None], least: float = 0.0) -> None:
        """Of values of which the strongest has the full colour, if it is `least` or more."""
        self.top = max((abs(e.value) for e in estimates if e is not None), default=0.0)
        self.top = max(self.top, least) if self.top else 0.0

    def strength(self, value: float) -> int:
        """Percent of the full colour, 0 at 0."""
        return round(100 * math.sqrt(abs(value) / self.top)) if self.top else 0

    def ticks(self) -> list[dict[str, Any]]:
        """Values at even distances on the scale, from the lowest to the highest."""
        steps = (-1.0, -0.5, 0.0, 0.5, 1.0)
        values = [math.copysign(step * step * self.top, step) for step in steps]
        return [{"text": measures.signed(value), **self._paint(value)} for value in values]

    def cell(self, estimate: Estimate | None) -> dict[str, Any]:
        """Text, interval and paint of one entry of a matrix."""
        if estimate is None:
            return {"text": MISSING, "interval": "", "strength": 0, "sign": "pos"}
        return {
            "text": measures.signed(estimate.value),
            "interval": tables.interval_text(estimate, measures.unsigned),
            **self._paint(estimate.value),
        }

    def _paint(self, value: float) -> dict[str, Any]:
        return {"strength": self.strength(value), "sign": "neg" if value < 0 else "pos"}


def many(sweep: Sweep) -> bool:
    """Whether tables are compact and intervals are tooltips."""
    return len(sweep.compared) >= _MANY_JOBS


def identity(label: str, job: Job) -> dict[str, Any]:
    """How a job or a group is named and drawn, the same everywhere on the page."""
    return {
        "label": label,
        "edges": job.edges,
        "kind": job.kind,
        "colour": figures.colour(job.edges),
        "glyph": figures.glyph(job.kind),
    }


def removal_scale(sweep: Sweep) -> Scale:
    """The scale of `removal`."""
    return Scale(
        job.estimate(registry.MATRIX(part, domain))
        for job in sweep.compared
        for part in job.nodes
        for domain in job.domains
    )


def removal(sweep: Sweep, job: Job, scale: Scale) -> dict[str, Any]:
    """The matrix of a job and its parts kept alone; both are empty for a dense job."""
    matrix, kept = [], []
    for part in job.nodes:
        row = [job.estimate(registry.MATRIX(part, domain)) for domain in job.domains]
        own = [domains.is_under(domain, part) for domain in job.domains]
        if any(row):
            cells = [
                scale.cell(estimate) | {"own": o} for estimate, o in zip(row, own, strict=True)
            ]
            matrix.append({"part": part, "cells": cells})
        row = [job.estimate(registry.LOSS_KEPT(part, domain)) for domain in job.domains]
        if any(row):
            kept.append({"part": part, "cells": _losses(row, own)})
    full = [job.estimate(registry.LOSS_FULL(domain)) for domain in job.domains]
    return {
        **identity(sweep.labels[job.name], job),
        "name": job.name,
        "domains": job.domains,
        "matrix": matrix,
        "full": _losses(full, [False] * len(full)),
        "kept": kept,
        "printed": not many(sweep) and len(job.domains) < _MANY_DOMAINS,
    }


def _losses(row: Sequence[Estimate | None], own: Sequence[bool]) -> list[dict[str, Any]]:
    return [
        {
            "text": MISSING if estimate is None else f"{estimate.value:.2f}",
            "interval": "" if estimate is None else tables.interval_text(estimate, measures.nats),
            "own": is_own,
        }
        for estimate, is_own in zip(row, own, strict=True)
    ]


def transfer(sweep: Sweep) -> list[dict[str, Any]]:
    """What each domain gains from each other in a dense model, a matrix for each set of baselines:
    means over seeds."""
    groups = _contexts(sweep)

    def found(group: Sequence[Job], part: str, domain: str) -> Estimate | None:
        if domains.is_under(domain, part):
            return None
        return sweep.over_seeds(group, registry.TRANSFER(part, domain))

    gains = [
        found(group, part, domain)
        for _, group in groups
        for part in group[0].nodes
        for domain in group[0].domains
    ]
    scale = Scale(gains, least=_LEAST_TRANSFER)
    cards = []
    for label, group in groups:
        first = group[0]
        rows = []
        for part in first.nodes:
            row = [found(group, part, domain) for domain in first.domains]
            if any(row):
                rows.append({"part": part, "cells": [scale.cell(estimate) for estimate in row]})
        cards.append(
            {"label": label, "seeds": len(group), "domains": first.domains, "matrix": rows}
        )
    return cards


def _contexts(sweep: Sweep) -> list[tuple[str, list[Job]]]:
    """Jobs with transfer in groups that share their baselines but for the seed, one job a seed;
    with what sets the group apart."""
    jobs = [
        job
        for job in sweep.compared
        if any(
            job.estimate(registry.TRANSFER(part, domain)) is not None
            for part in job.nodes
            for domain in job.domains
        )
    ]
    names = tables.baseline_names(sweep, jobs)
    groups: dict[str, dict[int, Job]] = {}
    for job in jobs:
        label = " ".join(f"{short_name(name)}={shown(job.settings.get(name))}" for name in names)
        groups.setdefault(label, {}).setdefault(job.seed, job)
    return [(label, list(by_seed.values())) for label, by_seed in groups.items()]
