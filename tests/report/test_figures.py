"""What the plots hold: points, error bars, lines, means, settings, attacks and curves."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.config import Method
from gr_sweep.metrics import keys
from gr_sweep.metrics.losses import RelearnLoss, View, write_relearn
from gr_sweep.report import figures, measures, read_sweep
from gr_sweep.report.collect import Sweep
from gr_sweep.report.html import render

MakeJob = Callable[..., Path]

DOMAINS = ["code", "biology", "creative"]


def scatter(sweep: Sweep, title: str) -> dict[str, Any]:
    """The figure of one pair of axes."""
    [found] = [item.figure for item in figures.scatters(sweep) if item.title == title]
    return found


def test_scatter_has_a_point_a_job_in_the_colour_of_its_edges(sweep: Path) -> None:
    read = read_sweep(sweep)
    figure = scatter(read, "selectivity over loss L(d)")
    by_edges = {trace["name"]: trace for trace in figure["data"]}
    assert list(by_edges) == ["frontier", "none", "weight", "act", "both"]
    [weight] = [job for job in read.jobs if job.edges == "weight"]
    trace = by_edges["weight"]
    assert weight.mean_loss is not None and weight.mean_selectivity is not None
    assert trace["x"] == [weight.mean_loss.value]
    assert trace["y"] == [weight.mean_selectivity.value]
    assert trace["marker"]["color"] == figures.COLOURS["weight"]
    assert weight.mean_selectivity.interval is not None
    high = weight.mean_selectivity.interval[1]
    assert trace["error_y"]["array"][0] == pytest.approx(high - weight.mean_selectivity.value)
    assert "edges=weight" in trace["hovertext"][0]


def test_dense_job_is_a_vertical_line_with_its_name(sweep: Path) -> None:
    read = read_sweep(sweep)
    figure = scatter(read, "selectivity over loss L(d)")
    [line] = figure["layout"]["shapes"]
    [dense] = [job for job in read.jobs if job.edges == "dense"]
    assert dense.mean_loss is not None
    assert line["x0"] == line["x1"] == pytest.approx(dense.mean_loss.value)
    assert figure["layout"]["annotations"][0]["text"] == "dense"


def test_several_seeds_are_small_points_with_one_marker_at_their_mean(
    tmp_path: Path, make_job: MakeJob
) -> None:
    for seed in range(3):
        make_job(tmp_path, edges="act", seed=seed, num_documents=5, resamples=20)
    points, mean = scatter(read_sweep(tmp_path), "selectivity over loss L(d)")["data"]
    assert len(points["x"]) == 3 and len(mean["x"]) == 1
    assert mean["x"][0] == pytest.approx(sum(points["x"]) / 3)
    assert mean["marker"]["size"] > points["marker"]["size"]
    assert [trace["showlegend"] for trace in (points, mean)] == [False, True]


def test_frontier_holds_what_nothing_else_beats_in_both() -> None:
    points = [(4.0, 0.1), (4.2, 0.5), (4.3, 0.5), (4.1, 0.05), (5.0, 0.9), (4.0, 0.1)]
    assert figures.front(points, (-1, 1)) == [(4.0, 0.1), (4.2, 0.5), (5.0, 0.9)]
    shares = [(0.9, 0.1), (0.5, 0.8), (0.4, 0.7), (1.0, 0.1)]
    assert figures.front(shares, (1, 1)) == [(0.5, 0.8), (1.0, 0.1)]


def test_frontier_counts_no_control_and_nothing_beyond_gone(read_study: Sweep) -> None:
    figure = scatter(read_study, "removal over compute-equivalent")
    frontier, *points = figure["data"]
    assert frontier["name"] == "frontier" and frontier["line"]["shape"] == "vh"
    assert max(frontier["y"]) == 1.0
    assert max(y for trace in points for y in trace["y"]) > 1.0
    control = {x for trace in points if trace["name"] == "act · random" for x in trace["x"]}
    routed = {x for trace in points if trace["name"] != "act · random" for x in trace["x"]}
    assert set(frontier["x"]) <= routed - (control - routed)


def test_frontier_counts_no_setting_with_a_bound_or_without_all_seeds(read_study: Sweep) -> None:
    figure = scatter(read_study, "removal over compute-equivalent")
    frontier = figure["data"][0]
    assert frontier["name"] == "frontier"
    whole = set()
    for group in read_study.replicates:
        shares, removals = (
            [estimate.value for job in group if (estimate := job.estimate(key)) is not None]
            for key in ("mean_compute_equivalent", "mean_removal")
        )
        if len(shares) == len(removals) == len(group):
            whole.add(math.fsum(shares) / len(shares))
    assert set(frontier["x"]) <= whole


def test_bound_is_no_point_of_the_frontier(tmp_path: Path, make_job: MakeJob) -> None:
    options = {"shift": 0.0, "num_documents": 8, "resamples": 0}
    for share in (1.0, 0.5):
        make_job(tmp_path, edges="dense", method="dense", share=share, **options)
    for part in DOMAINS:
        make_job(tmp_path, edges="dense", method="filtered", without=[part], **options)
    # Far above dense at half of the tokens, and most is gone; close to dense, and little is.
    make_job(tmp_path, edges="weight", **options)
    make_job(tmp_path, edges="act", **options)
    read = read_sweep(tmp_path)
    figure = scatter(read, "removal over compute-equivalent")
    points = [trace for trace in figure["data"] if trace["name"] != "frontier"]
    (_, worse, more), (_, better, less) = sorted(
        (trace["name"], trace["x"][0], trace["y"][0]) for trace in points
    )[::-1]
    assert worse == 0.5 < better and less < more, "a frontier of two, were the bound a number"
    assert len(points) == len(figure["data"])


def test_sweep_of_dense_jobs_has_no_scatter(tmp_path: Path, make_job: MakeJob) -> None:
    make_job(tmp_path, edges="dense", num_documents=2, resamples=0)
    assert figures.scatters(read_sweep(tmp_path)) == []


def test_with_baselines_compute_equivalent_and_removal_come_first(read_study: Sweep) -> None:
    first, *others = figures.scatters(read_study)
    assert first.title == "removal over compute-equivalent"
    assert "selectivity over loss L(d)" in [item.title for item in others]
    names = {trace["name"] for trace in first.figure["data"]}
    assert {"weight · sgtm", "none · demix", "act · random", "act · lattice"} <= names
    assert not any("dense" in name or "filtered" in name for name in names)
    # Dense is at 1, and a model that never saw the domain is at 1 as well.
    places = [(line["x0"], line["y0"]) for line in first.figure["layout"]["shapes"]]
    assert places == [(1.0, 0), (0, 1.0)]


def test_loss_below_the_shortest_dense_run_stands_at_its_share(read_study: Sweep) -> None:
    job = next(job for job in read_study.jobs if job.edges == "weight" and job.kind == "peers")
    assert job.mean_compute_equivalent is None
    known = measures.known(measures.COMPUTE_EQUIVALENT, job)
    assert known is not None
    shares = [
        estimate.value
        if (estimate := job.estimate(keys.compute_equivalent_full(domain)))
        else 1 / 8
        for domain in job.domains
    ]
    assert known.value == pytest.approx(sum(shares) / 3)
    figure = scatter(read_study, "removal over compute-equivalent")
    xs = [x for trace in figure["data"] if trace["name"] == "weight · peers" for x in trace["x"]]
    assert known.value in xs


def test_jobs_that_cannot_be_drawn_are_counted(read_study: Sweep) -> None:
    # The full model under `both` is worse on code than one that never saw it: no way to go.
    first = figures.scatters(read_study)[0]
    assert first.num_missing == 2


def test_control_is_hollow_and_methods_have_markers_of_their_own() -> None:
    methods = {method.value for method in Method} - {"routed"}
    assert methods <= figures.MARKERS.keys()
    assert figures.symbol("random").endswith("-open")
    symbols = [symbol for symbol, _ in figures.MARKERS.values()]
    assert len(set(symbols)) == len(symbols)


def test_names_of_points_cover_one_another_nowhere() -> None:
    centres = {str(at): (0.5 + 0.001 * at, 0.5) for at in range(12)}
    labels = dict.fromkeys(centres, "act · peers · 0.5")
    positions = figures._label_positions(labels, centres, (0, 1), (0, 1))
    # Above and below on both sides, and beside the outermost: the others have no room.
    assert 2 <= len(positions) <= 6
    apart = {"a": (0.1, 0.1), "b": (0.9, 0.9)}
    assert figures._label_positions(dict.fromkeys(apart, "act"), apart, (0, 1), (0, 1)) == {
        "a": "top right",
        "b": "top left",
    }


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


def test_removal_that_is_out_of_all_proportion_does_not_flatten_the_others(
    tmp_path: Path, make_job: MakeJob
) -> None:
    for method, without in (("dense", []), *(("filtered", [part]) for part in DOMAINS)):
        make_job(tmp_path, edges="dense", method=method, without=without, shift=0.0, resamples=0)
    make_job(tmp_path, edges="act", shift=0.0, resamples=0)
    # Nearly all of the 2.5 nats that the filtered models are above: next to nothing is left to go.
    make_job(tmp_path, edges="act", foreign_dropout=1.0, shift=2.2, separation=4, resamples=0)
    [found] = [
        item for item in figures.scatters(read_sweep(tmp_path)) if item.title == "removal over tax"
    ]
    assert found.num_beyond == 1 and found.num_missing == 0
    low, high = found.figure["layout"]["yaxis"]["range"]
    assert -1 < low < 0 and 1 < high < 2


def test_every_choice_of_edges_has_its_own_colour() -> None:
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    assert set(figures.COLOURS) == {"dense", "none", "weight", "act", "both"}
