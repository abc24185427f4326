import errno
import io
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from gr_sweep.errors import DataError, JobError
from gr_sweep.files import content_digest
from gr_sweep.train.checkpoint import Checkpoints, read_newest, saying_what_stays, tensors_of

TABLE, DATA, ABOUT, SUMS = ".metadata", "__0_0.distcp", "run.json", "checksums.json"


def value(of: float) -> dict[str, torch.Tensor]:
    return {"weights": torch.full((3, 2), of), "step": torch.tensor(of)}


def load(checkpoints: Checkpoints) -> tuple[dict | None, float]:
    """What is written about the newest checkpoint, and the value of its tensors."""
    target = value(-1.0)
    about = checkpoints.load_newest(lambda: target)
    assert len({float(x) for tensor in target.values() for x in tensor.flatten()}) == 1
    return about, float(target["step"])


def sign(checkpoint: Path) -> None:
    """Makes the checksums those of the files as they are now."""
    names = (TABLE, DATA, ABOUT)
    sums = {n: [(checkpoint / n).stat().st_size, content_digest(checkpoint / n)] for n in names}
    (checkpoint / SUMS).write_text(json.dumps(sums))


def make_older(checkpoint: Path) -> None:
    """Makes it one of the format that had no checksums."""
    about = json.loads((checkpoint / ABOUT).read_text())
    (checkpoint / ABOUT).write_text(json.dumps(about | {"format": 2}))
    (checkpoint / SUMS).unlink()


def test_the_newest_few_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2, fingerprint="x")
    for step in (1, 2, 3):
        checkpoints.save(step, {"note": step}, value(step))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["step_00000002", "step_00000003"]
    about, found = load(checkpoints)
    assert about is not None and about["note"] == 3 and found == 3.0


def test_a_step_saved_twice_is_the_second_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, fingerprint="x")
    checkpoints.save(1, {}, value(1.0))
    checkpoints.save(1, {}, value(2.0))
    assert load(checkpoints)[1] == 2.0


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path):
    def never() -> dict[str, torch.Tensor]:
        raise AssertionError("nothing is there to be filled")

    for folder in (tmp_path, tmp_path / "none"):
        assert Checkpoints(folder, keep=1, fingerprint="x").load_newest(never) is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    Checkpoints(tmp_path, keep=1, fingerprint="one").save(1, {}, value(1.0))
    with pytest.raises(DataError, match="belongs to another run"):
        load(Checkpoints(tmp_path, keep=1, fingerprint="other"))


@pytest.mark.parametrize("file", [TABLE, DATA, ABOUT, SUMS])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: None,
        lambda content: b"",
        lambda content: b"bad",
        lambda content: b"\x80\x02.",
        lambda content: b"PK\x03\x04 half an archive",
        lambda content: content[: len(content) // 2],
        lambda content: bytes(len(content)),
    ],
    ids=["missing", "empty", "text", "a pickle's start", "a zip's start", "half", "zeros"],
)
def test_whatever_a_damaged_file_holds_the_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path, caplog, file, damage
):
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint="x")
    checkpoints.save(100, {"note": 1}, value(1.0))
    Checkpoints(tmp_path, keep=2, fingerprint="x").save(300, {"note": 2}, value(2.0))
    path = tmp_path / "step_00000300" / file
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    about, found = load(checkpoints)
    assert about is not None and about["note"] == 1 and found == 1.0
    assert "step_00000300 cannot be read" in caplog.text
    # The damaged one has the highest number: it must not push out what is saved now.
    checkpoints.save(220, {}, value(3.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_00000220", "step_00000300.unreadable",
    ]  # fmt: skip


@pytest.mark.parametrize("file", [TABLE, DATA, ABOUT, SUMS])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_one_bit_that_flipped_anywhere_is_found_out(tmp_path, caplog, file, place):
    """Also in the middle of a tensor, which torch reads without complaint."""
    checkpoints = Checkpoints(tmp_path, keep=2, fingerprint="x")
    large = {"weights": torch.zeros(100_000), "step": torch.zeros(())}
    checkpoints.save(1, {"note": 1}, large)
    path = checkpoints.save(2, {"note": 2}, large) / file
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    # The checksum of a file may be what is wrong; either way the checkpoint cannot be relied on.
    about = checkpoints.load_newest(lambda: large)
    assert about is not None and about["note"] == 1
    assert "step_00000002 cannot be read" in caplog.text
    assert (tmp_path / "step_00000002.unreadable").exists()
    assert all(not tensor.any() for tensor in large.values())


def test_a_checkpoint_without_checksums_of_the_format_before_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, fingerprint="x")
    make_older(checkpoints.save(1, {"note": 1}, value(1.0)))
    about, found = load(checkpoints)
    assert about is not None and about["note"] == 1 and found == 1.0


def test_a_checkpoint_that_lost_its_checksums_is_damaged(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=2, fingerprint="x")
    (checkpoints.save(1, {}, value(1.0)) / SUMS).unlink()
    assert load(checkpoints) == (None, -1.0)
    assert "checksums.json" in caplog.text


def test_who_reads_beside_the_job_is_told_of_a_flipped_bit_and_renames_nothing(tmp_path):
    model = torch.nn.Linear(300, 300)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    path = Checkpoints(tmp_path, keep=2, fingerprint="x").save(1, {"note": 1}, tensors)
    assert read_newest(tmp_path, model)["note"] == 1
    content = bytearray((path / DATA).read_bytes())
    content[len(content) // 2] ^= 1
    (path / DATA).write_bytes(content)
    with pytest.raises(DataError, match=f"{DATA} has the size but not the content"):
        read_newest(tmp_path, model)
    assert path.exists()


def test_where_tables_are_damaged_training_begins_anew(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint="x")
    checkpoints.save(1, {}, value(1.0))
    (tmp_path / "step_00000001" / TABLE).write_bytes(b"bad")
    assert load(checkpoints) == (None, -1.0)


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("file", [TABLE, DATA, ABOUT])
def test_what_the_system_does_not_let_be_read_is_no_damage(tmp_path, monkeypatch, file, number):
    checkpoints = Checkpoints(tmp_path, keep=2, fingerprint="x")
    checkpoints.save(1, {}, value(1.0))
    checkpoints.save(2, {}, value(2.0))
    plain_open = io.open

    def failing_open(path, *args, **kwargs):
        if str(path) == str(tmp_path / "step_00000002" / file):
            raise OSError(number, os.strerror(number), str(path))
        return plain_open(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", failing_open)
        patch.setattr("builtins.open", failing_open)
        with pytest.raises(DataError, match=r"step_00000002 cannot be read now .*, or remove"):
            load(checkpoints)
    assert load(checkpoints)[1] == 2.0, "it is there again"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"),
        torch.distributed.DistBackendError("NCCL error"),
    ],
)
def test_an_error_of_the_device_is_no_damage(tmp_path, monkeypatch, error):
    checkpoints = Checkpoints(tmp_path, keep=2, fingerprint="x")
    checkpoints.save(1, {}, value(1.0))

    def fails(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fails)
        with pytest.raises(type(error), match=str(error)):
            load(checkpoints)
    assert load(checkpoints)[1] == 1.0


def test_a_checkpoint_in_another_format_is_refused_and_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint="x")
    path = checkpoints.save(1, {}, value(1.0))
    about = json.loads((path / ABOUT).read_text())
    (path / ABOUT).write_text(json.dumps(about | {"format": 1}))
    sign(path)
    with pytest.raises(DataError, match="is in format 1, which this version does not read"):
        load(checkpoints)
    assert path.exists()


def test_tensors_that_are_half_read_are_not_trained_on(tmp_path):
    """The last checkpoint is damaged where it is found out too late: some tensors are filled."""
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint="x")
    make_older(checkpoints.save(1, {}, value(1.0)))
    path = tmp_path / "step_00000001" / DATA
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(DataError, match="start the command again"):
        load(checkpoints)
    assert load(checkpoints) == (None, -1.0)


def test_a_save_that_fails_leaves_the_old_checkpoints_and_nothing_beside(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=2, fingerprint="x")
    checkpoints.save(1, {}, value(1.0))
    calls, fails_at = [], 0

    def no_space(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    # What is written about it, the tensors, their table, the checksums, the folder.
    for number in (1, 2, 3, 4, 5):
        fails_at = number
        calls.clear()
        with pytest.raises(JobError) as caught, saying_what_stays(tmp_path):
            checkpoints.save(2, {}, value(2.0))
        said = str(caught.value)
        assert said.startswith(f"{tmp_path / 'step_00000002'} cannot be written: No space left on")
        assert "(28 bytes needed, " in said and "iB free on the disk)" in said
        assert said.endswith("it goes on from the newest whole checkpoint, of step 1")
        assert "\n" not in said
        assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    calls.clear()
    fails_at = 0
    checkpoints.save(2, {}, value(2.0))
    assert len(calls) == 6, "and the new name at last"


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    (tmp_path / ".step_00000001.tmp").mkdir()
    (tmp_path / ".step_00000001.tmp" / DATA).write_bytes(b"half")
    assert load(Checkpoints(tmp_path, keep=1, fingerprint="x")) == (None, -1.0)
    assert not list(tmp_path.iterdir())


class Trap:
    """Pickles as a call that would make a folder."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_reading_runs_no_code(tmp_path, caplog):
    """Neither in the table nor in what stands for a tensor, nor by naming an object for one."""
    for number, place in enumerate((TABLE, DATA, "bytes")):
        folder = tmp_path / str(number)
        checkpoints = Checkpoints(folder, keep=1, fingerprint="x")
        checkpoints.save(1, {}, value(1.0))
        checkpoint = folder / "step_00000001"
        trap = Trap(folder / "sprung")
        if place == TABLE:
            (checkpoint / TABLE).write_bytes(pickle.dumps(trap))
        else:
            from torch.distributed.checkpoint.metadata import BytesStorageMetadata

            torch.save(trap, checkpoint / DATA)
            table = pickle.loads((checkpoint / TABLE).read_bytes())
            for info in table.storage_data.values():
                info.offset, info.length = 0, (checkpoint / DATA).stat().st_size
            if place == "bytes":
                table.state_dict_metadata = dict.fromkeys(value(0.0), BytesStorageMetadata())
                for index in list(table.storage_data):
                    table.storage_data[type(index)(index.fqn)] = table.storage_data.pop(index)
            (checkpoint / TABLE).write_bytes(pickle.dumps(table))
        sign(checkpoint)
        if place == DATA:
            with pytest.raises(DataError, match="no checkpoint"):
                load(checkpoints)
        else:
            assert load(checkpoints) == (None, -1.0)
            assert "has no place in a checkpoint" in caplog.text
        assert not (folder / "sprung").exists()
        caplog.clear()


def test_everything_that_training_changes_is_saved_a_tied_parameter_once(tmp_path):
    def made():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5), Buffer())
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
    assert set(tensors) == {"model.0.weight", "model.1.bias", "model.2.seen", *moments}
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprint="x")
    checkpoints.save(1, {}, tensors)
    other, other_optimizer = made()
    about = checkpoints.load_newest(lambda: tensors_of(other, other_optimizer))
    assert about == {"format": 3, "fingerprint": "x"}
    for one, two in ((model, optimizer), (other, other_optimizer)):
        train(one, two)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert other[1].weight is other[0].weight


class Buffer(torch.nn.Module):
    """Counts what passes, in a buffer that belongs to the state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return x


def test_what_is_written_about_a_run_can_be_read_by_people(tmp_path):
    path = Checkpoints(tmp_path, keep=1, fingerprint="x").save(7, {"state": {"lr": 0.1}}, value(0))
    assert json.loads((path / ABOUT).read_text()) == {
        "format": 3, "fingerprint": "x", "state": {"lr": 0.1},
    }  # fmt: skip
