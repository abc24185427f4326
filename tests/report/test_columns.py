"""What the page's script knows of the jobs: settings, numbers for the axes, metrics."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.metrics import registry
from gr_sweep.report import columns, measures, read_sweep
from gr_sweep.report.collect import Sweep

MakeJob = Callable[..., Path]


@pytest.fixture(scope="module")
def of_study(read_study: Sweep) -> dict[str, Any]:
    return columns.of_sweep(read_study)


def axis(found: dict[str, Any], identifier: str) -> dict[str, Any]:
    [one] = [axis for axis in found["axes"] if axis["id"] == identifier]
    assert isinstance(one, dict)
    return one


def test_every_list_has_an_entry_a_compared_job(
    read_study: Sweep, of_study: dict[str, Any]
) -> None:
    num_jobs = len(read_study.compared)
    assert [job["name"] for job in of_study["jobs"]] == [job.name for job in read_study.compared]
    assert {len(setting["of"]) for setting in of_study["settings"]} == {num_jobs}
    assert {len(axis["values"]) for axis in of_study["axes"]} == {num_jobs}
    assert {len(column["values"]) for column in of_study["metrics"].values()} == {num_jobs}
    assert sorted(at for group in of_study["groups"] for at in group) == list(range(num_jobs))
    json.dumps(of_study, allow_nan=False)


def test_settings_hold_every_config_key_and_those_that_differ_come_first(
    read_study: Sweep, of_study: dict[str, Any]
) -> None:
    names = [setting["name"] for setting in of_study["settings"]]
    assert set(read_study.compared[0].settings) <= set(names)
    varied = [setting["varied"] for setting in of_study["settings"]]
    assert varied == sorted(varied, reverse=True)
    [dropout] = [s for s in of_study["settings"] if s["name"] == "route.foreign_dropout"]
    assert dropout["values"] == ["0.25", "0.5", "0.75", "1.0"], "numbers go by size"
    for job, at in zip(read_study.compared, dropout["of"], strict=True):
        assert dropout["values"][at] == str(job.settings["route.foreign_dropout"])
    [edges] = [s for s in of_study["settings"] if s["name"] == "edges"]
    said = [edges["values"][at] for at in edges["of"]]
    assert said == [job.edges for job in read_study.compared], "a dense job has none to choose"


def test_axes_have_the_numbers_of_the_jobs(read_study: Sweep, of_study: dict[str, Any]) -> None:
    found = axis(of_study, "selectivity biology")
    for job, value in zip(read_study.compared, found["values"], strict=True):
        estimate = job.estimate(registry.SELECTIVITY("biology"))
        assert (value is None) == (estimate is None)
        if estimate is not None:
            assert value == pytest.approx(estimate.value, rel=1e-5)
    assert found["direction"] == 1 and found["group"] == "biology"
    assert axis(of_study, "tokens/s")["group"] == "cost"
    assert axis(of_study, "route.foreign_dropout")["group"] == "settings"


def test_loss_below_the_shortest_dense_run_stands_at_its_share(
    read_study: Sweep, of_study: dict[str, Any]
) -> None:
    found = axis(of_study, "compute-equivalent")
    at, job = next(
        (at, job)
        for at, job in enumerate(read_study.compared)
        if job.edges == "weight" and job.kind == "peers"
    )
    assert job.mean_compute_equivalent is None
    known = measures.known(measures.COMPUTE_EQUIVALENT, job)
    assert known is not None
    shares = [
        estimate.value
        if (estimate := job.estimate(registry.COMPUTE_EQUIVALENT_FULL(domain)))
        else 1 / 8
        for domain in job.domains
    ]
    assert known.value == pytest.approx(sum(shares) / 3)
    assert found["values"][at] == pytest.approx(known.value, rel=1e-5)
    assert at in found["capped"]


def test_with_baselines_compute_equivalent_and_removal_come_first(
    of_study: dict[str, Any], sweep: Path
) -> None:
    assert of_study["chosen"] == ["compute-equivalent", "removal"]
    assert columns.of_sweep(read_sweep(sweep))["chosen"] == ["tax", "selectivity"]


def test_a_number_that_no_job_has_is_no_axis(tmp_path: Path, make_job: MakeJob) -> None:
    make_job(tmp_path, edges="dense", num_documents=2, resamples=0)
    found = columns.of_sweep(read_sweep(tmp_path))
    names = {axis["id"] for axis in found["axes"]}
    assert "loss L(d)" in names
    assert not names & {"selectivity", "removal", "expert tax code"}


def test_metrics_and_patterns_are_those_of_the_jobs(
    read_study: Sweep, of_study: dict[str, Any]
) -> None:
    job = next(job for job in read_study.compared if job.parts)
    at = read_study.compared.index(job)
    for pattern in of_study["keys"].values():
        key = pattern.replace("PART", "code").replace("DOMAIN", "biology")
        column = of_study["metrics"][key]
        assert column["values"][at] == pytest.approx(job.metrics[key], rel=1e-5)
        assert column["intervals"][at] == pytest.approx(job.intervals[key], rel=1e-5)
