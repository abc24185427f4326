"""What the plots hold: points, error bars, lines, means, settings, attacks and curves."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from gr_sweep.config import Method
from gr_sweep.metrics import registry
from gr_sweep.metrics.losses import RelearnLoss, View, write_relearn
from gr_sweep.report import figures, read_sweep
from gr_sweep.report.collect import Sweep
from gr_sweep.report.html import render

MakeJob = Callable[..., Path]

DOMAINS = ["code", "biology", "creative"]


def test_control_is_hollow_and_methods_have_markers_of_their_own() -> None:
    methods = {method.value for method in Method} - {"routed"}
    assert methods <= figures.MARKERS.keys()
    assert figures.symbol("random").endswith("-open")
    symbols = [symbol for symbol, _ in figures.MARKERS.values()]
    assert len(set(symbols)) == len(symbols)


def test_setting_that_varies_alone_has_a_plot_of_utility_and_one_of_separability(
    read_study: Sweep,
) -> None:
    [found] = figures.against(read_study)
    assert found.name == "route.foreign_dropout" and found.num_other == 1
    utility, separability = found.figures
    seeds, means = separability["data"]
    assert (
        means["x"] == [0.25, 0.5, 1.0, None]
        and sorted(seeds["x"]) == [0.25] * 2 + [0.5] * 2 + [1.0] * 2
    )
    first, second = (y for x, y in zip(seeds["x"], seeds["y"], strict=True) if x == 0.25)
    assert means["y"][0] == pytest.approx((first + second) / 2)
    # Student's t with one degree of freedom: 12.706 standard errors, of |a - b| / 2.
    assert means["error_y"]["array"][0] == pytest.approx(12.7062 * abs(first - second) / 2, 1e-4)
    assert "compute-equivalent" in utility["layout"]["yaxis"]["title"]["text"]


def test_model_sizes_stand_at_their_parameters(tmp_path: Path, make_job: MakeJob) -> None:
    for size, parameters in (("tiny", 2e5), ("nano", 4.3e6)):
        make_job(
            tmp_path, settings={"model.size": size}, parameters=parameters,
            num_documents=2, resamples=0,
        )  # fmt: skip
    [found] = figures.against(read_sweep(tmp_path))
    assert found.name == figures.PARAMETERS
    assert [trace["x"] for trace in found.figures[0]["data"]] == [[2e5, 4.3e6, None]]
    assert found.figures[0]["layout"]["xaxis"]["ticktext"] == ["200k", "4.3M"]


def test_what_a_method_fixes_is_no_setting_to_plot_against(
    tmp_path: Path, make_job: MakeJob
) -> None:
    make_job(tmp_path, foreign_dropout=0.5, num_documents=2, resamples=0)
    make_job(tmp_path, method="demix", foreign_dropout=1.0, num_documents=2, resamples=0)
    assert figures.against(read_sweep(tmp_path)) == []


def test_relearning_shows_the_strongest_attack_of_each_model(read_study: Sweep) -> None:
    found = figures.relearning(read_study)
    assert list(found) == ["code", "biology", "creative"]
    traces = found["biology"]["data"]
    assert {trace["line"]["dash"] for trace in traces} == {"solid", "dash"}
    [filtered] = [trace for trace in traces if trace["line"]["dash"] == "dash"]
    assert filtered["x"] == [0, 10, 20, 30, 40, None] * 2
    assert all("lr 0.003" in text for text in filtered["text"])
    job = next(
        job for job in read_study.jobs if job.kind == "filtered" and "biology" in job.attacks
    )
    assert min(filtered["y"][:5]) == min(min(attack.losses) for attack in job.attacks["biology"])


def attacked(job: Path, losses: dict[float, list[float]]) -> None:
    """Gives a job attacks on code: mean losses by learning rate, ten steps apart."""
    rows = [
        RelearnLoss(View.removed, "code", lr, 10 * at, "code", "c0", 10 * loss, 10, 40)
        for lr, curve in losses.items()
        for at, loss in enumerate(curve)
    ]
    write_relearn(job / "relearn.csv", rows)


def test_attack_that_diverges_has_a_gap_and_leaves_the_page_whole(
    tmp_path: Path, make_job: MakeJob
) -> None:
    job = make_job(tmp_path, num_documents=2, resamples=0)
    attacked(job, {1e-3: [math.nan, 7.0], 3e-3: [8.0, math.nan, 5.0], 1e-2: [8.0, 6.0, math.inf]})
    sweep = read_sweep(tmp_path)
    figure = figures.relearning(sweep)["code"]
    [trace] = figure["data"]
    assert trace["y"] == [8.0, None, 5.0, None]
    assert "lr 0.003" in trace["text"][0]
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < 5 and 8 < high < 9
    assert "NaN" not in json.dumps(figure)
    assert 'id="robustness"' in render(sweep)


def test_attack_without_a_number_is_not_drawn(tmp_path: Path, make_job: MakeJob) -> None:
    attacked(make_job(tmp_path, num_documents=2, resamples=0), {1e-3: [math.nan, math.nan]})
    assert figures.relearning(read_sweep(tmp_path)) == {}


def test_figure_with_a_value_that_is_no_number_is_refused(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"code": {"data": [{"y": [math.nan]}], "layout": {}}}
    monkeypatch.setattr(figures, "curves", lambda sweep: found)
    with pytest.raises(ValueError, match="JSON compliant"):
        render(read_sweep(sweep))


def test_curves_have_training_and_held_out_losses_of_every_domain(sweep: Path) -> None:
    curves = figures.curves(read_sweep(sweep))
    assert list(curves) == ["code", "biology", "creative"]
    modes = [trace["mode"] for trace in curves["code"]["data"]]
    assert modes == ["lines"] * 5 + ["lines+markers"] * 5
    held_out = curves["code"]["data"][-1]
    assert [step for step in held_out["x"] if step is not None] == [75, 150, 225, 300]
    ranges = {tuple(figure["layout"]["yaxis"]["range"]) for figure in curves.values()}
    assert len(ranges) == 1, "domains compare by eye only on one scale"


def test_long_curve_is_thinned_and_keeps_its_last_point(tmp_path: Path, make_job: MakeJob) -> None:
    job = make_job(tmp_path, num_documents=2, resamples=0)
    rows = [{"step": step, "train/loss/code": 5.0} for step in range(1, 1001)]
    rows.append({"step": 1001, "train/loss/code": float("nan")})
    (job / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [trace] = figures.curves(read_sweep(tmp_path))["code"]["data"]
    steps = [step for step in trace["x"] if step is not None]
    assert len(steps) == 200 and steps[-1] == 1000


def test_many_jobs_have_shorter_curves(tmp_path: Path, make_job: MakeJob) -> None:
    for seed in range(100):
        make_job(tmp_path, seed=seed, num_documents=2, resamples=0, steps=1000)
    train, held_out = figures.curves(read_sweep(tmp_path))["code"]["data"]
    steps = [step for step in train["x"] if step is not None]
    assert 50 * 100 <= len(steps) <= 100 * 100 and max(steps) == 1000
    assert len([step for step in held_out["x"] if step is not None]) == 4 * 100


def test_every_choice_of_edges_has_its_own_colour() -> None:
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    assert set(figures.COLOURS) == {"dense", "none", "weight", "act", "both"}


def test_entanglement_has_a_bar_pair_for_every_set(read_study: Sweep) -> None:
    [(group, figure)] = figures.entanglement(read_study)
    assert {job.kind for job in group} == {"lattice"} and len(group) == 2
    inside, outside = figure["data"]
    assert inside["y"] == outside["y"] == [
        "code", "biology", "creative", "code + biology", "code + creative", "biology + creative",
    ]  # fmt: skip
    values = [job.metrics[registry.ENTANGLEMENT_INSIDE("code+biology")] for job in group]
    assert inside["x"][3] == pytest.approx(sum(values) / 2)
    assert inside["x"][3] > outside["x"][3]
    low, high = figure["layout"]["xaxis"]["range"]
    ends = [x + e for x, e in zip(inside["x"], inside["error_x"]["array"], strict=True)]
    assert low < 0 < max(ends) < high, "bars begin at 0 and end within the plot"
    assert inside["meta"]["jobs"] == figures.numbers(read_study, group)


def test_other_plans_have_no_entanglement(sweep: Path) -> None:
    assert figures.entanglement(read_sweep(sweep)) == []


def test_every_trace_says_which_jobs_it_is_of(read_study: Sweep) -> None:
    found = [
        *figures.curves(read_study).values(),
        *figures.relearning(read_study).values(),
        *(figure for item in figures.against(read_study) for figure in item.figures),
        *(figure for _, figure in figures.entanglement(read_study)),
    ]
    assert found
    for trace in (trace for figure in found for trace in figure["data"]):
        if "points" in trace["meta"]:
            assert len(trace["meta"]["points"]) == len(trace["x"])
        else:
            assert trace["meta"]["jobs"]
