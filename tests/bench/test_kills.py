import json
from pathlib import Path

import pytest

from gr_sweep.bench import kills
from gr_sweep.folder import Record, State
from gr_sweep.summary import write_summary


def leave_behind(job: Path, **changes: object) -> None:
    """What a finished job leaves; changes are of its loss, its rows, its plan and its weights."""
    values = {"loss": 1.0, "rows": (1, 2), "plan": "p", "weights": b"w", "seconds": 1.0} | changes
    checkpoint = job / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "__0_0.distcp").write_bytes(values["weights"])
    metrics = {"loss/full/code": values["loss"], "cost/train_seconds": values["seconds"]}
    parts = {"metrics": metrics, "intervals": {}, "fingerprints": {}, "config": {}}
    write_summary(job / "summary.json", parts)
    rows = [{"step": step, "time_s": values["seconds"]} for step in values["rows"]]
    (job / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (job / "document_losses.csv").write_text("d")
    (job / "plan.json").write_text(str(values["plan"]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seconds": 9.0}, None),
        ({"loss": 1.5}, "metrics loss/full/code: 1.0 and 1.5"),
        ({"rows": (1, 1, 2)}, "2 and 3 rows of metrics.jsonl"),
        ({"plan": "q"}, "plan.json"),
        ({"weights": b"v"}, "checkpoint step_00000002: __0_0.distcp"),
    ],
)
def test_two_sweeps_differ_in_anything_but_time(tmp_path, changes, said):
    leave_behind(tmp_path / "whole" / "job")
    leave_behind(tmp_path / "killed" / "job", **changes)
    found = kills.compare(tmp_path / "whole", tmp_path / "killed")
    assert found == [] if said is None else said in found[0] and len(found) == 1


def test_a_job_that_is_missing_is_a_difference(tmp_path):
    leave_behind(tmp_path / "whole" / "job")
    (tmp_path / "killed").mkdir()
    [line] = kills.compare(tmp_path / "whole", tmp_path / "killed")
    assert line == "jobs ['job'] and []"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [((), ("start", None)), ((0, 5), ("training", 3)), ((0, 8), ("last evaluation", None))],
)
def test_what_a_job_was_at_when_it_was_killed(tmp_path, steps, expected):
    (tmp_path / "checkpoints" / "step_00000002").mkdir(parents=True)
    Record(State.stopped, num_steps=8).write(tmp_path)
    rows = "".join(f'{{"step": {step}}}\n' for step in steps)
    (tmp_path / "metrics.jsonl").write_text(rows + '{"step": 9')  # torn
    assert kills._at(tmp_path) == expected


@pytest.mark.slow
def test_a_sweep_that_is_killed_again_and_again_ends_as_one_that_is_not(capsys):
    assert kills.main(["--kills", "3", "--jobs", "2", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["wrong"] == [] and settings["jobs"] >= 2
