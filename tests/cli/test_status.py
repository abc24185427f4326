"""The verb `status` on folders as jobs leave them."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from gr_sweep.cli import status as verb
from gr_sweep.cli.app import main
from gr_sweep.cli.overview import read_status
from gr_sweep.errors import DataError, JobError
from gr_sweep.jobdir import (
    Holder,
    Identity,
    Record,
    State,
    job_folders,
    lock_job_dir,
    write_summary,
)

ROW = {
    "step": 30,
    "train/loss": 2.5,
    "train/loss/code": 2.4,
    "train/tokens_per_second": 12345.6,
    "time_s": 3.0,
}


def log(folder: Path, *rows: dict, torn: str = "") -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + torn)


def begin(folder: Path, state: State = State.waiting, **record) -> Path:
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    Record(state, **({"num_steps": 120} | record)).write(folder)
    return folder


@pytest.fixture
def sweep(tmp_path):
    """A job in each state, beside what is no job."""
    folder = tmp_path / "a sweep"
    for name in ("report", ".submitit", "done", "failed"):
        (folder / name).mkdir(parents=True)
    (folder / "multirun.yaml").touch()
    with lock_job_dir(folder / "done") as hold:
        hold.begin(Identity("s", "t", "c", {}), 120, force=False)
        log(folder / "done", ROW | {"step": 120}, {"step": 120, "eval/loss/code": 2.0})
        write_summary(folder / "done" / "summary.json", {"format": 1})
    with pytest.raises(DataError), lock_job_dir(folder / "failed"):
        raise DataError("x.jsonl line 3: not UTF-8")
    begin(folder / "stopped", State.stopped, error="stopped by SIGTERM")
    begin(folder / "killed", State.running, holder=Holder.here())
    log(folder / "killed", ROW, torn='{"step": 31, "tra')
    begin(folder / "waiting")
    with lock_job_dir(folder / "running"):
        log(folder / "running", ROW)
        yield folder


def statuses(folder: Path) -> dict:
    return {job.name: job for job in verb.read_jobs(folder)}


def test_every_job_of_a_sweep_is_told_with_its_state_and_why(sweep):
    found = statuses(sweep)
    assert {name: job.state for name, job in found.items()} == {
        "done": State.done,
        "failed": State.failed,
        "killed": State.stopped,
        "running": State.running,
        "stopped": State.stopped,
        "waiting": State.waiting,
    }
    assert found["running"].holder == Holder.here()
    assert found["failed"].why == "x.jsonl line 3: not UTF-8"
    assert found["stopped"].why == "stopped by SIGTERM"
    assert found["killed"].why == f"killed ({Holder.here()} gives no sign of life)"
    assert found["done"].why is found["waiting"].why is found["running"].why is None


def test_how_far_a_job_is_comes_from_the_last_whole_row(sweep):
    found = statuses(sweep)
    killed, done = found["killed"], found["done"]
    assert (killed.step, killed.num_steps, killed.share) == (30, 120, 0.25)
    assert (killed.loss_nats, killed.tokens_per_second) == (2.5, 12345.6)
    # The last row is an evaluation's: loss and speed are those of training.
    assert (done.step, done.share, done.loss_nats) == (120, 1.0, 2.5)
    waiting = found["waiting"]
    assert (waiting.step, waiting.share, waiting.loss_nats) == (None, 0.0, None)


@pytest.mark.parametrize("evaluations", [0, 1, 500, 5000])
@pytest.mark.parametrize("torn", ["", '{"step": 9', "x" * 50_000])
def test_the_last_row_of_a_long_file_is_found_from_its_end(tmp_path, evaluations, torn):
    rows = [ROW | {"step": step} for step in range(3)]
    rows += [{"step": 3 + n, "eval/loss/code": 0.1 * n} for n in range(evaluations)]
    log(begin(tmp_path / "job"), *rows, torn=torn)
    found = read_status(tmp_path / "job", {})
    assert (found.step, found.loss_nats) == (2 + evaluations, 2.5)


@pytest.mark.parametrize("content", ["", "x", "\n\n", "[]\n", '{"a": 1}\n', "x" * 100_000])
def test_a_file_without_a_row_says_nothing(tmp_path, content):
    (begin(tmp_path / "job") / "metrics.jsonl").write_text(content)
    found = read_status(tmp_path / "job", {})
    assert (found.step, found.loss_nats, found.share) == (None, None, 0.0)


def test_a_damaged_row_is_passed_over(tmp_path):
    log(begin(tmp_path / "job"), ROW, torn='\x00\x00\n{"step": "x"}\n')
    assert read_status(tmp_path / "job", {}).loss_nats == 2.5


def test_a_job_without_a_record_is_told_by_its_other_files(tmp_path):
    """Of a version that kept none, or killed before it was written."""
    (tmp_path / "begun" / ".hydra").mkdir(parents=True)
    (tmp_path / "done").mkdir()
    write_summary(tmp_path / "done" / "summary.json", {"format": 1})
    os.utime(tmp_path / "done" / "summary.json", (0, 0))
    begun, done = (statuses(tmp_path)[name] for name in ("begun", "done"))
    assert begun.state is State.waiting and begun.since is None and begun.share is None
    assert done.state is State.done and done.since == "1970-01-01T00:00:00+00:00"


def test_since_is_when_a_job_came_to_its_state_or_gave_its_last_sign(sweep):
    os.utime(sweep / "killed" / "job.json", (1e9, 1e9))
    found = statuses(sweep)
    assert found["killed"].since == "2001-09-09T01:46:40+00:00"
    assert (
        found["running"].since == json.loads((sweep / "running" / "job.json").read_text())["since"]
    )


def test_a_job_in_the_queue_has_its_number(sweep, monkeypatch, capsys):
    """A stopped one that SLURM has queued again waits; a running one says itself who runs it."""
    numbers = {"waiting": "12_0", "stopped": "12_1", "done": "12_2", "running": "12_3"}
    queues = {sweep: numbers}
    monkeypatch.setattr("gr_sweep.launch.slurm.numbers_in_queue", queues.__getitem__)
    found = statuses(sweep)
    assert (found["waiting"].state, found["waiting"].slurm_job) == (State.waiting, "12_0")
    assert (found["stopped"].state, found["stopped"].slurm_job) == (State.waiting, "12_1")
    assert found["done"].slurm_job is found["killed"].slurm_job is None
    assert statuses(sweep / "waiting")["waiting"].slurm_job == "12_0"
    main(["status", str(sweep)])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith("stopped  SLURM job 12_1; stopped by SIGTERM")]
    assert lines[-1] == "1 done, 1 running, 1 failed, 1 stopped, 2 waiting"


def test_the_table_has_a_line_a_job_and_the_totals(sweep, capsys):
    assert main(["status", str(sweep)]) == 1, "a job has failed"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["state", "step", "loss", "tokens/s", "left", "since", "job"]
    by_job = {line.split()[0]: line for line in lines[1:-2]}
    assert len(lines[1:-2]) == 6
    assert by_job["running"].split()[:2] == [
        "running",
        "30",
    ]  # how many there will be it has not said
    assert by_job["failed"].endswith("failed   x.jsonl line 3: not UTF-8")
    assert str(Holder.here()) in by_job["running"]
    [killed] = [line for line in lines if "gives no sign of life" in line]
    assert killed.split()[:6] == ["stopped", "30/120", "25", "%", "2.500", "12.3k"]
    assert lines[-2:] == ["", "1 done, 1 running, 1 failed, 2 stopped, 1 waiting"]
    assert not any(line.endswith(" ") for line in lines)


def test_a_single_job_is_told_as_well(sweep, capsys, monkeypatch):
    assert main(["status", str(sweep / "done")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 done"
    monkeypatch.chdir(sweep / "done")
    assert main(["status", "."]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith(" done")


def test_json_has_everything_and_the_totals(sweep, capsys):
    assert main(["status", str(sweep), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["total"] == {"done": 1, "running": 1, "failed": 1, "stopped": 2, "waiting": 1}
    [running] = [job for job in content["jobs"] if job["state"] == "running"]
    assert running["holder"]["pid"] == os.getpid() and running["folder"] == str(sweep / "running")
    [killed] = [job for job in content["jobs"] if job["name"] == "killed"]
    assert (killed["step"], killed["share"], killed["loss_nats"]) == (30, 0.25, 2.5)


def test_a_long_name_and_error_are_not_cut_where_the_output_is_no_terminal(tmp_path, capsys):
    name = "edges=" + "x" * 200
    begin(tmp_path / name, State.failed, error="no " + "text " * 300 + "\x1b[31m [bold]at all")
    assert main(["status", str(tmp_path)]) == 1
    line = capsys.readouterr().out.splitlines()[1]
    assert name in line and line.endswith("text \\x1b[31m [bold]at all")


def test_on_a_narrow_terminal_the_numbers_stay_whole(sweep):
    console = Console(width=70, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(verb.table_of(verb.read_jobs(sweep)))
    text = captured.get()
    assert max(map(len, text.splitlines())) <= 70
    assert "30/120" in text and "12.3k" in text and "…" not in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (40_000, "11 h"),
     (172_800, "2 d"), (-5, "0 s")],
)  # fmt: skip
def test_ages_are_told_in_the_unit_that_suits_them(seconds, said):
    now = datetime.now(UTC)
    then = datetime.fromtimestamp(now.timestamp() - seconds, UTC).isoformat()
    assert verb.age(then, now) == said


def test_a_folder_that_is_missing_or_has_no_job_is_one_line_and_status_2(tmp_path, capsys):
    for folder, said in ((tmp_path / "gone", "is no folder"), (tmp_path, "holds no job")):
        assert main(["status", str(folder)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and said in err
    with pytest.raises(JobError):
        job_folders(tmp_path)


def test_looking_changes_nothing(sweep):
    (sweep / "killed" / ".lock").unlink()

    def files():
        return {path: path.lstat().st_mtime_ns for path in [sweep, *sweep.rglob("*")]}

    before = files()
    main(["status", str(sweep)])
    assert files() == before


def test_500_jobs_are_told_within_two_seconds_and_without_heavy_packages(tmp_path):
    config = {f"setting{n}": n for n in range(200)}
    metrics = {f"loss/kept/code/{n}": 1.0 for n in range(500)}
    rows = [ROW | {"step": step} for step in range(300)]
    begin(tmp_path / "seed=0", State.running, settings=config, holder=Holder.here())
    log(tmp_path / "seed=0", *rows)
    shutil.copytree(tmp_path / "seed=0", tmp_path / "seed=1")
    write_summary(tmp_path / "seed=1" / "summary.json", {"format": 1, "metrics": metrics})
    for number in range(2, 500):
        shutil.copytree(tmp_path / f"seed={number % 2}", tmp_path / f"seed={number}")
    program = (
        "import sys, time\n"
        "from gr_sweep.cli.app import main\n"
        f"assert main(['status', {str(tmp_path)!r}]) == 0\n"
        "heavy = {'torch', 'pandas', 'numpy', 'hydra', 'transformers', 'wandb'}\n"
        "print(sorted(heavy & set(sys.modules)), time.process_time(), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "250 done, 250 stopped"
    heavy, seconds = done.stderr.split("] ")
    assert heavy == "["
    # Of the processor's time: the machine of a test may be busy with others.
    assert float(seconds) < 2


@pytest.mark.parametrize("number", ["1e999", "NaN", "1" + 400 * "0", "true", '"7"', "null"])
def test_a_number_that_is_none_is_left_out(tmp_path, number):
    begin(tmp_path / "job")
    row = f'{{"step": {number}, "train/loss": {number}, "train/tokens_per_second": 5.0}}\n'
    (tmp_path / "job" / "metrics.jsonl").write_text(row)
    job = read_status(tmp_path / "job", {})
    assert (job.step, job.loss_nats, job.tokens_per_second) == (None, None, 5.0)
