"""The runs that a sweep adds for its metrics: which, how often, and where they come from."""

from pathlib import Path

import pytest

from gr_sweep.cli.compose import Command, compose
from gr_sweep.config import Method, PlanKind


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep(*overrides: str) -> Command:
    """The jobs of a multirun."""
    return compose(overrides, multirun=True)


def added(*overrides: str) -> list:
    """The configs of the baselines that the sweep adds."""
    return [job.config for job in sweep(*overrides).jobs if job.is_baseline]


def test_jobs_that_differ_in_routing_share_their_baselines():
    routed = ("method=dense,routed", "edges=both,act", "route.foreign_dropout=0,1")
    plain, compared = sweep(*routed), sweep(*routed, "baselines=[dense]")

    # The dense run is one of the jobs, and the wish for it moves none.
    assert {job.folder for job in plain.jobs} == {job.folder for job in compared.jobs}
    [config] = added("edges=both,act", "route.foreign_dropout=0,1", "baselines=[dense]")
    assert config.method.name is Method.dense and config.plan.kind is PlanKind.none


def test_compute_baselines_are_dense_runs_of_fewer_steps():
    configs = added("edges=both", "train.steps=80", "baselines=[dense,compute]")

    assert [config.method.name for config in configs] == [Method.dense] * 4
    assert sorted(config.train.steps for config in configs) == [10, 20, 40, 80]


def test_filtered_runs_are_without_each_part_that_can_be_removed():
    peers = added("edges=both", "baselines=[filtered]")
    forget = added("plan=forget", "plan.forget=[biology]", "edges=both", "baselines=[filtered]")
    nested = added("partition=bio_virology", "plan=tree", "edges=both", "baselines=[filtered]")

    assert [config.method.without for config in peers] == [["code"], ["biology"], ["creative"]]
    assert [config.method.without for config in forget] == [["biology"]]
    branch = added(
        "partition=bio_virology", "plan=forget", "plan.forget=[biology/virology]", "edges=both",
        "baselines=[filtered]",
    )  # fmt: skip

    assert [config.method.without for config in nested] == [
        ["code"], ["biology"], ["biology/virology"], ["creative"],
    ]  # fmt: skip
    # Biology as a whole stays: it owns nothing beside the core.
    assert [config.method.without for config in branch] == [["biology/virology"]]


def test_filtered_observed_has_the_label_noise_of_the_job():
    noise = ("partition.mislabelled=0.1", "partition.unlabelled={code:0.5,biology:0.5,creative:0}")
    [config] = added(
        "plan=forget", "plan.forget=[biology]", "edges=both", *noise,
        "baselines=[filtered_observed]",
    )  # fmt: skip

    assert config.method.name is Method.filtered_observed
    assert config.partition.mislabelled == 0.1
    assert config.partition.unlabelled == {"code": 0.5, "biology": 0.5, "creative": 0}


@pytest.mark.parametrize("given", [["plan.layers=[0,1,2,3]"], ["plan.attn_shared=0.5"]])
def test_baselines_of_a_checkpoint_that_is_not_here(given):
    hub = ["model=hf", "model.path=owner/name", *given]
    assert len(added(*hub, "edges=both", "baselines=[dense]")) == 1
    assert len(added(*hub, "edges=both", "baselines=[filtered]")) == 3


def widths(configs: list) -> dict[tuple[str, ...], int | None]:
    """MLP units that the filtered runs are given, by what they never see."""
    assert all(config.method.name is Method.filtered for config in configs)
    return {tuple(c.method.without): c.model.intermediate_size for c in configs}


def test_alone_baselines_are_dense_runs_as_wide_as_an_expert():
    configs = added("edges=both,act", "plan.mlp_shared=0.5", "seed=0,1", "baselines=[alone]")

    # Of nano's 768 units 384 are shared, and a third of the others is a domain's.
    assert len(configs) == 6
    assert widths(configs) == {
        ("biology", "creative"): 512, ("code", "creative"): 512, ("code", "biology"): 512,
    }  # fmt: skip
    assert {config.plan.kind for config in configs} == {PlanKind.none}


def test_methods_and_baselines_share_tokens_that_are_a_multiple_of_the_parameters():
    found = sweep(
        "method=routed,demix", "train.tokens=20x", "model=tiny",
        "plan.adapters.mlp=8", "baselines=[dense,compute,alone]",
    ).jobs  # fmt: skip
    parameters = 2048 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64) + 64
    tokens = [job.config.train.tokens for job in found]
    assert {*tokens} == {round(share * 20 * parameters) for share in (1, 0.5, 0.25, 0.125)}
    alone = [job.config for job in found if job.config.method.name is Method.filtered]
    assert {config.model.intermediate_size for config in alone} == {128, None}
    assert {config.train.tokens for config in alone} == {20 * parameters}


def test_an_override_of_a_job_with_baselines_may_follow_the_seed():
    jobs = sweep("seed=0,1", "data.seed=${seed}", "baselines=[dense]").jobs
    assert {(job.config.seed, job.config.data.seed) for job in jobs} == {(0, 0), (1, 1)}
