import json

import pytest
import torch

from gr_sweep.bench.step import DOMAINS, PLANS, bench_step, main, multiply_adds
from gr_sweep.model.route import route_model
from gr_sweep.model.sizes import Size, llama_config, random_model
from gr_sweep.routing.plan import RoutePlan

SHAPE = Size(16, 32, 2, 2, 2)


def limit(edges: str, foreign_dropout: float, kind: str = "peers") -> float:
    config = llama_config(SHAPE, vocab_size=11, eot_id=0, sequence_length=8)
    domains = ("code", "biology")
    plan = RoutePlan.make(kind, SHAPE, domains=domains, forget=["biology"])
    routed = route_model(random_model(config, seed=0), plan, edges, foreign_dropout=foreign_dropout)
    return multiply_adds(routed, {"code": 2, "biology": 2})


def test_the_limit_counts_by_hand():
    """Width 16, MLP 32 (core 16, each domain 8), 2 layers, vocabulary 11."""
    attention, mlp, unembedding = 2 * 4 * 16 * 16, 2 * 3 * 16 * 32, 11 * 16
    dense = 3 * (attention + mlp + unembedding)
    assert limit("none", 0.0, "none") == limit("none", 0.0) == dense
    foreign = mlp / 4  # a quarter of the units is foreign to each row
    # both: foreign units are computed, and nothing comes back from them.
    assert limit("both", 0.0) == dense - 2 * foreign
    # weight: no gradient of the weights; act: none of the inputs of gate and up, two thirds of the
    # MLP.
    assert limit("weight", 0.0) == dense - foreign
    assert limit("act", 0.0) == pytest.approx(dense - foreign * 2 / 3)
    # 1: foreign units are not there at all.
    assert {limit(edges, 1.0) for edges in ("none", "both")} == {dense - 3 * foreign}


def test_where_the_core_is_foreign_its_weights_have_no_gradient_to_compute():
    """Half of the rows are biology's. The core has 16 units and is code's, the block has 16."""
    attention, mlp, unembedding = 2 * 4 * 16 * 16, 2 * 3 * 16 * 32, 11 * 16
    dense = 3 * (attention + mlp + unembedding)
    foreign_core = (attention + mlp / 2 + unembedding) / 2
    foreign_block = mlp / 2 / 2
    assert limit("weight", 0.0, "forget") == dense - foreign_core - foreign_block
    # 1: the block is not there for code's rows.
    assert limit("weight", 1.0, "forget") == dense - foreign_core - 3 * foreign_block


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_can_be_timed(plan):
    device = torch.device("cpu")
    results = bench_step(
        "tiny", rows=3, sequence_length=8, vocab_size=32, rounds=1, device=device, plan=plan
    )
    assert all(0 < r.flop_limit <= 1 and r.seconds > 0 for r in results)


def test_every_setting_is_timed_against_the_dense_step():
    results = bench_step(
        "tiny", rows=6, sequence_length=8, vocab_size=32, rounds=1, device=torch.device("cpu")
    )
    assert len(results) == 13 and results[0].ratio == 1.0
    assert all(0 < r.flop_limit <= 1 and r.seconds > 0 for r in results)
    assert len(DOMAINS) == 3


def test_the_command_prints_json(capsys):
    options = [
        "--model",
        "tiny",
        "--rows",
        "3",
        "--sequence-length",
        "8",
        "--rounds",
        "1",
        "--json",
    ]
    assert main(options) == 0
    assert json.loads(capsys.readouterr().out)[0]["edges"] == "dense"
