"""Damaged and hostile runs and models: each is refused in one line, runs no code of theirs, writes
nothing and changes no file.

More in test_write.py, tests/cli/test_export.py and tests/train/test_checkpoint.py.
"""

import functools
import json
import os
import pickle
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gr_sweep.components
from gr_sweep.cli.compose import compose
from gr_sweep.errors import GrSweepError
from gr_sweep.routing.plan import RoutePlan
from tests.export.folder import make_run
from tests.model.tiny import tiny_model
from tests.refused import assert_refused, contents, is_one_line, within

pytestmark = pytest.mark.usefixtures("one_thread")

DOMAINS = ["code", "biology", "creative"]
PEERS = functools.partial(RoutePlan.peers, domains=DOMAINS)


class Planted:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder; tests change copies."""
    folder = tmp_path_factory.mktemp("made") / "job"
    make_run(folder, PEERS)
    return folder


@pytest.fixture
def job(made: Path, tmp_path: Path) -> Path:
    """A copy of a job's folder, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "here" / "job"))


def set_in(name: str, **values: Any) -> Callable[[Path], None]:
    def damage(job: Path) -> None:
        content = json.loads((job / name).read_text())
        content.pop("checksum", None)
        (job / name).write_text(json.dumps(content | values))

    return damage


def written(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(job: Path) -> None:
        [path] = job.glob(name)
        path.write_bytes(content)

    return damage


def planted(name: str) -> Callable[[Path], None]:
    """A pickle in place of the file, which would make a folder `ran`."""

    def damage(job: Path) -> None:
        [path] = job.glob(name)
        path.write_bytes(pickle.dumps(Planted(job.parent / "ran")))

    return damage


STEP = "checkpoints/step_*"
SUMMARY, CONFIG = "summary.json", "model/config.json"
RUNS = {
    "summary is half": (written(SUMMARY, b'{"format": 1, "met'), SUMMARY),
    "summary is of another run": (
        set_in(SUMMARY, fingerprints={"config": "x", "text": "y"}),
        "is not of the run",
    ),
    "the plan is of an earlier version": (
        lambda job: [set_in(str(path), plan="{}")(job) for path in job.glob(f"{STEP}/run.json")],
        "plan.json is damaged, or of another version",
    ),
    "the table is a pickle": (planted(f"{STEP}/.metadata"), "cannot be read"),
    "model/ has a deep config": (written(CONFIG, b"[" * 99_999), "cannot be loaded"),
}
"""How a job's folder is damaged, and what the error names."""


@pytest.mark.parametrize(("damage", "named"), RUNS.values(), ids=RUNS)
def test_a_damaged_run_is_refused_and_its_code_is_not_run(job, tmp_path, capsys, damage, named):
    damage(job)
    argv = ["export", str(job), "--keep", "biology", "--to", str(tmp_path / "to")]
    assert_refused(argv, named, tmp_path, capsys)
    assert not (tmp_path / "to").exists() and not (job.parent / "ran").exists()


# Checkpoints of others


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as others publish it; tests change copies."""
    folder = tmp_path_factory.mktemp("published") / "model"
    model: Any = tiny_model("llama").float()
    model.save_pretrained(folder)
    return folder


WEIGHTS = "model.safetensors"


def torch_weights(model: Path) -> None:
    """Weights in torch's own format, with code in them."""
    (model / WEIGHTS).unlink()
    torch.save(Planted(model.parent / "ran"), model / "pytorch_model.bin")


def with_tensors(*lacks: str, **new: torch.Tensor) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        tensors = load_file(model / WEIGHTS) | {f"{name}.weight": t for name, t in new.items()}
        kept = {name: tensor for name, tensor in tensors.items() if name not in lacks}
        save_file(kept, model / WEIGHTS, metadata={"format": "pt"})

    return damage


UP = "model.layers.0.mlp.up_proj.weight"
MODELS = {
    "a tensor is missing": (with_tensors(UP, "lm_head.weight"), f"{UP} is missing"),
    "a tensor has another shape": (
        with_tensors(**{UP.removesuffix(".weight"): torch.ones(3, 16)}),
        f"{UP} has the shape [3, 16] instead of [28, 16]",
    ),
    "config without heads": (set_in("config.json", num_key_value_heads=0), "cannot be loaded"),
    "weights are torch's, with code": (torch_weights, "cannot be loaded"),
}


@pytest.mark.parametrize(("damage", "named"), MODELS.values(), ids=MODELS)
def test_a_damaged_checkpoint_of_others_is_refused_and_its_code_is_not_run(
    published, tmp_path, damage, named
):
    model = Path(shutil.copytree(published, tmp_path / "model"))
    damage(model)
    before = contents(tmp_path)
    with within(), pytest.raises(GrSweepError) as refusal:
        [job] = compose(["model=hf", f"model.path={model}", "plan.attn_shared=1"]).jobs
        gr_sweep.components.make_routed(job.config, types.SimpleNamespace(vocab_size=8, eot_id=0))
    assert contents(tmp_path) == before and not (tmp_path / "ran").exists()
    assert named in str(refusal.value) and is_one_line(str(refusal.value))
