"""Two processes over gloo compute the same numbers as one."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gr_sweep.train.distributed import Processes
from tests.eval import several as evaluation
from tests.train.saved import saved_tensors
from tests.train.several import CASES, FOUR, SLOW, train_case
from tests.two_tasks import kill_other, start_two

pytestmark = pytest.mark.dist

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
PORT = str(20_000 + os.getpid() % 9_000)


def run_two(folder: Path, *names: str, number: int = 2) -> Path:
    """Runs cases in two processes, which leave their rows and checkpoints in the folder."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.several", PORT, str(folder), *names],
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"PROCESSES": str(number)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Every case but the slow ones; one of them from a checkpoint that one process left."""
    folder = tmp_path_factory.mktemp("two")
    train_case(CASES["both"], folder / "from one")
    shutil.rmtree(folder / "from one" / "step_00000004")
    return run_two(folder)


@pytest.fixture(scope="module")
def two_slow(tmp_path_factory) -> Path:
    return run_two(tmp_path_factory.mktemp("two slow"), *SLOW)


def rows_of_two(two: Path, case: str) -> list:
    return json.loads((two / f"{case}.json").read_text())


def assert_same_rows(found: list, expected: list) -> None:
    assert [step for step, _ in found] == [step for step, _ in expected]
    for (step, row), (_, other) in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            if key not in ("time_s", "train/tokens_per_second"):
                assert value == pytest.approx(other[key], rel=1e-5), (step, key)


@pytest.mark.parametrize("case", ["both", "forget", "frozen", "replicated", "tied", "experts"])
def test_losses_norms_evaluations_and_checkpoints_are_those_of_one_process(two, tmp_path, case):
    """Losses by label, norms by owner set, held-out losses of the model and of its parts."""
    assert_same_as_one(two, tmp_path, case)


@pytest.mark.slow
def test_four_processes_in_two_copies_of_two_shards_are_as_one(tmp_path):
    assert_same_as_one(run_two(tmp_path, *FOUR, number=4), tmp_path / "one", "mesh")


def assert_same_as_one(two: Path, folder: Path, case: str) -> None:
    expected = train_case(CASES[case], folder)
    assert {"train/loss/unlabelled", "train/tokens"} <= expected[1][1].keys()
    assert_same_rows(rows_of_two(two, case), expected)
    one, other = (saved_tensors(f / "step_00000004") for f in (folder, two / case))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        # AdamW divides a rounding difference by itself where a gradient is near 0.
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_layers_compiled_one_by_one_are_graphs_without_a_break(two_slow, tmp_path):
    """One graph for the layer that the plan does not split, and one for those that it splits; with
    foreign dropout each arrangement of rows is one more."""
    assert rows_of_two(two_slow, "graphs and breaks") == [2, 0]
    plain = dataclasses.replace(CASES["compiled"], train={})
    assert_same_rows(rows_of_two(two_slow, "compiled"), train_case(plain, tmp_path))


def test_frozen_weights_stay_in_bfloat16_as_with_one_process(two, tmp_path):
    assert_about_the_same(two, tmp_path, "narrow")
    types, expected = (
        {name: x.dtype for name, x in saved_tensors(folder / "step_00000004").items()}
        for folder in (two / "narrow", tmp_path)
    )
    assert types == expected and torch.bfloat16 in types.values()


@pytest.mark.slow
def test_bfloat16_products_have_float32_weights_and_about_the_same_losses(two_slow, tmp_path):
    """FSDP's weights and what is between the products are bfloat16, autocast's products alone."""
    assert_about_the_same(two_slow, tmp_path, "bfloat16")
    saved = saved_tensors(two_slow / "bfloat16" / "step_00000004")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def assert_about_the_same(two: Path, folder: Path, case: str) -> None:
    for (_, row), (_, other) in zip(
        train_case(CASES[case], folder), rows_of_two(two, case), strict=True
    ):
        for key in (key for key in row if key == "train/loss" or key.startswith("eval/")):
            assert other[key] == pytest.approx(row[key], rel=0.02), key


def test_a_checkpoint_of_two_processes_goes_on_with_one_and_the_other_way_around(two, tmp_path):
    shutil.copytree(two / "both" / "step_00000002", tmp_path / "step_00000002")
    after = [row for row in rows_of_two(two, "both") if row[0] > 2]
    assert_same_rows(train_case(CASES["both"], tmp_path), after)
    assert_same_rows(rows_of_two(two, "from one"), after)


def test_a_signal_to_one_process_stops_all_and_they_go_on_as_if_never_stopped(two):
    everyone, saved, found = rows_of_two(two, "stopped")
    assert everyone == ["Stopped: stopped by SIGTERM", "Stopped: stopped by SIGUSR2"]
    assert saved[-1] == "step_00000001"
    assert [step for step, _ in found] == [2, 3, 4, 4]
    tensors, others = (saved_tensors(two / of / "step_00000004") for of in ("stopped", "both"))
    assert tensors.keys() == others.keys()
    for name, tensor in others.items():
        assert torch.equal(tensors[name], tensor), name


def test_recovery_calibration_attacks_and_samples_are_those_of_one_process(two):
    one, other = evaluation.evaluate(Processes()), rows_of_two(two, "evaluation")
    for table in ("rows", "relearned"):
        assert len(one[table]) > 20
        for mine, found in zip(one[table], other[table], strict=True):
            # Sums in another order.
            assert found[-3] == pytest.approx(mine[-3], rel=1e-5), mine
            assert found[:-3] + found[-2:] == mine[:-3] + mine[-2:]
    # Sums in another order change no token here.
    assert one["samples"] == other["samples"]
    assert one["restored"] and other["restored"]


def test_a_loss_that_is_not_finite_is_an_error_of_all(two):
    first, second = rows_of_two(two, "not finite")
    assert first.startswith("JobError: ") and "is not finite in step 2" in first
    assert first == second
    assert not (two / "not finite").exists(), "nothing was saved"


def test_what_one_process_raises_in_common_work_all_raise(two):
    assert rows_of_two(two, "told") == ["DataError: bad text"] * 2
    assert rows_of_two(two, "one") == ["DataError: mine"] * 2


PROGRAM = """
import torch
import gr_sweep.train.distributed as distributed
from gr_sweep.config import Device
from gr_sweep.errors import GrSweepError

processes = distributed.connect()

def fail():
    raise ZeroDivisionError("a bug")

try:
    with processes.joined(Device.cpu):
        processes.from_main(fail)  # the others wait for its result
except GrSweepError as error:
    open("said", "w").write(f"{error.is_resumable} {error}")
    sys.exit(2)
"""


def test_a_bug_in_one_process_ends_the_other_with_one_line(tmp_path):
    """In a SLURM step without --kill-on-bad-exit."""
    task = start_two(tmp_path, program=PROGRAM)
    try:
        assert "ZeroDivisionError: a bug" in task.communicate(timeout=120)[1]
        assert task.wait(120) == 1
        said = (tmp_path / "said").read_text()
        assert said.startswith("True process 1 of 2 lost another one")
    finally:
        task.kill()
        kill_other(tmp_path)
