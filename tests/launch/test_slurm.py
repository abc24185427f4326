"""Jobs on SLURM, whose commands are scripts here; `test_slurm_cluster.py` needs a real cluster."""

import dataclasses
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gr_sweep.cli.app import main
from gr_sweep.cli.run import outcome_of
from gr_sweep.config import RunConfig
from gr_sweep.errors import DataError, JobError
from gr_sweep.jobdir import SUMMARY, State, change_record, lock_job_dir, standing
from gr_sweep.launch import slurm
from gr_sweep.launch.resources import Resources, SlurmConfig
from gr_sweep.launch.slurm import run_on_slurm
from gr_sweep.launch.work import Work
from tests.launch.cluster import Cluster

pytest.importorskip("submitit")

NEEDS = Resources(1, 1, 0, 4, 16, 120)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    cluster = Cluster(tmp_path / "cluster")
    monkeypatch.setenv("PATH", cluster.path)
    return cluster


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "a 'sweep'"
    folder.mkdir()
    return folder


def works_of(sweep: Path, *names: str) -> list[Work]:
    for name in names:
        change_record(sweep / name, title=name)
    return [Work(folder=sweep / name, title=name, config=RunConfig()) for name in names]


@pytest.fixture
def launch(sweep, monkeypatch):
    """Runs jobs; instead of sleeping between two looks at the queue, the next scene is played."""

    def run(
        works: Sequence[Work],
        *scenes: Callable[[], object],
        needs: Sequence[Resources] = (),
        seconds: float = 100.0,
        **settings: object,
    ) -> None:
        left, clock, plain_sleep = list(scenes), [0.0], time.sleep

        def sleep(given_s: float) -> None:
            if given_s != slurm.POLL_S:  # subprocess waits too
                return plain_sleep(given_s)
            assert left, "waits for ever"
            left.pop(0)()
            clock[0] += seconds

        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(time, "sleep", sleep)
        config = SlurmConfig(submitit_folder=str(sweep / ".submitit"))
        run_on_slurm(
            works,
            dataclasses.replace(config, **settings),
            needs or [NEEDS] * len(works),
            sweep,
        )
        assert not left, "ended too early"

    return run


def finish(work: Work) -> None:
    with lock_job_dir(work.folder):
        (work.folder / SUMMARY).write_text("{}")


def fail(work: Work, error: Exception) -> None:
    with pytest.raises(type(error)), lock_job_dir(work.folder):
        raise error


def numbers(works: Sequence[Work]) -> list[str | None]:
    return [standing(work.folder).slurm_job for work in works]


def error_of(work: Work) -> str:
    record = standing(work.folder)
    assert record is not None and record.error is not None
    return record.error


def all_of(*acts: Callable[[], object]) -> Callable[[], None]:
    def play() -> None:
        for act in acts:
            act()

    return play


def test_the_script_has_the_settings(cluster, sweep, launch):
    [work] = works_of(sweep, "job")
    launch(
        [work],
        all_of(lambda: finish(work), lambda: cluster.end("11")),
        needs=[Resources(2, 8, 8, 6, 200, 90)],
        partition="long", account="a b", constraint="h100",
        setup=["module load cuda"], signal_delay_s=300,
        additional_parameters={"reservation": "friday", "exclusive": True},
    )  # fmt: skip
    [script] = cluster.scripts
    lines = script.splitlines()
    options = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert options >= {
        "account='a b'", "constraint=h100", "cpus-per-task=6", "exclusive", "gpus-per-node=8",
        "job-name=gr-sweep", "mem=200GB", "nodes=2", "ntasks-per-node=8", "open-mode=append",
        "partition=long", "requeue", "reservation=friday", "signal=USR2@300", "time=90",
    }  # fmt: skip
    assert not any(line.startswith(("qos=", "gres=")) for line in options)
    assert "module load cuda" in lines
    srun, folder = lines[-1], shlex.quote(str(sweep / ".submitit"))
    assert " --cpus-per-task=6 --kill-on-bad-exit=1 " in srun
    assert srun.endswith(f" -u -m submitit.core._submit {folder}")


def test_jobs_that_need_the_same_are_an_array_each_and_of_its_largest_size(
    cluster, sweep, launch, monkeypatch
):
    works = works_of(sweep, "a", "b", "c", "d", "e")
    monkeypatch.setattr(slurm, "MAX_ARRAY", 2)
    more = Resources(1, 2, 2, 4, 16, 120)
    launch(
        works,
        lambda: [finish(work) for work in works],
        needs=[NEEDS, more, NEEDS, NEEDS, more],
        array_parallelism=1,
    )
    arrays = [line for script in cluster.scripts for line in script.splitlines() if "array" in line]
    assert arrays == ["#SBATCH --array=0-1%1"] * 2
    assert numbers(works) == ["11_0", "13_0", "11_1", "12", "13_1"]


def test_typed_settings_outrank_the_environment(cluster, sweep, launch, monkeypatch):
    """A command that is run inside a job does not pass that job's settings on."""
    kept = {"SBATCH_ACCOUNT": "default", "SLURM_CONF": "/etc/mine.conf", "MY_DATA": "kept"}
    gone = {"SBATCH_PARTITION": "theirs", "SBATCH_TIMELIMIT": "1", "SLURM_MEM_PER_NODE": "1"}
    for name, value in (kept | gone).items():
        monkeypatch.setenv(name, value)
    [work] = works_of(sweep, "job")
    launch([work], all_of(lambda: finish(work), lambda: cluster.end("11")), partition="ours")
    seen = set((cluster.folder / "11.env").read_text().splitlines())
    assert seen >= {f"{name}={value}" for name, value in kept.items()}
    assert not any(line.split("=")[0] in gone for line in seen)


def test_a_failed_job_does_not_take_down_the_others_nor_is_it_tried_again(cluster, sweep, launch):
    works = works_of(sweep, "a", "b")
    launch(
        works,
        all_of(lambda: fail(works[0], DataError("x.jsonl: no text")), lambda: cluster.end("11_0")),
        lambda: None,
        all_of(lambda: finish(works[1]), lambda: cluster.end("11_1")),
    )
    assert [standing(work.folder).state for work in works] == [State.failed, State.done]
    assert error_of(works[0]) == "x.jsonl: no text" and len(cluster.scripts) == 1
    assert outcome_of(works[0].folder).error == "x.jsonl: no text"


def test_files_may_come_later_and_a_controller_that_does_not_answer_says_nothing(
    cluster, sweep, launch, monkeypatch
):
    [work] = works_of(sweep, "a")
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")  # which would hide the job
    launch(
        [work],
        lambda: cluster.is_away(True),
        lambda: None,
        all_of(lambda: cluster.is_away(False), lambda: cluster.end("11")),
        lambda: None,
        lambda: finish(work),
        seconds=10.0,
    )
    assert len(cluster.scripts) == 1 and standing(work.folder).state is State.done


def lost() -> JobError:
    error = JobError("process 0 of 2 lost another one")
    error.is_resumable = True
    return error


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", None])
def test_a_job_that_leaves_the_queue_without_a_result_is_stopped_and_the_others_go_on(
    cluster, sweep, launch, capsys, state
):
    """Before it began, or while it ran; SLURM may have forgotten it."""
    works = works_of(sweep, "a", "b", "c")
    launch(
        works,
        all_of(
            lambda: cluster.end("11_0", state),
            lambda: fail(works[1], lost()),
            lambda: cluster.end("11_1", state),
        ),
        lambda: None,
        all_of(lambda: finish(works[2]), lambda: cluster.end("11_2")),
    )
    states = [standing(work.folder).state for work in works]
    assert states == [State.stopped, State.stopped, State.done]
    how = f"left the queue ({state or 'its state is not known'})"
    assert error_of(works[0]).startswith(f"SLURM job 11_0 {how}")
    assert f"see {sweep / '.submitit' / '11_0_0_log.out'}" in error_of(works[0])
    assert "process 0 of 2 lost another one" in error_of(works[1])
    assert len(cluster.scripts) == 1 and "a: stopped: SLURM job 11_0" in capsys.readouterr().err


def test_jobs_that_are_in_the_queue_are_waited_for(cluster, sweep, launch, capsys):
    """Those that another process runs too."""
    works = works_of(sweep, "a", "b", "c", "d")
    for work, number in zip(works[:2], ["5_0", "5_1"], strict=True):
        change_record(work.folder, slurm_job=number)
    cluster.put("5_0")
    cluster.put("9")  # another sweep's
    with lock_job_dir(works[3].folder):
        launch(
            works,
            lambda: [*map(finish, works[:3]), (works[3].folder / SUMMARY).write_text("{}")],
        )
    assert numbers(works) == ["5_0", "11_0", "11_1", None]
    assert "a: already in the queue as SLURM job 5_0" in capsys.readouterr().err


def test_nothing_is_submitted_while_it_is_not_known_what_is_in_the_queue(cluster, sweep, launch):
    [work] = works_of(sweep, "a")
    change_record(work.folder, slurm_job="5")
    cluster.is_away(True)
    with pytest.raises(JobError, match="squeue does not answer"):
        launch([work])
    assert cluster.scripts == []


def test_ctrl_c_leaves_the_jobs_in_the_queue_and_says_how_to_end_them(
    cluster, sweep, launch, capsys
):
    def interrupt() -> None:
        raise KeyboardInterrupt

    works = works_of(sweep, "a", "b")
    with pytest.raises(KeyboardInterrupt):
        launch(works, interrupt)
    said = capsys.readouterr().err
    assert f"gr-sweep status {shlex.quote(str(sweep))} --watch shows them; " in said
    assert said.endswith("; to end them: scancel 11\n")
    assert numbers(works) == ["11_0", "11_1"] and {*numbers(works)} == slurm.queue_of_user()


def test_a_job_run_in_an_allocation_of_the_users_is_not_taken_for_a_submitted_one(
    cluster, sweep, launch, monkeypatch
):
    [work] = works_of(sweep, "a")
    cluster.put("7")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    fail(work, lost())
    launch([work], lambda: finish(work))
    assert len(cluster.scripts) == 1 and numbers([work]) == ["11"]


COMMAND = ["debug=default", "hydra/launcher=slurm", "hydra.launcher.gpu=null"]


def has_no_sbatch(cluster: Cluster) -> None:
    (cluster.folder / "sbatch").unlink()


@pytest.mark.parametrize(
    ("prepare", "words", "message"),
    [
        (None, ["hydra.launcher.tasks_per_node=5"], "do not divide over 5 processes"),
        (Cluster.is_too_small, [], "SLURM cannot run a job with --nodes=1"),
        (lambda cluster: cluster.is_away(True), [], "Unable to contact slurm controller; set"),
        (lambda cluster: cluster.refuses("no such partition"), [], "SLURM refuses the jobs: "),
        (
            has_no_sbatch,
            [],
            "hydra/launcher=slurm: sbatch, srun not",
        ),
    ],
)
def test_a_cluster_that_takes_no_job_is_one_line_and_status_2(
    cluster, tmp_path, monkeypatch, capsys, prepare, words, message
):
    if prepare is not None:
        prepare(cluster)
    monkeypatch.chdir(tmp_path)
    if not (cluster.folder / "sbatch").exists():
        monkeypatch.setenv("PATH", str(cluster.folder))  # this machine may have SLURM
    assert main(["-m", *COMMAND, "hydra.sweep.dir=sweep", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gr-sweep: ") and said.count("\n") == 1 and message in said


@pytest.mark.parametrize(("state", "cancelled"), [("RUNNING", False), ("CANCELLED", True)])
def test_a_cancelled_job_knows_it_and_is_not_requeued(cluster, monkeypatch, state, cancelled):
    cluster.end("7", state)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert slurm.is_cancelled() == cancelled
