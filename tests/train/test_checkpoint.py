import os

import pytest
import torch

from gr_sweep.errors import CheckpointError
from gr_sweep.train.checkpoint import Checkpoints

CPU = torch.device("cpu")


def test_the_newest_few_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2, fingerprint="x")
    for step in (1, 2, 3):
        checkpoints.save(step, {"model": torch.full((2,), float(step))})
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "step_00000002.pt",
        "step_00000003.pt",
    ]
    newest = checkpoints.load_newest(CPU)
    assert newest is not None and torch.equal(newest["model"], torch.tensor([3.0, 3.0]))


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path):
    assert Checkpoints(tmp_path / "none", keep=1, fingerprint="x").load_newest(CPU) is None


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=2, fingerprint="x")
    checkpoints.save(1, {"value": 1})
    path = checkpoints.save(2, {"value": 2})
    path.write_bytes(path.read_bytes()[:100])
    loaded = checkpoints.load_newest(CPU)
    assert loaded is not None and loaded["value"] == 1
    assert path.name in caplog.text


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    Checkpoints(tmp_path, keep=1, fingerprint="one").save(1, {})
    with pytest.raises(CheckpointError, match="belongs to another run"):
        Checkpoints(tmp_path, keep=1, fingerprint="other").load_newest(CPU)


def test_a_save_that_fails_leaves_the_old_checkpoints_and_nothing_beside(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2, fingerprint="x")
    checkpoints.save(1, {"value": 1})

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(2, {"value": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001.pt"]


@pytest.mark.parametrize("content", [b"", b"bad", b"\x80\x02.", b"PK\x03\x04 half an archive"])
def test_whatever_a_damaged_file_holds_it_is_set_aside(tmp_path, content):
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint="x")
    checkpoints.save(100, {"value": 1})
    (tmp_path / "step_00000300.pt").write_bytes(content)
    loaded = checkpoints.load_newest(CPU)
    assert loaded is not None and loaded["value"] == 1
    # The damaged one has the highest number: it must not push out what is saved now.
    checkpoints.save(220, {"value": 2})
    assert [p.name for p in tmp_path.glob("*.pt")] == ["step_00000220.pt"]


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    (tmp_path / ".step_00000001.pt.0a1b2c3d.tmp").write_bytes(b"half")
    assert Checkpoints(tmp_path, keep=1, fingerprint="x").load_newest(CPU) is None
    assert not list(tmp_path.iterdir())
