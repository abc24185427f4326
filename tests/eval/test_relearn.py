import pytest
import torch

from gr_sweep.eval.finetune import fine_tune
from gr_sweep.eval.relearn import randomize_blocks, relearn_losses
from gr_sweep.metrics.losses import View
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import route_model
from gr_sweep.routing.plan import RoutePlan
from tests.eval.tiny import DOMAINS, are_equal, held_out, make_routed, state_of, text
from tests.model.tiny import tiny_model


def attack(routed, **changes):
    options = dict(view=View.full, part="biology", num_steps=25, lrs=[1e-3, 1e-2], seed=0)
    rows = text().rows("", ["biology"], documents=6)
    of_biology = held_out().only(["biology"])
    return relearn_losses(TokenLosses(routed), of_biology, rows, **options | changes)


STEP = 6 * 8
"""Tokens of a step."""


def loss_of(rows, lr: float, step: int) -> float:
    found = [row for row in rows if (row.lr, row.trained_tokens) == (lr, STEP * step)]
    return sum(row.loss_nats for row in found) / sum(row.tokens for row in found)


def test_an_attack_teaches_a_model_what_it_never_saw_and_leaves_it_as_it_was():
    routed = make_routed()
    fine_tune(TokenLosses(routed), text().rows("", ["code", "creative"]), 40, lr=1e-2, seed=0)
    before = state_of(routed.model)
    rows = attack(routed)
    assert are_equal(before, routed.model.state_dict())
    assert {(row.view, row.part, row.domain) for row in rows} == {(View.full, "biology", "biology")}
    assert sorted({(row.lr, row.trained_tokens) for row in rows}) == [
        (lr, STEP * step) for lr in (1e-3, 1e-2) for step in (0, 1, 2, 4, 8, 16, 25)
    ]
    untouched = {
        r.document: r.loss_nats for r in held_out().only(["biology"]).losses(TokenLosses(routed))
    }
    for lr in (1e-3, 1e-2):
        for row in rows:
            if row.trained_tokens == 0:
                assert row.loss_nats == pytest.approx(untouched[row.document], rel=1e-6)
        assert loss_of(rows, lr, 25) < loss_of(rows, lr, 0) - 0.05
    assert loss_of(rows, 1e-2, 25) < loss_of(rows, 1e-3, 25), "each rate starts from the same"


def test_every_learning_rate_begins_with_the_same_weights():
    """The first of them breaks the model, which stops nothing."""
    alone = attack(make_routed(), lrs=[1e-2], num_steps=12)
    together = attack(make_routed(), lrs=[1e30, 1e-2], num_steps=12)
    assert alone == [row for row in together if row.lr == 1e-2]


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])  # with biases
def test_just_the_units_of_the_removed_block_are_put_back_at_random(family):
    model = tiny_model(family)
    adapters = {"embed": 2, "mlp": 3}
    plan = RoutePlan.peers(model.config, domains=DOMAINS, attn_shared=0.5, adapters=adapters)
    routed = route_model(model, plan, "both")
    before = {name: [p.clone() for p in parts] for name, parts in routed.owner_sets().items()}
    randomize_blocks(routed, "biology", seed=3)
    for name, parts in routed.owner_sets().items():
        same = [torch.equal(p, old) for p, old in zip(parts, before[name], strict=True)]
        assert not any(same) if name == "biology" else all(same), name
    parts = [part.clone() for part in routed.owner_sets()["biology"]]
    assert all(not part.any() for part in parts if part.dim() == 1), "biases are 0"
    drawn = torch.cat([part.flatten() for part in parts if part.dim() == 2])
    expected = model.config.initializer_range
    assert float(drawn.detach().std()) == pytest.approx(expected, rel=0.1)
    assert abs(float(drawn.detach().mean())) < 0.1 * expected
    for seed, is_same in ((3, True), (4, False)):
        randomize_blocks(routed, "biology", seed)
        again = routed.owner_sets()["biology"]
        assert all(map(torch.equal, parts, again)) == is_same
