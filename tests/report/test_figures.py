"""What the plots hold, and what the page's scripts know of the jobs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.metrics import registry
from gr_sweep.metrics.losses import RelearnLoss, View, write_relearn
from gr_sweep.report import figures, measures, page_data, read_sweep
from gr_sweep.report.html import render
from gr_sweep.report.sweep import Sweep
from tests.report.conftest import write_job


def test_relearning_shows_the_strongest_attack_of_each_model(read_study: Sweep) -> None:
    found = figures.relearning(read_study)
    assert list(found) == ["code", "biology", "creative"]
    traces = found["biology"]["data"]
    assert {trace["line"]["dash"] for trace in traces} == {"solid", "dash"}
    [filtered] = [trace for trace in traces if trace["line"]["dash"] == "dash"]
    assert filtered["x"] == [0, 1000, 2000, 4000, None] * 2
    assert all("lr 0.003" in text for text in filter(None, filtered["text"]))
    attacks = [job.attacks["biology"] for job in read_study.jobs if "biology" in job.attacks]
    lowest = [min(min(attack.losses) for attack in of_job) for of_job in attacks]
    assert min(filtered["y"][:4]) in lowest


def test_attack_that_diverges_has_a_gap_and_one_without_a_number_is_not_drawn(
    tmp_path: Path,
) -> None:
    nan = math.nan
    curves = {"code": {1e-3: [nan, 7.0], 3e-3: [8.0, nan, 5.0]}, "biology": {1e-3: [nan, nan]}}
    rows = [
        RelearnLoss(View.removed, part, lr, 10 * at, part, "c0", 10 * loss, 10, 40)
        for part, by_lr in curves.items()
        for lr, losses in by_lr.items()
        for at, loss in enumerate(losses)
    ]
    write_relearn(write_job(tmp_path) / "relearn.csv", rows)
    sweep = read_sweep(tmp_path)
    found = figures.relearning(sweep)
    assert {of: found[of]["data"][0]["y"] for of in found} == {"code": [8.0, None, 5.0, None]}
    assert "NaN" not in render(sweep).split('id="plots"')[1].split("</script>")[0]


def test_curves_have_training_and_held_out_losses_of_every_domain(read_edges: Sweep) -> None:
    curves = figures.curves(read_edges)
    assert list(curves) == ["code", "biology", "creative"]
    traces = curves["code"]["data"]
    assert [trace["mode"] for trace in traces] == ["lines"] * 5 + ["lines+markers"] * 5
    assert [step for step in traces[-1]["x"] if step is not None] == [75, 150, 225, 300]
    assert all(len(trace["meta"]["points"]) == len(trace["x"]) for trace in traces)
    ranges = {tuple(figure["layout"]["yaxis"]["range"]) for figure in curves.values()}
    assert len(ranges) == 1, "domains compare by eye only on one scale"


def test_long_curve_is_thinned_and_keeps_its_last_point(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    rows = [{"step": step, "train/loss/code": 5.0} for step in range(1, 1001)]
    rows.append({"step": 1001, "train/loss/code": float("nan")})
    (job / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [trace] = figures.curves(read_sweep(tmp_path))["code"]["data"]
    steps = [step for step in trace["x"] if step is not None]
    assert len(steps) == 200 and steps[-1] == 1000


# What the scripts know


@pytest.fixture(scope="module")
def data(read_study: Sweep) -> dict[str, Any]:
    return page_data.page_data(read_study)


def axis(found: dict[str, Any], identifier: str) -> dict[str, Any]:
    [one] = [axis for axis in found["axes"] if axis["id"] == identifier]
    assert isinstance(one, dict)
    return one


def test_axes_have_the_numbers_of_the_jobs(read_study: Sweep, data: dict[str, Any]) -> None:
    found = axis(data, "selectivity biology")
    expected = [job.metrics.get(registry.SELECTIVITY("biology")) for job in read_study.compared]
    assert found["values"] == [of and pytest.approx(of, rel=1e-5) for of in expected]
    assert found["direction"] == 1 and found["group"] == "biology"
    assert axis(data, "cost/parameters")["direction"] == -1
    assert axis(data, "route.foreign_dropout")["group"] == "settings"
    assert data["chosen"] == ["served compute", "served removal"]


def test_loss_below_the_shortest_dense_run_stands_at_its_share(
    read_study: Sweep, data: dict[str, Any]
) -> None:
    found = axis(data, "served compute")
    at = found["bounds"].index(measures.BELOW)
    job = read_study.compared[at]
    shares = [
        job.metrics.get(registry.COMPUTE_EQUIVALENT_SERVED(domain), 1 / 8) for domain in job.domains
    ]
    assert found["values"][at] == pytest.approx(sum(shares) / 3, rel=1e-5)
