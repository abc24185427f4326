"""Two processes that share a model over gloo, started with torchrun, against one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gr_sweep.train.distributed import Processes
from tests.eval.several import found

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.dist
def test_two_processes_find_what_one_does(tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "tests.eval.several", str(tmp_path / "two.json")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    two, one = json.loads((tmp_path / "two.json").read_text()), found(Processes())
    for table in ("rows", "relearned"):
        assert len(one[table]) > 20
        for mine, other in zip(one[table], two[table], strict=True):
            assert mine[-2:] == other[-2:]
            # Sums in another order.
            assert other[-3] == pytest.approx(mine[-3], rel=1e-5), mine
            assert other[:-3] == mine[:-3]
    # Sums in another order change no token here.
    assert one["samples"] == two["samples"]
    assert one["restored"] and two["restored"]
