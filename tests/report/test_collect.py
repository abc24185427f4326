"""A sweep's folder becomes jobs and a tidy frame; what is unfinished or broken is named."""

from pathlib import Path

import pandas as pd
import pytest

import gr_sweep
from gr_sweep.errors import JobError
from gr_sweep.jobdir import Record, State
from gr_sweep.report import read_sweep, write_report
from tests.report.conftest import edit, write_job


def test_jobs_are_ordered_by_edges_and_then_by_number(tmp_path: Path) -> None:
    for dropout in (0.5, 10.0, 0.0, 2.0):
        write_job(tmp_path, foreign_dropout=dropout)
    write_job(tmp_path, edges="dense")
    jobs = read_sweep(tmp_path).jobs
    assert jobs[0].edges == "dense"
    assert [job.settings["route.foreign_dropout"] for job in jobs[1:]] == [0.0, 0.5, 2.0, 10.0]


def test_titles_are_the_labels_where_they_tell_the_jobs_apart(tmp_path: Path) -> None:
    def titled(title: str):
        return lambda summary: summary.update(title=title)

    edit(write_job(tmp_path, edges="dense"), titled("method=dense"))
    for seed in (0, 1):
        job = write_job(tmp_path, edges="act", seed=seed)
        edit(job, titled(f"seed={seed} edges=act"))
    sweep = read_sweep(tmp_path)
    labels = list(sweep.labels.values())
    assert labels == ["method=dense", "seed=0 edges=act", "seed=1 edges=act"]
    assert [len(group) for group in sweep.replicates] == [1, 2]
    edit(job, titled("seed=0 edges=act"))
    labels = list(read_sweep(tmp_path).labels.values())
    assert labels[1:] == [job.name for job in sweep.jobs[1:]], "the names of their folders"


def test_a_job_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    write_job(tmp_path, edges="act")
    job = write_job(tmp_path, edges="act", overrides=["again"])
    # Tracking cannot change a result.
    edit(job, lambda summary: summary["config"].update(tracking={"mode": "off"}))
    assert len(read_sweep(tmp_path).jobs) == 1


def test_one_job_or_some_jobs_of_a_folder_can_be_read(edges_folder: Path) -> None:
    chosen = sorted(path for path in edges_folder.iterdir() if "edges=" in path.name)[:2]
    assert [job.name for job in read_sweep(chosen[0]).jobs] == [chosen[0].name]
    assert len(read_sweep(edges_folder, chosen).jobs) == 2


def test_jobs_of_other_code_or_text_are_told(tmp_path: Path) -> None:
    for seed in range(3):
        job = write_job(tmp_path, seed=seed)
    assert read_sweep(tmp_path).mixed == []
    edit(job, lambda summary: summary["fingerprints"].update(code="77aa0000ffff", text="other"))
    sweep = read_sweep(tmp_path)
    code, text = sweep.mixed
    assert "versions of the code" in code and "77aa0000: 1 job" in code
    assert "different texts" in text
    assert sorted(gr_sweep.results(tmp_path)["text"]) == ["fcde2b2e"] * 2 + ["other"]


def test_killed_and_waiting_jobs_are_listed_with_their_last_whole_step(tmp_path: Path) -> None:
    for name in ("killed", "waiting"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
    lines = '{"step": 10}\n{"step": 120}\n{"step": 13'
    (tmp_path / "killed" / "metrics.jsonl").write_text(lines)
    found = [(one.name, one.step, one.why) for one in read_sweep(tmp_path).unfinished]
    assert found == [("killed", 120, "not finished"), ("waiting", None, "not finished")]


@pytest.mark.parametrize("read", [read_sweep, gr_sweep.results, gr_sweep.history])
def test_missing_folder_and_folder_without_jobs_are_refused(tmp_path: Path, read) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(JobError) as caught:
            read(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


# Data frames


def test_results_have_typed_columns(edges_folder: Path) -> None:
    frame = gr_sweep.results(edges_folder)
    assert list(frame.columns[:4]) == ["job", "label", "edges", "plan.kind"]
    assert [label.split()[0] for label in frame["label"]] == [
        "plan=none",
        *(f"edges={e}" for e in ("none", "weight", "act", "both")),
    ]
    assert frame.attrs["varied"] == ["edges", "plan.kind"]
    assert frame["train.steps"].dtype == "int64" and frame["procedure.prune"].dtype == "bool"
    assert frame["route.foreign_dropout"].dtype == "float64" and frame["train.tokens"].isna().all()
    metrics = frame.loc[:, "loss/full/code":]  # type: ignore[misc]
    assert all(dtype == "float64" for dtype in metrics.dtypes)
    assert (set(frame["code"]), set(frame["text"])) == ({"b1946ac9"}, {"fcde2b2e"})
    dense, *_, weight = frame.iloc[0], frame.iloc[2]
    assert weight["mean_loss/low"] < weight["mean_loss"] < weight["mean_loss/high"]
    assert pd.isna(dense["mean_selectivity"])
    text = pd.read_csv(write_report(edges_folder).parent / "results.csv")
    assert list(text.columns) == list(frame.columns)
    pd.testing.assert_series_equal(text["mean_loss"], frame["mean_loss"])


def test_history_has_jobs_that_are_not_done(tmp_path: Path) -> None:
    write_job(tmp_path, edges="both")
    running = tmp_path / "runs"
    running.mkdir()
    Record(State.running, settings={"edges": "act", "seed": 7}).write(running)
    rows = [f'{{"step": {step}, "train/loss": 2.0, "note": "x"}}\n' for step in range(20)]
    (running / "metrics.jsonl").write_text("".join(rows) + '{"step": 99, "tra')
    frame = gr_sweep.history(tmp_path)
    runs = frame[frame["job"] == "runs"]
    assert list(runs["step"]) == list(range(20)) and set(runs["edges"]) == {"act"}
    assert set(runs["train/loss"]) == {2.0} and "note" not in frame
    assert "runs" not in set(gr_sweep.results(tmp_path)["job"])
