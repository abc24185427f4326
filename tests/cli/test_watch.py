"""The verb `watch`: its table on folders as jobs leave them, and on a terminal."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from gr_sweep.cli import overview, status, watch
from gr_sweep.cli.app import main
from gr_sweep.cli.overview import JobStatus, Overview, read_status, sweep_left_s
from gr_sweep.cli.watch import Frame, as_svg
from gr_sweep.errors import DataError
from gr_sweep.jobdir import (
    Holder,
    Identity,
    Record,
    State,
    job_folders,
    lock_job_dir,
    standing,
    write_summary,
)
from tests.terminal import on_terminal

ROOT = Path(__file__).parents[2]
REASON = "out of memory (CUDA out of memory. Tried to allocate 1.50 GiB); set " + 20 * "a word "
NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)


def rows(steps: int, *, step_s: float = 0.5, before_s: float = 0.0) -> str:
    """metrics.jsonl of a job that has come so far."""
    return "".join(
        json.dumps(
            {
                "step": step,
                "train/loss": 2.5,
                "train/tokens_per_second": 12345.6,
                "time_s": before_s + step * step_s,
            }
        )
        + "\n"
        for step in range(10, steps + 1, 10)
    )


def make_job(
    folder: Path, state: State, steps: int = 0, *, num_steps: int = 120, **record: object
) -> Path:
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    title = folder.name.replace(",", " ")
    Record(state, **({"num_steps": num_steps, "title": title} | record)).write(folder)
    if steps:
        (folder / "metrics.jsonl").write_text(rows(steps))
    if state is State.done:
        end = datetime.now(UTC)
        took = {"started": end - timedelta(seconds=70), "finished": end}
        write_summary(folder / "summary.json", {k: v.isoformat() for k, v in took.items()})
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Path]:
    """A job in each state."""
    folder = tmp_path / "a sweep"
    make_job(folder / "edges=act", State.failed, 40, error=REASON)
    make_job(folder / "edges=both", State.done, 120)
    make_job(folder / "edges=none", State.stopped, 60, error="stopped by SIGTERM")
    make_job(folder / "edges=weight", State.waiting, num_steps=None)
    with lock_job_dir(folder / "seed=1", "seed=1") as hold:
        hold.begin(Identity("s", "t", "c", {}), 120, force=False)
        (folder / "seed=1" / "metrics.jsonl").write_text(rows(30))
        yield folder


def drawn(jobs: list[JobStatus], width: int = 80, height: int = 40, hint: str = "") -> list[str]:
    """The lines of a picture."""
    console = Console(width=width, height=height, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(Frame("a sweep", jobs, hint))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [50, 80, 160])
def test_the_table_has_each_job_with_its_numbers_and_why_it_ended(sweep: Path, width: int) -> None:
    lines = drawn(Overview(sweep).look(), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    [running] = [line for line in lines if line.startswith("running")]
    assert "30/120" in running and "2.500" in running and "45 s" in running
    assert running.split()[-1] == "seed=1" or str(Holder.here()) in running
    [failed] = [at for at, line in enumerate(lines) if line.startswith("failed")]
    assert lines[failed + 1].strip().startswith("out of memory (CUDA")
    assert "stopped by SIGTERM" in text and "waiting" in text
    assert "1 done, 1 running, 1 failed, 1 stopped, 1 waiting" in text
    # Of five jobs with 120 steps each (one has not said): 120 + 40 + 60 + 0 + 30.
    assert " 41 %  a sweep" in text
    assert "last sign of life" in text


def test_at_80_columns_speed_and_bar_are_there_and_at_160_who_runs_it_too(sweep: Path) -> None:
    jobs = Overview(sweep).look()
    for width in (80, 160):
        [running] = [line for line in drawn(jobs, width) if line.startswith("running")]
        assert "12.3k" in running
        size = 10 if width == 80 else 24
        bar = re.search(r"[━╾─]+", running)
        assert bar is not None and len(bar[0]) == size
        assert bar[0].count("━") == size // 4 and (str(Holder.here()) in running) == (width == 160)


def test_a_long_reason_takes_two_lines_at_most_and_says_that_it_goes_on(sweep: Path) -> None:
    lines = drawn(Overview(sweep).look())
    [failed] = [at for at, line in enumerate(lines) if line.startswith("failed")]
    assert lines[failed + 2].endswith("…") and lines[failed + 3].startswith("done")


def test_long_names_keep_both_their_ends(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_job(tmp_path / f"edges=act,{'x' * 100},seed={seed}", State.waiting)
    lines = drawn(Overview(tmp_path).look())
    assert [line[-6:] for line in lines[1:3]] == ["seed=1", "seed=2"]
    assert all("edges=act" in line and "…" in line for line in lines[1:3])


def test_two_jobs_of_one_title_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_job(tmp_path / name, State.waiting, title="edges=act")
    make_job(tmp_path / "three", State.waiting, title="edges=both")
    names = [line.split()[-1] for line in drawn(Overview(tmp_path).look())[1:4]]
    assert names == ["one", "edges=both", "two"]


def status_of(name: str, state: State, **more: object) -> JobStatus:
    return JobStatus(folder=Path("/sweep") / name, state=state, **more)


def test_what_does_not_fit_is_counted_and_what_matters_most_is_shown() -> None:
    jobs = [
        *(status_of(f"done{n}", State.done, since=f"2026-03-02T10:{n:02}") for n in range(30)),
        *(status_of(f"waits{n}", State.waiting) for n in range(20)),
        status_of("fails", State.failed, why="x.jsonl line 3"),
        *(status_of(f"runs{n}", State.running) for n in range(2)),
    ]
    lines = drawn(jobs, height=16, hint="Ctrl-C leaves")
    assert len(lines) <= 15
    shown = [line.split()[-1] for line in lines if line.startswith(("running", "failed", "done"))]
    assert shown == ["runs0", "runs1", "fails", *(f"done{n}" for n in range(29, 24, -1))]
    assert "… and 45 more (25 done, 20 waiting)" in lines
    assert drawn(jobs, height=100)[1].split()[-1] == "done0", "all fit: in the sweep's order"


def test_a_small_terminal_still_has_the_totals() -> None:
    jobs = [status_of(f"runs{n}", State.running) for n in range(9)]
    assert "9 running" in drawn(jobs, width=20, height=4)


@pytest.mark.parametrize(
    ("steps", "step_s", "before_s", "left_s"),
    [(30, 0.5, 0.0, 45.0), (10, 2.0, 0.0, 220.0), (120, 0.5, 0.0, 0.0), (30, 0.5, 1000.0, 45.0)],
    ids=["several rows", "one row", "at its end", "resumed after a slow start"],
)
def test_time_left_follows_from_the_pace_of_the_last_rows(
    tmp_path: Path, steps: int, step_s: float, before_s: float, left_s: float
) -> None:
    make_job(tmp_path / "job", State.stopped)
    text = rows(steps, step_s=step_s, before_s=before_s)
    # An evaluation's row says nothing of the pace.
    (tmp_path / "job" / "metrics.jsonl").write_text(
        text + json.dumps({"step": steps, "eval/loss/code": 2.0}) + "\n"
    )
    assert read_status(tmp_path / "job", {}).left_s == pytest.approx(left_s)


def test_the_pace_is_that_of_late(tmp_path: Path) -> None:
    make_job(tmp_path / "job", State.stopped, num_steps=500)
    slow = [(step, step * 5.0) for step in range(10, 101, 10)]
    quick = [(step, 500 + (step - 100) * 0.1) for step in range(110, 301, 10)]
    (tmp_path / "job" / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "train/loss": 2.0, "time_s": seconds}) + "\n"
            for step, seconds in slow + quick
        )
    )
    assert read_status(tmp_path / "job", {}).left_s == pytest.approx(200 * 0.1)


@pytest.mark.parametrize(
    "content",
    ["", '{"step": 10, "train/loss": 2.0}\n', '{"step": 0, "train/loss": 2, "time_s": 0}\n',
     2 * '{"step": 10, "train/loss": 2.0, "time_s": 5.0}\n',
     '{"step": 5, "train/loss": 2, "time_s": 9}\n{"step": 6, "train/loss": 2, "time_s": 1}\n'],
    ids=["no row", "no time", "no step", "the same twice", "time goes back"],
)  # fmt: skip
def test_rows_that_say_nothing_of_the_pace_leave_the_time_open(
    tmp_path: Path, content: str
) -> None:
    make_job(tmp_path / "job", State.stopped)
    (tmp_path / "job" / "metrics.jsonl").write_text(content)
    assert read_status(tmp_path / "job", {}).left_s is None


def test_a_sweep_takes_as_long_as_its_running_and_waiting_jobs_side_by_side(tmp_path: Path) -> None:
    done = read_status(make_job(tmp_path / "done", State.done, 120), {})
    assert done.elapsed_s == 60.0, "and 10 s more before and after training"
    half = {"elapsed_s": 30.0, "left_s": 30.0}
    running = [status_of(f"runs{n}", State.running, **half) for n in range(2)]
    waiting = [status_of(f"waits{n}", State.waiting) for n in range(4)]
    assert sweep_left_s([done, *running, *waiting]) == pytest.approx((2 * 40 + 4 * 70) / 2, abs=1)
    assert sweep_left_s([done, *running]) == pytest.approx(40, abs=1)
    assert sweep_left_s([*running, *waiting]) == pytest.approx((2 * 30 + 4 * 60) / 2)
    # One that goes on from a checkpoint needs less than a whole one.
    again = status_of("again", State.waiting, **half)
    assert sweep_left_s([*running, again]) == pytest.approx(45)
    assert sweep_left_s([running[0], *waiting[:1]]) == pytest.approx(90)


def test_the_longest_running_job_is_the_least_that_a_sweep_takes() -> None:
    running = [
        status_of(f"runs{left}", State.running, elapsed_s=10.0, left_s=left) for left in (5.0, 95.0)
    ]
    assert sweep_left_s(running) == 95.0


def test_nobody_can_know_the_time_left_where_nothing_runs_or_nothing_is_known() -> None:
    waiting = status_of("waits", State.waiting)
    failed = status_of("failed", State.failed, left_s=50.0)
    assert sweep_left_s([waiting]) is sweep_left_s([failed]) is sweep_left_s([]) is None
    assert sweep_left_s([status_of("runs", State.running), waiting]) is None


def test_status_says_the_time_left_in_table_and_json(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["status", str(sweep)])
    lines = capsys.readouterr().out.splitlines()
    [running] = [line for line in lines if line.startswith("running")]
    assert "  45 s  " in running
    assert lines[-1].startswith("1 done, 1 running") and lines[-1].endswith(" left")
    main(["status", str(sweep), "--json"])
    content = json.loads(capsys.readouterr().out)
    [running_job] = [job for job in content["jobs"] if job["state"] == "running"]
    assert (running_job["left_s"], running_job["elapsed_s"]) == (45.0, 15.0)
    assert running_job["seen"] >= running_job["since"]
    assert content["left_s"] > 45


def test_after_its_last_step_a_job_measures() -> None:
    assert status.left(status_of("runs", State.running, left_s=0.0)) == "measures"
    assert status.left(status_of("runs", State.running)) == ""
    assert status.left(status_of("stopped", State.stopped, left_s=5.0)) == ""


def test_jobs_that_have_not_changed_are_not_read_again(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counting(folder: Path, queue: dict[str, str]) -> JobStatus:
        read.append(folder.name)
        return read_status(folder, queue)

    monkeypatch.setattr(overview, "read_status", counting)
    queue: dict[str, str] = {}
    jobs = Overview(sweep, lambda: queue)
    jobs.look()
    assert len(read) == 5
    for change, expected in (
        (lambda: None, ["seed=1"]),  # that it still runs no file says
        (lambda: Record(State.running).write(sweep / "edges=weight"), ["edges=weight", "seed=1"]),
        (lambda: queue.update({"edges=none": "12"}), ["edges=none", "edges=weight", "seed=1"]),
        (lambda: make_job(sweep / "new", State.waiting), ["edges=weight", "new", "seed=1"]),
    ):
        change()
        read.clear()
        found = jobs.look()
        # One of the running ones was killed: it has no holder.
        assert set(expected) - {"edges=weight"} <= set(read) <= set(expected), read
    assert len(found) == 6


def test_once_prints_one_picture_with_every_job_and_has_the_status_of_status(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "5")
    assert main(["watch", str(sweep), "--once"]) == 1, "a job has failed"
    out = capsys.readouterr().out
    assert all(f"\n{state.value}" in out for state in State) and "more (" not in out
    assert main(["watch", str(sweep / "edges=both"), "--once"]) == 0


def test_where_the_output_is_no_terminal_a_change_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sweep"
    one, two = (make_job(folder / name, State.waiting) for name in ("one", "two"))
    make_job(folder / "zero", State.failed, error="x.jsonl line 3: not UTF-8")
    clock = [0.0]

    def begin() -> None:
        Record(State.running, title="one", holder=Holder("node7", 5, "12_0"), num_steps=120).write(
            one
        )

    def fail() -> None:
        Record(State.failed, title="one", error="a GPU is gone", num_steps=120).write(one)

    def finish() -> None:
        write_summary(two / "summary.json", {"format": 1})

    scenes: list[Callable[[], object]] = [lambda: None, begin, lambda: None, fail, finish]

    def sleep(seconds: float) -> None:
        assert seconds == 20
        clock[0] += seconds
        scenes.pop(0)()

    monkeypatch.setattr(watch.time, "sleep", sleep)
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    assert main(["watch", str(folder), "--every", "20"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "zero: failed: x.jsonl line 3: not UTF-8",
        "sweep: 0 % of all steps, 1 failed, 2 waiting",
        "one: running: process 5 on node7 (SLURM job 12_0)",
        "sweep: 0 % of all steps, 1 running, 1 failed, 1 waiting",
        "one: failed: a GPU is gone",
        "two: done",
        "sweep: 33 % of all steps, 1 done, 2 failed",
    ]
    assert not scenes, "ended too early"


def test_the_queue_is_not_asked_at_every_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, clock = [], [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("gr_sweep.launch.slurm.numbers_in_queue", lambda at: asked.append(at) or {})
    queue = watch._queue_of(tmp_path)
    for clock[0] in (0.0, 2.0, 29.0, 30.0, 31.0, 61.0):
        queue()
    assert asked == [tmp_path] * 3


def test_while_the_queue_does_not_answer_jobs_stay_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [None, {"a": "7"}, None, {}]
    clock = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr("gr_sweep.launch.slurm.numbers_in_queue", lambda at: answers.pop(0))
    submitted = {"a": "7", "b": "8"}
    monkeypatch.setattr("gr_sweep.launch.slurm.Submitted.read", lambda self: submitted)
    queue = watch._queue_of(tmp_path)
    found = []
    for clock[0] in (0.0, 31.0, 62.0, 93.0):
        found.append(dict(queue()))
    assert found == [submitted, {"a": "7"}, {"a": "7"}, {}]


PLAYED = """
import sys, time
from pathlib import Path
from gr_sweep.jobdir import Identity, lock_job_dir
from gr_sweep.jobdir import write_summary

folder = Path(sys.argv[1])
with lock_job_dir(folder, "edges=act") as hold:
    hold.begin(Identity("s", "t", "c", {}), 100, force=False)
    (folder / "metrics.jsonl").write_text('{"step": 40, "train/loss": 2.5, "time_s": 8.0}\\n')
    give_up = time.monotonic() + 120
    while not (folder / "end").exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    write_summary(folder / "summary.json", {"format": 1})
"""


def wait_for_state(folder: Path, state: State) -> None:
    give_up = time.monotonic() + 120
    while standing(folder).state is not state:
        assert time.monotonic() < give_up, f"not {state.value}"
        time.sleep(0.05)


def test_on_a_terminal_ctrl_c_leaves_the_job_running_and_it_can_be_watched_to_its_end(
    tmp_path: Path,
) -> None:
    job = tmp_path / "a sweep" / "job"
    job.mkdir(parents=True)
    playing = subprocess.Popen([sys.executable, "-c", PLAYED, str(job)], cwd=ROOT)
    verb = [sys.executable, "-m", "gr_sweep", "watch", str(job.parent), "--every", "0.1"]
    try:
        wait_for_state(job, State.running)
        with on_terminal(verb) as terminal:
            terminal.wait_for("Ctrl-C leaves; the jobs go on")
            assert "40/100" in terminal.text and "12 s" in terminal.text
            terminal.press(b"\x03")
            assert terminal.wait() == 130
        last = terminal.text.splitlines()[-1]
        assert last == f"the jobs go on; to see them again: gr-sweep watch '{job.parent}'"
        assert standing(job).state is State.running and playing.poll() is None
        with on_terminal(verb) as terminal:
            terminal.wait_for("1 running")
            (job / "end").touch()
            assert terminal.wait() == 0
        assert "1 done" in terminal.text.splitlines()[-1]
    finally:
        playing.kill()
        playing.wait()


SHOWN = """
import sys, time
from pathlib import Path
from gr_sweep.cli.watch import shown

sweep = Path(sys.argv[1])
with shown([sweep / "two", sweep / "one"], sweep, "Ctrl-C stops the jobs") as is_shown:
    print("shown", is_shown, file=sys.stderr)
    time.sleep(0.5)
"""


def test_a_launcher_that_waits_shows_its_jobs_on_a_terminal_and_lines_above(tmp_path: Path) -> None:
    for name in ("one", "two", "another"):
        make_job(tmp_path / name, State.waiting)
    with on_terminal([sys.executable, "-c", SHOWN, tmp_path]) as terminal:
        assert terminal.wait() == 0
    lines = [line.rstrip() for line in terminal.text.splitlines()]
    assert "shown True" in lines and "Ctrl-C stops the jobs" in lines
    # The last picture stays, without the hint.
    end = lines[len(lines) - lines[::-1].index("shown True") :]
    assert [line.split()[-1] for line in end if line.startswith("waiting")][-2:] == ["two", "one"]
    assert end[-1] != "Ctrl-C stops the jobs" and "another" not in terminal.text


BROKEN = SHOWN.replace(
    "sweep = Path(sys.argv[1])",
    """sweep = Path(sys.argv[1])
from gr_sweep.cli.overview import Overview

def look(self):
    raise ValueError("a bug")

Overview.look = look""",
)


def test_a_table_that_fails_does_not_end_the_launcher(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_job(tmp_path / name, State.waiting)
    with on_terminal([sys.executable, "-c", BROKEN, tmp_path]) as terminal:
        assert terminal.wait() == 0
    assert "shown True" in terminal.text
    assert "the table of jobs is not drawn any more: ValueError('a bug')" in terminal.text


def test_a_terminal_without_our_signs_shows_others(tmp_path: Path) -> None:
    make_job(tmp_path / "one", State.waiting)
    done = subprocess.run(
        [sys.executable, "-m", "gr_sweep", "watch", str(tmp_path), "--once"],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"}, cwd=ROOT, capture_output=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == b""
    assert b"waiting" in done.stdout and b"?" in done.stdout


def test_a_launcher_shows_nothing_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with watch.shown([tmp_path], tmp_path, "hint") as is_shown:
        assert not is_shown
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_real_job_is_watched_and_left_alone(tmp_path: Path) -> None:
    words = ["model=tiny", "train.steps=2000", "tracking=off", f"hydra.run.dir={tmp_path}/job"]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(
            [sys.executable, "-m", "gr_sweep", *words], cwd=ROOT, stdout=log, stderr=log
        )
    try:
        wait_for_state(tmp_path / "job", State.running)
        verb = [sys.executable, "-m", "gr_sweep", "watch", tmp_path / "job"]
        with on_terminal(verb, columns=160) as terminal:
            terminal.wait_for("/2000")
            terminal.wait_for(" left; last sign of life")
            assert str(job.pid) in terminal.text
            terminal.press(b"\x03")
            assert terminal.wait() == 130
        assert job.poll() is None and standing(tmp_path / "job").state is State.running
    finally:
        job.send_signal(signal.SIGTERM)
        job.wait()


def test_a_refresh_of_500_jobs_is_quick(tmp_path: Path) -> None:
    config = {f"setting{n}": n for n in range(200)}
    running = make_job(tmp_path / "seed=0", State.running, 2000, num_steps=4000, settings=config)
    done = make_job(tmp_path / "seed=1", State.done, 2000, num_steps=2000, settings=config)
    write_summary(done / "summary.json", {f"loss/kept/code/{n}": 1.0 for n in range(500)})
    os.utime(running / "job.json")
    for number in range(2, 500):
        shutil.copytree(running if number < 50 else done, tmp_path / f"seed={number}")
    jobs = Overview(tmp_path)
    jobs.look()
    begin = time.process_time()
    lines = drawn(jobs.look(), height=24)
    # Of the processor's time: the machine of a test may be busy with others.
    assert time.process_time() - begin < 0.5
    assert len(lines) <= 23 and any(re.match(r"… and \d+ more \(", line) for line in lines)


def test_a_picture_for_pages_asks_for_nothing_from_elsewhere(sweep: Path) -> None:
    jobs = [read_status(job, {}) for job in job_folders(sweep)]
    picture = as_svg("gr-sweep watch", 80, Frame("a sweep", jobs), status.table_of(jobs))
    assert picture.startswith("<svg") and "seed=1" in picture and "gr-sweep&#160;watch" in picture
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", picture) and "@font-face" not in picture
    assert picture == as_svg("gr-sweep watch", 80, Frame("a sweep", jobs), status.table_of(jobs))


def test_a_job_that_fails_while_it_is_watched_ends_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError), lock_job_dir(tmp_path / "job"):
        monkeypatch.setattr(watch.time, "sleep", lambda _: pytest.fail("waits for ever"))
        raise DataError("x.jsonl line 3")
    assert main(["watch", str(tmp_path)]) == 1


@pytest.mark.slow
def test_a_local_multirun_shows_the_table_instead_of_lines(tmp_path: Path) -> None:
    words = ["-m", "seed=0,1", "debug=default", "hydra/launcher=local_parallel"]
    command = [sys.executable, "-m", "gr_sweep", *words, f"hydra.sweep.dir={tmp_path}/sweep"]
    with on_terminal(command) as terminal:
        assert terminal.wait(300) == 0
    assert "Ctrl-C stops the jobs; each saves first" in terminal.text
    assert "seed=0: " not in terminal.text and "2 done" in terminal.text
    assert terminal.text.rstrip().endswith("sweep/report/index.html")


@pytest.mark.slow
def test_ctrl_c_in_a_local_multirun_stops_its_jobs_and_says_so(tmp_path: Path) -> None:
    words = ["-m", "seed=0,1", "model=tiny", "train.steps=5000", "tracking=off"]
    command = [
        *(sys.executable, "-m", "gr_sweep", *words, "hydra/launcher=local_parallel"),
        f"hydra.sweep.dir={tmp_path}/sweep",
    ]
    with on_terminal(command) as terminal:
        terminal.wait_for("/5000", 300)
        terminal.press(b"\x03")
        assert terminal.wait(300) == 130
    assert "waiting until the jobs have saved; Ctrl-C again kills them" in terminal.text
    assert "the same command goes on from here" in terminal.text.splitlines()[-1]
    assert all(standing(job).state is not State.running for job in job_folders(tmp_path / "sweep"))


def test_ctrl_c_waits_until_it_is_asked_for() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with watch._ctrl_c() as comes_within:
        assert not comes_within(0)
        os.kill(os.getpid(), signal.SIGINT)
        # In the middle of anything, a lock that the waiting needs among it.
        assert comes_within(0) and not comes_within(0.01)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler
