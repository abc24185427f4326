import json
import os
import subprocess
from pathlib import Path

import pytest

from gr_sweep.bench import sweep
from gr_sweep.errors import JobError


def leave_behind(job: Path, times: dict[str, float], training: float, evaluation: float) -> None:
    """What a job leaves, written at the given times."""
    (job / ".hydra").mkdir(parents=True)
    for name, written in times.items():
        metrics = {"cost/train_seconds": training, "cost/eval_seconds": evaluation}
        (job / name).write_text(json.dumps({"metrics": metrics}))
        os.utime(job / name, (written, written))


def play(monkeypatch: pytest.MonkeyPatch, status: int = 0) -> list[list[str]]:
    """Stands for the command: two jobs, begun 2 s after it; it takes 50 s."""
    calls = []

    def run(command, cwd, **_):
        calls.append(command)
        names = (".hydra/config.yaml", "plan.json", "document_losses.csv", "summary.json")
        # The second job stands before the first by name.
        for job, start in (("b", 102.0), ("a", 122.5)):
            written = dict(zip(names, (start, start + 5, start + 18, start + 20), strict=True))
            leave_behind(cwd / "sweep" / job, written, training=8.0, evaluation=3.0)
        return subprocess.CompletedProcess(command, status, "", "gr-sweep: one\ngr-sweep: two\n")

    clock = iter((100.0, 150.0))
    monkeypatch.setattr(sweep.subprocess, "run", run)
    monkeypatch.setattr(sweep.time, "time", lambda: next(clock))
    return calls


def test_every_second_of_a_sweep_is_accounted_for(monkeypatch):
    calls = play(monkeypatch)
    seconds = sweep.bench_sweep(2, ["model=tiny"])
    assert seconds.pop("wall") == 50.0
    assert seconds == {
        "start": 2.0,
        "between jobs": 0.5,
        "data and model": 10.0,
        "training": 16.0,
        "around the steps": 2 * (13.0 - 8.0 - 3.0),
        "evaluation": 6.0,
        "summary": 4.0,
        "report": 7.5,
    }
    assert sum(seconds.values()) == 50.0
    [command] = calls
    assert {"-m", "seed=0,1", "model=tiny", "tracking=off"} <= set(command)


def test_several_places_have_as_many_seconds(monkeypatch):
    """Jobs from 102 to 122 and from 122.5 to 142.5, in two places, of which one is always empty."""
    play(monkeypatch)
    seconds = sweep.bench_sweep(2, [], at_once=2)
    assert seconds.pop("wall") == 50.0 and sum(seconds.values()) == 100.0
    assert seconds["start"] == 2 * 2.0 and seconds["report"] == 2 * 7.5
    assert seconds["between jobs"] == 0.5 + 40.5


def test_the_command_prints_json_with_the_ratio(monkeypatch, capsys):
    play(monkeypatch)
    assert sweep.main(["--jobs", "2", "model=tiny", "train.steps=9", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["benchmark"] == "sweep"
    assert made["settings"]["ratio"] == 50.0 / 16.0
    assert made["settings"]["overrides"] == ["model=tiny", "train.steps=9"]
    assert [row["part"] for row in made["rows"]] == list(sweep.PARTS)


def test_a_sweep_that_fails_is_one_line(monkeypatch):
    play(monkeypatch, status=2)
    with pytest.raises(JobError, match=r"failed with status 2: gr-sweep: two$"):
        sweep.bench_sweep(2, [])


@pytest.mark.slow
def test_a_real_sweep_leaves_what_is_read(tmp_path):
    overrides = ["model=tiny", "train.steps=4", "data.documents=100", "eval.tokens=512"]
    seconds = sweep.bench_sweep(1, overrides)
    wall = seconds.pop("wall")
    assert sum(seconds.values()) == pytest.approx(wall)
    assert seconds["training"] > 0 and all(spent >= 0 for spent in seconds.values())
