"""The estimate compared with the CPU's allocator and with numbers computed by hand."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gr_sweep.components import named_config
from gr_sweep.config import (
    AdaptersConfig,
    Core,
    DataConfig,
    Edges,
    EvalConfig,
    Method,
    MethodConfig,
    ModelConfig,
    PlanConfig,
    PlanKind,
    Precision,
    RouteConfig,
    TrackingConfig,
    TrackingMode,
    TrainConfig,
)
from gr_sweep.errors import DataError, PlanError
from gr_sweep.job import run_job
from gr_sweep.launch.estimate import (
    GIB,
    Target,
    estimate_job,
    what_would_help,
)
from tests.launch.jobs import TRAIN, make_config, measured_peak
from tests.launch.sharded import CASES
from tests.pairwise import pairwise
from tests.train.allocator import allocator_peak

REPOSITORY = Path(__file__).parents[2]
CPU = Target("cpu", 1e9, None, False)
H100 = Target.gpu("h100", utilisation=0.4)

SETTINGS = (tuple(Edges), tuple(kind for kind in PlanKind), (0.0, 0.5, 1.0), (False, True))
SOME = [(Edges.act, PlanKind.lattice, 0.5, True), (Edges.both, PlanKind.peers, 0.5, False)]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("edges", "kind", "foreign_dropout", "recomputes"),
    [*SOME, *(pytest.param(*case, marks=pytest.mark.slow) for case in pairwise(*SETTINGS))],
)
def test_the_peak_is_that_of_the_allocator_in_a_real_step(
    edges: Edges, kind: PlanKind, foreign_dropout: float, recomputes: bool
) -> None:
    config = make_config(
        edges=edges,
        plan=PlanConfig(kind=kind, forget=["biology"], mlp_shared=0.25),
        route=RouteConfig(foreign_dropout=foreign_dropout),
        train=replace(TRAIN, activation_checkpointing=recomputes),
    )
    measured = measured_peak(config)
    estimated = estimate_job(config, CPU).step_peak_bytes
    # The difference is memory that kernels allocate for themselves.
    assert estimated == pytest.approx(measured, rel=0.01)


@pytest.mark.usefixtures("one_thread")
def test_the_peak_of_a_frozen_core_with_adapters_has_their_gradients_and_moments_alone() -> None:
    adapters = AdaptersConfig(embed=3, mlp=2)
    config = make_config(plan=PlanConfig(core=Core.frozen, adapters=adapters))
    estimate, trained = (estimate_job(job, CPU) for job in (config, make_config()))
    assert estimate.step_peak_bytes == pytest.approx(measured_peak(config), rel=0.01)
    assert estimate.optimizer_bytes < trained.optimizer_bytes


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("train", "batch_sequences"),
    [
        (TRAIN, 48),
        pytest.param(replace(TRAIN, micro_batch_sequences=3), 4, marks=pytest.mark.slow),
    ],
    ids=["evaluation", "step"],
)
def test_the_peak_is_that_of_a_whole_job(
    train: TrainConfig, batch_sequences: int, tmp_path: Path
) -> None:
    """From an empty folder to summary.json, whether a step holds most or an evaluation."""
    config = make_config(
        train=replace(train, steps=2, checkpoint_every=1),
        data=DataConfig(documents=200, vocab_size=400, cache=str(tmp_path / "cache")),
        eval=EvalConfig(
            min_documents=1, tokens=1024, batch_sequences=batch_sequences, bootstrap=10, samples=0
        ),
        tracking=TrackingConfig(mode=TrackingMode.off),
    )
    words: dict[str, Any] = dict(sweep="sweep", overrides=[], command="")
    run = functools.partial(run_job, config, tmp_path / "job", **words)
    measured = allocator_peak(run)
    estimate = estimate_job(config, CPU)
    assert (estimate.evaluation_bytes > estimate.step_bytes) == (batch_sequences == 48)
    assert estimate.peak_bytes == pytest.approx(measured, rel=0.01)


@pytest.mark.slow
@pytest.mark.dist
def test_the_peak_of_one_of_two_processes_is_that_of_its_allocator(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "tests.launch.sharded", str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "peaks.json").read_text())
    for name, config in CASES.items():
        estimated = estimate_job(config, replace(CPU, world_size=2)).step_peak_bytes
        # A thread of gloo may let go of its buffers a moment later.
        assert estimated == pytest.approx(measured[name], rel=0.05), name


def test_each_of_several_processes_loads_its_part_and_one_parameter_in_main_memory() -> None:
    gpu = Target.gpu("h100", utilisation=0.4)
    config = make_config("125m")
    one, two = (estimate_job(config, replace(gpu, world_size=size)) for size in (1, 2))
    largest = 4 * 2048 * 768
    assert one.host_bytes - two.host_bytes == 4 * one.parameters - largest
    on_cpu = estimate_job(config, replace(CPU, world_size=2))
    assert on_cpu.host_bytes - two.host_bytes == on_cpu.peak_bytes - largest
    gguf = replace(config, model=replace(config.model, gguf_file="x"))
    assert estimate_job(gguf, replace(gpu, world_size=2)).host_bytes == one.host_bytes


def test_a_filtered_job_trains_on_what_is_left() -> None:
    dense = estimate_job(make_config(method=MethodConfig(name=Method.dense)), CPU)
    without = MethodConfig(name=Method.filtered, without=["biology"])
    filtered = estimate_job(make_config(method=without), CPU)
    assert filtered.tokens == dense.tokens * 2 // 3 and filtered.steps == dense.steps
    assert filtered.flops == pytest.approx(dense.flops * 2 / 3)
    assert dense.kept_parameters == {} and dense.flops == dense.dense_flops


def test_devices_share_what_lasts_and_the_rows() -> None:
    config = make_config()
    alone = estimate_job(config, CPU)
    shared = estimate_job(config, replace(CPU, world_size=3))
    assert shared.weight_bytes == pytest.approx(alone.weight_bytes / 3, rel=0.02)
    assert shared.optimizer_bytes == pytest.approx(alone.optimizer_bytes / 3, rel=0.02)
    assert shared.step_bytes < alone.step_bytes
    assert shared.hours == pytest.approx(alone.hours / 3)
    assert (shared.parameters, shared.tokens) == (alone.parameters, alone.tokens)
    assert not torch.distributed.is_initialized()


def test_a_job_that_does_not_fit_is_told_what_would_help() -> None:
    config = make_config()
    estimate = estimate_job(config, H100)
    assert what_would_help(estimate, config, H100) is None
    assert what_would_help(estimate, config, CPU) is None, "the memory of a CPU is not known"
    small = replace(H100, memory_bytes=estimate.peak_bytes - 1)
    said = str(what_would_help(estimate, config, small))
    assert said.startswith(f"{estimate.peak_bytes / GIB:.1f} GiB do not fit in the")
    assert "try train.activation_checkpointing=true, train.micro_batch_sequences below 6" in said
    evaluating = replace(estimate, evaluation_bytes=2 * estimate.step_bytes)
    assert "try eval.batch_sequences below" in str(what_would_help(evaluating, config, small))


def test_a_checkpoint_is_known_by_its_config_alone(tmp_path: Path) -> None:
    named = named_config(make_config(), vocab_size=321, eot_id=0)
    named.save_pretrained(tmp_path)
    config = make_config()
    pretrained = replace(config, model=ModelConfig(size=None, path=str(tmp_path)))
    expected = estimate_job(replace(config, data=DataConfig(vocab_size=321)), CPU)
    assert estimate_job(pretrained, CPU) == expected
    # A frozen core keeps what the checkpoint has, but for embeddings and norms.
    products = replace(TRAIN, precision=Precision.bfloat16)
    model = ModelConfig(size=None)
    frozen = replace(config, model=model, plan=PlanConfig(core=Core.frozen), train=products)
    found = []
    for dtype in ("float32", "bfloat16"):
        named.dtype, folder = dtype, tmp_path / dtype
        named.save_pretrained(folder)
        frozen.model.path = str(folder)
        targets = (replace(CPU, world_size=n) for n in (1, 2))
        found.append([estimate_job(frozen, target).weight_bytes for target in targets])
    attention = 2 * 4 * 64 * 64  # numbers, in two layers
    assert np.subtract(*found).tolist() == [2 * attention, attention]


def test_what_is_not_on_this_machine_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    config = make_config()
    with pytest.raises(DataError, match=r"tokenizer nobody/nothing .* fetch it first"):
        estimate_job(replace(config, data=DataConfig(tokenizer="nobody/nothing")), CPU)
    elsewhere = replace(config, model=ModelConfig(size=None, path="nobody/nothing"))
    with pytest.raises(PlanError, match=r"model.path=nobody/nothing: its config.json"):
        estimate_job(elsewhere, CPU)
