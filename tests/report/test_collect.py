"""A sweep's folder becomes jobs and a tidy frame; what is unfinished or broken is named."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from gr_sweep.config import TrainConfig
from gr_sweep.errors import JobError
from gr_sweep.report import read_sweep, results

MakeJob = Callable[..., Path]


def edit(job: Path, **changes: object) -> None:
    path = job / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_jobs_come_dense_first_and_then_by_edges(sweep: Path) -> None:
    assert [job.edges for job in read_sweep(sweep).jobs] == [
        "dense", "none", "weight", "act", "both",
    ]  # fmt: skip


def test_jobs_of_equal_edges_are_ordered_by_number(tmp_path: Path, make_job: MakeJob) -> None:
    for dropout in (0.5, 10.0, 0.0, 2.0):
        make_job(tmp_path, foreign_dropout=dropout, num_documents=2, resamples=0)
    values = [job.settings["route.foreign_dropout"] for job in read_sweep(tmp_path).jobs]
    assert values == [0.0, 0.5, 2.0, 10.0]


def test_frame_has_a_row_a_job_and_what_differs_first(sweep: Path) -> None:
    frame = results(read_sweep(sweep))
    assert list(frame.columns[:3]) == ["job", "edges", "plan.kind"]
    assert len(frame) == 5
    row = frame[frame["edges"] == "weight"].iloc[0]
    low, high = row["loss/full/code/low"], row["loss/full/code/high"]
    assert low < row["loss/full/code"] < high
    assert row["train.steps"] == str(TrainConfig().steps)
    mean = row[[f"loss/full/{domain}" for domain in ("code", "biology", "creative")]].mean()
    assert row["mean_loss"] == pytest.approx(mean)
    dense = frame[frame["plan.kind"] == "none"].iloc[0]
    assert pd.isna(dense["separability/selectivity/code"]) and pd.isna(dense["mean_selectivity"])
    assert frame.columns.is_unique
    assert row["mean_loss/low"] < row["mean_loss"] < row["mean_loss/high"]
    assert row["mean_selectivity/low"] < row["mean_selectivity"] < row["mean_selectivity/high"]


def test_label_says_what_sets_a_job_apart_from_those_like_it(
    tmp_path: Path, make_job: MakeJob
) -> None:
    make_job(tmp_path, edges="dense", num_documents=2, resamples=0)
    make_job(tmp_path, edges="act", seed=0, num_documents=2, resamples=0)
    make_job(tmp_path, edges="act", seed=1, num_documents=2, resamples=0)
    sweep = read_sweep(tmp_path)
    assert sorted(sweep.labels.values()) == ["dense", "edges=act seed=0", "edges=act seed=1"]
    assert [len(group) for group in sweep.replicates] == [1, 2]


def test_jobs_of_equal_settings_are_told_apart_by_folder(tmp_path: Path, make_job: MakeJob) -> None:
    for name in ("a", "b"):
        make_job(tmp_path, overrides=[name], num_documents=2, resamples=0)
    assert sorted(read_sweep(tmp_path).labels.values()) == ["a_1f3a9c", "b_1f3a9c"]


def test_tracking_alone_makes_no_difference(tmp_path: Path, make_job: MakeJob) -> None:
    for name in ("a", "b"):
        job = make_job(tmp_path, overrides=[name], num_documents=2, resamples=0)
        config = json.loads((job / "summary.json").read_text())["config"]
        edit(job, config=config | {"tracking": {"mode": name}})
    assert read_sweep(tmp_path).varied == []


def test_folder_of_one_job_is_a_sweep_of_one(sweep: Path) -> None:
    job = next(entry for entry in sweep.iterdir() if "edges=act" in entry.name)
    alone = read_sweep(job)
    assert [found.edges for found in alone.jobs] == ["act"]
    assert alone.jobs[0].name == job.name


def test_killed_job_is_listed_with_its_last_whole_step(sweep: Path) -> None:
    job = sweep / "edges=both_seed=9"
    job.mkdir()
    (job / "metrics.jsonl").write_text('{"step": 10}\n{"step": 120}\n{"step": 13')
    [unfinished] = read_sweep(sweep).unfinished
    assert (unfinished.name, unfinished.step, unfinished.why) == (job.name, 120, "not finished")


def test_job_that_has_not_logged_yet_is_listed_without_a_step(sweep: Path) -> None:
    (sweep / "waiting" / ".hydra").mkdir(parents=True)
    [unfinished] = read_sweep(sweep).unfinished
    assert (unfinished.name, unfinished.step) == ("waiting", None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"format": 1,', "cannot be read"),
        ("[]", "holds no object"),
        ('{"format": 7}', "has format 7; this version reads 1"),
        ('{"format": 1, "metrics": []}', "lacks 'metrics'"),
        ('{"format": 1, "metrics": {}, "intervals": {"loss": [1]}}', "is no pair of numbers"),
        ("\xff", "cannot be read"),
    ],
)
def test_broken_summary_is_named_and_the_others_are_read(sweep: Path, text: str, why: str) -> None:
    job = next(entry for entry in sweep.iterdir() if "edges=act" in entry.name)
    (job / "summary.json").write_bytes(text.encode("latin-1"))
    found = read_sweep(sweep)
    assert len(found.jobs) == 4
    [broken] = found.unfinished
    assert broken.name == job.name and why in broken.why and broken.step == 300


def test_value_that_is_no_finite_number_is_no_metric(sweep: Path) -> None:
    job = next(entry for entry in sweep.iterdir() if "edges=act" in entry.name)
    metrics = json.loads((job / "summary.json").read_text())["metrics"]
    (job / "document_losses.csv").unlink()
    edit(job, metrics=metrics | {"loss/full/code": float("nan")})
    [act] = [found for found in read_sweep(sweep).jobs if found.edges == "act"]
    assert act.estimate("loss/full/code") is None


def test_missing_folder_and_folder_without_jobs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is no folder"):
        read_sweep(tmp_path / "missing")
    (tmp_path / "notes").mkdir()
    with pytest.raises(JobError, match="holds no job"):
        read_sweep(tmp_path)


def test_report_is_imported_without_torch_and_hydra() -> None:
    code = (
        "import sys, gr_sweep.report, gr_sweep.cli.report; "
        "print([name for name in ('torch', 'hydra', 'plotly', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
