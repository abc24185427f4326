import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from gr_sweep.bench import step
from gr_sweep.bench.gpu import markdown
from gr_sweep.bench.step import DENSE, bench_config, bench_step
from gr_sweep.config import TrainConfig

CPU = torch.device("cpu")
TRAIN = TrainConfig(steps=1, batch_sequences=3, sequence_length=8)
SMALL = ["--rows", "3", "--sequence-length", "8", "--vocab-size", "300", "--rounds", "1"]


def test_steps_are_compared_with_the_dense_step():
    shared = dict(mlp_shared=0.25, foreign_dropout=0.5)
    cases = [
        dict(plan="forget", edges="weight", adapters="embed=full,mlp=2,bias=true", **shared),
        dict(plan="lattice", edges="act", **shared),
        dict(plan="peers", edges="both", foreign_dropout=1.0, mlp_shared=0.25),
    ]
    common = dict(train=TRAIN, vocab_size=300)
    configs = {DENSE: bench_config("tiny", **common)}
    configs |= {str(case): bench_config("tiny", **case, **common) for case in cases}
    dense, *routed = bench_step(configs, rounds=1, device=CPU)
    assert dense["plan"] == "none"
    assert dense["ratio"] == dense["flop_limit"] == dense["memory_ratio"] == 1.0
    for case, row in zip(cases, routed, strict=True):
        assert case.items() <= row.items()
        assert 0 < row["flop_limit"] < 1 and row["seconds"] > 0
        assert row["mfu"] is None, "no GPU"
        assert row["tokens_per_second"] == pytest.approx(3 * 8 / row["seconds"])
        # The estimate runs the same step on tensors without data.
        assert row["estimated_gib"] == pytest.approx(row["peak_gib"], rel=0.01)
        if row["plan"] == "peers":
            # A routed step recomputes the hidden activation, which plain autograd keeps.
            assert row["memory_ratio"] <= 1.0


def test_a_setting_that_fails_or_has_no_time_is_left_out_and_named(monkeypatch, capsys):
    def failing(routed, *args):
        made = JobStep(routed, *args)
        if routed.route_weights.edges != "weight":
            return made

        def run() -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB")

        made.run = run
        return made

    JobStep = step.JobStep
    monkeypatch.setattr(step, "JobStep", failing)
    common = dict(train=TRAIN, vocab_size=300)
    configs = {DENSE: bench_config("tiny", **common)}
    for edges in ("weight", "both"):
        configs[edges] = bench_config("tiny", plan="peers", edges=edges, **common)
    assert [row["edges"] for row in bench_step(configs, rounds=1, device=CPU)] == ["none", "both"]
    said = capsys.readouterr().err
    assert said == "not measured: weight: OutOfMemoryError: CUDA out of memory. Tried to allocate\n"
    [dense] = bench_step(configs, rounds=1, device=CPU, deadline=0.0)
    assert dense["plan"] == "none" and dense["estimated_gib"] is None
    assert "not measured: both: TimeoutError: no time was left" in capsys.readouterr().err


@pytest.mark.slow
def test_settings_that_are_compiled_take_turns_without_being_compiled_again(monkeypatch):
    graphs, order = [], []

    def backend(graph, inputs):
        graphs.append(graph)

        def run(*args):
            order.append(graphs.index(graph))
            return graph.forward(*args)

        return run

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    common = dict(train=replace(TRAIN, compile=True), vocab_size=300)
    routed = bench_config("tiny", plan="peers", edges="both", foreign_dropout=1.0, **common)
    configs = {DENSE: bench_config("tiny", **common), "routed": routed}
    rows = bench_step(configs, rounds=2, device=CPU)
    assert order == [0, 1, 0, 1, 0, 1, 0, 1] and len(graphs) == 2, "first steps, three rounds"
    assert all(row["first_seconds"] > row["seconds"] for row in rows)


def test_blocks_beside_a_frozen_core_are_compared_with_the_first_setting(capsys):
    units = ["--shared", "1", "--adapters", "mlp=2", "mlp=4", "--edges", "both", "--dropout", "1"]
    assert step.main([*SMALL, "--model", "tiny", "--frozen-core", *units, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["benchmark"] == "step" and content["command"].endswith("--json")
    first, second = content["rows"]
    assert (first["plan"], first["ratio"], first["adapters"]) == ("peers", 1.0, "mlp=2")
    # AdamW keeps nothing of the core, of which a plain step keeps twice its size.
    assert first["peak_gib"] < 2 * first["parameters"] * 4 / 2**30 < 0.1
    assert second["flop_limit"] > 1.0
    lines = markdown({"7b": {"status": "done", "reason": "", "result": content}}).splitlines()
    assert "| 7b tiny | peers | mlp=2 | both | 1 | 1.00 (1.00) | - |" in lines[4]
    assert lines[-1] == "| 7b | done |"


def test_step_prints_a_table(capsys):
    assert step.main([*SMALL, "--model", "tiny", "--edges", "both", "--dropout", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "gflops" in lines[1], "for gr-sweep estimate"
    assert len(lines) == 4 and "none" in lines[2] and "both" in lines[3]


def test_more_domains_leave_less_to_compute(capsys):
    limits = []
    for domains in ("3", "6"):
        setting = ["--rows", "6", "--domains", domains, "--edges", "both", "--dropout", "1"]
        assert step.main([*SMALL, "--model", "tiny", *setting, "--json"]) == 0
        limits.append(json.loads(capsys.readouterr().out)["rows"][1]["flop_limit"])
    assert limits[1] < limits[0] < 1.0
