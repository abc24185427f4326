"""The runs that a sweep adds for its metrics: which, how often, and where they come from."""

from pathlib import Path

import pytest

from gr_sweep.cli.compose import Command, compose
from gr_sweep.config import Method, PlanKind, fingerprint
from gr_sweep.errors import ConfigError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep(*overrides: str) -> Command:
    """The jobs of a multirun."""
    return compose(overrides, multirun=True)


def added(*overrides: str) -> list:
    """The configs of the baselines that the sweep adds."""
    return [job.config for job in sweep(*overrides).jobs if job.is_baseline]


def test_a_sweep_without_baselines_adds_none():
    assert added("edges=both,act") == []


def test_jobs_that_differ_in_routing_share_their_baselines():
    configs = added("edges=none,both,act,weight", "route.foreign_dropout=0,1", "baselines=[dense]")

    assert [config.method.name for config in configs] == [Method.dense]
    assert configs[0].plan.kind is PlanKind.none


def test_each_seed_and_size_has_baselines_of_its_own():
    configs = added("edges=both,act", "seed=0,1", "model=tiny,nano", "baselines=[dense]")

    found = {(config.model.size, config.seed) for config in configs}
    assert len(configs) == 4
    assert found == {("tiny", 0), ("tiny", 1), ("nano", 0), ("nano", 1)}


def test_compute_is_dense_training_that_finishes_its_schedule_on_parts_of_the_tokens():
    configs = added("edges=both", "train.steps=80", "baselines=[dense,compute]")

    assert [config.method.name for config in configs] == [Method.dense] * 4
    assert sorted(config.train.steps for config in configs) == [10, 20, 40, 80]


def test_parts_of_a_run_that_counts_tokens_are_counted_in_tokens():
    configs = added("edges=both", "train.steps=null", "train.tokens=80000", "baselines=[compute]")

    assert sorted(config.train.tokens for config in configs) == [10000, 20000, 40000]


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


def test_what_is_filtered_by_observed_label_sees_the_noise_of_the_job():
    noise = ("partition.mislabelled=0.1", "partition.unlabelled={code:0.5,biology:0.5,creative:0}")
    [config] = added(
        "plan=forget", "plan.forget=[biology]", "edges=both", *noise,
        "baselines=[filtered_observed]",
    )  # fmt: skip

    assert config.method.name is Method.filtered_observed
    assert config.partition.mislabelled == 0.1
    assert config.partition.unlabelled == {"code": 0.5, "biology": 0.5, "creative": 0}


def test_labels_that_a_method_hides_are_hidden_from_the_filter_too():
    noise = "partition.mislabelled=0.1"
    [config] = added("method=sgtm", "plan.forget=[biology]", noise, "baselines=[filtered_observed]")

    assert config.partition.unlabelled == {"*": 0.75, "biology": 0.0}


@pytest.mark.parametrize(
    "job",
    [
        ["edges=both"],  # no noise at all
        ["method=sgtm", "plan.forget=[biology]"],  # all labels of biology are known
        ["method=random", "partition.mislabelled=0.1"],  # its labels are not those of a filter
    ],
)
def test_where_a_filter_by_label_leaves_nothing_of_a_domain_none_is_trained(job):
    assert added(*job, "baselines=[filtered_observed]") == []


def test_a_baseline_that_the_user_names_is_there_once():
    jobs = sweep("method=dense,routed", "edges=both", "baselines=[dense]").jobs

    assert len({fingerprint(job.config) for job in jobs}) == len(jobs) == 2


def test_the_wish_for_baselines_moves_no_job():
    plain = sweep("edges=both,act")
    compared = sweep("edges=both,act", "baselines=[dense]")

    assert plain.folder == compared.folder
    assert {job.folder for job in plain.jobs} < {job.folder for job in compared.jobs}


def test_a_job_alone_adds_no_baselines():
    with pytest.raises(ConfigError, match="add -m"):
        compose(["edges=both", "baselines=[dense]"])


@pytest.mark.parametrize("given", [["plan.layers=[0,1,2,3]"], ["plan.attn_shared=0.5"]])
def test_baselines_of_a_checkpoint_that_is_not_here(given):
    hub = ["model=hf", "model.path=owner/name", *given]
    assert len(added(*hub, "edges=both", "baselines=[dense]")) == 1
    assert len(added(*hub, "edges=both", "baselines=[filtered]")) == 3


def test_a_job_is_named_after_what_its_method_leaves_open():
    jobs = sweep(
        "method=routed,sgtm,demix,dense", "edges=both,weight", "plan.forget=[biology]"
    ).jobs

    assert [job.title for job in jobs] == [
        "method=routed edges=both",
        "method=routed edges=weight",
        "method=sgtm",
        "method=demix",
        "method=dense",
    ]
    assert [job.folder.name.rsplit("-", 1)[0] for job in jobs][2:] == [
        "method=sgtm", "method=demix", "method=dense",
    ]  # fmt: skip


def test_a_misspelt_baseline_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="a list of dense, compute, filtered, filtered_observed"):
        sweep("edges=both", "baselines=[dens]")
