import json
import time
from pathlib import Path

import pytest

from gr_sweep.bench import gpu
from gr_sweep.bench.gpu import Part, markdown, parts, run_parts
from gr_sweep.cli import app
from gr_sweep.files import write_whole


@pytest.fixture(autouse=True)
def short_reserves(monkeypatch):
    for name, seconds in (("RESERVE_S", 0.0), ("LEAST_S", 0.1), ("STOP_S", 0.2)):
        monkeypatch.setattr(gpu, name, seconds)


def python(name: str, code: str, weight: float = 1.0, **more) -> Part:
    return Part(name, ("-c", code), weight, **more)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_what_fails_is_noted_and_the_other_parts_go_on(tmp_path):
    pid = tmp_path / "pid"
    child = (
        f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); "
        "time.sleep(99)"
    )
    hangs = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    found = [
        python("error", "print('{}'); raise RuntimeError('CUDA out of memory')"),
        python("empty", """print('{"rows": []}')"""),
        python("hangs", hangs, weight=0.4),
        python("last", """print('{"rows": [1]}')"""),
    ]
    reports = []
    begun = time.monotonic()
    results = run_parts(found, 8 / 60, lambda results: reports.append(json.dumps(results)))
    assert time.monotonic() - begun < 8
    assert len(reports) == len(found) and json.loads(reports[-1]) == results
    said = {name: (of["status"], of["reason"]) for name, of in results.items()}
    assert said["error"] == ("failed", "exit status 1")
    assert results["error"]["notes"][-1] == "RuntimeError: CUDA out of memory"
    assert said["empty"][0] == "failed" and said["hangs"][0] == "stopped"
    assert said["last"] == ("done", "") and results["last"]["result"] == {"rows": [1]}
    assert not is_running(int(pid.read_text())), "what the part had started has ended too"
    table = markdown({name: of for name, of in results.items() if name != "last"})
    assert "| error | failed: exit status 1" in table and "CUDA out of memory" in table


def test_time_that_a_part_leaves_goes_to_the_next_ones_and_none_is_spent_twice():
    quick = python("quick", "print('{}')", weight=1000.0)
    slow = python("slow", "import time; time.sleep(0.5); print('{}')")
    results = run_parts([quick, slow], 3 / 60, lambda results: None)
    assert [of["status"] for of in results.values()] == ["done", "done"]
    results = run_parts([quick], 0.0, lambda results: None)
    assert results["quick"]["reason"] == "no time was left"


def test_a_sweep_s_rate_is_that_of_its_jobs(tmp_path):
    for name in "ab":
        metrics = {"cost/train_tokens": 3000, "cost/tokens_per_second": 100.0}
        (tmp_path / name).mkdir()
        write_whole(tmp_path / name / "summary.json", json.dumps({"metrics": metrics}))
    result = gpu.read_sweep("", tmp_path, 60.0)
    assert result == {
        "jobs": 2, "seconds": 60.0, "tokens_per_second": 100.0, "training_tokens_per_second": 200.0,
    }  # fmt: skip


def test_what_cannot_be_written_or_is_not_a_part_is_one_line(tmp_path, capsys):
    for words in (
        ["--json", str(tmp_path / "no folder" / "x.json")],
        ["--json", str(tmp_path / "x.json"), "--parts", "nope"],
        ["--json", str(tmp_path / "x.json"), "--minutes", "0"],
    ):
        assert app.main(["bench", "gpu", *words]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_the_whole_command_runs_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GR_SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "gpu.json"
    assert gpu.main(["--tiny", "--minutes", "60", "--json", str(file)]) == 0
    results = json.loads(file.read_text())["parts"]
    assert [*results] == [part.name for part in parts()]
    assert {name: of["status"] for name, of in results.items()} == dict.fromkeys(results, "done")
    assert results["sweep of jobs at once"]["result"]["jobs"] == 2
    assert file.with_suffix(".md").read_text().endswith(capsys.readouterr().out)
