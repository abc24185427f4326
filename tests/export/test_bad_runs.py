"""Damaged and hostile runs: each is refused in one line, runs no code of theirs, writes nothing and
changes no file.

More in test_write.py, tests/cli/test_export.py and tests/train/test_checkpoint.py.
"""

import functools
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.routing.plan import RoutePlan
from tests.export.folder import make_run
from tests.refused import assert_refused

pytestmark = pytest.mark.usefixtures("one_thread")

PEERS = functools.partial(RoutePlan.peers, domains=["code", "biology", "creative"])


class Planted:
    """Makes the folder `ran` where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder; tests change copies."""
    folder = tmp_path_factory.mktemp("made") / "job"
    make_run(folder, PEERS)
    return folder


OTHER = b'{"format": 1, "fingerprints": {"config": "x", "text": "y"}}'
RUNS = [
    ("summary.json", b'{"format": 1, "met', "summary.json"),
    ("summary.json", OTHER, "is not of the run"),
    ("checkpoints/step_*/run.json", b'{"plan": "{}"}', "plan.json is damaged, or of another"),
    ("checkpoints/step_*/.metadata", pickle.dumps(Planted()), "cannot be read"),
    ("model/config.json", b"[" * 99_999, "cannot be loaded"),
]
"""A file of a job's folder, its content instead, and what the error names."""


@pytest.mark.parametrize(("name", "content", "named"), RUNS)
def test_a_damaged_run_is_refused_and_its_code_is_not_run(
    made, tmp_path, monkeypatch, capsys, name, content, named
):
    monkeypatch.chdir(tmp_path)
    job = Path(shutil.copytree(made, tmp_path / "job"))
    [path] = job.glob(name)
    path.write_bytes(content)
    argv = ["export", str(job), "--keep", "biology", "--to", str(tmp_path / "to")]
    assert_refused(argv, named, tmp_path, capsys)
    assert not (tmp_path / "to").exists() and not (tmp_path / "ran").exists()
