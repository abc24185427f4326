"""What is written and said of jobs that run elsewhere."""

from functools import partial
from pathlib import Path

import pytest

from gr_sweep.config import RunConfig
from gr_sweep.errors import DataError
from gr_sweep.jobdir import SUMMARY, Identity, Record, State, read_record, standing
from gr_sweep.joblock import announce, lock_job_dir
from gr_sweep.launch.work import Told, Work


def make_work(folder: Path, title: str = "edges=act") -> Work:
    return Work(folder, title, RunConfig(), partial(print, "runs"))


def test_an_announced_job_waits(tmp_path):
    announce(tmp_path / "a" / "job", "edges=act")
    now = standing(tmp_path / "a" / "job")
    assert now.state is State.waiting
    assert now.record is not None and now.record.title == "edges=act" and now.record.holder is None


def test_an_announcement_forgets_how_a_job_ended_and_keeps_what_it_began_with(tmp_path):
    with pytest.raises(DataError), lock_job_dir(tmp_path, "old title") as hold:
        hold.begin(Identity("s", "t", "1a", {"seed": 1}), 40, force=False)
        raise DataError("x.jsonl line 3")
    announce(tmp_path, "edges=act")
    record = read_record(tmp_path)
    assert record is not None and record.state is State.waiting and record.error is None
    assert (record.title, record.num_steps) == ("edges=act", 40)
    assert (record.fingerprints["code"], record.settings) == ("1a", {"seed": 1})


def test_an_announcement_leaves_jobs_alone_that_run_or_are_done(tmp_path):
    with lock_job_dir(tmp_path / "runs"):
        announce(tmp_path / "runs", "edges=act")
        assert standing(tmp_path / "runs").state is State.running
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / SUMMARY).write_text("{}")
    announce(tmp_path / "done", "edges=act")
    assert standing(tmp_path / "done").state is State.done
    assert not (tmp_path / "done" / "job.json").exists()


def test_news_is_told_once_and_the_end_with_its_reason(tmp_path, capsys):
    works = [make_work(tmp_path / name, name) for name in ("one", "two")]
    told = Told(works)
    announce(works[0].folder, "one")
    told.look(works[0])
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError), lock_job_dir(works[0].folder):
        told.look(works[0])
        told.look(works[0])
        said = capsys.readouterr().err
        assert said.startswith("one: running, process ") and said.count("\n") == 1
        raise DataError("x.jsonl line 3: not UTF-8")
    told.look(works[0])
    told.end(works[0])
    assert capsys.readouterr().err == "one: failed: x.jsonl line 3: not UTF-8 (1 of 2)\n"
    works[1].folder.mkdir()
    (works[1].folder / SUMMARY).write_text("{}")
    told.look(works[1])
    told.end(works[1])
    assert capsys.readouterr().err == "two: done (2 of 2)\n"


def test_a_job_that_was_running_and_stopped_is_news(tmp_path, capsys):
    work = make_work(tmp_path)
    told = Told([work])
    with lock_job_dir(tmp_path):
        told.look(work)
    Record(State.stopped, error="stopped by SIGUSR2").write(tmp_path)
    told.look(work)
    assert capsys.readouterr().err.splitlines()[1:] == ["edges=act: stopped before its end"]


def test_beside_a_table_only_what_it_does_not_show_is_said(tmp_path, capsys):
    work = make_work(tmp_path)
    told = Told([work], is_shown=True)
    told.start(work, " on GPU 1")
    with lock_job_dir(tmp_path):
        assert told.look(work).state is State.running
    told.end(work)
    assert capsys.readouterr().err == ""
    told.say(work, "SLURM job 12 ended as NODE_FAIL; submitted again")
    assert capsys.readouterr().err == (
        "edges=act: SLURM job 12 ended as NODE_FAIL; submitted again\n"
    )
