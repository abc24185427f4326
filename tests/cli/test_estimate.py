"""The verb, from the words that are typed to what is printed."""

import json
from pathlib import Path

import pytest

from gr_sweep.cli import app
from gr_sweep.cli.compose import compose
from gr_sweep.jobdir import write_summary
from tests.data.corpus import write_root

TINY = ["model=tiny", "train.steps=5", "train.sequence_length=32"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def printed_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert app.main(["estimate", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_jobs_are_those_of_the_sweep_and_the_total_is_of_those_that_are_missing(capsys):
    words = ["method=dense,routed", "edges=both,act", *TINY]
    sweep = compose(words, multirun=True)
    done, *missing = sweep.jobs
    done.folder.mkdir(parents=True)
    write_summary(done.folder / "summary.json", {"fingerprints": done.identity.fingerprints})
    made = printed_json(capsys, "-m", *words)
    assert [job["folder"] for job in made["jobs"]] == [str(job.folder) for job in sweep.jobs]
    assert [job["title"] for job in made["jobs"]] == [job.title for job in sweep.jobs]
    assert [job["is_done"] for job in made["jobs"]] == [True, False, False]
    assert made["total"]["jobs"] == len(missing) == 2
    for name in ("hours", "tokens", "flops"):
        assert made["total"][name] == pytest.approx(sum(job[name] for job in made["jobs"][1:]))


def test_tokens_can_be_a_multiple_of_the_parameters_that_the_plan_does_not_add(capsys):
    words = ["train.tokens=1.5x", "plan.adapters.mlp=8", *TINY[:1], *TINY[2:]]
    [job] = printed_json(capsys, *words)["jobs"]
    assert job["parameters"] > job["dense_parameters"]
    assert 0 <= job["tokens"] - 1.5 * job["dense_parameters"] < 12 * 32, "whole steps"
    assert app.main(["estimate", *words]) == 0
    assert " 1.5 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--gflops", "nan"], "--gflops nan: expected a positive"),
        (["--gflops", "9", "--gpu", "a100"], "--gpu"),
        (["edges=both,act"], "-m"),
        (["--gpuss", "3"], "--gpuss"),
        (["train.batch_sequences=9", "--gpus", "2"], "2 processes"),
    ],
)
def test_what_cannot_be_estimated_is_one_line_and_status_2(capsys, argv, named):
    assert app.main(["estimate", *argv]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("gr-sweep: ") and named in line


def test_text_that_is_not_in_the_cache_is_planned_once_for_all_jobs(capsys, tmp_path):
    root = write_root(tmp_path / "root", "code", "biology", "creative", documents=100)
    text = [f"data.root={root}", "data=local", f"data.cache={tmp_path / 'cache'}"]
    words = ["-m", "edges=both,act", *TINY, *text]
    [size] = printed_json(capsys, *words)["text"]
    assert size["text_bytes"] == pytest.approx(sum(p.stat().st_size for p in root.iterdir()))
    assert size["hours"] > 0 and size["processes"] > 0
    assert app.main(["estimate", *words]) == 0
    [line] = [x for x in capsys.readouterr().out.splitlines() if x.startswith("text to prepare")]
    assert "GB of disk" in line and "MB/s" in line
    assert not [*(tmp_path / "cache").glob("*/")], "nothing is prepared"
