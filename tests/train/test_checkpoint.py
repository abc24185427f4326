import errno
import io
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from gr_sweep.errors import DataError, GrSweepError
from gr_sweep.files import content_digest
from gr_sweep.train.checkpoint import Checkpoints, read_newest, report_full_disk, tensors_of

TABLE, DATA, ABOUT, SUMS = ".metadata", "__0_0.distcp", "run.json", "checksums.json"


def value(of: float) -> dict[str, torch.Tensor]:
    return {"weights": torch.full((3, 2), of), "step": torch.tensor(of)}


def load(checkpoints: Checkpoints) -> tuple[dict | None, float]:
    """What is written about the newest checkpoint, and the value of its tensors."""
    target = value(-1.0)
    about = checkpoints.load_newest(lambda _: target)
    assert len({float(x) for tensor in target.values() for x in tensor.flatten()}) == 1
    return about, float(target["step"])


def sign(checkpoint: Path) -> None:
    """Makes the checksums those of the files as they are now."""
    names = (TABLE, DATA, ABOUT)
    sums = {n: [(checkpoint / n).stat().st_size, content_digest(checkpoint / n)] for n in names}
    (checkpoint / SUMS).write_text(json.dumps(sums))


def test_the_newest_few_are_kept_and_a_step_saved_twice_is_the_second_one(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2, fingerprint="x")
    for step in (1, 2, 3):
        checkpoints.save(step, {"note": step}, value(step))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["step_00000002", "step_00000003"]
    checkpoints.save(3, {"note": 4}, value(4.0))
    about, found = load(checkpoints)
    assert about is not None and about["note"] == 4 and found == 4.0


def test_a_checkpoint_of_another_run_or_format_is_refused_and_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint="one")
    path = checkpoints.save(1, {}, value(1.0))
    with pytest.raises(DataError, match="belongs to another run"):
        load(Checkpoints(tmp_path, keep=1, fingerprint="other"))
    about = json.loads((path / ABOUT).read_text())
    (path / ABOUT).write_text(json.dumps(about | {"format": 1}))
    sign(path)
    with pytest.raises(DataError, match="is in format 1; this version reads format 3"):
        load(checkpoints)
    assert path.exists()


@pytest.mark.parametrize(
    ("file", "damage"),
    [(TABLE, "missing"), (DATA, "one bit"), (SUMS, "half")],
)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_loaded(
    tmp_path, caplog, file, damage
):
    """Also with a flipped bit in the middle of a tensor, which torch reads without complaint."""
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint="x")
    checkpoints.save(100, {"note": 1}, value(1.0))
    Checkpoints(tmp_path, keep=2, fingerprint="x").save(300, {"note": 2}, value(2.0))
    path = tmp_path / "step_00000300" / file
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "half":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "one bit":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    about, found = load(checkpoints)
    assert about is not None and about["note"] == 1 and found == 1.0
    assert "step_00000300 is damaged" in caplog.text
    # The damaged one has the highest step: it must not push out what is saved now.
    checkpoints.save(220, {}, value(3.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_00000220", "step_00000300.unreadable",
    ]  # fmt: skip


def test_readers_other_than_the_job_are_told_of_a_flipped_bit_and_rename_nothing(tmp_path):
    model = torch.nn.Linear(300, 300)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    path = Checkpoints(tmp_path, keep=2, fingerprint="x").save(1, {"note": 1}, tensors)
    assert read_newest(tmp_path, model)["note"] == 1
    content = bytearray((path / DATA).read_bytes())
    content[len(content) // 2] ^= 1
    (path / DATA).write_bytes(content)
    with pytest.raises(DataError, match=f"cannot be read: the content of {DATA} differs"):
        read_newest(tmp_path, model)
    assert path.exists()


# What is written about it, the tensors, their table, the folder.
@pytest.mark.parametrize("fails_at", [1, 2, 3, 5])
def test_a_full_disk_leaves_the_old_checkpoints_and_nothing_half_written(
    tmp_path, monkeypatch, fails_at
):
    checkpoints = Checkpoints(tmp_path, keep=2, fingerprint="x")
    checkpoints.save(1, {}, value(1.0))
    calls = []

    def no_space(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(GrSweepError, match="No space left"), report_full_disk(tmp_path):
        checkpoints.save(2, {}, value(2.0))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_disk_that_is_full_within_a_tensor_is_named(tmp_path):
    """torch.save says `unexpected pos` there."""
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    checkpoints = Checkpoints(tmp_path, keep=2, fingerprint="x")
    plain_open = io.open

    def full(path, mode="r", *args, **kwargs):
        is_data = str(path).endswith(".distcp") and "w" in mode
        return plain_open("/dev/full" if is_data else path, mode, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(io, "open", full)
        with pytest.raises(OSError, match="No space left on device"):
            checkpoints.save(1, {}, {"weights": torch.zeros(1 << 18)})
    assert not list(tmp_path.iterdir())


class Trap:
    """Pickles as a call that would make a folder."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", [TABLE, DATA])
def test_reading_runs_no_code(tmp_path, place):
    """Neither in the table nor in place of a tensor."""
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint="x")
    path = checkpoints.save(1, {}, value(1.0))
    trap = Trap(tmp_path / "sprung")
    if place == TABLE:
        (path / TABLE).write_bytes(pickle.dumps(trap))
    else:
        torch.save(trap, path / DATA)
        table = pickle.loads((path / TABLE).read_bytes())
        for info in table.storage_data.values():
            info.offset, info.length = 0, (path / DATA).stat().st_size
        (path / TABLE).write_bytes(pickle.dumps(table))
    sign(path)
    with pytest.raises((DataError, pickle.UnpicklingError)):
        load(checkpoints)
    assert not (tmp_path / "sprung").exists()


def test_everything_that_training_changes_is_saved_a_tied_parameter_once(tmp_path):
    def made():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5))
        model[1].weight = model[0].weight
        return model, torch.optim.AdamW(model.parameters(), fused=True)

    def train(model, optimizer):
        model(torch.arange(5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = made()
    train(model, optimizer)
    tensors = tensors_of(model, optimizer)
    moments = {f"optimizer.{p}.{k}" for p in ("0.weight", "1.bias") for k in
               ("step", "exp_avg", "exp_avg_sq")}  # fmt: skip
    assert set(tensors) == {"model.0.weight", "model.1.bias", *moments}
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint="x")
    path = checkpoints.save(1, {"note": 0.1}, tensors)
    expected = {"format": 3, "fingerprint": "x", "note": 0.1}
    assert json.loads((path / ABOUT).read_text()) == expected
    other, other_optimizer = made()
    assert checkpoints.load_newest(lambda _: tensors_of(other, other_optimizer)) == expected
    for one, two in ((model, optimizer), (other, other_optimizer)):
        train(one, two)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert other[1].weight is other[0].weight
