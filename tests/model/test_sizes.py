"""Named shapes, and MLPs that are widened for the experts of a plan."""

from dataclasses import replace

import pytest

from gr_sweep.errors import PlanError
from gr_sweep.model.sizes import SIZES, full_width
from gr_sweep.routing.plan import RoutePlan

DOMAINS = ["code", "biology", "creative"]
NANO = SIZES["nano"]


def kept_units(shape, kind, domain, **settings):
    """MLP units of the first layer that keep(domain) leaves, counted block by block."""
    plan = RoutePlan.make(kind, shape, **settings)
    off = plan.kept_off([domain])
    return sum(size for b, size in enumerate(plan.splits[0, "mlp"].sizes) if b not in off)


@pytest.mark.parametrize(
    ("kind", "settings", "width"),
    [
        # Of DEMix: every expert is as wide as the dense MLP.
        ("peers", {"mlp_shared": 0.0}, 3 * 768),
        # Core w / 2 and a third of the other half: 4 w / 6 = 768.
        ("peers", {"mlp_shared": 0.5}, 1152),
        # Code has the core alone: round(w / 2), to even, is 768 from 1535 on.
        ("forget", {"mlp_shared": 0.5, "forget": ["biology"]}, 1535),
        # Of six blocks of w / 6 beside an empty core, code is in 3.
        ("lattice", {"mlp_shared": 0.0}, 1536),
    ],
)
def test_widened_mlps_are_the_narrowest_that_leave_every_domain_the_dense_width(
    kind, settings, width
):
    wide = full_width(NANO, kind, domains=DOMAINS, **settings)
    assert wide.intermediate_size == width
    for shape, is_enough in ((wide, True), (replace(wide, intermediate_size=width - 1), False)):
        kept = [kept_units(shape, kind, d, domains=DOMAINS, **settings) for d in DOMAINS]
        assert (min(kept) >= 768) is is_enough


def test_an_invalid_plan_is_named_and_not_its_width():
    with pytest.raises(PlanError) as refused:
        full_width(NANO, "forget", domains=DOMAINS, forget=[], mlp_shared=0.25)
    assert "needs plan.forget" in str(refused.value) and "full_width" not in str(refused.value)
