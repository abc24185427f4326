"""Weights that come after a model is routed are those of a model that had them from the start."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from gr_sweep.config import Precision, TrainConfig
from gr_sweep.errors import PlanError
from gr_sweep.model.deferred import deferred_checkpoint, deferred_random_model
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.pretrained import load
from gr_sweep.model.route import route_model
from gr_sweep.model.sizes import Size, llama_config, random_model
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.step import shard
from tests.export.test_bad_runs import Planted
from tests.model.tiny import FAMILIES, MIXTURES, tiny_model

CPU = torch.device("cpu")
DOMAINS = ("code", "biology")


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """A group of one process, over which models are sharded."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def filled(deferred, plan=None, seed=0):
    """The routed model, sharded and filled; by default the dense one."""
    plan = plan or RoutePlan.none(domains=DOMAINS)
    routed = route_model(deferred.model, plan, "none", seed=seed)
    assert next(routed.model.parameters()).is_meta
    losses = TokenLosses(routed)
    shard(losses, TrainConfig(precision=Precision.float32), CPU)
    deferred.fill(routed, losses, CPU)
    return routed.model


def config_of(*, is_tied: bool):
    shape = Size(16, 27, 2, 4, 4, is_tied=is_tied)
    return llama_config(shape, vocab_size=13, eot_id=0, sequence_length=8)


def assert_same_model(model, expected) -> None:
    for tensors in ("named_parameters", "named_buffers"):
        mine, other = (dict(getattr(each, tensors)()) for each in (model, expected))
        assert mine.keys() == other.keys()
        for name, tensor in other.items():
            assert mine[name].dtype == tensor.dtype
            assert mine[name].requires_grad == tensor.requires_grad
            found = mine[name]
            whole = found.full_tensor() if isinstance(found, DTensor) else found
            assert torch.equal(whole, tensor), name


@pytest.mark.parametrize("is_tied", [True, False])
def test_drawn_weights_and_adapters_are_those_of_a_whole_model_bit_by_bit(is_tied):
    config = config_of(is_tied=is_tied)
    adapters = {"embed": 3, "unembed": "full", "attn": 1, "mlp": 3, "bias": True}
    orders = {(0, "mlp"): [*range(26, -1, -1)], (1, "attn"): [2, 0, 3, 1]}
    plan = RoutePlan.make(
        *("peers", config), domains=DOMAINS, attn_shared=0.5, adapters=adapters, orders=orders
    )
    expected = route_model(random_model(config, seed=3), plan, "none", seed=5)
    state = torch.get_rng_state()
    model = filled(deferred_random_model(config, seed=3), plan, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_model(model, expected.model)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in MIXTURES])
def test_slices_of_a_checkpoint_are_the_model_that_transformers_loads(tmp_path, family):
    tiny_model(family).bfloat16().save_pretrained(tmp_path, max_shard_size=4000)
    assert (tmp_path / "model.safetensors.index.json").exists()
    expected, deferred = load(str(tmp_path)), deferred_checkpoint(str(tmp_path))
    assert deferred is not None
    model = filled(deferred)
    assert_same_model(model, expected)
    assert model.config.to_dict() == expected.config.to_dict()
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()
    assert model.training == expected.training
    assert all(deferred.is_bfloat16(name) for name, _ in expected.named_parameters())


def saved(folder, **changes):
    """The file of a small checkpoint; `changes` are made in its tensors, None removes one."""
    random_model(config_of(is_tied=True), seed=0).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.norm.weight": None}, r"model\.norm\.weight is missing"),
        ({"model.norm.weight": torch.zeros(15)}, r"has the shape \[15\] instead of \[16\]"),
        ({"lm_head.weight": torch.zeros(13, 16)}, None),
    ],
)
def test_a_checkpoint_that_does_not_have_the_models_tensors_is_left_to_transformers(
    tmp_path, changes, said
):
    saved(tmp_path, **changes)
    assert deferred_checkpoint(str(tmp_path)) is None
    if said is not None:
        with pytest.raises(PlanError, match=said):
            load(str(tmp_path))


def test_stacked_experts_are_left_to_transformers(tmp_path):
    tiny_model("mixtral").save_pretrained(tmp_path)
    assert deferred_checkpoint(str(tmp_path)) is None


def test_code_in_weights_of_another_format_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config_of(is_tied=False).save_pretrained(tmp_path)
    torch.save(Planted(), tmp_path / "pytorch_model.bin")
    assert deferred_checkpoint(str(tmp_path)) is None
    with pytest.raises(PlanError, match="cannot be loaded"):
        load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_the_base_model_has_shorter_names(tmp_path):
    model = random_model(config_of(is_tied=True), seed=0)
    model.model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    deferred = deferred_checkpoint(str(tmp_path))
    found = {}
    deferred.read(lambda name, values: found.__setitem__(name, values[:]))
    assert found.keys() == dict(model.named_parameters()).keys()


def test_a_file_that_can_no_longer_be_read_is_one_line_that_names_the_checkpoint(tmp_path):
    saved(tmp_path)
    deferred = deferred_checkpoint(str(tmp_path))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(PlanError, match=f"model.path={tmp_path} cannot be loaded: "):
        filled(deferred)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    saved(tmp_path, **{"model.norm.weight": torch.full((16,), torch.nan)})
    deferred = deferred_checkpoint(str(tmp_path))
    for read in (lambda: load(str(tmp_path)), lambda: deferred.read(lambda name, rows: rows[:])):
        with pytest.raises(PlanError, match=r"model\.norm\.weight has a number that is not finite"):
            read()
