"""`gr-sweep sync`: what jobs logged offline is on the server, each row once, whatever happened."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.sdk.lib.service.service_port_file import ServicePollForTokenError

from gr_sweep.cli import sync as verb
from gr_sweep.cli.app import main
from gr_sweep.files import lock_file
from gr_sweep.jobdir import lock_job_dir
from gr_sweep.tracking import wandb_api, wandb_upload
from gr_sweep.tracking.wandb import read_records
from gr_sweep.tracking.wandb_file import read_payloads, write_payloads
from tests.tracking.stub_server import ENTITY, StubRun, StubServer
from tests.tracking.test_wandb_resume import ROOT, SENT, assert_same_rows, run

_HISTORY = "wandb-history.jsonl"


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that was killed and went on, both offline; for copies."""
    job = tmp_path_factory.mktemp("tracked") / "a job"
    run(job, "offline", "resume=-1", "log=1:7", "sleep=1.5", "kill")
    run(job, "offline", "resume=4", "log=5:8", "finish")
    return job


@pytest.fixture
def job(tracked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tracked, tmp_path / "sweep" / "edges=both"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb that gives a server a second or two."""
    for module in (wandb_api, wandb_upload):
        monkeypatch.setattr(module, "RETRIES", 1)
        monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", 1.0)
    monkeypatch.setattr(wandb_api, "TIMEOUT_S", 2)


def files_of(job: Path) -> dict[Path, tuple[int, bytes]]:
    """Time of change and content of each file."""
    files = [path for path in job.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def markers(job: Path) -> list[str]:
    return sorted(path.name for path in job.rglob("*.synced"))


def test_a_record_of_any_length_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Over the ends of blocks, of 32768 bytes with 7 before each part."""
    payloads = [bytes([at % 256]) * size for at, size in enumerate((0, 1, 32747, 5, 70_000, 32761))]
    write_payloads(tmp_path / "run.wandb", payloads)
    assert list(read_payloads(tmp_path / "run.wandb")) == payloads


def test_what_wandb_wrote_is_written_alike(tracked: Path, tmp_path: Path) -> None:
    for path in tracked.glob("wandb/*run-*/*.wandb"):
        write_payloads(tmp_path / "copy", read_payloads(path))
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()


def test_all_offline_parts_of_a_job_become_one_run_and_once_is_enough(
    job: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(job)
    assert main(["sync", str(job.parent)]) == 0
    assert capsys.readouterr().out == "edges=both: uploaded, 11 rows\n1 uploaded\n"
    # Of the job's own nothing has changed.
    new = files_of(job).keys() - before.keys()
    assert {path.name for path in new} == {".upload_lock", *markers(job)}
    assert before.items() <= files_of(job).items()
    (sent,) = server.runs.values()
    assert_same_rows(sent.history, job, last_step=8)
    assert (sent.exit_code, sent.group) == (0, "sweep")
    assert sent.summary["loss/full/code"] == 4.0
    assert any(path.startswith("media/plotly/") for path in sent.files)
    server.requests.clear()
    assert main(["sync", str(job)]) == 0
    assert capsys.readouterr().out == "edges=both: there already\n1 there already\n"
    assert not server.requests


def test_an_interrupted_upload_goes_on_where_it_stopped(job: Path, server: StubServer) -> None:
    """Half of its rows had come, and nothing of it was marked."""
    main(["sync", str(job)])
    (sent,) = server.runs.values()
    del sent.lines[_HISTORY][6:]
    sent.files.clear()
    for path in job.rglob("*.synced"):
        path.unlink()
    assert main(["sync", str(job)]) == 0
    assert_same_rows(sent.history, job, last_step=8)
    assert any(path.startswith("media/table/") for path in sent.files)


def begun_upload(job: Path, server: StubServer) -> subprocess.Popen[str]:
    """The verb as a process, in the middle of what it sends."""
    server.delay_s = 0.5
    process = subprocess.Popen(
        [sys.executable, "-m", "gr_sweep", "sync", str(job)],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: any(name.endswith("file_stream") for name, _ in server.requests))
    assert process.poll() is None
    return process


def wait_until(is_so: Callable[[], bool], limit_s: float = 120) -> None:
    give_up = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def uploading(server: StubServer) -> list[str]:
    """The processes of wandb's that upload to the server."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (path / "environ").read_bytes()
            if server.url.encode() in variables and b"gr-sweep-sync-" in variables:
                found.append(path.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_verb_that_is_ended_leaves_no_upload_and_no_marker_and_the_next_one_goes_on(
    job: Path, server: StubServer, number: signal.Signals
) -> None:
    process = begun_upload(job, server)
    assert uploading(server)
    os.kill(process.pid, number)
    _, said = process.communicate()
    if number is signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert f"stopped by {number.name}" in said and said.count("\n") == 1
    assert markers(job) == []
    server.delay_s = 0.0
    wait_until(lambda: not uploading(server), limit_s=30)
    assert main(["sync", str(job)]) == 0
    (sent,) = server.runs.values()
    assert_same_rows(sent.history, job, last_step=8)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_for_what_has_begun_and_a_second_one_ends_it(
    job: Path, server: StubServer, times: int
) -> None:
    process = begun_upload(job, server)
    if times == 2:
        server.delay_s = 600
    os.kill(process.pid, signal.SIGINT)
    assert process.stderr is not None
    said = process.stderr.readline()
    assert said == "gr-sweep: waiting for 1 upload; Ctrl-C again ends them\n"
    if times == 2:
        os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert len(markers(job)) == (2 if times == 1 else 0)
    wait_until(lambda: not uploading(server), limit_s=30)


def test_a_job_that_began_again_since_the_verb_looked_is_left(
    job: Path,
    server: StubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload_job = wandb_upload.upload_job

    def once_it_runs(job: Path, *rest: Any, **more: Any) -> Any:
        with lock_job_dir(job):
            return upload_job(job, *rest, **more)

    monkeypatch.setattr(wandb_upload, "upload_job", once_it_runs)
    assert main(["sync", str(job)]) == 0
    assert capsys.readouterr().out.startswith("edges=both: left, it is running\n")
    assert not server.runs and not markers(job)


def test_a_job_that_another_upload_is_at_is_left_and_may_begin(
    job: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_file(job / ".upload_lock"):
        (job / ".upload_lock").write_text("process 7 on elsewhere\n")
        assert main(["sync", str(job)]) == 0
        with lock_job_dir(job):
            pass
    assert capsys.readouterr().out.startswith(
        "edges=both: left, process 7 on elsewhere uploads it\n"
    )
    assert not server.runs and not markers(job)


def test_a_file_that_was_written_to_meanwhile_is_not_marked(
    job: Path,
    server: StubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does a marker hold for what it grew by afterwards."""
    (*_, last) = wandb_upload.kept_files(job)
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    upload = wandb_upload.upload

    def upload_while_it_grows(*args: Any, **kwargs: Any) -> int:
        num_rows = upload(*args, **kwargs)
        last.write_bytes(content)
        return num_rows

    monkeypatch.setattr(wandb_upload, "upload", upload_while_it_grows)
    assert main(["sync", str(job)]) == 0
    assert capsys.readouterr().out.startswith("edges=both: left, it was written to meanwhile\n")
    assert last.name + ".synced" not in [path.name for path in last.parent.iterdir()]
    monkeypatch.setattr(wandb_upload, "upload", upload)
    assert main(["sync", str(job)]) == 0
    (sent,) = server.runs.values()
    assert_same_rows(sent.history, job, last_step=8)
    assert len(markers(job)) == 2 and not wandb_upload.kept_files(job)
    last.write_bytes(content + b"more")
    assert wandb_upload.kept_files(job) == [last]


def test_rows_that_two_files_hold_are_sent_once(
    job: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resume online replays from what the server had then."""
    first, second = wandb_upload.kept_files(job)
    replayed = [
        payload
        for record, payload in read_records(first)
        if record.WhichOneof("record_type") == "history" and record.history.step.num >= 5
    ]
    assert len(replayed) == 4
    payloads = list(read_payloads(second))
    kinds = [record.WhichOneof("record_type") for record, _ in read_records(second)]
    at = kinds.index("history")
    write_payloads(second, [*payloads[:at], *replayed, *payloads[at:]])
    assert main(["sync", str(job)]) == 0
    assert capsys.readouterr().out.startswith("edges=both: uploaded, 11 rows\n")
    (sent,) = server.runs.values()
    assert_same_rows(sent.history, job, last_step=8)


def test_rows_that_the_server_lost_in_the_middle_are_sent_again(
    job: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["sync", str(job)])
    (sent,) = server.runs.values()
    del sent.lines[_HISTORY][3]
    for path in job.rglob("*.synced"):
        path.unlink()
    capsys.readouterr()
    assert main(["sync", str(job)]) == 0
    assert capsys.readouterr().out.startswith("edges=both: uploaded, 1 row\n")
    assert sorted(row["_step"] for row in sent.history) == list(range(11))


def test_a_marker_is_about_the_place_that_the_file_names(
    job: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ["sync", str(job), "--project", "other"]
    assert main(there) == 0
    (sent,) = server.runs.values()
    assert sent.project == "other" and not markers(job)
    assert main(there) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[2]] == ["edges=both: uploaded, 11 rows", "edges=both: there already"]
    # Of its own place it is known that it is there; of another the server is asked.
    for path in wandb_upload.kept_files(job):
        path.with_name(path.name + ".synced").touch()
    server.runs.clear()
    assert main(there) == 0
    assert capsys.readouterr().out.startswith("edges=both: uploaded, 11 rows\n")


@pytest.mark.slow
def test_a_server_that_the_folders_settings_name_is_uploaded_to(
    job: Path, server: StubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here" / "wandb").mkdir(parents=True)
    (tmp_path / "here" / "wandb" / "settings").write_text(
        f"[default]\nbase_url = {server.url}\napi_key = {os.environ['WANDB_API_KEY']}\n"
    )
    monkeypatch.delenv("WANDB_BASE_URL")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.chdir(tmp_path / "here")
    assert main(["sync", str(job)]) == 0
    (sent,) = server.runs.values()
    assert len(sent.history) == 11


@pytest.mark.slow
def test_a_marker_that_cannot_be_made_is_a_failure_of_its_job_alone(
    job: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in wandb_upload.kept_files(job):
        path.with_name(path.name + ".synced").symlink_to(job / "missing" / "file")
    shutil.copytree(job, job.with_name("z"), ignore=shutil.ignore_patterns("*.synced"))
    assert main(["sync", str(job.parent)]) == 1
    first, second, total = capsys.readouterr().out.splitlines()
    assert first.startswith("edges=both: failed, it was uploaded, but ")
    assert second.startswith("z: ") and "cannot be made" not in second
    assert total.endswith("1 failed")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:word@host.org:8080/a/b?X-Signature=s#c", "https://host.org:8080/a/b"),
        ("https://api.wandb.ai", "https://api.wandb.ai"),
        ("http://[::1]:80/?a", "http://[::1]:80"),
        ("http://host:port/", "an address that is none"),
    ],
)
def test_an_address_is_said_without_what_is_secret_in_it(url: str, shown: str) -> None:
    assert wandb_api.plain_url(url) == shown
    log = [
        {"level": "ERROR", "task": "x", "msg": "m"},
        {"level": "ERROR", "status": 403, "url": url},
    ]
    assert wandb_upload._reason("", iter(log)) == f"HTTP 403 for {shown}"
    assert wandb_api.without_secrets(f'Put "{url}": gone') == f'Put "{shown}": gone'


@pytest.mark.parametrize(
    ("ill", "reason"),
    [
        pytest.param(("file_stream", 403), "HTTP 403", marks=pytest.mark.slow),
        # wandb says nothing of files that were refused, and marks the run as synced.
        (("/storage/", 403), "HTTP 403"),
        pytest.param(("UpsertBucket", 500), "giving up", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_server_that_refuses_a_part_is_a_line_and_the_next_upload_ends_it(
    job: Path,
    server: StubServer,
    capsys: pytest.CaptureFixture[str],
    ill: tuple[str, int],
    reason: str,
) -> None:
    server.ill = ill
    assert main(["sync", str(job)]) == 1
    said = capsys.readouterr()
    assert said.out.startswith(f"edges=both: failed, W&B at {server.url} did not take everything: ")
    assert reason in said.out and said.out.endswith("\n1 failed\n") and not said.err
    assert markers(job) == []
    server.ill = None
    assert main(["sync", str(job)]) == 0
    (sent,) = server.runs.values()
    assert_same_rows(sent.history, job, last_step=8)
    assert any(path.startswith("media/plotly/") for path in sent.files)


def refuse(server: StubServer) -> None:
    server.stop()


def answer_500(server: StubServer) -> None:
    server.error_status = 500


def answer_403(server: StubServer) -> None:
    server.error_status = 403


def answer_slowly(server: StubServer) -> None:
    server.delay_s = 600


ILLNESSES = [
    answer_slowly,
    *(pytest.param(ill, marks=pytest.mark.slow) for ill in (refuse, answer_500, answer_403)),
]


@pytest.mark.parametrize("fall_ill", ILLNESSES)
@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_away_is_a_line_for_each_job_in_seconds(
    job: Path, server: StubServer, capsys: pytest.CaptureFixture[str], fall_ill: Any
) -> None:
    shutil.copytree(job, job.with_name("edges=act"))
    fall_ill(server)
    start = time.monotonic()
    assert main(["sync", str(job.parent)]) == 1
    assert time.monotonic() - start < 150  # a slow machine's; the stub answers after 600
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line.partition(", W&B at ")[0] for line in lines] == [
        "edges=act: failed",
        "edges=both: failed",
        "2 failed",
    ]
    assert not said.err and markers(job) == []


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_server_that_goes_away_in_the_middle_is_not_waited_for_by_every_job(
    job: Path,
    server: StubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verb, "AT_ONCE", 1)
    for name in ("a", "b", "c"):
        shutil.copytree(job, job.with_name(name))
    upload = wandb_upload.upload

    def upload_one(*args: Any, **kwargs: Any) -> int:
        num_rows = upload(*args, **kwargs)
        server.stop()
        return num_rows

    monkeypatch.setattr(wandb_upload, "upload", upload_one)
    assert main(["sync", str(job.parent)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a: uploaded, 11 rows"
    assert lines[-1] == "1 uploaded, 3 failed"
    assert not markers(job.with_name("c"))


@pytest.mark.slow
def test_an_upload_that_takes_too_long_is_ended(
    job: Path,
    server: StubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wandb_upload, "START_S", 0.1)
    monkeypatch.setattr(wandb_upload, "SLOWEST_BYTES_S", 1e9)
    assert main(["sync", str(job)]) == 1
    assert "it took longer than 0 s" in capsys.readouterr().out


def test_what_a_shell_says_of_its_next_run_is_not_obeyed(
    job: Path, server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        *(("RESUME", "must"), ("RUN_ID", "another"), ("RUN_GROUP", "another"), ("MODE", "offline")),
        *(("PROJECT", "another"), ("ENTITY", "another"), ("NAME", "another"), ("SILENT", "true")),
    ):
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert main(["sync", str(job)]) == 0
    (sent,) = server.runs.values()
    assert_same_rows(sent.history, job, last_step=8)
    assert (sent.project, sent.group, sent.display_name) == ("gr-sweep", "sweep", "edges=both")


def test_a_job_that_runs_is_left_and_named(
    job: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock_job_dir(job):
        assert main(["sync", str(job.parent)]) == 0
    assert capsys.readouterr().out == "edges=both: left, it is running\n1 left\n"
    assert not server.runs
    assert not markers(job)


def test_a_job_without_wandb_is_named_and_needs_no_key(
    tmp_path: Path, no_account: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "metrics.jsonl").touch()
    assert main(["sync", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "job: without W&B\n1 without W&B\n"


def test_without_a_key_nothing_is_tried(
    job: Path, no_account: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync", str(job)]) == 2
    said = capsys.readouterr().err
    assert said == ("gr-sweep: no W&B key is configured; run `wandb login` or set WANDB_API_KEY\n")


@pytest.mark.slow
def test_the_rest_of_a_run_that_was_logged_online_is_uploaded(
    tmp_path: Path, server: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server lost what came last; nothing is marked in an online folder."""
    job = tmp_path / "job"
    run(job, "online", "resume=-1", "log=1:8", "finish")
    assert main(["sync", str(job)]) == 0
    assert capsys.readouterr().out == "job: there already\n1 there already\n"
    (sent,) = server.runs.values()
    del sent.lines[_HISTORY][6:]
    sent.files.clear()
    sent.is_open, sent.exit_code = True, None
    assert main(["sync", str(job)]) == 0
    assert capsys.readouterr().out == "job: uploaded, 5 rows\n1 uploaded\n"
    assert_same_rows(sent.history, job, last_step=8)
    assert sent.exit_code == 0
    assert any(path.startswith("media/plotly/") for path in sent.files)


@pytest.mark.slow
def test_a_run_that_went_on_offline_is_uploaded_whole(tmp_path: Path, server: StubServer) -> None:
    """With what the server had not been sent of its online part."""
    job = tmp_path / "job"
    run(job, "online", "resume=-1", "log=1:5", SENT, "kill")
    (sent,) = server.runs.values()
    del sent.lines[_HISTORY][3:]
    run(job, "offline", "resume=4", "log=5:8", "finish")
    assert main(["sync", str(job)]) == 0
    assert_same_rows(sent.history, job, last_step=8)
    assert (sent.exit_code, sent.summary["loss/full/code"]) == (0, 4.0)


def test_a_process_of_wandbs_that_does_not_start_is_a_line_for_each_job(
    job: Path,
    server: StubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse_to_start() -> None:
        raise ServicePollForTokenError("no port\nfile")

    monkeypatch.setattr(wandb, "setup", refuse_to_start)
    assert main(["sync", str(job)]) == 1
    assert capsys.readouterr().out.startswith(
        "edges=both: failed, W&B's own process does not start: no port file\n"
    )


def test_a_folder_of_the_users_is_left_where_the_library_makes_its_own(
    server: StubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.runs["x"] = StubRun("x", project="p")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    (tmp_path / ENTITY).mkdir()
    assert list(wandb_api.Server().runs(ENTITY, "p")) == ["x"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [ENTITY]
    assert not list((tmp_path / ENTITY).iterdir())
