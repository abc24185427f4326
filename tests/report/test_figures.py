"""What the plots hold: points, error bars, lines, means and curves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gr_sweep.report import figures, read_sweep

MakeJob = Callable[..., Path]


def test_scatter_has_a_point_a_job_in_the_colour_of_its_edges(sweep: Path) -> None:
    read = read_sweep(sweep)
    figure = figures.scatter(read)
    assert figure is not None
    by_edges = {trace["name"]: trace for trace in figure["data"]}
    assert list(by_edges) == ["none", "weight", "act", "both"]
    [weight] = [job for job in read.jobs if job.edges == "weight"]
    trace = by_edges["weight"]
    assert weight.mean_loss is not None and weight.mean_selectivity is not None
    assert trace["x"] == (weight.mean_loss.value,) or trace["x"] == [weight.mean_loss.value]
    assert trace["marker"]["color"] == figures.COLOURS["weight"]
    assert weight.mean_selectivity.interval is not None
    high = weight.mean_selectivity.interval[1]
    assert trace["error_y"]["array"][0] == pytest.approx(high - weight.mean_selectivity.value)
    assert "edges=weight" in trace["hovertext"][0]


def test_dense_job_is_a_vertical_line_with_its_name(sweep: Path) -> None:
    read = read_sweep(sweep)
    figure = figures.scatter(read)
    assert figure is not None
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
    figure = figures.scatter(read_sweep(tmp_path))
    assert figure is not None
    points, mean = figure["data"]
    assert len(points["x"]) == 3 and len(mean["x"]) == 1
    assert mean["x"][0] == pytest.approx(sum(points["x"]) / 3)
    assert mean["marker"]["size"] > points["marker"]["size"]
    assert [trace["showlegend"] for trace in (points, mean)] == [False, True]


def test_sweep_of_dense_jobs_has_no_scatter(tmp_path: Path, make_job: MakeJob) -> None:
    make_job(tmp_path, edges="dense", num_documents=2, resamples=0)
    assert figures.scatter(read_sweep(tmp_path)) is None


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


def test_every_choice_of_edges_has_its_own_colour() -> None:
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)
    assert set(figures.COLOURS) == {"dense", "none", "weight", "act", "both"}
