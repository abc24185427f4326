"""The verb `status` on folders as jobs leave them, once and on a live terminal."""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gr_sweep.cli.app import main
from gr_sweep.cli.status import JobReader, JobStatus, sweep_left_s
from gr_sweep.jobdir import (
    Holder,
    Record,
    State,
    lock_job_dir,
    read_record,
    standing,
    write_summary,
)

REASON = "out of memory (CUDA out of memory. Tried to allocate 1.50 GiB)"


def rows(steps: int) -> list[dict]:
    """Rows of training, half a second a step."""
    return [
        {"step": step, "train/loss": 2.5, "train/tokens_per_second": 12345.6, "time_s": step / 2}
        for step in range(10, steps + 1, 10)
    ]


def log(folder: Path, *rows: dict, torn: str = "") -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + torn)


def make_job(folder: Path, state: State, steps: int = 0, **record) -> Path:
    folder.mkdir(parents=True)
    (folder / ".lease").touch()
    Record(state, **({"num_steps": 120} | record)).write(folder)
    if steps:
        log(folder, *rows(steps))
    if state is State.done:
        write_summary(folder / "summary.json", {"format": 1})
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Path]:
    """A job in each state, and a killed one."""
    folder = tmp_path / "a sweep"
    for name in ("report", ".submitit"):
        (folder / name).mkdir(parents=True)
    make_job(folder / "done", State.done, 120)
    make_job(folder / "failed", State.failed, 40, error=REASON, title="edges=act seed=1")
    make_job(folder / "stopped", State.stopped, error="stopped by SIGTERM")
    killed = make_job(folder / "killed", State.running, holder=Holder.here())
    (killed / ".lease").unlink()
    log(killed, *rows(30), torn='{"step": 31, "tra')
    make_job(folder / "waiting", State.waiting)
    with lock_job_dir(folder / "running"):
        log(folder / "running", *rows(30))
        yield folder


def read(folder: Path) -> dict[str, JobStatus]:
    return {job.folder.name: job for job in JobReader(folder).read()}


def test_every_job_of_a_sweep_has_its_state_and_why_it_ended(sweep):
    found = read(sweep)
    assert {name: job.state for name, job in found.items()} == {
        "done": State.done,
        "failed": State.failed,
        "killed": State.stopped,
        "running": State.running,
        "stopped": State.stopped,
        "waiting": State.waiting,
    }
    assert {name: job.note for name, job in found.items()} == {
        "done": "",
        "failed": REASON,
        "killed": f"killed ({Holder.here()} does not respond)",
        "running": str(Holder.here()),
        "stopped": "stopped by SIGTERM",
        "waiting": "",
    }


def test_progress_is_that_of_the_last_whole_row(sweep):
    # The last rows of a long file are of an evaluation; loss and speed are of training.
    evaluations = [{"step": 120, "eval/loss/code": 0.1 * n} for n in range(1000)]
    log(sweep / "done", *rows(120), *evaluations, torn="x" * 50_000)
    found = read(sweep)
    killed, done, waiting = found["killed"], found["done"], found["waiting"]
    assert (killed.step, killed.num_steps) == (30, 120)
    assert (killed.loss_nats, killed.tokens_per_second) == (2.5, 12345.6)
    assert killed.left_s == 90 * 0.5
    assert (done.step, done.loss_nats, done.left_s) == (120, 2.5, None)
    assert (waiting.step, waiting.loss_nats) == (None, None)


def test_a_job_in_the_queue_has_its_number_and_a_stopped_one_waits(sweep, monkeypatch):
    numbers = {"waiting": "12_0", "stopped": "12_1", "done": "12_2", "running": "12_3"}
    for name, number in (numbers | {"killed": "9"}).items():
        record = dataclasses.replace(read_record(sweep / name), slurm_job=number)
        record.write(sweep / name)
    answers = [{*numbers.values()}]
    # While SLURM does not answer, its last answer is used.
    monkeypatch.setattr(
        "gr_sweep.launch.slurm.queue_of_user", lambda: answers.pop() if answers else None
    )
    monkeypatch.setattr("gr_sweep.cli.status.QUEUE_S", 0)
    reader = JobReader(sweep)
    for _ in range(2):
        found = {job.folder.name: job for job in reader.read()}
        notes = {name: job.note for name, job in found.items() if job.state is State.waiting}
        assert notes == {
            "waiting": "SLURM job 12_0",
            "stopped": "SLURM job 12_1; stopped by SIGTERM",
        }
        assert found["done"].note == "" and found["killed"].state is State.stopped


def test_the_table_has_a_line_for_each_job_and_the_totals(sweep, capsys):
    record = sweep / "waiting" / "job.json"
    record.write_text(record.read_text().replace('"since": "', '"since": "x'))  # damaged
    assert main(["status", str(sweep)]) == 1, "a job has failed"
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert len(lines[1:-2]) == 6
    [failed] = [line for line in lines if line.startswith("failed")]
    assert failed.split()[1:4] == ["40/120", "2.500", "12.3k"]
    assert failed.endswith(f"edges=act seed=1  {REASON}"), (
        "a long line is whole where the output is not a terminal"
    )
    assert str(Holder.here()) in next(line for line in lines if line.startswith("running"))
    assert lines[-1].startswith("1 running, 1 failed, 2 stopped, 1 done, 1 waiting")


def test_the_time_left_counts_waiting_jobs_in_the_places_of_running_ones():
    def job(state: State, elapsed_s: float | None, left_s: float | None) -> JobStatus:
        return JobStatus(folder=Path("job"), state=state, elapsed_s=elapsed_s, left_s=left_s)

    done, waiting = job(State.done, 900.0, None), job(State.waiting, None, None)
    running = job(State.running, 60.0, 40.0)
    assert sweep_left_s([done, waiting]) is None, "nothing runs"
    assert sweep_left_s([job(State.running, None, None), waiting]) is None, "no rows yet"
    assert sweep_left_s([running]) == 40.0
    assert sweep_left_s([done, running, waiting]) == 140.0
    assert sweep_left_s([done, running, running, waiting, waiting]) == 140.0


def test_ctrl_c_ends_the_live_table_and_not_the_job(tmp_path, capsys, monkeypatch):
    def press(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(time, "sleep", press)
    job = tmp_path / "a sweep" / "job"
    with lock_job_dir(job):
        log(job, *rows(30))
        assert main(["status", str(job.parent), "--watch"]) == 130
        said = capsys.readouterr().err
        assert "2.500" in said and "the jobs keep running; to see them" in said
        assert said.endswith(f"gr-sweep status '{job.parent}' --watch\n")
        assert standing(job).state is State.running


def test_watch_waits_without_a_terminal_and_prints_the_table_once(tmp_path, capsys, monkeypatch):
    job = make_job(tmp_path / "sweep" / "one", State.waiting)
    scenes = [
        lambda: Record(State.running, holder=Holder("node7", 5, "12_0")).write(job),
        lambda: Record(State.failed, error="a GPU is gone").write(job),
    ]
    monkeypatch.setattr(time, "sleep", lambda seconds: scenes.pop(0)())
    assert main(["status", str(job.parent), "--watch"]) == 1 and not scenes
    printed = capsys.readouterr().out
    assert printed.count("one  a GPU is gone") == 1 and printed.endswith("\n1 failed\n")
