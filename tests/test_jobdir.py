"""A job's folder: its lock, its record, its summary, and which job is in it."""

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

from gr_sweep import jobdir, joblock
from gr_sweep.errors import DataError, JobError, JobLockedError
from gr_sweep.jobdir import (
    RECORD,
    SUMMARY,
    Holder,
    Identity,
    Record,
    State,
    code_fingerprint,
    differences,
    is_done,
    job_folders,
    newest_step,
    read_finished,
    read_record,
    read_summary,
    standing,
    write_summary,
)
from gr_sweep.joblock import change_record, lock_job_dir, replace_job

SETTINGS = {"seed": 0, "train": {"steps": 4, "lr": 0.1}}
IDENTITY = Identity("config", "text", "code", SETTINGS)

HOLDS_LOCK = """
import sys, time
from pathlib import Path
from gr_sweep.joblock import lock_job_dir
with lock_job_dir(Path(sys.argv[1]), "edges=act"):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def another_process(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that has locked the folder."""
    command = [sys.executable, "-c", HOLDS_LOCK, str(folder)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def run_elsewhere(folder: Path, *, age_s: float = 0.0) -> None:
    """Leaves a folder as another machine does that runs a job in it, whose lock is not visible."""
    (folder / ".lock").touch()
    Record(State.running, "edges=act", holder=Holder("elsewhere", 7)).write(folder)
    then = time.time() - age_s
    os.utime(folder / RECORD, (then, then))


def begin(folder: Path, identity: Identity = IDENTITY, *, force: bool = False) -> Record:
    with lock_job_dir(folder) as lock:
        return lock.begin(identity, 10, force=force)


def begun(folder: Path) -> Path:
    """The folder of a job that has begun and left a checkpoint."""
    begin(folder)
    (folder / "checkpoints" / "step_00000002").mkdir(parents=True)
    return folder


def finished(folder: Path, identity: Identity = IDENTITY) -> Path:
    """The folder of a finished job, which has no checkpoint any more."""
    begin(folder, identity)
    config = {**identity.settings, "tracking": {"mode": "off"}}
    write_summary(
        folder / SUMMARY, {"format": 1, "fingerprints": identity.fingerprints, "config": config}
    )
    return folder


# Lock


def test_a_second_process_is_told_who_has_the_lock_which_ends_with_its_process(tmp_path):
    with another_process(tmp_path) as process:
        record = read_record(tmp_path)
        assert record.title == "edges=act"
        with pytest.raises(JobLockedError) as refused, lock_job_dir(tmp_path):
            pass
        where = f"process {process.pid} on {socket.gethostname()} since {record.since}"
        assert where in str(refused.value)
        assert standing(tmp_path).state is State.running
        with pytest.raises(JobLockedError):
            replace_job(tmp_path)
        (tmp_path / RECORD).unlink()
        with pytest.raises(JobLockedError, match="run by another process; wait"):
            replace_job(tmp_path)
        record.write(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert standing(tmp_path).state is State.stopped
    with lock_job_dir(tmp_path):
        record = read_record(tmp_path)
        assert (record.title, record.holder) == ("edges=act", Holder.here())


def test_a_job_of_another_machine_keeps_its_folder_while_it_has_a_heartbeat(tmp_path, monkeypatch):
    run_elsewhere(tmp_path)
    assert standing(tmp_path).state is State.running
    monkeypatch.setattr(time, "sleep", lambda seconds: os.utime(tmp_path / RECORD))
    with pytest.raises(JobLockedError, match="process 7 on elsewhere since 20"):
        begin(tmp_path)
    assert read_record(tmp_path).holder.host == "elsewhere"


def test_a_job_of_another_machine_without_a_heartbeat_has_ended(tmp_path, monkeypatch):
    for module in (jobdir, joblock):
        monkeypatch.setattr(module, "SILENT_S", 0.4)
    run_elsewhere(tmp_path, age_s=1)
    assert standing(tmp_path).state is State.stopped
    start = time.monotonic()
    with lock_job_dir(tmp_path):
        # Clocks may differ, so that a recent job is waited for whatever its time says.
        assert time.monotonic() - start >= 0.4
        assert read_record(tmp_path).holder == Holder.here()


def test_without_locks_in_the_file_system_heartbeats_count(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", no_locks)
    monkeypatch.setattr(joblock, "HEARTBEAT_S", 0.1)
    with lock_job_dir(tmp_path):
        # In the past, or of a clock that was set back since.
        for age_s in (2 * jobdir.SILENT_S, -2 * jobdir.SILENT_S):
            then = time.time() - age_s
            os.utime(tmp_path / RECORD, (then, then))
            assert standing(tmp_path).state is State.stopped
        give_up = time.monotonic() + 10
        while standing(tmp_path).state is not State.running:
            assert time.monotonic() < give_up
            time.sleep(0.02)


# Record


@pytest.mark.parametrize(
    ("error", "state", "message", "is_bug"),
    [
        (DataError("x.txt line 3:\nnot UTF-8"), State.failed, "x.txt line 3: not UTF-8", False),
        (ZeroDivisionError("a bug"), State.failed, "ZeroDivisionError: a bug", True),
        (KeyboardInterrupt(), State.stopped, "KeyboardInterrupt", False),
    ],
)
def test_the_record_says_how_a_job_ended(tmp_path, error, state, message, is_bug):
    with pytest.raises(type(error)), lock_job_dir(tmp_path):
        raise error
    now = standing(tmp_path)
    assert (now.state, now.error, now.is_bug) == (state, message, is_bug)
    change_record(tmp_path, state=State.stopped, error="killed")
    assert (read_record(tmp_path).error, read_record(tmp_path).is_bug) == ("killed", False)


def test_the_state_of_a_job_follows_from_its_files(tmp_path):
    empty, announced, running, done = (tmp_path / name for name in "abcd")
    empty.mkdir()
    assert standing(empty).state is State.waiting
    change_record(announced, title="edges=act")
    assert standing(announced).state is State.waiting
    with lock_job_dir(running, "mine"):
        assert standing(running).state is State.running
        Record(State.waiting, "mine").write(running)  # as it was a moment before
        change_record(running, title="other")
        change_record(running, state=State.failed, error="gone")
        record = read_record(running)
        assert (record.title, record.error) == ("mine", None), "not written over"
        Record(State.running, "mine", holder=Holder.here()).write(running)
    assert standing(running).state is State.stopped, "neither an error nor a summary"
    with lock_job_dir(done):
        write_summary(done / SUMMARY, {"format": 1})
    assert read_record(done).state is standing(done).state is State.done
    whole = (done / SUMMARY).read_text()
    (done / SUMMARY).write_text(whole.replace("1\n", "2\n"))
    assert standing(done).state is State.waiting, "damaged"
    (done / RECORD).write_bytes(b"\xff")
    assert standing(done).state is State.waiting, "both damaged"
    (done / SUMMARY).unlink()
    assert standing(done).state is State.waiting, "removed"
    assert [path.name for path in job_folders(tmp_path)] == ["b", "c", "d"]


# Identity


def other(**changes: object) -> Identity:
    return dataclasses.replace(IDENTITY, **changes)


OTHER_SETTINGS = {"seed": 5, "train": {"steps": 4, "lr": 0.1, "warmup": 0.1}}


@pytest.mark.parametrize("make", [begun, finished])
@pytest.mark.parametrize(
    ("identity", "line"),
    [
        (
            other(config="other", settings=OTHER_SETTINGS),
            "settings (seed was 0, now 5, train.warmup was None, now 0.1)",
        ),
        (other(config="other"), "settings (the content of a file in eval.tasks)"),
        (other(text="other"), "text (the documents or the tokenizer have changed)"),
        (other(code="other"), "code (gr-sweep itself has changed)"),
    ],
)
def test_differences_from_the_job_in_the_folder_are_named(tmp_path, make, identity, line):
    folder = make(tmp_path / "job")
    assert differences(folder, IDENTITY) == []
    assert differences(folder, identity) == [line]
    assert is_done(folder, IDENTITY) == (make is finished) and not is_done(folder, identity)
    with pytest.raises(JobError) as refused:
        begin(folder, identity)
    message = str(refused.value)
    assert line in message and "resume=force" in message and "resume=fresh" in message


def test_the_code_fingerprint_covers_code_that_changes_numbers(monkeypatch):
    names = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: names.append(path.name) or read(path))
    code_fingerprint.cache_clear()
    code_fingerprint()
    assert {"job.py", "loop.py", "losses.py", "config.py"} <= set(names)
    assert not {"app.py", "html.py", "slurm.py", "jsonl.py"} & set(names)


def test_a_job_of_an_older_version_is_another_job(tmp_path):
    prints = {"config": "config", "data": "text", "code": "code"}
    write_summary(tmp_path / SUMMARY, {"format": 1, "fingerprints": prints, "config": SETTINGS})
    [line] = differences(tmp_path, IDENTITY)
    assert not is_done(tmp_path, IDENTITY) and line.startswith("version (an older")


def test_a_job_without_a_checkpoint_can_become_any_other(tmp_path):
    begin(tmp_path)
    (tmp_path / "checkpoints" / "step_00000002.unreadable").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step_00000004.tmp").mkdir()
    record = begin(tmp_path, other(config="other", settings=OTHER_SETTINGS))
    assert record.fingerprints["config"] == "other" and record.changes == []
    assert newest_step(tmp_path) is None


def test_a_forced_job_keeps_what_changed(tmp_path):
    folder = finished(begun(tmp_path))
    for code in ("other", "other", "third"):
        changes = begin(folder, other(text="new", code=code), force=True).changes
    assert [line.split()[0] for line in changes] == ["text", "code"]
    # Back to what it began with: some of its steps were still trained differently.
    assert begin(folder).changes == changes
    assert (folder / f"{SUMMARY}.replaced").exists()


def test_a_replaced_job_is_kept_beside_its_folder(tmp_path):
    for number in (1, 2):
        folder = finished(tmp_path / "job")
        assert replace_job(folder) == tmp_path / ".replaced" / f"job-{number}"
        assert not folder.exists() and differences(folder, IDENTITY) == []
        assert is_done(tmp_path / ".replaced" / f"job-{number}", IDENTITY)


# Summary

CONTENT = {"format": 1, "job": "a b", "metrics": {"loss/full/ä": 0.1 + 0.2, "n": 3}, "domains": []}


def test_a_flipped_bit_is_found_or_changes_no_value(tmp_path):
    path = tmp_path / SUMMARY
    write_summary(path, CONTENT)
    assert read_summary(path) == CONTENT == read_finished(tmp_path)
    assert len(json.loads(path.read_text())["checksum"]) == 64
    whole = path.read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 if place % 2 else 4
        path.write_bytes(content)
        try:
            found = read_summary(path)
        except DataError as error:
            assert str(error).startswith(f"{path} is damaged (")
            assert read_finished(tmp_path) is None
        else:
            # A bit in the name of the checksum's field makes another field of it.
            assert CONTENT.items() <= found.items(), place
