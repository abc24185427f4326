"""The metrics of a job's own table, worked out by hand, and their intervals."""

import math

import numpy as np
import pytest

from gr_sweep.metrics.compare import Baselines, summarize_losses
from gr_sweep.metrics.losses import DocumentLoss, Text, View


def row(view: str, part: str, domain: str, document: str, loss: float, tokens: int) -> DocumentLoss:
    return DocumentLoss(View(view), part, domain, Text.plain, document, loss, tokens, 4 * tokens)


def two_domains() -> list[DocumentLoss]:
    """code: documents of 10 and 30 tokens; biology: one of 20."""
    return [
        row("full", "", "code", "c0", 20.0, 10),
        row("full", "", "code", "c1", 100.0, 30),
        row("full", "", "biology", "b0", 80.0, 20),
        row("removed", "code", "code", "c0", 40.0, 10),
        row("removed", "code", "code", "c1", 160.0, 30),
        row("removed", "code", "biology", "b0", 82.0, 20),
        row("kept", "code", "code", "c0", 18.0, 10),
        row("kept", "code", "code", "c1", 98.0, 30),
        row("kept", "code", "biology", "b0", 120.0, 20),
    ]


def test_losses_are_summed_loss_over_summed_tokens() -> None:
    metrics, _ = summarize_losses(two_domains(), ["code", "biology"], seed=0)
    assert metrics["loss/full/code"] == 120 / 40
    assert metrics["loss/full/biology"] == 80 / 20
    assert metrics["loss/removed/code/code"] == 200 / 40
    assert metrics["loss/kept/code/biology"] == 120 / 20
    assert metrics["bits_per_byte/full/code"] == pytest.approx(120 / math.log(2) / 160)


def test_matrix_and_selectivity_follow_their_definitions() -> None:
    rows, domains = two_domains(), ["code", "biology"]
    metrics, intervals = summarize_losses(rows, domains, seed=0)
    assert metrics["separability/matrix/code/code"] == pytest.approx(2.0)
    assert metrics["separability/matrix/code/biology"] == pytest.approx(0.1)
    assert metrics["separability/selectivity/code"] == pytest.approx(1.9)
    assert not any("/biology/biology" in key for key in metrics), "biology was never removed"
    assert "separability/selectivity/biology" not in metrics
    assert metrics["mean_loss"] == pytest.approx((3.0 + 4.0) / 2), "domains weigh alike"
    assert metrics["mean_selectivity"] == pytest.approx(1.9), "of what was removed"
    assert "mean_loss" not in intervals, "a document alone says nothing of others"
    rows[0] = rows[0]._replace(loss_nats=math.nan)
    assert "mean_loss" not in summarize_losses(rows, domains, seed=0)[0]


def test_slash_in_a_domain_becomes_a_dot_and_an_inner_node_stands_for_what_lies_below() -> None:
    domains = ["code", "biology/cells", "biology/virology"]
    rows = [row("full", "", domain, domain, 40.0, 10) for domain in domains]
    for domain, cost in zip(domains, (1.0, 20.0, 30.0), strict=True):
        rows.append(row("removed", "biology", domain, domain, 40.0 + cost, 10))
        own = 20.0 * (domain == "biology/cells")
        rows.append(row("removed", "biology/cells", domain, domain, 40.0 + own, 10))
    metrics, _ = summarize_losses(rows, domains, seed=0)
    assert metrics["separability/matrix/biology/biology.virology"] == pytest.approx(3.0)
    assert metrics["separability/selectivity/biology"] == pytest.approx((2.0 + 3.0) / 2 - 0.1)
    assert metrics["mean_selectivity"] == pytest.approx(2.0), "of labels and no inner nodes"


def test_a_domain_on_an_inner_node_has_a_loss_of_its_own() -> None:
    domains = ["code", "biology", "biology/virology"]
    rows = [row("full", "", d, d, 10.0 * at, 10) for at, d in enumerate(domains, start=1)]
    rows += [row("removed", "biology", d, d, 10.0 * at + 5, 10) for at, d in enumerate(domains, 1)]
    dense = [row("full", "", d, d, 10.0, 10) for d in domains]
    filtered = [row("full", "", d, d, 40.0, 10) for d in domains]
    baselines = Baselines(dense=dense, filtered={"biology": filtered})
    metrics, _ = summarize_losses(rows, domains, baselines, seed=0)
    assert metrics["loss/full/biology"] == pytest.approx(2.0)
    assert metrics["mean_loss"] == pytest.approx(2.0), "each label counts once"
    assert metrics["utility/tax/biology"] == pytest.approx(1.0)
    # As the domain that is removed it is the node: full 2.5, without it 3, never trained 4.
    assert metrics["separability/removal/biology"] == pytest.approx(0.5 / 1.5)


def test_what_others_gain_from_a_removal_counts_nothing_in_any_resample() -> None:
    rng = np.random.default_rng(3)
    rows = []
    for domain in ("code", "biology", "creative"):
        for at in range(20):
            cost = {"code": 1.0, "biology": -0.5, "creative": rng.normal(0.1, 1)}[domain]
            rows.append(row("full", "", domain, f"{domain}{at}", 40.0, 10))
            rows.append(row("removed", "code", domain, f"{domain}{at}", 40.0 + 10 * cost, 10))
    metrics, intervals = summarize_losses(rows, ["code", "biology", "creative"], seed=0)
    lost = metrics["separability/matrix/code/creative"]
    assert lost > 0 > metrics["separability/matrix/code/biology"]
    assert metrics["separability/selectivity/code"] == pytest.approx(1.0 - lost / 2)
    low, high = intervals["separability/matrix/code/creative"]
    assert low < 0, "in some resamples creative gains"
    expected = (1.0 - high / 2, 1.0)
    assert intervals["separability/selectivity/code"] == pytest.approx(expected)


def test_entanglement_compares_owners_with_other_domains() -> None:
    costs = {"a": 1.0, "b": 3.0, "c": 0.5, "d": -0.5}
    rows = [row("full", "", domain, domain, 40.0, 10) for domain in costs]
    rows += [
        row("off", "a+b", domain, domain, 40 + 10 * cost, 10) for domain, cost in costs.items()
    ]
    metrics, _ = summarize_losses(rows, list(costs), seed=0, blocks={"a+b": ["a", "b"]})
    assert metrics["separability/entanglement/a+b/inside"] == pytest.approx(2.0)
    assert metrics["separability/entanglement/a+b/outside"] == pytest.approx(0.0)
    for blocks in (None, {"a+b": list(costs)}):
        metrics, _ = summarize_losses(rows, list(costs), seed=0, blocks=blocks)
        assert not any("entanglement" in key for key in metrics)


def marked(rows: list[DocumentLoss], text: Text, cost: float) -> list[DocumentLoss]:
    """The documents with a marker of 5 tokens, each token costing `cost` more."""
    return [
        r._replace(text=text, loss_nats=r.loss_nats + cost * r.tokens, tokens=r.tokens + 5)
        for r in rows
    ]


def test_spurious_gap_is_the_loss_of_swapped_text_minus_marked() -> None:
    rows = two_domains()
    plain = summarize_losses(rows, ["code", "biology"], seed=0)
    rows += [*marked(two_domains(), Text.marked, 0.0), *marked(two_domains(), Text.swapped, 0.5)]
    metrics, intervals = summarize_losses(rows, ["code", "biology"], seed=0)
    # Two documents of 10 and 30 tokens, read with 15 and 35.
    assert metrics.pop("robustness/spurious_gap/full/code") == pytest.approx(0.5 * 40 / 50)
    assert metrics.pop("robustness/spurious_gap/full/biology") == pytest.approx(0.5 * 20 / 25)
    assert metrics.pop("robustness/spurious_gap/kept/code") == pytest.approx(0.5 * 40 / 50)
    assert metrics == plain[0]
    assert {key for key in intervals if "spurious" in key} == {
        "robustness/spurious_gap/full/code",
        "robustness/spurious_gap/kept/code",
    }


@pytest.mark.parametrize("broken", [math.nan, math.inf, None])
def test_a_missing_loss_removes_only_its_own_metrics(
    broken: float | None,
) -> None:
    rows = two_domains()
    [at] = [at for at, r in enumerate(rows) if (r.view, r.document) == (View.removed, "c1")]
    rows[at : at + 1] = [] if broken is None else [rows[at]._replace(loss_nats=broken)]
    metrics, intervals = summarize_losses(rows, ["code", "biology"], seed=0)
    gone = {"loss/removed/code/code", "separability/matrix/code/code"}
    gone |= {"separability/selectivity/code"}
    assert not gone & (metrics.keys() | intervals.keys())
    assert metrics["loss/full/code"] == 3.0
    assert metrics["separability/matrix/code/biology"] == pytest.approx(0.1)


def test_empty_table_and_documents_without_tokens_give_nothing() -> None:
    assert summarize_losses([], ["code"], seed=0) == ({}, {})
    empty = [row("full", "", "code", "c0", 0.0, 0)]
    assert summarize_losses(empty, ["code"], seed=0) == ({}, {})
    with_empty = [*two_domains(), row("full", "", "code", "c2", 0.0, 0)]
    plain = summarize_losses(two_domains(), ["code", "biology"], seed=0)
    assert summarize_losses(with_empty, ["code", "biology"], seed=0) == plain
