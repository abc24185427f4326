"""What the metrics say of generated text, whose truth is known: it must be that truth.

Whole jobs of the smallest model, some seconds each.
"""

import pytest

from gr_sweep.config import (
    Edges,
    Method,
    MethodConfig,
    PlanConfig,
    PlanKind,
    RouteConfig,
    RunConfig,
)
from tests import jobs
from tests.jobs import DOMAINS, run


def make_config(
    cache, *, overlap, domains=DOMAINS, plan=PlanKind.peers, method=Method.routed, steps=200
) -> RunConfig:
    sizes = {"batch_sequences": 12, "sequence_length": 64}
    return jobs.make_config(
        cache,
        domains=domains,
        data={"documents": 500, "vocab_size": 1200, "overlap": overlap},
        train=sizes | {"steps": steps, "log_every": 100, "checkpoint_every": None},
        eval={"tokens": 3000, "document_tokens": 128, "curve_tokens": 256, "samples": 0},
        edges=Edges.weight,
        plan=PlanConfig(kind=plan, mlp_shared=0.25),
        route=RouteConfig(foreign_dropout=0.5),
        method=MethodConfig(name=method),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def selectivities(summary: dict) -> list[float]:
    return [summary["metrics"][f"separability/selectivity/{domain}"] for domain in DOMAINS]


@pytest.mark.slow
def test_separation_falls_as_overlap_rises(cache, tmp_path):
    apart = selectivities(run(make_config(cache, overlap=0.0), tmp_path / "0"))
    alike = selectivities(run(make_config(cache, overlap=1.0), tmp_path / "1"))

    assert min(apart) > 0.5
    assert max(map(abs, alike)) < 0.1


def test_random_labels_do_not_separate(cache, tmp_path):
    """Domains that share nothing, but labels are permuted over the documents."""
    summary = run(make_config(cache, overlap=0.0, method=Method.random, steps=80), tmp_path)

    assert max(map(abs, selectivities(summary))) < 0.1


@pytest.mark.slow
def test_features_of_two_domains_are_learned_by_their_common_block(cache, tmp_path):
    """Switching off a block of two domains costs these two most where they share words that
    nobody else has, as the two sciences do."""
    domains = ["science/code", "science/biology", "creative"]
    config = make_config(cache, overlap=0.6, domains=domains, plan=PlanKind.lattice, steps=700)
    metrics = run(config, tmp_path)["metrics"]
    inside = {
        key.split("/")[2]: value
        for key, value in metrics.items()
        if key.startswith("separability/entanglement/") and key.endswith("/inside")
    }
    common = "science.code+science.biology"
    others = [value for name, value in inside.items() if "creative" in name and "+" in name]
    assert inside[common] > 1.5 * max(others) > 0
