import json

import pytest
import torch

from gr_sweep.bench.step import DENSE, PLANS, bench_config, bench_step, main
from gr_sweep.config import TrainConfig
from gr_sweep.errors import ConfigError

TRAIN = TrainConfig(steps=1, batch_sequences=3, sequence_length=8)


def configs(**setting):
    return {
        DENSE: bench_config("tiny", train=TRAIN, vocab_size=300),
        "routed": bench_config("tiny", train=TRAIN, vocab_size=300, **setting),
    }


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("edges", "foreign_dropout"), [("weight", 0.0), ("both", 1.0)])
def test_a_setting_is_timed_against_the_dense_step(plan, edges, foreign_dropout):
    setting = dict(plan=plan, edges=edges, foreign_dropout=foreign_dropout, mlp_shared=0.25)
    dense, routed = bench_step(configs(**setting), rounds=1, device=torch.device("cpu"))
    assert dense.ratio == dense.flop_limit == dense.memory_ratio == 1.0 and dense.plan == "none"
    assert (routed.plan, routed.edges, routed.mlp_shared) == (plan, edges, 0.25)
    assert routed.foreign_dropout == foreign_dropout
    assert 0 < routed.flop_limit < 1 and routed.seconds > 0 and routed.peak_gib > 0


def test_a_routed_step_holds_no_more_than_a_dense_one():
    """The hidden activation is computed again, where plain autograd keeps it."""
    for edges in ("none", "weight", "act", "both"):
        for foreign_dropout in (0.0, 0.5, 1.0):
            setting = dict(plan="peers", edges=edges, foreign_dropout=foreign_dropout)
            [_, routed] = bench_step(configs(**setting), rounds=1, device=torch.device("cpu"))
            assert routed.memory_ratio <= 1.0


def test_rows_that_do_not_divide_over_the_domains_are_refused():
    with pytest.raises(ConfigError, match="4"):
        bench_config("tiny", train=TrainConfig(batch_sequences=4))


def test_the_command_prints_a_table_or_json(capsys):
    options = "--model tiny --rows 3 --sequence-length 8 --rounds 1 --edges both --dropout 0 1"
    assert main(options.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and "dense" in lines[2] and "both" in lines[4]
    assert main([*options.split(), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["benchmark"] == "step" and content["command"].endswith("--json")
    assert [row["edges"] for row in content["rows"]] == ["none", "both", "both"]
    assert [row["foreign_dropout"] for row in content["rows"][1:]] == [0.0, 1.0]
