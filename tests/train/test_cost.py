"""Parameters and operations by hand: width 16, MLP 32, 2 layers, 2 heads of 8, vocabulary 11."""

from typing import Any, cast

import pytest
import torch

from gr_sweep.model.route import RoutedModel, route_model
from gr_sweep.model.sizes import Size, llama_config, random_model
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.cost import (
    active_parameters,
    forward_flops_per_token,
    kept_flops_per_token,
    kept_parameters,
    multiply_adds,
    num_parameters,
    recomputed_flops_per_token,
    train_flops_per_token,
)
from tests.model.tiny import tiny_model

SHAPE = Size(16, 32, 2, 2, 2)
COUNTS = {"code": 2, "biology": 2}
ATTENTION = 2 * 4 * 16 * 16
MLP = 2 * 3 * 16 * 32
UNEMBEDDING = 11 * 16
NORMS = 5 * 16
SCORES = 2 * 4 * 16 * 9 // 2
"""FLOPs of scores and mixes at 8 tokens a sequence, forward."""


def make(
    edges: str,
    foreign_dropout: float,
    kind: str = "peers",
    foreign_outputs: float | None = None,
    **shares: Any,
) -> RoutedModel:
    """Core 16 units of the 32, each domain 8."""
    config = llama_config(SHAPE, vocab_size=11, eot_id=0, sequence_length=8)
    plan = RoutePlan.make(kind, config, domains=tuple(COUNTS), forget=["biology"], **shares)
    return route_model(
        random_model(config, seed=0),
        plan,
        edges,
        foreign_dropout=foreign_dropout,
        foreign_outputs=foreign_outputs,
    )


def test_parameters_whole_kept_and_active() -> None:
    whole = ATTENTION + MLP + UNEMBEDDING + NORMS
    for foreign_dropout, share_on in ((0.0, 1.0), (0.5, 7 / 8), (1.0, 3 / 4)):
        routed = make("both", foreign_dropout)
        assert num_parameters(routed) == whole
        assert kept_parameters(routed) == dict.fromkeys(COUNTS, whole - MLP // 4)
        assert active_parameters(routed, routed.row_groups(COUNTS)) == whole - MLP * (1 - share_on)
    dense = make("none", 0.0, "none")
    assert kept_parameters(dense) == {} == kept_flops_per_token(dense, 8)


def test_flops_count_attention_too() -> None:
    dense = 2 * (ATTENTION + MLP + UNEMBEDDING) + SCORES
    routed = make("both", 0.0)
    assert forward_flops_per_token(routed, 8) == dense
    assert kept_flops_per_token(routed, 8) == dict.fromkeys(COUNTS, dense - 2 * MLP // 4)
    assert train_flops_per_token(make("none", 0.0, "none"), COUNTS, 8) == 3 * dense
    # Nothing comes back from a quarter of the MLP, neither to the weights nor to the inputs.
    assert train_flops_per_token(routed, COUNTS, 8) == 3 * dense - 2 * 2 * MLP / 4
    assert multiply_adds(routed, COUNTS) == pytest.approx(
        (train_flops_per_token(routed, COUNTS, 8) - 3 * SCORES) / 2
    )


def test_heads_that_are_off_leave_attention_narrower() -> None:
    """As the extracted model says of itself."""
    config = llama_config(SHAPE, vocab_size=11, eot_id=0, sequence_length=8)
    plan = RoutePlan.peers(SHAPE, domains=tuple(COUNTS), attn_shared=0.0)
    routed = route_model(random_model(config, seed=0), plan)
    small = route_model(routed.extract(keep=["code"]), RoutePlan.none(domains=tuple(COUNTS)))
    assert kept_flops_per_token(routed, 8)["code"] == forward_flops_per_token(small, 8)


def limit(edges: str, foreign_dropout: float, kind: str = "peers", **routing: float) -> float:
    return multiply_adds(make(edges, foreign_dropout, kind, **routing), COUNTS)


def test_the_limit_counts_by_hand() -> None:
    dense = 3 * (ATTENTION + MLP + UNEMBEDDING)
    assert limit("none", 0.0, "none") == limit("none", 0.0) == dense
    foreign = MLP / 4  # a quarter of the units is foreign to each row
    # both: foreign units are computed, and nothing comes back from them.
    assert limit("both", 0.0) == dense - 2 * foreign
    # weight: no gradient of the weights; act: none of the inputs of gate and up, two thirds of the
    # MLP.
    assert limit("weight", 0.0) == dense - foreign
    assert limit("act", 0.0) == pytest.approx(dense - foreign * 2 / 3)
    # 1: foreign units are not there at all.
    assert {limit(edges, 1.0) for edges in ("none", "both")} == {dense - 3 * foreign}


def test_where_the_core_is_foreign_its_weights_have_no_gradient_to_compute() -> None:
    """Half of the rows are biology's. The core has 16 units and is code's, the block has 16."""
    dense = 3 * (ATTENTION + MLP + UNEMBEDDING)
    foreign_core = (ATTENTION + MLP / 2 + UNEMBEDDING) / 2
    foreign_block = MLP / 2 / 2
    assert limit("weight", 0.0, "forget") == dense - foreign_core - foreign_block
    # 1: the block is not there for code's rows.
    assert limit("weight", 1.0, "forget") == dense - foreign_core - 3 * foreign_block


def test_output_columns_that_learn_all_the_same_cost_their_product() -> None:
    """Under `both` nothing comes back from foreign units, a quarter of them; with their output
    columns learning, one product of `down`, a third of the MLP, does."""
    assert limit("both", 0.0, foreign_outputs=1.0) == limit("both", 0.0) + MLP / 4 / 3


def test_experts_cost_what_a_position_chooses() -> None:
    """12 experts of 8 units, of which a position chooses 3; 6 are the core's and 3 each domain's.
    Attention is 32 wide."""
    model: Any = tiny_model("mixtral")
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    expert, routers = 3 * 16 * 8, 2 * 12 * 16
    chosen = 2 * 3 * expert

    def found(edges: str, dropout: float, **shares: Any) -> RoutedModel:
        plan = RoutePlan.peers(model.config, domains=tuple(COUNTS), **shares)
        return route_model(cast(Any, tiny_model("mixtral")), plan, edges, foreign_dropout=dropout)

    routed = found("both", 0.0)
    assert kept_parameters(routed)["code"] == num_parameters(routed) - 2 * 3 * (expert + 16)
    forward = 2 * (matrices + routers + chosen) + 2 * 4 * 32 * 9 // 2
    assert forward_flops_per_token(routed, 8) == forward
    # Others are chosen in place of those that are off, until there are too few.
    assert kept_flops_per_token(routed, 8)["code"] == forward - 2 * 2 * 3 * 16
    few = found("both", 1.0, mlp_shared=0.0, layers=[1])
    dense = 3 * (matrices + routers + chosen)
    assert multiply_adds(few, COUNTS) == multiply_adds(found("both", 1.0), COUNTS) == dense
    # A quarter of the experts is foreign to each row, and nothing comes back from them.
    assert multiply_adds(routed, COUNTS) == dense - 2 * chosen / 4
    assert multiply_adds(found("weight", 0.0), COUNTS) == dense - chosen / 4


def test_adapters_cost_their_products_in_training_and_nothing_once_they_are_merged() -> None:
    """A table of the embedding is looked up. Biology's rows alone run the adapters."""
    adapters = {"embed": "full", "unembed": "full", "mlp": 2}
    routed = make("weight", 1.0, "forget", mlp_shared=1.0, adapters=adapters)
    bottlenecks = 2 * 3 * 2 * (16 + 32)
    whole, matrices = ATTENTION + MLP + UNEMBEDDING + NORMS, ATTENTION + MLP + UNEMBEDDING
    assert num_parameters(routed) == whole + bottlenecks + 2 * UNEMBEDDING
    # Without biology's adapters the embeddings stay tied.
    assert kept_parameters(routed) == {"code": whole, "biology": whole + UNEMBEDDING}
    groups = routed.row_groups(COUNTS)
    half = (bottlenecks + 2 * UNEMBEDDING) / 2
    assert active_parameters(routed, groups) == whole + half
    dense = 2 * matrices + SCORES
    assert forward_flops_per_token(routed, 8) == dense + 2 * (bottlenecks + UNEMBEDDING)
    assert kept_flops_per_token(routed, 8) == dict.fromkeys(COUNTS, dense)
    added = bottlenecks + UNEMBEDDING
    assert multiply_adds(routed, COUNTS) == (3 * matrices + 2 * matrices + 3 * added) / 2
    recomputed = 2 * (ATTENTION + MLP) + SCORES + 2 * bottlenecks / 2
    assert recomputed_flops_per_token(routed, groups, 8) == recomputed
