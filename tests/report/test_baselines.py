"""Which jobs of a folder are baselines of which, read from jobs as they are left behind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import gr_sweep
from gr_sweep.config import (
    DomainConfig,
    Edges,
    Method,
    MethodConfig,
    PlanKind,
    RunConfig,
    TrainConfig,
)
from gr_sweep.files import content_digest
from gr_sweep.metrics import registry
from gr_sweep.metrics.compare import summarize_losses
from gr_sweep.metrics.losses import (
    DocumentLoss,
    RelearnLoss,
    Text,
    View,
    write_losses,
)
from gr_sweep.report import measures
from gr_sweep.report.baselines import JobTables
from gr_sweep.report.collect import read_sweep
from gr_sweep.report.sweep import Job, Sweep, over_seeds
from gr_sweep.resolve import resolve
from tests.report.conftest import changed, edit, write_summary

DOMAINS = ["code", "biology"]
LOSSES = {
    "routed": (4.5, 4.5),
    "dense": (4.0, 4.0),
    "filtered": (4.25, 8.0),
    "filtered_observed": (4.25, 6.0),
}


def config_of(
    method: str = "routed", *, steps: int = 80, seed: int = 0, **method_: Any
) -> RunConfig:
    config = RunConfig(seed=seed)
    config.partition.domains = {domain: DomainConfig() for domain in DOMAINS}
    config.train = TrainConfig(steps=steps)
    config.method = MethodConfig(name=Method(method), **method_)
    return config


def losses_of(config: RunConfig, shift: float, num_documents: int) -> list[DocumentLoss]:
    method = config.method.name.value
    rng = np.random.default_rng(5)
    rows = []
    for at, domain in enumerate(DOMAINS):
        for number in range(num_documents):
            tokens, hardness = int(rng.integers(20, 200)), rng.normal(0, 1)
            loss = LOSSES[method][at] + shift + hardness + 80 / (config.train.steps or 80) - 1

            views = [(View.full, "", loss)]
            if resolve(config).plan.kind is not PlanKind.none:
                for part in DOMAINS:
                    cost = 1.75 if part == domain else 0.0
                    views += [
                        (View.removed, part, loss + cost),
                        (View.kept, part, loss + 1.75 - cost),
                    ]
            rows += [
                DocumentLoss(
                    view, part, domain, Text.plain, f"{domain}{number}", mean * tokens, tokens, 1
                )
                for view, part, mean in views
            ]
    return rows


def write(
    folder: Path,
    config: RunConfig,
    name: str,
    *,
    shift: float = 0.0,
    num_documents: int = 10,
    text: str = "t",
    relearn: list[RelearnLoss] | None = None,
) -> Path:
    """A finished job."""
    rows = losses_of(config, shift, num_documents)
    metrics, intervals = summarize_losses(rows, DOMAINS, seed=config.seed, resamples=0)
    job = folder / name
    job.mkdir(parents=True)
    write_losses(job / "document_losses.csv", rows)
    if relearn:
        write_losses(job / "relearn.csv", relearn, RelearnLoss)
    write_summary(job, resolve(config), metrics, intervals, text=text)
    return job


def write_baselines(folder: Path) -> None:
    for steps in (10, 20, 40, 80):
        write(folder, config_of("dense", steps=steps), f"dense {steps}")
    for domain in DOMAINS:
        write(folder, config_of("filtered", without=[domain]), f"filtered {domain}")


def named(sweep: Sweep, name: str) -> Job:
    [job] = [job for job in sweep.jobs if job.name == name]
    return job


def test_job_is_joined_with_its_dense_shorter_and_filtered_runs(tmp_path: Path) -> None:
    write_baselines(tmp_path)
    write(tmp_path, config_of(), "routed")
    job = named(read_sweep(tmp_path), "routed")
    expected = {
        "utility/tax/code": 0.5,
        # 4.5 lies half of the way from 5 at 40 steps to 4 at 80.
        "utility/compute_equivalent/full/code": 0.5**0.5,
        "separability/removal/biology": 1.75 / 3.5,
        "utility/transfer/code/biology": 4.0,
        "mean_compute_equivalent": 0.5**0.5,
        "mean_tax": 0.5,
        "mean_expert_tax": 0.5,
        # Without biology code has 4.5 against 4.25; "filtered code" has biology at 8.
        "mean_removed_tax": (0.25 - 3.5) / 2,
    }
    assert {key: job.metrics[key] for key in expected} == pytest.approx(expected)
    # The run without code is no worse on code than the full model.
    assert not {"mean_removal", "mean_served_tax"} & job.metrics.keys()
    assert job.smallest_share == 0.125
    assert job.intervals["utility/tax/code"] == pytest.approx((0.5, 0.5)), "documents are paired"


@pytest.mark.parametrize(
    ("path", "value", "is_baseline"),
    [
        ("model.intermediate_size", 96, False),
        ("train.steps", 79, False),
        ("eval.document_tokens", 64, False),
        ("text", "other", False),
        # 12 sequences of 128 tokens a step; a step that is begun is a whole one.
        ("train.tokens", 79 * 12 * 128 + 1, True),
        ("data.paths", {"code": "elsewhere/code.jsonl"}, True),
    ],
)
def test_baseline_differs_in_nothing_that_changes_a_loss(
    tmp_path: Path, path: str, value: Any, is_baseline: bool
) -> None:
    write(tmp_path, config_of(), "routed")
    config, text = config_of("dense"), "t"
    if path == "text":
        text = value
    elif path == "train.tokens":
        config.train.steps, config.train.tokens = None, value
    else:
        changed(config, path, value)
    write(tmp_path, config, "dense", text=text)
    metrics = named(read_sweep(tmp_path), "routed").metrics
    assert any(key.startswith("utility/") for key in metrics) == is_baseline


@pytest.mark.parametrize(
    ("unlabelled", "is_leakage"),
    [({"biology": 0.3, "code": 0.3}, True), ({"*": 0.3, "biology": 0.2}, False)],
)
def test_filter_by_observed_labels_is_a_baseline_at_the_same_noise(
    tmp_path: Path, unlabelled: Any, is_leakage: bool
) -> None:
    write_baselines(tmp_path)
    config = config_of()
    config.partition.unlabelled, config.partition.mislabelled = 0.3, 0.1
    write(tmp_path, config, "routed")
    config = config_of("filtered_observed", without=["biology"])
    config.partition.unlabelled, config.partition.mislabelled = unlabelled, 0.1
    write(tmp_path, config, "observed")
    found = named(read_sweep(tmp_path), "routed").metrics.get("robustness/leakage/biology")
    # 8 - 6.25 of 8 - 6: of what slipped through, this much is left.
    assert found == (pytest.approx(1.75 / 2) if is_leakage else None)


# Runs on one domain alone


def alone(domain: str, width: int | None = 576) -> RunConfig:
    """A dense run on one of the two domains; 576 units are what a routed job's expert has."""
    [other] = [d for d in DOMAINS if d != domain]
    config = config_of("filtered", without=[other])
    config.model.intermediate_size = width
    return config


def test_expert_is_joined_with_a_dense_run_of_its_width_on_its_domain(tmp_path: Path) -> None:
    for domain in DOMAINS:
        write(tmp_path, alone(domain), f"{domain} alone", shift=0.125)
    write(tmp_path, config_of(), "routed")
    sweep = read_sweep(tmp_path)
    job = named(sweep, "routed")
    # Kept alone it has 4.5; filtered runs have 4.25 on code and 8 on biology.
    assert job.metrics["utility/alone_tax/code"] == pytest.approx(4.5 - 4.375)
    assert job.metrics["utility/alone_tax/biology"] == pytest.approx(4.5 - 8.125)
    assert job.metrics["mean_alone_tax"] == pytest.approx((0.125 - 3.625) / 2)
    assert job.intervals["utility/alone_tax/code"] == pytest.approx((0.125, 0.125)), "paired"
    # They lack the other domain, but are of another size: not a filtered baseline.
    assert not any(key.startswith("separability/removal") for key in job.metrics)
    assert not any(key.startswith("utility/") for key in named(sweep, "code alone").metrics)


# Dense runs of fewer tokens


def test_shorter_dense_runs_are_not_compared_but_stay_in_the_table(tmp_path: Path) -> None:
    write_baselines(tmp_path)
    write(tmp_path, config_of(), "routed")
    sweep = read_sweep(tmp_path)
    compared = [job.name for job in sweep.compared]
    assert compared == ["dense 80", "filtered biology", "filtered code", "routed"]
    assert len(sweep.jobs) == 7 and "train.steps" not in sweep.varied
    frame = gr_sweep.results(tmp_path).set_index("job")
    assert frame.loc["dense 20", "train.steps"] == 20
    assert not frame.loc["dense 20"].filter(like="utility/").notna().any()
    assert not pd.isna(frame.loc["dense 20", "loss/full/code"])
    write(tmp_path, config_of(steps=40), "routed 40")
    shorter = [job.name for job in read_sweep(tmp_path).jobs if job.is_shorter_dense]
    assert shorter == ["dense 10", "dense 20"], "the other is the baseline of its length"


def test_loss_above_the_shortest_dense_run_of_the_curve_is_a_bound(tmp_path: Path) -> None:
    for steps in (4, 40, 80):
        write(tmp_path, config_of("dense", steps=steps), f"dense {steps}")
    # 6.25 is left of what is removed, and 4.6: dense has 5 at half of the tokens.
    write(tmp_path, config_of(), "gone")
    write(tmp_path, changed(config_of(), "edges", Edges.both), "there", shift=-1.65)
    sweep = read_sweep(tmp_path)
    gone, there = named(sweep, "gone"), named(sweep, "there")
    assert gone.smallest_share == 0.5, "from 40 to 4 steps is too far to interpolate"
    forget = measures.BY_METRIC[registry.FORGET_COMPUTE]
    for part in (None, "code"):
        assert measures.fraction.value(forget.of(gone, part)) == "<1/2"
    left = forget.of(there)
    assert left is not None and left.value > 0.5 and left.interval is not None


# Relearning and calibration


def attack_of(view: View, *losses: float) -> list[RelearnLoss]:
    """On a document of biology, evaluated every ten tokens."""
    return [
        RelearnLoss(view, "biology", 1e-3, 10 * at, "biology", "biology0", 100 * loss, 100, 400)
        for at, loss in enumerate(losses)
    ]


def test_attack_is_joined_with_the_one_of_the_same_settings(tmp_path: Path) -> None:
    for steps, loss in ((20, 7.0), (40, 5.0), (60, None)):
        if loss is not None:
            config = config_of("filtered", without=["biology"])
            config.eval.relearn_steps = steps
            write(tmp_path, config, f"filtered {steps}", relearn=attack_of(View.full, 8.0, loss))
        config = changed(config_of(), "eval.relearn_steps", steps)
        write(tmp_path, config, f"routed {steps}", relearn=attack_of(View.removed, 6.0, 4.5))
    sweep = read_sweep(tmp_path)
    key = "robustness/relearn/biology/filtered_loss"
    found = {name: named(sweep, f"routed {name}").metrics.get(key) for name in (20, 40, 60)}
    assert found == {20: 7.0, 40: 5.0, 60: None}
    assert named(sweep, "routed 20").attacks["biology"] == {1e-3: ([0, 10], [6.0, 4.5])}


# Damaged tables


def test_flipped_digit_of_a_table_costs_only_its_own_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_baselines(tmp_path)
    write(tmp_path, config_of(), "routed")
    broken = tmp_path / "filtered biology"
    path = broken / "document_losses.csv"
    edit(broken, lambda summary: summary.update(files={path.name: content_digest(path)}))
    assert "separability/removal/biology" in named(read_sweep(tmp_path), "routed").metrics
    assert caplog.text == ""
    lines = path.read_text().splitlines()
    first, *others = lines[1].split(".")
    flipped = chr(ord(others[0][0]) ^ 1) + others[0][1:]
    lines[1] = ".".join([first, flipped, *others[1:]])
    path.write_text("\n".join(lines) + "\n")
    found = read_sweep(tmp_path)
    assert str(path) in caplog.text
    metrics = named(found, "routed").metrics
    assert "separability/removal/biology" not in metrics, "its baseline is absent"
    assert "utility/tax/code" in metrics
    assert "loss/full/code" in named(found, broken.name).metrics, "as its summary has it"


# Over seeds


def test_mean_over_seeds_has_a_t_interval_and_differences_are_paired(tmp_path: Path) -> None:
    for seed, shift in enumerate((0.0, 1.0, -0.5)):
        write(tmp_path, config_of("dense", seed=seed), f"dense {seed}", shift=shift)
        write(tmp_path, config_of(seed=seed), f"routed {seed}", shift=shift + 0.1 * seed)
    dense, routed = read_sweep(tmp_path).replicates
    loss = measures.BY_METRIC[registry.LOSS_FULL]
    half = 4.3027 * 0.1 / 3**0.5
    tax = over_seeds(routed, lambda job: job.estimate("mean_tax"))
    for found in (tax, loss.difference(routed, dense)):
        assert found is not None and found.interval is not None
        assert found.value == pytest.approx(0.6)
        assert found.interval == pytest.approx((0.6 - half, 0.6 + half), rel=1e-4)
    own = over_seeds(routed, loss.of)
    assert own is not None and own.interval is not None
    assert own.interval[1] - own.interval[0] > 10 * half, "between seeds losses differ by nats"
    single = loss.difference(routed[:1], dense[:1])
    assert single is not None and single.interval is None
    assert over_seeds(routed, lambda job: job.estimate("no such metric")) is None
    assert loss.difference(routed, dense[1:]) is None, "not of the same seeds"


def test_settings_of_an_older_version_have_no_widths_of_experts(tmp_path: Path) -> None:
    write(tmp_path, config_of(), "routed")
    job = named(read_sweep(tmp_path), "routed")
    config = {**job.config, "plan": {**job.config["plan"], "kind": "circle"}}
    tables = JobTables(job=replace(job, config=config), losses=[], relearn=[], owners={})
    assert tables.expert_widths == {}
