"""A job's folder: its lock, its record, its summary, and which job is in it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import SoftFileLease

from gr_sweep import jobdir
from gr_sweep.errors import DataError, JobError, JobLockedError
from gr_sweep.fingerprint import Identity, code_fingerprint
from gr_sweep.jobdir import (
    LOCK,
    RECORD,
    SUMMARY,
    Holder,
    Record,
    State,
    begin_job,
    change_record,
    differences,
    is_done,
    job_folders,
    lock_job_dir,
    newest_step,
    read_finished,
    read_record,
    read_summary,
    replace_job,
    standing,
    write_summary,
)

SETTINGS = {"seed": 0, "train": {"steps": 4, "lr": 0.1}}


def identity_of(settings: dict = SETTINGS, **prints: str) -> Identity:
    return Identity({"config": "config", "text": "text", "code": "code"} | prints, settings)


IDENTITY = identity_of()

HOLDS_LOCK = """
import sys, time
from pathlib import Path
from gr_sweep.jobdir import lock_job_dir
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


def run_elsewhere(folder: Path) -> str:
    """Leaves a folder as another machine does that ran a job in it; returns its lock's content."""
    Record(State.running, "edges=act", holder=Holder("elsewhere", 7)).write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        with SoftFileLease(folder / LOCK, lease_duration=jobdir.SILENT_S):
            content = (folder / LOCK).read_text()
    (folder / LOCK).write_text(content)
    return content


def begin(folder: Path, identity: Identity = IDENTITY) -> Record:
    with lock_job_dir(folder) as record:
        begin_job(folder, record, identity, 10)
        return record


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
    monkeypatch.setattr(jobdir, "SILENT_S", 0.4)
    run_elsewhere(tmp_path)
    assert standing(tmp_path).state is State.running
    ends = threading.Event()

    def beat() -> None:
        while not ends.wait(0.05):
            os.utime(tmp_path / LOCK)

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(JobLockedError, match="process 7 on elsewhere since 20"):
        begin(tmp_path)
    ends.set()
    thread.join()
    begin(tmp_path)
    assert read_record(tmp_path).holder == Holder.here()
    run_elsewhere(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    assert standing(tmp_path).state is State.stopped
    begin(tmp_path)


@pytest.mark.parametrize("holder", [None, Holder.here()])
def test_a_lock_of_a_container_that_is_gone_is_taken_over(tmp_path, monkeypatch, holder):
    monkeypatch.setattr(jobdir, "SILENT_S", 0.4)
    monkeypatch.setattr(jobdir, "_PROBE_S", 0.1)
    run_elsewhere(tmp_path)  # as a PID namespace does, which filelock adds to the name of the host
    os.utime(tmp_path / LOCK, (0, 0))
    Record(State.running, holder=holder).write(tmp_path)
    begin(tmp_path)


def test_a_stale_lock_is_not_removed_under_a_process_that_took_it_over(tmp_path, monkeypatch):
    monkeypatch.setattr(jobdir, "SILENT_S", 0.4)
    monkeypatch.setattr(jobdir, "_PROBE_S", 0.1)
    run_elsewhere(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    stale = (tmp_path / LOCK).stat()
    real = jobdir.SoftFileLease.acquire

    def acquire(lease, **kwargs):
        assert (tmp_path / LOCK).stat().st_ino == stale.st_ino, "removed by hand"
        return real(lease, **kwargs)

    monkeypatch.setattr(jobdir.SoftFileLease, "acquire", acquire)
    begin(tmp_path)


def test_a_heartbeat_ends_the_wait_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr(jobdir, "_PROBE_S", 0.1)
    run_elsewhere(tmp_path)
    beat = threading.Timer(0.3, os.utime, [tmp_path / LOCK])
    beat.start()
    with pytest.raises(JobLockedError, match="process 7 on elsewhere"):
        begin(tmp_path)
    beat.join()


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


OTHER_SETTINGS = {"seed": 5, "train": {"steps": 4, "lr": 0.1, "warmup": 0.1}}


@pytest.mark.parametrize("make", [begun, finished])
@pytest.mark.parametrize(
    ("identity", "line"),
    [
        (
            identity_of(OTHER_SETTINGS, config="other"),
            "settings (seed was 0, now 5, train.warmup was None, now 0.1)",
        ),
        (identity_of(config="other"), "settings (the content of a file in eval.tasks)"),
        (identity_of(text="other"), "text (the documents or the tokenizer have changed)"),
        (identity_of(code="other"), "code (gr-sweep itself has changed)"),
    ],
)
def test_differences_from_the_job_in_the_folder_are_named(tmp_path, make, identity, line):
    folder = make(tmp_path / "job")
    assert differences(folder, IDENTITY) == []
    assert differences(folder, identity) == [line]
    assert is_done(folder, IDENTITY) == (make is finished) and not is_done(folder, identity)


def test_the_code_fingerprint_covers_code_that_changes_numbers(monkeypatch):
    names = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: names.append(path.name) or read(path))
    code_fingerprint.cache_clear()
    code_fingerprint()
    assert {"job.py", "loop.py", "losses.py", "config.py"} <= set(names)
    assert not {"app.py", "html.py", "slurm.py", "jsonl.py"} & set(names)


def test_a_folder_with_other_files_is_not_used(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(JobError, match=r"holds notes\.txt and is not"):
        differences(tmp_path, IDENTITY)


def test_a_job_without_a_checkpoint_can_become_any_other(tmp_path):
    begin(tmp_path)
    (tmp_path / "checkpoints" / "step_00000002.unreadable").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step_00000004.tmp").mkdir()
    record = begin(tmp_path, identity_of(OTHER_SETTINGS, config="other"))
    assert record.fingerprints["config"] == "other" and record.changes == []
    assert newest_step(tmp_path) is None


def test_a_forced_job_keeps_what_changed(tmp_path):
    folder = finished(begun(tmp_path))
    for code in ("other", "other", "third"):
        changes = begin(folder, identity_of(text="new", code=code)).changes
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
