"""What the plots hold, and what the page's scripts know of the jobs."""

import pytest

from gr_sweep.metrics import registry
from gr_sweep.report import figures, html
from gr_sweep.report.sweep import Sweep


def test_curves_have_training_and_held_out_losses_of_every_domain(read_edges: Sweep) -> None:
    curves = figures.curves(read_edges)
    assert list(curves) == ["code", "biology", "creative"]
    traces = curves["code"]["data"]
    assert [trace["mode"] for trace in traces] == ["lines"] * 5 + ["lines+markers"] * 5
    assert [step for step in traces[-1]["x"] if step is not None] == [75, 150, 225, 300]
    assert all(len(trace["meta"]["points"]) == len(trace["x"]) for trace in traces)
    titles = {
        figure["layout"][axis]["title"]["text"]
        for figure in curves.values()
        for axis in ("xaxis", "yaxis")
    }
    assert titles == {"optimizer step", "loss, nats per token"}
    ranges = {tuple(figure["layout"]["yaxis"]["range"]) for figure in curves.values()}
    assert len(ranges) == 1, "domains compare by eye only on one scale"


def test_axes_have_the_numbers_of_the_jobs(read_study: Sweep) -> None:
    data = html.page_data(read_study)
    axes = {axis["id"]: axis for axis in data["axes"]}
    found = axes["selectivity biology"]
    expected = [job.metrics.get(registry.SELECTIVITY("biology")) for job in read_study.compared]
    assert found["values"] == [of and pytest.approx(of, rel=1e-5) for of in expected]
    assert found["direction"] == 1 and found["group"] == "biology"
    assert axes["cost/parameters"]["direction"] == -1
    assert axes["route.foreign_dropout"]["group"] == "settings"
    assert data["chosen"] == ["served compute", "served removal"]
