"""The position of a process, from its environment; `test_several.py` runs several."""

import pytest

from gr_sweep.train.distributed import Place, Processes, place

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
    assert here.url == "tcp://gpu07:15012"
    here = place(SLURM | {"SLURM_STEP_ID": "1"})
    assert here is not None and ":15012" not in here.url, "steps of a job do not meet"
    here = place(SLURM | {"MASTER_ADDR": "other", "MASTER_PORT": "1234"})
    assert here is not None and here.url.startswith("tcp://other:1234")
    here = place(SLURM | {"SLURM_STEP_NUM_NODES": "1"})
    assert here is not None and here.url.startswith("tcp://127.0.0.1:")
    here = place(SLURM | {"SLURM_STEP_NODELIST": "r1n[01-02]-ib,r2n1"})
    assert here is not None and here.url.startswith("tcp://r1n01-ib:")


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


@pytest.mark.parametrize("number", [0, 1, 5, 6, 13])
def test_batches_go_round_and_all_processes_compute_as_many(number):
    of_all = [
        list(Processes(Place(rank, 3, rank, False, "")).turns(range(number), 2))
        for rank in range(3)
    ]
    assert len({len(turns) for turns in of_all}) == 1
    own = [(first, batch) for turns in of_all for first, batch, is_own in turns if is_own]
    values = list(range(number))
    assert sorted(own) == [(first, values[first : first + 2]) for first in range(0, number, 2)]
    assert list(Processes().turns(values, 2)) == [(*turn, True) for turn in sorted(own)]
