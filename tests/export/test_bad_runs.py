"""A corpus of damaged runs and models: an export, or a job that begins with a checkpoint of others,
is refused in one line, runs no code of theirs, writes nothing and changes no file.

On top of test_write.py, tests/cli/test_export.py and tests/train/test_checkpoint.py.
"""

import functools
import json
import os
import pickle
import shutil
import struct
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gr_sweep.setup
from gr_sweep.cli.compose import compose
from gr_sweep.errors import GrSweepError, PlanError
from gr_sweep.model.sizes import SIZES
from gr_sweep.routing.plan import RoutePlan
from tests.export.folder import make_run
from tests.model.tiny import tiny_model
from tests.refused import assert_refused, contents, is_one_line, within

pytestmark = pytest.mark.usefixtures("one_thread")

DOMAINS = ["code", "biology", "creative"]
PEERS = functools.partial(RoutePlan.peers, domains=DOMAINS)
PLAN = PEERS(SIZES["tiny"], attn_shared=0.25).to_json()


class Planted:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


# Plans


def put(*path: Any, value: Any) -> str:
    """The plan with a value at this place."""
    content = json.loads(PLAN)
    node = content
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    return json.dumps(content)


def without(*path: Any) -> str:
    content = json.loads(PLAN)
    node = content
    for name in path[:-1]:
        node = node[name]
    del node[path[-1]]
    return json.dumps(content)


CORE = json.loads(PLAN)["blocks"][0]
SPLIT = json.loads(PLAN)["splits"][0]
NUM_UNITS = sum(SPLIT["sizes"])

PLANS = {
    "zeros": "\0" * 9,
    "half": PLAN[: len(PLAN) // 2],
    "twice": PLAN + PLAN,
    "deep": "[" * 100_000,
    "a number": "3",
    "a huge number": "9" * 9999,
    **{f"no {name}": without(name) for name in ("domains", "blocks", "splits")},
    **{f"block without {name}": without("blocks", 1, name) for name in CORE},
    **{f"split without {name}": without("splits", 0, name) for name in SPLIT},
    "domains are text": put("domains", value="code"),
    "domains are numbers": put("domains", value=[1, 2, 3]),
    "domains are none": put("domains", value=[]),
    "a domain with a path": put("domains", value=["../x", "biology", "creative"]),
    "a domain with a line break": put("domains", value=["a\nb", "biology", "creative"]),
    "blocks are an object": put("blocks", value={}),
    "blocks are lists": put("blocks", value=[[1]]),
    "blocks are none": put("blocks", value=[]),
    "a name is a number": put("blocks", 1, "name", value=3),
    "a name is a list": put("blocks", 0, "name", value=[["x"]]),
    "a name is there twice": put("blocks", 1, "name", value="biology"),
    "an owner is unknown": put("blocks", 1, "owners", value=["law"]),
    "owners are text": put("blocks", 1, "owners", value="code"),
    "owners are numbers": put("blocks", 1, "owners", value=[1]),
    "owners are none": put("blocks", 1, "owners", value=[]),
    "two cores": put("blocks", 1, "is_core", value=True),
    "no core": put("blocks", 0, "is_core", value=False),
    "a core by a word": put("blocks", 0, "is_core", value="true"),
    "a core by a number": put("blocks", 1, "is_core", value=0),
    "splits are text": put("splits", value="x"),
    "a place twice": put("splits", value=[SPLIT, SPLIT]),
    "a layer is negative": put("splits", 0, "layer", value=-1),
    "a layer is a share": put("splits", 0, "layer", value=0.5),
    "a layer is true": put("splits", 0, "layer", value=True),
    "a layer is infinite": put("splits", 0, "layer", value=float("inf")),
    "a kind is unknown": put("splits", 0, "kind", value="embedding"),
    "a kind is null": put("splits", 0, "kind", value=None),
    "sizes are too few": put("splits", 0, "sizes", value=[96]),
    "sizes are negative": put("splits", 0, "sizes", value=[200, -40, 16, 16]),
    "sizes are shares": put("splits", 0, "sizes", value=[0.5, 0.1, 0.2, 0.2]),
    "sizes are text": put("splits", 0, "sizes", value="96,32,32,32"),
    "sizes are NaN": put("splits", 0, "sizes", value=[float("nan")] * 4),
    "an order is short": put("splits", 0, "order", value=[0, 1, 2]),
    "an order is text": put("splits", 0, "order", value="012"),
    "an order has a unit twice": put("splits", 0, "order", value=[0] * NUM_UNITS),
    "an order of floats": put("splits", 0, "order", value=[float(n) for n in range(NUM_UNITS)]),
    "apart is text": put("apart", value="code"),
    "apart names a domain twice": put("apart", value=[["code"], ["code", "biology"]]),
    "apart is of numbers": put("apart", value=[[1]]),
}


@pytest.mark.parametrize("text", PLANS.values(), ids=PLANS)
def test_a_plan_that_is_damaged_is_one_line(text):
    with within(), pytest.raises(PlanError) as refusal:
        RoutePlan.from_json(text)
    assert is_one_line(str(refusal.value))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_plan_with_any_damage_is_read_or_refused_in_one_line(data):
    place = data.draw(st.integers(0, len(PLAN) - 1))
    change = data.draw(st.sampled_from(["", "9", "-", '"', "null", "[{", "e9", "\ud800", "1.5"]))
    length = data.draw(st.integers(0, 9))
    try:
        plan = RoutePlan.from_json(PLAN[:place] + change + PLAN[place + length :])
        assert RoutePlan.from_json(plan.to_json()) == plan
    except PlanError as error:
        assert is_one_line(str(error))


# Exports


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder; for copies alone."""
    folder = tmp_path_factory.mktemp("made") / "job"
    make_run(folder, PEERS)
    return folder


@pytest.fixture
def job(made: Path, tmp_path: Path) -> Path:
    """A copy of a job's folder, to be spoiled."""
    return Path(shutil.copytree(made, tmp_path / "here" / "job"))


def set_in(name: str, *path: Any, value: Any) -> Callable[[Path], None]:
    def damage(job: Path) -> None:
        content = json.loads((job / name).read_text())
        content.pop("checksum", None)
        node = content
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        (job / name).write_text(json.dumps(content))

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


def tables_planted(job: Path) -> None:
    """torch.save's own format, with code in it."""
    [path] = job.glob("checkpoints/step_*/*.distcp")
    torch.save(Planted(job.parent / "ran"), path)


STEP = "checkpoints/step_*"
RUNS = {
    "summary is half": (written("summary.json", b'{"format": 1, "met'), "summary.json"),
    "summary is deep": (written("summary.json", b"[" * 200_000), "summary.json"),
    "summary is of another format": (set_in("summary.json", "format", value=9), "summary.json"),
    "summary's fingerprints are text": (
        set_in("summary.json", "fingerprints", value="x"),
        "summary.json",
    ),
    "summary's fingerprints are few": (
        set_in("summary.json", "fingerprints", value={"config": "a"}),
        "summary.json",
    ),
    "summary's fingerprints are others": (
        set_in("summary.json", "fingerprints", value={"config": "x", "text": "y"}),
        "is not of the run",
    ),
    "summary's config is a list": (set_in("summary.json", "config", value=[1]), "summary.json"),
    "summary's training is text": (
        set_in("summary.json", "config", "train", value="x"),
        "summary.json",
    ),
    "summary's length is text": (
        set_in("summary.json", "config", "train", "sequence_length", value="x"),
        "summary.json",
    ),
    "summary's length is negative": (
        set_in("summary.json", "config", "train", "sequence_length", value=-3),
        "summary.json",
    ),
    "summary's metrics are text": (set_in("summary.json", "metrics", value="x"), "summary.json"),
    "summary's metrics are of text": (
        set_in("summary.json", "metrics", value={"loss/full/code": "x"}),
        "summary.json",
    ),
    "summary's intervals are numbers": (
        set_in("summary.json", "intervals", value={"loss/full/code": 3}),
        "summary.json",
    ),
    "summary's domains are numbers": (set_in("summary.json", "domains", value=3), "summary.json"),
    "run.json is half": (written(f"{STEP}/run.json", b'{"plan": "'), "cannot be read"),
    "run.json is a list": (written(f"{STEP}/run.json", b"[]"), "cannot be read"),
    "run.json is deep": (written(f"{STEP}/run.json", b"[" * 200_000), "cannot be read"),
    "run.json is a pickle": (planted(f"{STEP}/run.json"), "cannot be read"),
    "run.json has another plan": (
        lambda job: [
            path.write_text(json.dumps(json.loads(path.read_text()) | {"plan": PLAN}))
            for path in job.glob(f"{STEP}/run.json")
        ],
        "",
    ),
    "the table is empty": (written(f"{STEP}/.metadata", b""), "cannot be read"),
    "the table is a pickle": (planted(f"{STEP}/.metadata"), "cannot be read"),
    "the tensors are cut": (written(f"{STEP}/*.distcp", b"PK\x03\x04"), "cannot be read"),
    "the tensors are a pickle": (planted(f"{STEP}/*.distcp"), "cannot be read"),
    "the tensors are torch's, with code": (tables_planted, "cannot be read"),
    "model/ has no config": (lambda job: (job / "model" / "config.json").unlink(), "has no model/"),
    "model/ has an empty config": (written("model/config.json", b""), "model cannot be read"),
    "model/ has a list": (written("model/config.json", b"[1]"), "model cannot be read"),
    "model/ has a deep config": (written("model/config.json", b"[" * 99_999), "cannot be read"),
    "model/ has another family": (
        set_in("model/config.json", "model_type", value="nope"),
        "model cannot be read",
    ),
    "model/ has code of its own": (
        set_in("model/config.json", "auto_map", value={"AutoConfig": "evil.Config"}),
        "OK",
    ),
    "model/ has no layers": (set_in("model/config.json", "num_hidden_layers", value=0), ""),
    "model/ has other layers": (set_in("model/config.json", "num_hidden_layers", value=3), ""),
    "model/ is wider": (set_in("model/config.json", "hidden_size", value=32), ""),
    "model/ is of text": (set_in("model/config.json", "hidden_size", value="x"), ""),
    "model/ is negative": (set_in("model/config.json", "intermediate_size", value=-4), ""),
    "plan.json is a folder": (
        lambda job: ((job / "plan.json").unlink(), (job / "plan.json").mkdir()),
        "OK",
    ),
}
"""What is done to a job's folder, and what the line says; OK: what is left is enough."""


@pytest.mark.parametrize(("damage", "said"), RUNS.values(), ids=RUNS)
def test_a_run_that_is_damaged_is_refused_and_its_code_is_not_run(
    job, tmp_path, capsys, damage, said
):
    damage(job)
    argv = ["export", str(job), "--keep", "biology", "--no-speed", "--to", str(tmp_path / "to")]
    if said == "OK":
        from gr_sweep.cli import app

        before = contents(job)
        assert app.main(argv) == 0 and contents(job) == before
    else:
        assert_refused(argv, said, tmp_path, capsys)
        assert not (tmp_path / "to").exists()
    assert not (job.parent / "ran").exists()


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("file/x", "is a file"),
        ("file", "is a file"),
        ("x" * 300, "cannot be a folder (File name too long)"),
    ],
    ids=["below a file", "a file", "long"],
)
def test_a_target_that_cannot_be_is_one_line(job, tmp_path, capsys, monkeypatch, to, said):
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert_refused(["export", str(job), "--keep", "code", "--to", to], said, tmp_path, capsys)


# Models of others


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as others publish it; for copies alone."""
    folder = tmp_path_factory.mktemp("published") / "model"
    model: Any = tiny_model("llama").float()
    model.save_pretrained(folder)
    return folder


def resized(job: Path, length: int) -> None:
    """Another length of the header in a safetensors file."""
    path = job / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


WEIGHTS = "model.safetensors"
MODELS = {
    "no config": (lambda m: (m / "config.json").unlink(), "config.json cannot be read"),
    "config is a folder": (
        lambda m: ((m / "config.json").unlink(), (m / "config.json").mkdir()),
        "config.json cannot be read",
    ),
    "config is empty": (written("config.json", b""), "config.json"),
    "config is half": (written("config.json", b'{"model_type": "ll'), "config.json"),
    "config is a list": (written("config.json", b"[1]"), "config.json"),
    "config is bytes": (written("config.json", b"\xff\xfe\0"), "config.json"),
    "config is deep": (written("config.json", b"[" * 99_999), "config.json"),
    "config is a pickle": (planted("config.json"), "config.json"),
    "config of no family": (set_in("config.json", "model_type", value="nope"), "be loaded"),
    "config of another family": (set_in("config.json", "model_type", value="bert"), ""),
    "config of text": (set_in("config.json", "hidden_size", value="x"), "hidden_size='x'"),
    "config of no width": (set_in("config.json", "hidden_size", value=0), ""),
    "config of a negative width": (set_in("config.json", "intermediate_size", value=-3), ""),
    "config of another width": (set_in("config.json", "intermediate_size", value=99), "be loaded"),
    "config of null": (set_in("config.json", "num_attention_heads", value=None), ""),
    "config of a list": (set_in("config.json", "num_hidden_layers", value=[1]), ""),
    "config of huge layers": (set_in("config.json", "num_attention_heads", value=10**30), ""),
    "no weights": (lambda m: (m / WEIGHTS).unlink(), "cannot be loaded"),
    "weights are empty": (written(WEIGHTS, b""), "cannot be loaded"),
    "weights are rubbish": (written(WEIGHTS, bytes(range(256)) * 4), "cannot be loaded"),
    "weights are half": (
        lambda m: (m / WEIGHTS).write_bytes((m / WEIGHTS).read_bytes()[:900]),
        "cannot be loaded",
    ),
    "weights have a huge header": (lambda m: resized(m, 1 << 62), "cannot be loaded"),
    "weights have no header": (lambda m: resized(m, 0), "cannot be loaded"),
    "weights have a header of rubbish": (
        written(WEIGHTS, struct.pack("<Q", 4) + b"nope"),
        "cannot be loaded",
    ),
    "weights have a tensor beyond the end": (
        written(
            WEIGHTS,
            struct.pack("<Q", 65)
            + b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(65),
        ),
        "cannot be loaded",
    ),
    "weights are a pickle": (planted(WEIGHTS), "cannot be loaded"),
    "weights are torch's, with code": (
        lambda m: (
            (m / WEIGHTS).unlink(),
            torch.save(Planted(m.parent / "ran"), m / "pytorch_model.bin"),
        ),
        "cannot be loaded",
    ),
    "weights are a pickle, of torch's name": (
        lambda m: (
            (m / WEIGHTS).unlink(),
            (m / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(m.parent / "ran"))),
        ),
        "cannot be loaded",
    ),
    "the index is rubbish": (
        lambda m: (
            (m / WEIGHTS).unlink(),
            (m / "model.safetensors.index.json").write_text("{"),
        ),
        "cannot be loaded",
    ),
    "the index leads outside": (
        lambda m: (
            (m / WEIGHTS).unlink(),
            (m / "model.safetensors.index.json").write_text(
                '{"metadata": {}, "weight_map": {"x": "../nope.safetensors"}}'
            ),
        ),
        "cannot be loaded",
    ),
}


@pytest.mark.parametrize(("damage", "said"), MODELS.values(), ids=MODELS)
def test_a_model_of_others_that_is_damaged_is_refused_and_its_code_is_not_run(
    published, tmp_path, damage, said
):
    model = Path(shutil.copytree(published, tmp_path / "model"))
    damage(model)
    before = contents(tmp_path)
    with within(), pytest.raises(GrSweepError) as refusal:
        [job] = compose(["model=hf", f"model.path={model}", "plan.attn_shared=1"]).jobs
        gr_sweep.setup.make_routed(job.config, types.SimpleNamespace(vocab_size=8, eot_id=0))
    assert contents(tmp_path) == before and not (tmp_path / "ran").exists()
    assert said in str(refusal.value) and is_one_line(str(refusal.value))


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_config_of_others_with_any_damage_composes_or_is_refused_in_one_line(
    published, tmp_path, data
):
    content = (published / "config.json").read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.sampled_from([b"", b"9", b"-", b'"', b"\xff", b"null", b"[{", b"."]))
    (tmp_path / "config.json").write_bytes(content[:place] + change + content[place + 1 :])
    before = contents(tmp_path)
    with within():
        try:
            assert compose(["model=hf", f"model.path={tmp_path}"]).jobs
        except GrSweepError as error:
            assert is_one_line(str(error))
    assert contents(tmp_path) == before
