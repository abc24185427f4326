"""What the command prints, runs and returns; jobs are played by an object that writes a summary."""

import errno
import gc
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import types
import weakref
from pathlib import Path
from typing import Any

import pytest

import gr_sweep
from gr_sweep.cli import app
from gr_sweep.config import RunConfig
from gr_sweep.errors import DataError
from gr_sweep.train.distributed import Place, Processes, connect

METRICS = {
    "loss/full/code": 4.03,
    "loss/full/biology": 4.15,
    "loss/removed/code/code": 4.53,
    "separability/matrix/code/code": 0.5,
}


class Jobs:
    """Stands for gr_sweep.job: notes its calls; seeds 7, 8 and 9 fail, each in its own way."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def run_job(self, config: RunConfig, folder: Path, **rest: Any) -> None:
        self.calls.append({"config": config, "folder": folder, **rest})
        if config.seed == 7:
            raise DataError("x.jsonl line 3: not UTF-8")
        if config.seed == 8:
            raise ZeroDivisionError("a bug")
        if config.seed == 9:
            raise KeyboardInterrupt
        summary = {"domains": ["code", "biology"], "metrics": METRICS}
        (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """An empty folder to run in, with jobs and report played."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    played = Jobs()
    monkeypatch.setitem(sys.modules, "gr_sweep.job", played)  # type: ignore[arg-type]

    def report(argv: list[str]) -> int:
        print(f"{argv[0]}/report/index.html")
        return 0

    module = types.SimpleNamespace(main=report)
    monkeypatch.setitem(sys.modules, app.VERBS["report"], module)  # type: ignore[arg-type]
    return played


def test_a_job_gets_its_config_folder_overrides_and_command(jobs, tmp_path):
    assert app.main(["edges=weight", "data.weights.code=2", "tracking=off"]) == 0
    [call] = jobs.calls
    assert call["config"].edges.value == "weight" and call["config"].data.weights == {"code": 2.0}
    assert call["overrides"] == ["edges=weight", "data.weights.code=2", "tracking=off"]
    assert call["command"] == "gr-sweep edges=weight data.weights.code=2 tracking=off"
    assert call["sweep"] == "runs"
    assert call["folder"].parent == tmp_path / "outputs" / "runs"
    assert (call["folder"] / ".hydra" / "config.yaml").exists()
    assert "edges=weight" in (call["folder"] / "gr_sweep.log").read_text()


def test_a_job_alone_ends_with_its_numbers_and_its_folder(jobs, capsys):
    assert app.main(["edges=weight"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["code", "biology"]
    assert lines[1].split()[-2:] == ["4.030", "4.150"]
    assert lines[2].split()[-2:] == ["0.500", "-"]
    assert lines[-1] == f"outputs/runs/{jobs.calls[0]['folder'].name}"


def test_a_job_that_is_done_is_not_run_again(jobs, capsys):
    assert app.main(["seed=1"]) == 0
    assert app.main(["seed=1"]) == 0
    assert len(jobs.calls) == 1
    assert "seed=1: done already" in capsys.readouterr().err


def test_a_sweep_runs_what_is_missing_and_ends_with_the_report(jobs, capsys):
    assert app.main(["-m", "edges=both,act", "model=tiny"]) == 0
    first = capsys.readouterr()
    assert "[1/2] edges=both\n" in first.err and "[2/2] edges=act\n" in first.err
    assert first.out.splitlines()[-1] == "outputs/edges,model=tiny/report/index.html"
    assert {call["sweep"] for call in jobs.calls} == {"edges,model=tiny"}

    assert app.main(["model=tiny", "edges=both,act,weight", "-m"]) == 0
    second = capsys.readouterr()
    assert "[1/3] edges=both: done already" in second.err
    assert [call["config"].edges.value for call in jobs.calls] == ["both", "act", "weight"]
    assert second.out.splitlines()[-1] == "outputs/edges,model=tiny/report/index.html"


def test_hydra_adds_no_lines_of_its_own(jobs, capsys):
    app.main(["-m", "seed=0,1"])
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["outputs/seed/report/index.html"]
    assert printed.err.splitlines() == ["[1/2] seed=0", "[2/2] seed=1"]


def test_jobs_that_fail_do_not_stop_the_others(jobs, capsys):
    assert app.main(["-m", "seed=7,1"]) == 2
    printed = capsys.readouterr()
    assert re.search(r"gr-sweep: seed=7 failed: x.jsonl line 3: not UTF-8 \(.*\)\n", printed.err)
    assert "Traceback" not in printed.err
    assert printed.out.splitlines()[-1] == "outputs/seed/report/index.html"
    [log] = Path("outputs/seed").glob("seed=7-*/gr_sweep.log")
    assert "x.jsonl line 3: not UTF-8" in log.read_text()

    assert app.main(["-m", "seed=8,7,2"]) == 1
    printed = capsys.readouterr()
    assert "ZeroDivisionError('a bug')" in printed.err
    [log] = Path("outputs/seed").glob("seed=8-*/gr_sweep.log")
    assert "Traceback" in log.read_text()
    assert [call["config"].seed for call in jobs.calls] == [7, 1, 8, 7, 2]


def test_jobs_whose_turn_has_not_come_are_known(jobs, capsys):
    assert app.main(["-m", "seed=1,9,2"]) == 130
    capsys.readouterr()
    assert app.main(["status", "outputs/seed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("waiting" in line and "seed=2" in line for line in lines)
    assert any("done" in line and "seed=1" in line for line in lines)


class Model:
    """What a job holds while it runs."""


@pytest.mark.parametrize("is_told", [False, True], ids=["bug", "one line"])
def test_a_job_that_failed_holds_nothing_while_the_next_one_runs(jobs, monkeypatch, is_told):
    models, alive = [], []

    def run_job(config: RunConfig, folder: Path, **rest: Any) -> None:
        alive.append([model() for model in models if model() is not None])
        model = Model()
        models.append(weakref.ref(model))
        try:
            train(model)
        except ZeroDivisionError as error:
            if is_told:
                raise DataError("bad text") from error
            raise

    def train(model: Model) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(jobs, "run_job", run_job)
    gc.disable()
    try:
        assert app.main(["-m", "seed=0,1,2"]) == (2 if is_told else 1)
    finally:
        gc.enable()
    assert alive == [[], [], []]


def test_a_sweep_can_be_launched_in_batches(jobs):
    assert app.main(["-m", "seed=0,1,2", "hydra.sweeper.max_batch_size=2"]) == 0
    assert [call["config"].seed for call in jobs.calls] == [0, 1, 2]


def test_a_sweep_without_a_finished_job_has_no_report(jobs, capsys):
    assert app.main(["-m", "seed=7"]) == 2
    assert "index.html" not in capsys.readouterr().out


@pytest.mark.parametrize(("seed", "status"), [(7, 2), (8, 1)])
def test_a_job_alone_that_fails_gives_its_status(jobs, capsys, seed, status):
    assert app.main([f"seed={seed}"]) == status
    printed = capsys.readouterr()
    assert ("Traceback" in printed.err) == (status == 1)
    assert printed.err.count("gr-sweep: ") == 1


def test_an_interrupted_sweep_says_so_in_one_line(jobs, capsys):
    assert app.main(["-m", "seed=1,9,2"]) == 130
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("gr-sweep: interrupted")
    assert "Traceback" not in printed.err and "index.html" not in printed.out


def test_nothing_is_made_when_one_job_of_a_sweep_is_wrong(jobs, tmp_path, capsys):
    assert app.main(["-m", "plan.mlp_shared=0.5,0.7,1.5"]) == 2
    assert jobs.calls == [] and list(tmp_path.iterdir()) == []
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == ("gr-sweep: plan.mlp_shared=1.5 is no share; give a number from 0 to 1\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nope"], "unknown flag --nope"),
        (["repot", "outputs"], "unknown verb 'repot'; verbs are report, export, estimate, bench"),
        (["--config-dir", "nowhere"], "config folder nowhere does not exist"),
        (["hydra.searchpath=[file:///nowhere]"], "folder /nowhere does not exist"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(jobs, capsys, argv, message):
    assert app.main(argv) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("gr-sweep: ") and message in printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""


def test_a_traceback_can_be_asked_for(jobs, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(gr_sweep.errors.ConfigError):
        app.main(["edges=nope"])


def test_verbs_get_the_rest_of_the_line(jobs, capsys):
    assert app.main(["report", "outputs/x"]) == 0
    assert capsys.readouterr().out == "outputs/x/report/index.html\n"


def test_every_verb_is_a_module_with_a_main():
    assert set(app.VERBS) == {
        *("report", "export", "estimate", "bench", "status", "doctor", "dashboard"),
    }
    for name in app.VERBS.values():
        assert Path(gr_sweep.__file__).parent.joinpath("cli", f"{name.split('.')[-1]}.py").exists()


def test_help_teaches_by_example_and_lists_groups_and_verbs(capsys):
    assert app.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "gr-sweep -m edges=both,act,weight" in text
    for line in (r"edges +act  both  none  weight", r"plan +forget  lattice  none  peers  tree"):
        assert re.search(line, text)
    for word in (*app.VERBS, "--multirun", "--cfg job", "code_bio_creative"):
        assert word in text


def test_every_example_of_the_help_is_a_command_that_works(jobs, tmp_path, monkeypatch):
    from gr_sweep.cli.compose import compose
    from gr_sweep.cli.help import EXAMPLES

    (tmp_path / "DIR").mkdir()
    (tmp_path / "DIR" / "config.json").write_text("{}")  # of a checkpoint whose shape nobody knows
    for example, _ in EXAMPLES:
        _, *argv = example.split()
        assert compose([word for word in argv if word != "-m"], multirun="-m" in argv).jobs


def test_the_version_is_the_package_s(capsys):
    assert app.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gr-sweep {gr_sweep.__version__}\n"


def test_hydra_s_own_flags_still_work(jobs, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert app.main(["--cfg", "job", "edges=act"]) == 0
    assert "edges: act\n" in capsys.readouterr().out
    # An entry of a dictionary, which Hydra alone would want with ++.
    assert app.main(["--cfg", "job", "data.weights.code=2"]) == 0
    assert "code: 2" in capsys.readouterr().out
    assert jobs.calls == []


def test_what_a_launcher_runs_can_be_pickled():
    task = app.JobTask("gr-sweep -m seed=0,1", "seed", (("/x", "[1/2] seed=0"),))
    assert pickle.loads(pickle.dumps(task)) == task


def run_command(*argv: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    root = Path(gr_sweep.__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, "-m", "gr_sweep", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_refused_command_leaves_nothing_but_its_line(tmp_path):
    done = run_command("-m", "plan=forget", "edges=both,act", folder=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("gr-sweep: plan=forget does not say what to forget")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_checking_a_command_does_not_load_torch(tmp_path):
    code = (
        "import sys; from gr_sweep.cli import app; status = app.main(['-m', 'edges=both,nope']);"
        "heavy = {'torch', 'transformers', 'datasets', 'wandb', 'pandas'} & set(sys.modules);"
        "sys.exit(f'{status} {heavy}')"
    )
    root = Path(gr_sweep.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.splitlines()[-1] == "2 set()"


def test_a_wrong_setting_is_refused_by_cfg_too(jobs, capsys):
    assert app.main(["--cfg", "job", "edges=wieght"]) == 2
    assert "did you mean weight?" in capsys.readouterr().err


def test_processes_that_do_not_divide_the_rows_are_one_line_before_any_work(
    jobs, tmp_path, monkeypatch, capsys
):
    for name, value in {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "5"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(app, "connect", Processes)
    assert app.main(["edges=weight"]) == 2
    assert "12 sequences, which do not divide over 5 processes" in capsys.readouterr().err
    assert not jobs.calls and not list(tmp_path.iterdir())


def test_several_processes_run_the_jobs_themselves(jobs, monkeypatch, capsys):
    monkeypatch.setattr(app, "connect", lambda: Processes(Place(0, 2, 0, False, "env://")))
    command = ["-m", "edges=both,act", "hydra/launcher=submitit_local"]
    assert app.main(command) == 2 and not jobs.calls
    assert "use hydra/launcher=basic" in capsys.readouterr().err
    assert app.main(command[:2]) == 0 and len(jobs.calls) == 2


def test_a_process_beside_the_main_one_runs_the_jobs_in_the_folders_of_that_one(
    jobs, tmp_path, monkeypatch
):
    """The time is another one in each process."""
    told = [str(tmp_path / "of" / "main")]
    answers = iter([told, told[0], None])

    class Beside(Processes):
        def from_main(self, work):
            return next(answers)

        def main_first(self, work):
            return work()

    monkeypatch.setattr(app, "connect", lambda: Beside(Place(1, 2, 1, False, "env://")))
    Path(told[0]).mkdir(parents=True)
    assert app.main(["hydra.run.dir=own/${now:%f}", "seed=3"]) == 0
    [call] = jobs.calls
    assert call["folder"] == Path(told[0]) and call["config"].seed == 3
    assert [path.name for path in tmp_path.iterdir()] == ["of"]


def test_an_environment_that_makes_no_sense_is_one_line(jobs, monkeypatch, capsys):
    for name, value in {"RANK": "one", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(app, "connect", connect.__wrapped__)
    assert app.main(["edges=weight"]) == 2 and not jobs.calls
    assert capsys.readouterr().err == (
        "gr-sweep: RANK in the environment: expected an integer, got one\n"
    )


def test_errors_are_said_by_the_main_process_alone(jobs, monkeypatch, capsys):
    for name, value in {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(app, "connect", Processes)
    assert app.main(["edges=wieght"]) == 2
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_has_enough_ends_the_command_without_a_word() -> None:
    command = [sys.executable, "-c", "from gr_sweep.cli.app import main; raise SystemExit(main())"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*command, "--help"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_another_broken_pipe_is_no_such_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(argv: list[str]) -> int:
        raise BrokenPipeError(errno.EPIPE, "a worker is gone")

    monkeypatch.setattr(app, "_dispatch", broken)
    with open(os.devnull, "w") as stream, pytest.raises(BrokenPipeError):
        monkeypatch.setattr(sys, "stdout", stream)
        app.main([])
