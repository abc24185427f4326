"""What a dashboard shows: nothing that no run has."""

import json

from gr_sweep.metrics import registry
from gr_sweep.tracking.base import HEAT_MAP, MATRIX_TABLE, STEP_FIELD
from gr_sweep.tracking.dashboard import (
    ADDED,
    COMPARED_AS,
    LABEL,
    Dashboard,
    Logged,
    Measure,
    Parallel,
    Scatter,
    make_dashboard,
)

DOMAINS = ("code", "biology/virology")
TAX = Measure(registry.MEAN_TAX, "mean tax")
LOSS = Measure(registry.MEAN_LOSS, "mean loss")
REMOVAL = Measure(registry.MEAN_REMOVAL, "mean removal")
SELECTIVITY = Measure(registry.MEAN_SELECTIVITY, "mean selectivity")
LEAKAGE = Measure(registry.MEAN_LEAKAGE, "leakage")


def make(logged: Logged) -> Dashboard:
    return make_dashboard(
        logged,
        entity=None,
        project="p",
        groups=["sweep"],
        axes=[(TAX, REMOVAL), (LOSS, SELECTIVITY)],
        measures=[LOSS, TAX, REMOVAL, SELECTIVITY],
        robust=[LEAKAGE],
    )


EVERYTHING = Logged(
    history=frozenset(
        {
            registry.TRAIN_LOSS.key,
            registry.ROUND.key,
            registry.MODULARITY.key,
            registry.TRAIN_TOKENS_PER_SECOND.key,
            *map(registry.TRAIN_LOSS_OF, DOMAINS),
            *map(registry.EVAL_LOSS, DOMAINS),
            *map(registry.LOSS_EXPERT, DOMAINS),
        }
    ),
    summary=frozenset(
        {
            *(measure.key for measure in (TAX, LOSS, REMOVAL, SELECTIVITY, LEAKAGE)),
            *(registry.MATRIX(part, domain) for part in DOMAINS for domain in DOMAINS),
            *map(registry.LOSS_FULL, DOMAINS),
            registry.COST_MFU.key,
            registry.in_round(1, registry.MEAN_LEAF_TAX),
            registry.in_round(1, registry.MEAN_PARAMETERS_KEPT),
        }
    ),
    media=frozenset({HEAT_MAP, MATRIX_TABLE}),
    settings=frozenset({"edges", "method.name", f"{ADDED}.{COMPARED_AS}", f"{ADDED}.{LABEL}"}),
    varied=("edges", "train.lr"),
    domains=DOMAINS,
    rounds={1: DOMAINS},
    num_compared=2,
    num_labels=4,
)


def test_there_is_a_section_of_each_kind_where_runs_have_all_of_it() -> None:
    assert [section.name for section in make(EVERYTHING).sections] == [
        "Utility and separability",
        "Edge choices",
        "All settings",
        "Loss curves",
        "Removal",
        "Robustness",
        "Cost",
        "Rounds",
        "Round 1",
    ]


def test_no_panel_names_what_no_run_has() -> None:
    """Whatever single metric or setting is missing."""
    has = EVERYTHING
    for family in ("history", "summary", "settings", "media"):
        for name in getattr(has, family):
            fewer = {
                one: getattr(has, one) for one in ("history", "summary", "settings", "media")
            } | {family: getattr(has, family) - {name}}
            logged = Logged(varied=has.varied, domains=has.domains, rounds=has.rounds, **fewer)
            metrics = {STEP_FIELD, *logged.history, *logged.summary, *logged.media}
            for panel in make(logged).panels:
                assert set(panel.metrics) <= metrics, (name, panel)
                assert set(panel.settings) <= {*logged.settings, "edges", "method.name"}


def test_runs_that_logged_nothing_have_no_sections() -> None:
    empty = Logged(
        history=frozenset(), summary=frozenset(), settings=frozenset(), varied=(), domains=DOMAINS
    )
    assert make(empty).sections == ()


def test_the_best_axes_that_there_are_come_first() -> None:
    scatters = [panel for panel in make(EVERYTHING).panels if isinstance(panel, Scatter)]
    assert scatters[0].metrics == (registry.MEAN_TAX, registry.MEAN_REMOVAL)
    assert make(EVERYTHING).columns == (registry.MEAN_TAX, registry.MEAN_REMOVAL)
    (parallel,) = [panel for panel in make(EVERYTHING).panels if isinstance(panel, Parallel)]
    # No run has train.lr.
    assert (parallel.over, parallel.ends) == (
        ("edges",),
        (registry.MEAN_TAX, registry.MEAN_REMOVAL),
    )


def test_a_nested_domain_is_named_as_its_metrics_are() -> None:
    titles = {panel.title: panel.metrics for panel in make(EVERYTHING).panels}
    assert titles["held-out loss on biology/virology, nats a token"][0] == (
        "eval/loss/biology.virology"
    )


def test_a_dashboard_is_found_again_by_the_project_and_the_sweep() -> None:
    one, again = make(EVERYTHING), make(EVERYTHING)
    assert one.markers == again.markers and one.title == "gr-sweep: sweep"
    other = Dashboard(entity=None, project="p", groups=("x",), columns=(), sections=())
    whole = Dashboard(entity=None, project="p", groups=(), columns=(), sections=())
    assert len({*one.markers, *other.markers, *whole.markers}) == 3
    both = Dashboard(entity=None, project="p", groups=("x", "sweep"), columns=(), sections=())
    assert both.markers == (*other.markers, *one.markers)
    assert whole.title == "gr-sweep: p"


def test_the_plain_form_is_json_with_the_kind_of_each_panel() -> None:
    plain = json.loads(json.dumps(make(EVERYTHING).as_plain()))
    first = plain["sections"][0]["panels"][0]
    assert first == {
        "panel": "scatter",
        "title": "mean tax against mean removal",
        "x": "mean_tax",
        "y": "mean_removal",
    }
