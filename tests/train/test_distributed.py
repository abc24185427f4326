"""Who a process is, and what it takes; what several do together is in test_several.py."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch

from gr_sweep.config import Device
from gr_sweep.errors import ConfigError, DataError, JobError, PlanError
from gr_sweep.train import distributed
from gr_sweep.train.distributed import Place, Processes, first_host, is_main, place, rows_of

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500",
}  # fmt: skip
SLURM = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "12",
    "SLURM_STEP_ID": "0",
}  # fmt: skip


def test_torchrun_says_who_a_process_is():
    here = place(TORCHRUN)
    assert here is not None
    assert (here.rank, here.world_size, here.local_rank, here.url) == (3, 4, 1, "env://")
    assert place(TORCHRUN | SLURM) == here, "srun torchrun"


def test_a_slurm_step_says_who_a_process_is_and_where_all_meet():
    here = place(SLURM)
    assert here is not None and (here.rank, here.world_size, here.local_rank) == (5, 8, 1)
    assert here.url == "tcp://gpu07:15012?rank=5&world_size=8"
    here = place(SLURM | {"SLURM_STEP_ID": "1"})
    assert here is not None and ":15012" not in here.url, "steps of a job do not meet"
    here = place(SLURM | {"MASTER_ADDR": "other", "MASTER_PORT": "1234"})
    assert here is not None and here.url.startswith("tcp://other:1234?")
    here = place(SLURM | {"SLURM_STEP_NUM_NODES": "1"})
    assert here is not None and here.url.startswith("tcp://127.0.0.1:")


@pytest.mark.parametrize(
    "alone",
    [
        {},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1"},
        # A batch script that asks for 8 tasks, and a shell of salloc, are no step.
        {name: value for name, value in SLURM.items() if "STEP" not in name},
    ],
)
def test_otherwise_a_process_is_alone(alone):
    assert place(alone) is None


def test_half_an_environment_is_one_line():
    with pytest.raises(JobError, match="but not MASTER_PORT; start"):
        place({name: value for name, value in TORCHRUN.items() if name != "MASTER_PORT"})
    with pytest.raises(JobError, match="WORLD_SIZE=two in the environment is no whole number"):
        place(TORCHRUN | {"WORLD_SIZE": "two"})


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu07", "gpu07"),
        ("gpu07,gpu09", "gpu07"),
        ("gpu[07-08],cpu1", "gpu07"),
        ("gpu[3,5-9]", "gpu3"),
        ("r1n[01-02]-ib,r2n1", "r1n01-ib"),
    ],
)
def test_the_first_host_of_a_list(nodes, host):
    assert first_host(nodes) == host


def test_the_main_process_is_the_first_one(monkeypatch):
    assert is_main()
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert not is_main()
    monkeypatch.setenv("RANK", "0")
    assert is_main()


def test_rows_are_shared_out_in_contiguous_parts():
    parts = [rows_of(rank, 3, 12) for rank in range(3)]
    assert parts == [slice(0, 4), slice(4, 8), slice(8, 12)]


def test_rows_that_do_not_divide_are_one_line_that_says_what_would():
    with pytest.raises(ConfigError, match=r"12 sequences, .* 5 processes; set .* a multiple of 5"):
        rows_of(0, 5, 12)


def test_a_process_alone_does_its_work_itself():
    alone = Processes()
    assert alone.is_main and not alone.are_several and alone.rows(7) == slice(0, 7)
    assert alone.from_main(lambda: 3) == alone.main_first(lambda: 3) == 3
    with pytest.raises(DataError):
        alone.main_first(lambda: raises(DataError("x")))
    ones = torch.ones(2)
    assert alone.sum_(ones) is ones and ones.tolist() == [1, 1]
    with alone.joined(Device.cpu) as device:
        assert device == torch.device("cpu") and not torch.distributed.is_initialized()


def two_processes() -> tuple[Processes, Processes]:
    """Both in this one, the main process first, over a store in memory."""
    store = torch.distributed.HashStore()
    main, other = (Processes(Place(rank, 2, rank, False, ""), store) for rank in range(2))
    return main, other


def test_the_others_wait_for_what_the_main_process_finds():
    main, other = two_processes()
    done = []
    thread = threading.Thread(target=lambda: done.append(other.from_main(lambda: "own")))
    thread.start()
    time.sleep(0.2)
    assert not done
    assert main.from_main(lambda: ["a", 1]) == ["a", 1]
    thread.join(10)
    assert done == [["a", 1]]


def raised_by_both(main: Processes, other: Processes, work: Callable[[Processes], Any]) -> list:
    """What a main process and another one raise, each in a thread of its own."""
    raised: list = [None, None]

    def run(processes: Processes) -> None:
        try:
            work(processes)
        except Exception as error:
            raised[processes.rank] = error

    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in (main, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "waits for another one that does not come"
    return raised


@pytest.mark.parametrize("method", ["main_first", "together"])
def test_what_fails_beside_the_main_process_fails_everywhere_and_the_next_job_runs(method):
    main, other = two_processes()
    found = raised_by_both(
        main, other, lambda one: getattr(one, method)(lambda: one.is_main or raises(DataError("x")))
    )
    assert [f"{type(error).__name__}: {error}" for error in found] == ["DataError: x"] * 2
    assert raised_by_both(main, other, lambda one: one.together(lambda: 1)) == [None, None]


def test_a_bug_beside_the_main_process_keeps_its_traceback_and_is_told():
    main, other = two_processes()
    first, second = raised_by_both(
        main, other, lambda one: one.together(lambda: one.is_main or 1 // 0)
    )
    assert isinstance(second, ZeroDivisionError) and isinstance(first, JobError)
    assert str(first).startswith("process 1 of 2 failed (ZeroDivisionError: ")


def test_a_process_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=0.2))
    main, _ = two_processes()
    with pytest.raises(JobError, match=r"process 1 of 2 is not there after 0:00:00\.2"):
        main.together(lambda: 1)
    with pytest.raises(JobError, match="not run: process 1 of 2 is not there"):
        main.together(lambda: 1)


def test_who_waits_for_the_main_process_is_told_that_one_failed():
    main, other = two_processes()
    main._first_failure(ZeroDivisionError("a bug"))
    with pytest.raises(JobError, match="process 0 of 2 failed"):
        other.from_main(lambda: 1)
    with pytest.raises(JobError, match=r"not run: process 0 of 2 failed .* in an earlier job"):
        other.from_main(lambda: 1)


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        ([1, 1], "JobError: process 1 of this node has no GPU: torch sees 1; start as many "
         "processes a node as it has GPUs, or use train.device=cpu"),
        ([1, 0], "JobError: process 1 of 2 would compute on cpu, the main one on cuda; use nodes "
         "that are alike, or train.device=cpu"),
    ],
)  # fmt: skip
def test_a_process_without_a_device_is_the_error_of_all_before_they_join(monkeypatch, gpus, said):
    """On a machine whose threads see as many GPUs as these."""
    main, other = two_processes()
    seen = threading.local()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen.gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen.gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    def join(one: Processes) -> None:
        seen.gpus = gpus[one.rank]
        with one.joined(Device.auto):
            raise AssertionError("joined")

    found = raised_by_both(main, other, join)
    assert [f"{type(error).__name__}: {error}" for error in found] == [said] * 2
    assert not torch.distributed.is_initialized()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line():
    with pytest.raises(PlanError, match="torch sees no GPU"), Processes().joined(Device.cuda):
        pass


def raises(error: Exception) -> None:
    raise error
