"""The panels of a dashboard: none names what no run has."""

import dataclasses

from gr_sweep.metrics import registry
from gr_sweep.tracking.base import HEAT_MAP, STEP_FIELD
from gr_sweep.tracking.dashboard import Dashboard, Logged, make_dashboard

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


def make(logged: Logged) -> Dashboard:
    return make_dashboard(logged, entity=None, project="p", groups=["sweep"])


def test_panels_use_only_logged_metrics() -> None:
    """Whatever single metric is missing."""
    for family in ("history", "summary"):
        for name in getattr(EVERYTHING, family):
            logged = dataclasses.replace(
                EVERYTHING, **{family: getattr(EVERYTHING, family) - {name}}
            )
            metrics = {STEP_FIELD, *logged.history, *logged.summary}
            for section in make(logged).sections:
                for panel in section.panels:
                    assert {*panel.metrics, panel.x} - metrics - {None} == set(), (name, panel)


def test_the_preferred_axes_that_runs_have_come_first() -> None:
    dashboard = make(EVERYTHING)
    scatter, *_, parallel = dashboard.sections[0].panels
    expected = (registry.SERVED_TAX.mean, registry.SERVED_REMOVAL.mean)
    assert scatter.metrics == dashboard.columns == expected
    assert (parallel.settings, parallel.metrics) == (("edges", "train.lr"), scatter.metrics)
