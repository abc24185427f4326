"""A job's folder: its record, its one holder, and what it refuses to go on with."""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gr_sweep import folder as job_folder
from gr_sweep.errors import DataError, JobError, JobLockedError
from gr_sweep.folder import (
    RECORD,
    Holder,
    Record,
    State,
    announce,
    differences,
    held,
    newest_step,
    note_end,
    read_record,
    refuse_changes,
    standing,
)
from gr_sweep.summary import SUMMARY, write_summary

HOLDS = """
import sys, time
from pathlib import Path
from gr_sweep.folder import held
with held(Path(sys.argv[1]), "edges=act"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def another_process(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """One that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def run_elsewhere(folder: Path, *, age_s: float = 0.0, slurm_job: str | None = None) -> None:
    """As another machine leaves a folder in which it runs, whose locks are not seen here."""
    folder.mkdir(exist_ok=True)
    (folder / ".lock").touch()
    Record(State.running, "edges=act", holder=Holder("elsewhere", 7, slurm_job)).write(folder)
    then = time.time() - age_s
    os.utime(folder / RECORD, (then, then))


def finish(folder: Path) -> None:
    write_summary(folder / SUMMARY, {"format": 1})


def begun(folder: Path, **other: object) -> Record:
    """The record of a start that left a checkpoint."""
    (folder / "checkpoints" / "step_00000002").mkdir(parents=True)
    with held(folder) as hold:
        hold.begin({"code": "c", "config": "s", "data": "d"}, {"seed": 0}, 10)
    record = read_record(folder)
    assert record is not None
    return dataclasses.replace(record, **other)


def test_a_holder_is_named_by_process_host_and_slurm_job(monkeypatch):
    assert str(Holder("node1", 12)) == "process 12 on node1"
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    assert Holder.here() == Holder(socket.gethostname(), os.getpid(), "99")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "98")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert str(Holder.here()).endswith("(SLURM job 98_0)")


def test_a_second_holder_is_told_who_holds_it_where_and_since_when(tmp_path):
    with another_process(tmp_path) as process:
        record = read_record(tmp_path)
        assert record is not None and record.title == "edges=act"
        with pytest.raises(JobLockedError) as refused, held(tmp_path):
            pass
        said = f"run by process {process.pid} on {socket.gethostname()} since {record.since}"
        assert said in str(refused.value)
        assert standing(tmp_path).state is State.running


def test_what_a_killed_holder_held_is_free_and_its_record_stays(tmp_path):
    with another_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    now = standing(tmp_path)
    assert now.state is State.stopped
    assert now.record is not None and now.record.holder.pid == process.pid
    start = time.monotonic()
    with held(tmp_path):
        # What it began with stays, and so does its title where the new start has none.
        assert read_record(tmp_path).title == "edges=act"
        assert read_record(tmp_path).holder == Holder.here()
    assert time.monotonic() - start < 5


def test_who_gives_signs_of_life_on_another_machine_keeps_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(job_folder, "SILENT_S", 10.0)
    run_elsewhere(tmp_path)
    assert standing(tmp_path).state is State.running

    def sleep(seconds):
        os.utime(tmp_path / RECORD)

    monkeypatch.setattr(job_folder.time, "sleep", sleep)
    with pytest.raises(JobLockedError, match="process 7 on elsewhere since 20"), held(tmp_path):
        pass
    assert read_record(tmp_path).holder.host == "elsewhere"


def test_who_gives_none_loses_it_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(job_folder, "SILENT_S", 0.4)
    run_elsewhere(tmp_path, age_s=1)
    assert standing(tmp_path).state is State.stopped
    start = time.monotonic()
    with held(tmp_path):
        # Clocks may differ: not what the file's time says, but that it stays counts.
        assert 0.4 <= time.monotonic() - start < 5
        assert read_record(tmp_path).holder == Holder.here()


def test_who_has_been_silent_for_long_is_not_waited_for(tmp_path):
    run_elsewhere(tmp_path, age_s=3600)
    start = time.monotonic()
    with held(tmp_path):
        assert time.monotonic() - start < 5


def test_a_lock_that_the_file_system_does_not_know_is_free_and_signs_of_life_count(
    tmp_path, monkeypatch
):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("gr_sweep.folder.fcntl.flock", no_locks)
    monkeypatch.setattr("gr_sweep.folder.SILENT_S", 0.3)
    run_elsewhere(tmp_path)
    with held(tmp_path):
        assert read_record(tmp_path).state is State.running
    # What is left of it binds nobody: a process that was killed has left as much.
    with held(tmp_path):
        pass


def test_checkpoints_that_were_set_aside_bind_nobody(tmp_path):
    with held(tmp_path) as hold:
        hold.begin({"code": "a"}, {}, 4)
    for name in ("step_00000002.unreadable", ".step_00000004.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    with held(tmp_path) as hold:
        assert hold.begun is None
    (tmp_path / "checkpoints" / "step_00000002").mkdir()
    with held(tmp_path) as hold:
        assert hold.begun is not None and newest_step(tmp_path) == 2


def test_who_holds_a_folder_is_not_written_over(tmp_path):
    with held(tmp_path, "mine"):
        Record(State.waiting, "mine").write(tmp_path)  # as it was a moment before
        announce(tmp_path, "other")
        note_end(tmp_path, State.failed, "gone")
        assert read_record(tmp_path).title == "mine"
        assert read_record(tmp_path).error is None


def test_an_end_that_is_noted_is_no_bug(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path):
        raise ZeroDivisionError
    assert read_record(tmp_path).is_bug
    note_end(tmp_path, State.stopped, "killed")
    assert not read_record(tmp_path).is_bug


def test_signs_of_life_set_the_time_of_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(job_folder, "SIGN_S", 0.02)
    with held(tmp_path):
        content = (tmp_path / RECORD).read_bytes()
        os.utime(tmp_path / RECORD, (0, 0))
        give_up = time.monotonic() + 10
        while (tmp_path / RECORD).stat().st_mtime < time.time() - 60:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        assert (tmp_path / RECORD).read_bytes() == content
    last = (tmp_path / RECORD).stat().st_mtime_ns
    time.sleep(0.1)
    assert (tmp_path / RECORD).stat().st_mtime_ns == last, "none when it has ended"


@pytest.mark.parametrize(
    ("error", "state", "said", "is_bug"),
    [
        (DataError("x.txt line 3:\nnot UTF-8"), State.failed, "x.txt line 3: not UTF-8", False),
        (ZeroDivisionError("a bug"), State.failed, "ZeroDivisionError: a bug", True),
        (AssertionError(), State.failed, "AssertionError", True),
        (KeyboardInterrupt(), State.stopped, "KeyboardInterrupt", False),
    ],
)
def test_the_record_says_how_a_job_ended(tmp_path, error, state, said, is_bug):
    with pytest.raises(type(error)), held(tmp_path):
        raise error
    now = standing(tmp_path)
    assert (now.state, now.record.error, now.record.is_bug) == (state, said, is_bug)


def test_every_state_is_told_from_the_files(tmp_path):
    folders = [tmp_path / name for name in "abcdef"]
    for folder in folders:
        folder.mkdir()
    empty, announced, running, failed, done, removed = folders
    assert standing(empty).state is State.waiting and standing(empty).record is None
    Record(State.waiting).write(announced)
    assert standing(announced).state is State.waiting
    with held(running):
        assert standing(running).state is State.running
    # Neither an error nor a summary: it ended, but is not done.
    assert standing(running).state is State.stopped
    with pytest.raises(DataError), held(failed):
        raise DataError("no text")
    assert standing(failed).state is State.failed
    for folder in (done, removed):
        with held(folder):
            finish(folder)
        assert read_record(folder).state is State.done
    (removed / SUMMARY).unlink()
    assert standing(done).state is State.done
    assert standing(removed).state is State.waiting
    (done / RECORD).unlink()
    assert standing(done).state is State.done, "of a version that kept no record"


def test_a_damaged_summary_makes_no_job_done(tmp_path):
    with held(tmp_path):
        finish(tmp_path)
    (tmp_path / SUMMARY).write_text((tmp_path / SUMMARY).read_text().replace("1\n", "2\n"))
    assert standing(tmp_path).state is State.waiting


def test_who_only_looks_makes_no_file_and_changes_none(tmp_path):
    run_elsewhere(tmp_path)
    Record(State.running, holder=Holder.here()).write(tmp_path)
    (tmp_path / ".lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.iterdir()]}
    standing(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.iterdir()]} == before


def test_two_who_look_at_once_do_not_take_each_other_for_the_holder(tmp_path):
    import fcntl

    Record(State.running, holder=Holder.here()).write(tmp_path)
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # as `standing` of another process
        assert standing(tmp_path).state is State.stopped


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"state": "running"}', b'{"state": "odd", "holder": null}',
     b"\xff\xfe", b'{"state": "done", "holder": {"host": "x"}}'],
)  # fmt: skip
def test_a_damaged_record_says_nothing_and_is_written_anew(tmp_path, content):
    (tmp_path / RECORD).write_bytes(content)
    assert read_record(tmp_path) is None
    assert standing(tmp_path).state is State.waiting
    with held(tmp_path, "edges=act") as hold:
        assert hold.begun is None
        assert read_record(tmp_path).title == "edges=act"


def test_a_record_of_a_later_version_is_read_as_far_as_it_is_known(tmp_path):
    Record(State.failed, error="no text").write(tmp_path)
    content = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(content | {"colour": "red"}))
    assert read_record(tmp_path).error == "no text"


def test_since_is_when_the_job_came_to_its_state(tmp_path):
    with held(tmp_path) as hold:
        hold._record.since = "2020-01-01T00:00:00+00:00"
        hold.begin({"code": "c"}, {}, 10)
        record = read_record(tmp_path)
        assert record.num_steps == 10 and record.since.startswith("2020"), "it runs as before"
    finish(tmp_path)
    with held(tmp_path):
        pass
    assert not read_record(tmp_path).since.startswith("2020")


def test_an_end_is_noted_for_a_process_that_could_not_and_for_no_other(tmp_path):
    with held(tmp_path):
        note_end(tmp_path, State.failed, "ended by SIGKILL")
        assert standing(tmp_path).state is State.running
    note_end(tmp_path, State.failed, "ended by SIGKILL")
    assert standing(tmp_path).state is State.failed
    assert read_record(tmp_path).error == "ended by SIGKILL"


def test_a_full_disk_at_the_very_end_makes_no_job_fail_that_has_its_summary(tmp_path, monkeypatch):
    import errno

    def full(*args):
        raise OSError(errno.ENOSPC, "no space")

    with held(tmp_path):
        finish(tmp_path)
        monkeypatch.setattr(job_folder, "write_whole", full)
    assert standing(tmp_path).state is State.done


def test_settings_that_differ_are_named_with_both_values(tmp_path):
    record = begun(tmp_path, config={"seed": 0, "train": {"steps": 4, "lr": 0.1}})
    now = {"seed": 5, "train": {"steps": 4, "lr": 0.2, "warmup": 0.1}}
    with pytest.raises(JobError) as refused:
        refuse_changes(record, {"code": "c", "config": "t", "data": "d"}, now, tmp_path)
    said = str(refused.value)
    assert "settings (seed was 0, now 5, train.lr was 0.1, now 0.2" in said
    assert "train.warmup was None, now 0.1)" in said and "resume=force" in said
    assert "code" not in said.removeprefix(str(tmp_path)) and "text" not in said


def test_source_files_that_differ_are_named(tmp_path, monkeypatch):
    record = begun(tmp_path, sources={name: "0" for name in ("a.py", "b.py", "c.py", "d.py")})
    monkeypatch.setattr(job_folder, "source_digests", lambda: {"a.py": "0", "e.py": "1"})
    [line] = differences(record, {"code": "other", "config": "s", "data": "d"}, {"seed": 0})
    assert line == "code (b.py, c.py, d.py and 1 more)"


def test_other_text_is_named(tmp_path):
    record = begun(tmp_path)
    [line] = differences(record, {"code": "c", "config": "s", "data": "e"}, {"seed": 0})
    assert line.startswith("text")
    refuse_changes(record, {"code": "c", "config": "s", "data": "d"}, {"seed": 0}, tmp_path)


def test_a_start_that_left_no_checkpoint_binds_nobody(tmp_path):
    begun(tmp_path)
    with held(tmp_path) as hold:
        assert hold.begun is not None and hold.begun.fingerprints["code"] == "c"
    (tmp_path / "checkpoints" / "step_00000002").rmdir()
    with held(tmp_path) as hold:
        assert hold.begun is None
