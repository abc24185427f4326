"""What the command prints, runs and returns; an object that writes summaries plays the jobs."""

import gc
import logging
import re
import shlex
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import yaml

from gr_sweep.cli import app
from gr_sweep.cli.compose import compose
from gr_sweep.cli.run import outcome_of, status_of
from gr_sweep.cli.task import JobTask, task_of
from gr_sweep.config import RunConfig, to_plain
from gr_sweep.data.prepare import text_fingerprint
from gr_sweep.errors import DataError, JobError
from gr_sweep.fingerprint import identity_of
from gr_sweep.jobdir import change_record, write_summary
from tests.refused import assert_refused

METRICS = {
    "loss/full/code": 4.03,
    "loss/full/biology": 4.15,
    "loss/removed/code/code": 4.53,
    "separability/served_matrix/code/code": 0.5,
}


class Jobs:
    """Stands for gr_sweep.job: records its calls; seeds 7, 8 and 9 fail, each in its own way."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.reports: list[tuple[Path, list[Path]]] = []

    @property
    def seeds(self) -> list[int]:
        return [call["config"].seed for call in self.calls]

    def run_job(self, config: RunConfig, folder: Path, **rest: Any) -> None:
        self.calls.append({"config": config, "folder": folder, **rest})
        if config.seed == 7:
            raise DataError("x.jsonl line 3: not UTF-8")
        if config.seed == 8:
            raise ZeroDivisionError("a bug")
        if config.seed == 9:
            raise KeyboardInterrupt
        identity = identity_of(config, text_fingerprint(config.data, config.partition))
        summary = {
            "domains": ["code", "biology"],
            "metrics": METRICS,
            "config": to_plain(config),
            "fingerprints": identity.fingerprints,
        }
        write_summary(folder / "summary.json", summary)

    def show(self, folder: Path, jobs: list[Path]) -> None:
        self.reports.append((folder, jobs))
        print(f"{folder}/report/index.html")


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """An empty folder to run in, with jobs and report replaced."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    played = Jobs()
    monkeypatch.setitem(sys.modules, "gr_sweep.job", played)  # type: ignore[arg-type]
    monkeypatch.setattr("gr_sweep.cli.run.show", played.show)
    return played


def test_a_job_gets_its_config_folder_overrides_and_command(jobs, tmp_path):
    assert app.main(["edges=weight", "data.weights.code=2", "tracking=off"]) == 0
    [call] = jobs.calls
    assert call["config"].edges.value == "weight" and call["config"].data.weights == {"code": 2.0}
    assert call["overrides"] == ["edges=weight", "data.weights.code=2", "tracking=off"]
    assert call["sweep"] == "runs"
    assert call["folder"].parent == tmp_path / "outputs" / "runs"
    files = {path.name: path.read_text() for path in (call["folder"] / ".hydra").iterdir()}
    assert "edges: weight" in files["config.yaml"] and "edges=weight" in files["overrides.yaml"]
    assert str(call["folder"]) in files["hydra.yaml"]
    assert "edges=weight" in (call["folder"] / "gr_sweep.log").read_text()


def test_the_command_of_a_job_runs_it_alone_in_its_folder(jobs, tmp_path, capsys):
    configs = tmp_path / "my configs"
    (configs / "edges").mkdir(parents=True)
    (configs / "edges" / "mine.yaml").write_text("# @package _global_\nedges: both\n")
    line = ["-m", "edges=mine,act", "data.weights.code=2", "baselines=[dense]"]
    assert app.main([*line, "--config-dir", str(configs), 'hydra.sweep.dir="a \'$folder"']) == 0
    assert len(jobs.calls) == 3
    for call in (jobs.calls[0], jobs.calls[2]):
        word, *argv = shlex.split(call["command"])
        assert word == "gr-sweep" and "-m" not in argv
        (call["folder"] / "summary.json").unlink()
        assert app.main(argv) == 0
        assert jobs.calls[-1]["folder"] == call["folder"]
        assert app.main(argv) == 0 and "done already" in capsys.readouterr().err
    assert len(jobs.calls) == 5


@pytest.mark.parametrize("decides", ["method=sgtm", "procedure=branch"])
def test_settings_that_a_method_or_procedure_overrules_are_logged(jobs, decides):
    line = [decides, "plan=forget", "plan.forget=[biology]", "edges=act"]
    assert app.main([*line, "route.foreign_dropout=0.3"]) == 0
    log = (jobs.calls[0]["folder"] / "gr_sweep.log").read_text()
    assert "edges=act has no effect" in log
    assert "route.foreign_dropout=0.3 has no effect" in log and log.count("has no effect") <= 3


def test_a_sweep_runs_what_is_missing_and_ends_with_the_report(jobs, capsys):
    assert app.main(["-m", "edges=both,act", "model=tiny"]) == 0
    first = capsys.readouterr()
    assert first.err.splitlines() == ["[1/2] edges=both", "[2/2] edges=act"]
    [page] = first.out.splitlines()
    [name] = {call["sweep"] for call in jobs.calls}
    assert name.startswith("edges-") and page == f"outputs/{name}/report/index.html"

    assert app.main(["model=tiny", "edges=weight,act", "-m"]) == 0
    assert "[2/2] edges=act: done already" in capsys.readouterr().err
    assert [call["config"].edges.value for call in jobs.calls] == ["both", "act", "weight"]
    _, reported = jobs.reports[-1]
    assert [folder.name.split("-")[0] for folder in reported] == ["edges=weight", "edges=act"]


def test_jobs_that_fail_do_not_stop_the_others(jobs, capsys):
    assert app.main(["-m", "seed=7,1"]) == 2
    printed = capsys.readouterr()
    assert re.search(r"gr-sweep: seed=7 failed: x.jsonl line 3: not UTF-8 \(.*\)\n", printed.err)
    assert "Traceback" not in printed.err
    assert printed.out.splitlines()[-1] == "outputs/seed/report/index.html"
    [log] = Path("outputs/seed").glob("seed=7-*/gr_sweep.log")
    assert "x.jsonl line 3: not UTF-8" in log.read_text()

    assert app.main(["-m", "seed=8,7,2"]) == 1
    assert "ZeroDivisionError('a bug')" in capsys.readouterr().err
    [log] = Path("outputs/seed").glob("seed=8-*/gr_sweep.log")
    assert "Traceback" in log.read_text()
    assert jobs.seeds == [7, 1, 8, 7, 2]


def test_a_bug_before_the_lock_is_status_1(jobs, tmp_path, monkeypatch):
    def run() -> None:
        raise ZeroDivisionError("a bug")

    change_record(Path("job"), title="a title")
    command = compose(["seed=7"])
    task = task_of(command, command.jobs[0], "", str(tmp_path / "job"))
    monkeypatch.setattr(JobTask, "run", lambda task: run())
    with pytest.raises(ZeroDivisionError):
        task()
    assert status_of([outcome_of(task.folder)]) == 1


def test_an_interrupted_sweep_prints_one_line_and_leaves_jobs_waiting(jobs, capsys):
    assert app.main(["-m", "seed=1,9,2"]) == 130
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("gr-sweep: interrupted")
    assert "Traceback" not in printed.err and "index.html" not in printed.out
    assert app.main(["status", "outputs/seed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("waiting" in line and "seed=2" in line for line in lines)
    assert any("done" in line and "seed=1" in line for line in lines)


class Model:
    """What a job holds while it runs."""


def test_a_failed_job_holds_no_memory_while_the_next_one_runs(jobs, monkeypatch):
    models, alive = [], []

    def run_job(config: RunConfig, folder: Path, **rest: Any) -> None:
        alive.append([model() for model in models if model() is not None])
        model = Model()
        models.append(weakref.ref(model))
        try:
            train(model)
        except ZeroDivisionError as error:
            if config.seed == 0:
                raise DataError("bad text") from error
            raise

    def train(model: Model) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(jobs, "run_job", run_job)
    gc.disable()
    try:
        assert app.main(["-m", "seed=0,1,2"]) == 1
    finally:
        gc.enable()
    assert alive == [[], [], []]


def test_a_folder_with_a_finished_job_of_other_settings_is_refused(jobs, tmp_path, capsys):
    assert app.main(["debug=default", "hydra.run.dir=X"]) == 0
    other = ["model=tiny", "edges=weight", "plan=forget", "plan.forget=[code]", "train.steps=999"]
    line = [*other, "hydra.run.dir=X"]
    assert_refused(line, "X holds a job with different settings", tmp_path, capsys)
    changed = ["debug=default", "edges=weight", "hydra.run.dir=X"]
    assert_refused(changed, "edges was 'act', now 'weight'", tmp_path, capsys)


def test_a_sweep_whose_folders_hold_other_jobs_is_refused_as_a_whole(jobs, tmp_path, capsys):
    where = ["hydra.sweep.dir=Y", "hydra.sweep.subdir='${hydra.job.num}'", "debug=default"]
    assert app.main(["-m", "edges=act,weight", *where]) == 0
    assert sorted(path.name for path in Path("Y").iterdir()) == ["0", "1"]
    assert_refused(["-m", "edges=both,none", *where], "Y/0", tmp_path, capsys)
    assert len(jobs.reports) == 1


def test_text_that_has_changed_refuses_a_finished_job(jobs, tmp_path, capsys):
    for name in ("code", "biology", "creative"):
        Path(f"{name}.txt").write_text(f"some text of {name} " * 40)
    line = ["-m", "data=local", "data.root=.", "debug=default", "tracking=off"]
    assert app.main([*line, "seed=0,1"]) == 0
    Path("code.txt").write_text("another text " * 40)
    assert_refused([*line, "seed=0,1,2"], "different text", tmp_path, capsys)
    assert len(jobs.calls) == 2 and len(jobs.reports) == 1


def test_resume_force_and_fresh_run_a_different_job(jobs, monkeypatch, capsys):
    line = ["debug=default", "hydra.run.dir=X"]
    assert app.main(line) == 0
    assert app.main([*line, "edges=both", "resume=force"]) == 0
    assert not Path(".replaced").exists()
    assert app.main([*line, "edges=none", "resume=fresh"]) == 0
    assert (Path(".replaced/X-1") / "summary.json").exists()
    assert [call["config"].edges.value for call in jobs.calls] == ["act", "both", "none"]

    def fail(*_: object, **__: object) -> None:
        raise JobError("no luck")

    monkeypatch.setattr(jobs, "run_job", fail)
    capsys.readouterr()
    assert app.main([*line, "edges=both", "resume=force"]) == 2
    assert capsys.readouterr().out == "X\n", "no earlier result is shown"
    assert Path("X/summary.json.replaced").exists() and not Path("X/summary.json").exists()


def test_a_job_whose_folder_cannot_be_written_is_one_line(jobs, capsys):
    Path("X").mkdir()
    Path("X/.hydra").touch()
    assert app.main(["debug=default", "hydra.run.dir=X"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "X/.hydra: File exists" in printed
    assert not jobs.calls


def test_a_folder_that_is_not_a_jobs_is_refused(jobs, tmp_path, capsys):
    Path("X").mkdir()
    Path("X/thesis.tex").write_text("years of work")
    said = "X holds thesis.tex and is not the folder of a job"
    assert_refused(["hydra.run.dir=X", "resume=fresh"], said, tmp_path, capsys)
    assert not jobs.calls


def test_every_example_of_the_help_is_a_command_that_works(jobs, tmp_path):
    from gr_sweep.cli.help import EXAMPLES

    (tmp_path / "DIR").mkdir()
    config = tmp_path / "DIR" / "config.json"
    config.write_text('{"model_type": "llama"}')  # a checkpoint of unknown shape
    for example, _ in EXAMPLES:
        _, *argv = example.split()
        if argv[:1] == ["experiment=edges_vs_baselines"]:
            continue  # studies are tested in tests/cli/test_compose.py
        assert compose([word for word in argv if word != "-m"], multirun="-m" in argv).jobs


def test_cfg_prints_the_settings(jobs, capsys):
    assert app.main(["--cfg", "job", "edges=act", "data.weights.code=2"]) == 0
    printed = capsys.readouterr().out
    assert "edges: act\n" in printed and "code: 2" in printed and "hydra:" not in printed
    assert app.main(["edges=act", "--cfg", "hydra", "hydra.run.dir=x"]) == 0
    assert f"output_dir: {Path('x').resolve()}\n" in capsys.readouterr().out
    assert app.main(["-m", "edges=act,both", "--cfg", "job"]) == 0
    each = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [settings["edges"] for settings in each] == ["act", "both"]
    assert jobs.calls == []


def test_quiet_hides_progress_and_keeps_the_log(jobs, capsys):
    assert app.main(["-q", "-m", "edges=act,both", "hydra.sweep.dir=x"]) == 0
    assert capsys.readouterr().err == ""
    assert "edges=act" in (jobs.calls[0]["folder"] / "gr_sweep.log").read_text()


def test_a_warning_of_every_job_is_printed_once_and_is_in_each_log(jobs, monkeypatch, capsys):
    def run_job(config: RunConfig, folder: Path, **rest: Any) -> None:
        for said in ("no W&B", f"seed {config.seed}"):
            logging.getLogger("gr_sweep.job").warning(said)
        raise DataError("the same error")

    monkeypatch.setattr(jobs, "run_job", run_job)
    for _ in range(2):  # another command prints it again
        assert (
            app.main(["-m", "seed=0,1", "hydra.sweep.dir=x", "hydra.sweep.subdir='${seed}'"]) == 2
        )
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if "no W&B" in line or line.startswith("seed ")] == [
            "no W&B", "seed 0", "seed 1",
        ]  # fmt: skip
        assert lines.count("gr-sweep: the same error") == 2
    assert Path("x/1/gr_sweep.log").read_text().count("no W&B") == 2
    assert Path("x/1/warnings.log").read_text() == "no W&B\nseed 1\n"
