"""Metrics against baselines: by hand, against a literal resampling, and absent where they must
be."""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from gr_sweep.metrics.compare import Baselines, attacks, compare_relearn, summarize_losses
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, Text, View

DOMAINS = ["code", "biology", "creative"]
Rows = list[DocumentLoss]
NONE = Baselines()


def rows_of(
    losses: Mapping[tuple[str, str], Mapping[str, float]],
    tokens: Mapping[str, Sequence[int]] | None = None,
    noise: Callable[[str, int], float] = lambda domain, at: 0.0,
) -> Rows:
    """A table from mean losses by (view, part) and domain; documents of 10 and 30 tokens."""
    rows = []
    for (view, part), by_domain in losses.items():
        for domain, mean in by_domain.items():
            for at, count in enumerate((tokens or {}).get(domain, (10, 30))):
                loss = (mean + noise(domain, at)) * count
                document = f"{domain}{at}"
                rows.append(
                    DocumentLoss(
                        View(view), part, domain, Text.plain, document, loss, count, 4 * count
                    )
                )
    return rows


def by_domain(code: float, biology: float, creative: float) -> dict[str, float]:
    return {"code": code, "biology": biology, "creative": creative}


JOB = {
    ("full", ""): by_domain(4.5, 4.25, 5.0),
    ("served", ""): by_domain(4.25, 4.5, 5.0),
    ("removed", "biology"): by_domain(4.5, 6.25, 5.25),
    ("served_removed", "biology"): by_domain(4.75, 7.25, 5.0),
    ("kept", "code"): by_domain(3.5, 8.0, 8.0),
    ("kept", "biology"): by_domain(8.0, 5.0, 8.0),
    ("calibrated_full", "biology"): {"biology": 4.0},
    ("calibrated_removed", "biology"): {"biology": 5.0},
}
DENSE = {("full", ""): by_domain(4.0, 4.0, 4.5)}
WITHOUT_BIOLOGY = {
    ("full", ""): by_domain(4.25, 8.25, 4.5),
    ("calibrated_full", "biology"): {"biology": 6.0},
}
OBSERVED = {("full", ""): by_domain(4.25, 5.25, 4.5)}
HALF = {("full", ""): by_domain(5.0, 5.0, 5.0)}
QUARTER = {("full", ""): by_domain(6.0, 6.0, 6.0)}
BIOLOGY_ALONE = {("full", ""): by_domain(9.0, 4.75, 9.0)}


def all_baselines() -> Baselines:
    return Baselines(
        dense=rows_of(DENSE),
        shorter={0.5: rows_of(HALF), 0.25: rows_of(QUARTER)},
        filtered={"biology": rows_of(WITHOUT_BIOLOGY)},
        filtered_observed={"biology": rows_of(OBSERVED)},
        alone={"biology": rows_of(BIOLOGY_ALONE)},
    )


def compared(job: Rows, baselines: Baselines) -> dict[str, float]:
    """What the baselines add to the job's own metrics, which they do not change."""
    metrics, own = (summarize_losses(job, DOMAINS, of, seed=0)[0] for of in (baselines, NONE))
    assert own.items() <= metrics.items()
    return {key: value for key, value in metrics.items() if key not in own}


def test_every_metric_follows_its_definition() -> None:
    half = 0.5
    assert compared(rows_of(JOB), all_baselines()) == pytest.approx(
        {
            "utility/tax/code": 0.5,
            "utility/tax/biology": 0.25,
            "utility/tax/creative": 0.5,
            "utility/expert_tax/code": -0.5,
            "utility/expert_tax/biology": 1.0,
            "utility/alone_tax/biology": 0.25,
            "utility/served_tax/code": 0.25,
            "utility/served_tax/biology": 0.5,
            "utility/served_tax/creative": 0.5,
            "utility/removed_tax/biology/code": 0.25,
            "utility/removed_tax/biology/creative": 0.75,
            "utility/served_removed_tax/biology/code": 0.5,
            "utility/served_removed_tax/biology/creative": 0.5,
            "utility/transfer/biology/code": 0.25,
            "utility/transfer/biology/creative": 0.0,
            "utility/compute_equivalent/served/code": half * 2**0.75,
            "utility/compute_equivalent/served/biology": half * 2**0.5,
            "utility/compute_equivalent/served/creative": half,
            "utility/compute_equivalent/full/code": half * 2**0.5,
            "utility/compute_equivalent/full/biology": half * 2**0.75,
            "utility/compute_equivalent/full/creative": half,
            "utility/compute_equivalent/kept/code": 1.0,
            "utility/compute_equivalent/kept/biology": half,
            "utility/compute_equivalent/removed/biology/code": half * 2**0.5,
            "utility/compute_equivalent/removed/biology/creative": 0.25 * 2**0.75,
            "utility/compute_equivalent/served_removed/biology/code": half * 2**0.25,
            "utility/compute_equivalent/served_removed/biology/creative": half,
            "separability/removal/biology": 0.5,
            "separability/served_removal/biology": 2.75 / 3.75,
            "robustness/calibrated_removal/biology": 0.5,
            "robustness/leakage/biology": 2 / 3,
            # The parts kept alone are two of three domains: no mean of them.
            "mean_tax": 1.25 / 3,
            "mean_served_tax": 1.25 / 3,
            "mean_served_compute_equivalent": half * (2**0.75 + 2**0.5 + 1) / 3,
            "mean_compute_equivalent": half * (2**0.5 + 2**0.75 + 1) / 3,
            "mean_removal": 0.5,
            "mean_served_removal": 2.75 / 3.75,
            "mean_calibrated_removal": 0.5,
            "mean_leakage": 2 / 3,
            "mean_removed_tax": 0.5,
            "mean_served_removed_tax": 0.5,
            "mean_served_removed_compute_equivalent": half * (2**0.25 + 1) / 2,
            "mean_removed_compute_equivalent": (half * 2**0.5 + 0.25 * 2**0.75) / 2,
        }
    )


def kinds(metrics: Mapping[str, float]) -> set[str]:
    return {key.split("/")[1] for key in metrics if "/" in key}


def test_metric_without_its_baseline_is_absent() -> None:
    job, everything = rows_of(JOB), all_baselines()
    assert kinds(compared(job, Baselines(dense=everything.dense))) == {
        "tax", "expert_tax", "served_tax",
    }  # fmt: skip
    assert kinds(compared(job, Baselines(filtered=everything.filtered))) == {
        "removed_tax", "served_removed_tax", "removal", "served_removal", "calibrated_removal",
    }  # fmt: skip
    assert compared(job, Baselines(shorter=everything.shorter)) == {}
    assert compared(job, Baselines(filtered={"code": rows_of(DENSE)})) == {}, "of another domain"
    no_worse = rows_of({("full", ""): by_domain(4.0, 4.25, 4.5)})
    assert "removal" not in kinds(compared(job, Baselines(filtered={"biology": no_worse})))
    found = compared(rows_of({**JOB, ("full", ""): by_domain(6.5, 4.25, 5.0)}), everything)
    assert "utility/compute_equivalent/full/code" not in found, "above the shortest dense run"
    assert "separability/forget_compute/biology" not in found, "6.25 is more than 6"


def test_where_rounds_have_split_a_domain_each_document_is_read_by_its_own_expert() -> None:
    job = rows_of({**JOB, ("expert", ""): by_domain(3.25, 4.0, 5.0)})
    metrics = compared(job, Baselines(alone={"biology": rows_of(BIOLOGY_ALONE)}))
    assert metrics == pytest.approx({"utility/alone_tax/biology": 4.0 - 4.75})


def test_baseline_counts_on_the_documents_of_the_job_and_must_have_read_all_of_them() -> None:
    short = {domain: (10,) for domain in DOMAINS}
    longer = {domain: (10, 31) for domain in DOMAINS}
    for tokens in (short, longer):
        assert compared(rows_of(JOB), Baselines(dense=rows_of(DENSE, tokens))) == {}
    more = {domain: (10, 30, 500) for domain in DOMAINS}
    dense = rows_of(DENSE, more, noise=lambda domain, at: 3.0 if at == 2 else 0.0)
    assert compared(rows_of(JOB), Baselines(dense=dense))["utility/tax/code"] == pytest.approx(0.5)


def test_dense_model_that_unlearned_a_domain_is_measured_like_a_removal() -> None:
    dense = rows_of(
        {
            **DENSE,
            ("unlearned", "biology"): by_domain(4.5, 5.0625, 4.75),
            ("calibrated_full", "biology"): {"biology": 4.0},
            ("calibrated_unlearned", "biology"): {"biology": 4.5},
        }
    )
    metrics = compared(dense, Baselines(filtered={"biology": rows_of(WITHOUT_BIOLOGY)}))
    assert metrics == pytest.approx(
        {
            "robustness/unlearned_removal/biology": 0.25,
            "robustness/unlearned_tax/biology/code": 0.25,
            "robustness/unlearned_tax/biology/creative": 0.25,
            "robustness/calibrated_removal/biology": 0.25,
            "mean_calibrated_removal": 0.25,
        }
    )


def noisy(means: Mapping[tuple[str, str], Mapping[str, float]], seed: int) -> Rows:
    """40 documents a domain that differ by nats in all tables alike, and by hundredths in each."""
    common, own = np.random.default_rng(99), np.random.default_rng(seed)
    hardness = {(domain, at): common.normal(0, 1) for domain in DOMAINS for at in range(40)}
    tokens = {domain: [int(n) for n in common.integers(20, 300, 40)] for domain in DOMAINS}
    return rows_of(means, tokens, lambda domain, at: hardness[domain, at] + own.normal(0, 0.05))


def noisy_baselines() -> Baselines:
    return Baselines(
        dense=noisy(DENSE, 1),
        shorter={0.25: noisy(QUARTER, 2), 0.5: noisy(HALF, 3)},
        filtered={"biology": noisy(WITHOUT_BIOLOGY, 4)},
    )


def literal_intervals(job: Rows, baselines: Baselines) -> dict[str, tuple[float, float]]:
    """A few metrics with their resamples in loops: documents drawn, sums over sums, percentiles."""
    resamples, seed = 50, 7
    tables: dict[str, Rows] = {"job": job, "dense": list(baselines.dense or ())}
    tables |= {"filtered": list(baselines.filtered["biology"])}
    tables |= {str(share): list(table) for share, table in baselines.shorter.items()}
    found: dict[str, list[float]] = {}
    draws = {}
    for domain in DOMAINS:
        documents = sorted({row.document for row in job if row.domain == domain})
        rng = np.random.default_rng([seed, zlib.crc32(domain.encode())])
        indices = rng.integers(len(documents), size=(resamples, len(documents)))
        draws[domain] = [[documents[at] for at in row] for row in indices]
    for at in range(resamples):

        def mean(run: str, domain: str, view: str, part: str = "", at: int = at) -> float:
            rows = {
                row.document: row
                for row in tables[run]
                if (row.domain, row.view, row.part) == (domain, view, part)
            }
            drawn = [rows[document] for document in draws[domain][at]]
            return sum(row.loss_nats for row in drawn) / sum(row.tokens for row in drawn)

        def note(key: str, value: float) -> None:
            found.setdefault(key, []).append(value)

        full, dense = mean("job", "biology", "full"), mean("dense", "biology", "full")
        without = mean("filtered", "biology", "full")
        removed = mean("job", "biology", "removed", "biology")
        note("utility/tax/biology", full - dense)
        taxes = [mean("job", of, "full") - mean("dense", of, "full") for of in DOMAINS]
        note("mean_tax", sum(taxes) / len(taxes))
        note("separability/removal/biology", (removed - full) / (without - full))
        curve = [mean(run, "biology", "full") for run in ("0.25", "0.5")] + [dense]
        share = 0.5 * 2 ** ((curve[1] - full) / (curve[1] - curve[2]))
        assert curve[2] < full < curve[1] < curve[0], "what this literal formula takes for granted"
        note("utility/compute_equivalent/full/biology", share)
    return {
        key: (float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5)))
        for key, values in found.items()
    }


def test_intervals_are_those_of_a_literal_resampling() -> None:
    job, baselines = noisy(JOB, 0), noisy_baselines()
    _, intervals = summarize_losses(job, DOMAINS, baselines, seed=7, resamples=50)
    for key, bounds in literal_intervals(job, baselines).items():
        assert intervals[key] == pytest.approx(bounds, rel=1e-9), key


def test_equal_seeds_give_equal_intervals_and_a_domain_more_moves_none() -> None:
    rows = noisy(JOB, 0)
    both = summarize_losses(rows, ["code", "biology"], seed=3)[1]
    assert summarize_losses(rows, ["biology", "code"], seed=3)[1] == both
    assert summarize_losses(rows, ["code", "biology"], seed=4)[1] != both
    alone = summarize_losses(rows, ["code"], seed=3)[1]
    assert alone["loss/full/code"] == both["loss/full/code"]


# The attack


def attack_rows(view: str, losses: Mapping[float, Mapping[int, float]]) -> list[RelearnLoss]:
    """Attacks on biology: a mean loss by learning rate and tokens trained on; documents of 10 and
    30 tokens."""
    return [
        RelearnLoss(
            View(view), "biology", lr, trained, "biology", f"biology{at}",
            loss * tokens, tokens, 4 * tokens,
        )
        for lr, by_tokens in losses.items()
        for trained, loss in by_tokens.items()
        for at, tokens in enumerate((10, 30))
    ]  # fmt: skip


# F - D is 8.25 - 4: half of the way is 6.125.
ATTACKED = {1e-3: {0: 8.125, 10: 7.125, 20: 5.125}, 3e-3: {0: 8.125, 10: 6.0, 20: 9.0}}
ATTACKED_FILTERED = {1e-3: {0: 8.25, 10: 7.125, 40: 5.125}}
TOO_SHORT = {1e-3: {0: 8.25, 10: 8.0, 20: 7.5}}


def attacked(
    own: Mapping[float, Mapping[int, float]], filtered: Mapping[float, Mapping[int, float]]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Metrics without the prefix of biology's attack, and intervals."""
    baselines = Baselines(
        dense=rows_of(DENSE),
        filtered={"biology": rows_of(WITHOUT_BIOLOGY)},
        filtered_relearned={"biology": attack_rows("full", filtered)},
    )
    metrics, intervals = compare_relearn(attack_rows("removed", own), baselines, DOMAINS, seed=0)
    relearn = "robustness/relearn/biology/"
    return {key.removeprefix(relearn): value for key, value in metrics.items()}, intervals


def test_attack_is_read_at_its_strongest_beside_that_on_the_filtered_model() -> None:
    metrics, intervals = attacked(ATTACKED, ATTACKED_FILTERED)
    ratio = 10 * 2 / 2.125 / 20
    assert metrics == pytest.approx(
        {
            "loss": 5.125, "tokens": 10 * 2 / 2.125, "censored": 0,
            "filtered_loss": 5.125, "filtered_tokens": 20, "filtered_censored": 0,
            "ratio": ratio, "mean_relearn_ratio": ratio,
        }
    )  # fmt: skip
    assert "robustness/relearn/biology/ratio" in intervals
    assert "robustness/relearn/biology/censored" not in intervals


def test_relearning_ratio_is_a_bound_where_one_attack_is_censored_and_absent_where_both_are() -> (
    None
):
    for own, filtered, ratio in (
        (TOO_SHORT, ATTACKED_FILTERED, 20 / 20),
        (ATTACKED, TOO_SHORT, 10 * 2 / 2.125 / 20),
        (TOO_SHORT, TOO_SHORT, None),
    ):
        metrics, _ = attacked(own, filtered)
        assert metrics["censored"] == (own is TOO_SHORT)
        assert metrics["filtered_censored"] == (filtered is TOO_SHORT)
        assert metrics.get("ratio") == (ratio and pytest.approx(ratio))
        assert "mean_relearn_ratio" not in metrics, "a mean is of numbers, not of bounds"


def test_attack_without_baselines_has_its_lowest_loss_alone_and_its_curves() -> None:
    rows = attack_rows("unlearned", ATTACKED)
    metrics, _ = compare_relearn(rows, Baselines(), DOMAINS, seed=0)
    assert metrics == pytest.approx({"robustness/relearn/biology/loss": 5.125})
    assert compare_relearn([], Baselines(), DOMAINS, seed=0) == ({}, {})
    assert attacks(rows, "biology", DOMAINS) == {
        1e-3: ([0, 10, 20], [8.125, 7.125, 5.125]),
        3e-3: ([0, 10, 20], [8.125, 6.0, 9.0]),
    }
