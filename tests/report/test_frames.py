"""A sweep as data frames, by the names at the top of the package."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import gr_sweep
from gr_sweep.errors import JobError
from gr_sweep.jobdir import Record, State
from gr_sweep.report import collect

EDGES = ("none", "both", "act", "weight")
MakeJob = Callable[..., Path]


def test_results_have_a_typed_row_a_job_and_what_differs_first(sweep: Path) -> None:
    frame = gr_sweep.results(sweep)
    assert list(frame.columns[:4]) == ["job", "label", "edges", "plan.kind"]
    assert sorted(frame["label"]) == ["dense", *sorted(f"edges={e}" for e in EDGES)]
    assert frame.attrs["varied"] == ["edges", "plan.kind"]
    routed = frame[frame["plan.kind"] == "peers"]
    assert sorted(routed["edges"]) == sorted(EDGES) and len(frame) == 5
    assert frame["train.steps"].dtype == "int64" and frame["eval.bootstrap"].dtype == "int64"
    assert frame["route.foreign_dropout"].dtype == "float64"
    assert frame["procedure.prune"].dtype == "bool"
    assert frame["train.tokens"].isna().all()
    metrics = frame.loc[:, "loss/full/code":]  # type: ignore[misc]
    assert all(dtype == "float64" for dtype in metrics.dtypes)
    row = frame[frame["edges"] == "weight"].iloc[0]
    assert row["loss/full/code/low"] < row["loss/full/code"] < row["loss/full/code/high"]
    dense = frame[frame["plan.kind"] == "none"].iloc[0]
    assert pd.isna(dense["separability/selectivity/code"])
    assert not frame["loss/full/code"].isna().any()


def test_results_hold_the_numbers_of_results_csv(sweep: Path) -> None:
    frame, text = gr_sweep.results(sweep), collect.results(collect.read_sweep(sweep))
    assert list(frame.columns.drop("label")) == list(text.columns)
    assert list(frame["job"]) == list(text["job"])
    pd.testing.assert_series_equal(frame["mean_loss"], text["mean_loss"])
    assert [collect.shown(value) for value in frame["train.lr"]] == list(text["train.lr"])


def test_a_setting_that_is_a_list_can_be_grouped_by(tmp_path: Path, make_job: MakeJob) -> None:
    for without in (["code"], ["code", "biology"]):
        make_job(
            tmp_path, edges="dense", method="filtered", without=without, num_documents=2,
            resamples=0,
        )  # fmt: skip
    frame = gr_sweep.results(str(tmp_path))
    assert set(frame.groupby("method.without").groups) == {"[code]", "[code,biology]"}


def test_history_has_a_row_a_job_and_step_with_training_and_evaluation_beside_each_other(
    sweep: Path,
) -> None:
    frame = gr_sweep.history(sweep)
    assert list(frame.columns[:4]) == ["job", "edges", "plan.kind", "step"]
    assert not frame.duplicated(["job", "step"]).any()
    assert frame["step"].dtype == "int64" and frame["train/loss"].dtype == "float64"
    one = frame[frame["edges"] == "weight"].set_index("step")
    assert list(one.index) == list(range(5, 301, 5))
    evaluated = one["eval/loss/code"].dropna()
    assert list(evaluated.index) == [75, 150, 225, 300]
    [folder] = [path for path in sweep.iterdir() if path.name == one["job"].iloc[0]]
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert one.loc[75, "train/loss"] == next(
        row["train/loss"] for row in logged if row["step"] == 75 and "train/loss" in row
    )


def test_history_goes_as_far_as_jobs_came_that_are_not_done(sweep: Path) -> None:
    for name, steps in (("runs", 20), ("waits", 0)):
        (sweep / name).mkdir()
        config = {"edges": "act", "plan": {"kind": "peers"}, "seed": 7}
        Record(State.running, settings=config).write(sweep / name)
        rows = [f'{{"step": {step}, "train/loss": 2.0, "note": "x"}}\n' for step in range(steps)]
        (sweep / name / "metrics.jsonl").write_text("".join(rows) + '{"step": 99, "tra')
    frame = gr_sweep.history(sweep)
    runs = frame[frame["job"] == "runs"]
    assert list(runs["step"]) == list(range(20)) and set(runs["edges"]) == {"act"}
    assert set(runs["train/loss"]) == {2.0} and "note" not in frame
    assert set(runs["seed"]) == {7} and "waits" not in set(frame["job"])
    assert "runs" not in set(gr_sweep.results(sweep)["job"])


def test_a_folder_without_a_finished_job_gives_empty_frames(tmp_path: Path) -> None:
    (tmp_path / "job" / ".hydra").mkdir(parents=True)
    frame = gr_sweep.results(tmp_path)
    assert list(frame.columns) == ["job", "label"] and frame.empty
    frame = gr_sweep.history(tmp_path)
    assert list(frame.columns) == ["job", "step"] and frame.empty


@pytest.mark.parametrize("read", [gr_sweep.results, gr_sweep.history])
def test_a_folder_that_is_missing_or_holds_no_job_is_an_error(
    tmp_path: Path, read: Callable[..., pd.DataFrame]
) -> None:
    with pytest.raises(JobError, match="is no folder"):
        read(tmp_path / "gone")
    with pytest.raises(JobError, match="holds no job"):
        read(str(tmp_path))


def test_reading_a_sweep_loads_no_torch(sweep: Path) -> None:
    program = (
        "import sys, gr_sweep\n"
        f"print(len(gr_sweep.results({str(sweep)!r})), len(gr_sweep.history({str(sweep)!r})))\n"
        "print(sorted({'torch', 'transformers', 'hydra', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(gr_sweep.__file__).parents[1],
    )
    assert done.stdout.splitlines() == ["5 300", "[]"], done.stderr
