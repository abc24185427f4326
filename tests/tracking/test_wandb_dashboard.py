"""The panels of a dashboard: none names what no run has."""

import dataclasses
import json

import pytest

from gr_sweep.metrics import registry
from gr_sweep.tracking.base import HEAT_MAP

pytest.importorskip("wandb_workspaces")

from gr_sweep.tracking.wandb_dashboard import Logged, make_sections

DOMAINS = ("code", "biology/virology")

EVERYTHING = Logged(
    history=frozenset(
        {
            registry.TRAIN_LOSS.key,
            registry.ROUND.key,
            registry.MODULARITY.key,
            registry.TRAIN_TOKENS_PER_SECOND.key,
            *map(registry.TRAIN_LOSS_OF, DOMAINS),
            *map(registry.EVAL_LOSS, DOMAINS),
            *map(registry.LOSS_SERVED, DOMAINS),
            *map(registry.LOSS_EXPERT, DOMAINS),
        }
    ),
    summary=frozenset(
        {
            registry.SERVED_TAX.mean,
            registry.LOSS_SERVED.mean,
            registry.SERVED_REMOVAL.mean,
            registry.SELECTIVITY.mean,
            registry.LEAKAGE.mean,
            *(registry.MATRIX(part, domain) for part in DOMAINS for domain in DOMAINS),
            *map(registry.LOSS_SERVED, DOMAINS),
            registry.COST_MFU.key,
            HEAT_MAP,
        }
    ),
    varied=("edges", "train.lr"),
    domains=DOMAINS,
)


def shown(logged: Logged) -> set[str]:
    """The metrics that the panels name."""
    specs = [
        json.dumps(dataclasses.asdict(panel))
        for panels in make_sections(logged).values()
        for panel in panels
    ]
    known = EVERYTHING.history | EVERYTHING.summary
    return {key for key in known if any(json.dumps(key) in spec for spec in specs)}


def test_panels_use_only_logged_metrics() -> None:
    """Whatever single metric is missing."""
    assert shown(EVERYTHING) > EVERYTHING.summary
    for family in ("history", "summary"):
        for name in getattr(EVERYTHING, family):
            left = getattr(EVERYTHING, family) - {name}
            logged = dataclasses.replace(EVERYTHING, **{family: left})
            assert shown(logged) <= logged.history | logged.summary, name


def test_the_preferred_axes_that_runs_have_come_first() -> None:
    scatter, *_, parallel = make_sections(EVERYTHING)["Utility and separability"]
    expected = (registry.SERVED_TAX.mean, registry.SERVED_REMOVAL.mean)
    assert (scatter.x.name, scatter.y.name) == EVERYTHING.axes == expected
    axes = tuple(column.metric.name for column in parallel.columns)
    assert axes == ("edges", "train.lr", *expected)
