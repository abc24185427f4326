import json

import pytest
import torch

from gr_sweep.bench import step
from gr_sweep.bench.step import DENSE, bench_config, bench_step
from gr_sweep.config import TrainConfig

TRAIN = TrainConfig(steps=1, batch_sequences=3, sequence_length=8)
SMALL = ["--rows", "3", "--sequence-length", "8", "--vocab-size", "300", "--rounds", "1"]


def test_steps_are_compared_with_the_dense_step():
    cases = [
        dict(plan=plan, edges=edges, foreign_dropout=p, mlp_shared=0.25)
        for plan, edges, p in (
            ("peers", "none", 0.0), ("forget", "weight", 0.5), ("lattice", "act", 0.5),
            ("peers", "both", 1.0),
        )
    ]  # fmt: skip
    cases.append(cases[1] | {"adapters": "embed=full,mlp=2,bias=true"})
    common = dict(train=TRAIN, vocab_size=300)
    configs = {DENSE: bench_config("tiny", **common)}
    configs |= {str(case): bench_config("tiny", **case, **common) for case in cases}
    dense, *routed = bench_step(configs, rounds=1, device=torch.device("cpu"))
    assert dense.ratio == dense.flop_limit == dense.memory_ratio == 1.0 and dense.plan == "none"
    for case, result in zip(cases, routed, strict=True):
        assert {name: getattr(result, name) for name in case} == case
        assert 0 < result.flop_limit <= 1 and result.seconds > 0 and result.peak_gib > 0
        assert result.mfu is None, "no GPU"
        assert result.tokens_per_second == pytest.approx(3 * 8 / result.seconds)
        # The estimate runs the same step on tensors without data.
        assert result.estimated_gib == pytest.approx(result.peak_gib, rel=0.01)
        if result.plan == "peers":
            # A routed step recomputes the hidden activation, which plain autograd keeps.
            assert result.memory_ratio <= 1.0
    assert routed[-1].flop_limit < 1


def test_step_prints_a_table_or_json(capsys):
    options = [*SMALL, "--model", "tiny", "--edges", "both", "--dropout", "1"]
    assert step.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "gflops" in lines[1], "for gr-sweep estimate"
    assert len(lines) == 4 and "none" in lines[2] and "both" in lines[3]
    assert step.main([*options, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["benchmark"] == "step" and content["command"].endswith("--json")
    assert [row["edges"] for row in content["rows"]] == ["none", "both"]
