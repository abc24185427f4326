"""The verb, from the words that are typed to what is printed."""

import json
from pathlib import Path

import pytest

from gr_sweep.cli import app

TINY = ["model=tiny", "train.steps=5", "train.sequence_length=32"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def printed_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert app.main(["estimate", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_jobs_are_those_of_the_sweep_and_nothing_is_written(capsys, tmp_path):
    from gr_sweep.cli.compose import compose

    words = ["method=dense,routed", "edges=both,act", *TINY]
    made = printed_json(capsys, "-m", *words)
    sweep = compose(words, multirun=True)
    assert [job["folder"] for job in made["jobs"]] == [str(job.folder) for job in sweep.jobs]
    assert [job["title"] for job in made["jobs"]] == [job.title for job in sweep.jobs]
    assert len(made["jobs"]) == 3, "dense cuts no edge"
    assert list(tmp_path.iterdir()) == []
    assert made["total"]["jobs"] == 3
    for name in ("hours", "tokens", "flops"):
        assert made["total"][name] == pytest.approx(sum(job[name] for job in made["jobs"]))


def test_a_job_that_is_done_is_named_and_not_in_the_total(capsys):
    from gr_sweep.cli.compose import compose
    from gr_sweep.jobdir import write_summary

    job = compose(["seed=0,1", *TINY], multirun=True).jobs[0]
    job.folder.mkdir(parents=True)
    write_summary(job.folder / "summary.json", {"fingerprints": job.identity.fingerprints})
    made = printed_json(capsys, "-m", "seed=0,1", *TINY)
    assert [job["is_done"] for job in made["jobs"]] == [True, False]
    assert made["total"]["jobs"] == 1
    assert app.main(["estimate", "-m", "seed=0,1", *TINY]) == 0
    assert "seed=0 (done)" in capsys.readouterr().out


def test_the_table_has_a_line_for_each_job_and_the_total_and_warnings(capsys, monkeypatch):
    from gr_sweep.metrics import cost

    monkeypatch.setitem(cost.GPUS, "a100", cost.Gpu(1e12, 1e6, 0))
    assert app.main(["estimate", "-m", "edges=both,act", *TINY, "--gpu", "a100"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 x a100 per job, 0.4 TFLOP/s each")
    for title in ("edges=both", "edges=act"):
        assert sum(line.rstrip().endswith(f" {title}") for line in lines) == 1
    [total] = [line for line in lines if line.startswith("to run: ")]
    assert total.startswith("to run: 2 of 2 jobs, 3.84k tokens, ")
    assert lines[-1].startswith("warning: edges=act") and "fit" in lines[-1]


def test_hours_follow_the_gpu_its_number_and_its_utilisation(capsys):
    rows = ["train.batch_sequences=12"]
    one = printed_json(capsys, *TINY, *rows)
    assert (one["device"], one["flops_per_second"]) == ("h100", pytest.approx(0.4 * 989e12))
    words = ("--gpu", "a100", "--mfu", "0.2", "--gpus", "2")
    two = printed_json(capsys, *TINY, *rows, *words)
    ratio = one["jobs"][0]["hours"] / two["jobs"][0]["hours"]
    assert ratio == pytest.approx(0.2 * 312 * 2 / (0.4 * 989))
    assert two["total"]["device_hours"] == pytest.approx(2 * two["total"]["hours"])


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--mfu", "1.5"], "--mfu"),
        (["--gflops", "9", "--gpu", "h100"], "--gpu and --gflops"),
        (["edges=both,act"], "-m"),
        (["--gpuss", "3"], "--gpuss"),
        (["train.batch_sequences=9", "--gpus", "2"], "2 processes"),
    ],
)
def test_what_cannot_be_estimated_is_one_line_and_status_2(capsys, argv, named):
    assert app.main(["estimate", *argv]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("gr-sweep: ") and named in line
