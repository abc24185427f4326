import pytest
import torch

from gr_sweep.config import EvalConfig
from gr_sweep.eval.finetune import fine_tune, recovery
from gr_sweep.eval.robustness import randomize_blocks, robustness_losses
from gr_sweep.metrics.losses import View
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import route_model
from gr_sweep.routing.plan import RoutePlan
from tests.eval.tiny import (
    DOMAINS,
    are_equal,
    held_out,
    make_routed,
    mean_losses,
    state_of,
    text,
)
from tests.model.tiny import tiny_model


def rows_without(part: str):
    return text().rows("recovery", text().others(part))


def settings(**changes) -> EvalConfig:
    return EvalConfig(
        **dict(
            calibrate=True, relearn_steps=3, relearn_lrs=[1e-3, 1e-2],
            relearn_documents=4, relearn_batch_sequences=3, batch_sequences=8,
        ) | changes
    )  # fmt: skip


def found(routed, config=None, **options):
    before = state_of(routed.model)
    rows, relearned = robustness_losses(
        routed,
        TokenLosses(routed),
        held_out(),
        text(),
        config or settings(),
        lr=1e-2,
        **options,
    )
    assert are_equal(before, routed.model.state_dict())
    return rows, relearned


def parts(rows) -> set[tuple[str, str, str]]:
    return {(row.view.value, row.part, row.domain) for row in rows}


def test_a_routed_model_is_calibrated_full_and_removed_and_attacked_without_each_domain():
    rows, relearned = found(make_routed("peers"))
    assert parts(rows) == {
        (view, domain, domain)
        for view in ("calibrated_full", "calibrated_removed")
        for domain in DOMAINS
    }
    assert parts(relearned) == {("removed", domain, domain) for domain in DOMAINS}
    assert {(row.lr, row.trained_tokens) for row in relearned} == {
        (lr, 3 * 8 * step) for lr in (1e-3, 1e-2) for step in (0, 1, 2, 3)
    }


def test_the_attack_on_a_model_whose_adapters_are_removed_is_that_on_a_plain_one():
    adapters = {"embed": "full", "unembed": 3, "bias": True, "mlp": 2}
    routed = make_routed("forget", forget=["biology"], mlp_shared=1.0, adapters=adapters)
    randomize_blocks(routed, "biology", seed=0)
    _, removed = found(routed)
    _, plain = found(make_routed(), without=["biology"])
    expected = [row._replace(view=View.removed) for row in plain]
    for row, other in zip(removed, expected, strict=True):
        assert row._replace(loss_nats=0) == other._replace(loss_nats=0)
        assert row.loss_nats == pytest.approx(other.loss_nats, rel=1e-5)


def test_a_dense_model_unlearns_each_domain_where_it_is_asked_to():
    rows, relearned = found(make_routed(), settings(unlearn_steps=2))
    views = ("calibrated_full", "calibrated_unlearned")
    assert parts(rows) == {(view, domain, domain) for view in views for domain in DOMAINS} | {
        ("unlearned", gone, domain) for gone in DOMAINS for domain in DOMAINS
    }
    assert parts(relearned) == {("unlearned", domain, domain) for domain in DOMAINS}
    assert found(make_routed()) == ([], []), "nothing was removed from it"
    config = settings(calibrate=False, relearn_steps=None)
    assert found(make_routed("peers"), config) == ([], [])


def test_recovery_helps_the_others_and_leaves_the_removed_units_as_they_were():
    routed = make_routed("forget", forget=["biology"])
    token_losses = TokenLosses(routed)
    before = state_of(routed.model)
    gone = [part.clone() for part in routed.owner_sets()["biology"]]
    with routed.remove(["biology"]):
        first = mean_losses(held_out().losses(token_losses))
    how = {"lr": 0.3, "seed": 0}
    with recovery(routed, token_losses, rows_without, 60, **how)("biology"):
        with routed.remove(["biology"]):
            after = mean_losses(held_out().losses(token_losses))
        for part, old in zip(routed.owner_sets()["biology"], gone, strict=True):
            assert torch.equal(part, old)
    assert after["code"] < first["code"] - 0.3 and after["creative"] < first["creative"] - 0.3
    assert are_equal(before, routed.model.state_dict())
    # Without other text nothing is trained, and without steps or a domain nothing is recovered.
    with recovery(routed, token_losses, lambda part: None, 60, **how)("biology"):
        assert are_equal(before, routed.model.state_dict())
    assert recovery(routed, token_losses, rows_without, 0, **how) is None
    dense = make_routed()
    assert recovery(dense, TokenLosses(dense), rows_without, 5, **how) is None


def test_a_recovery_that_makes_the_model_worse_is_taken_back():
    routed = make_routed("forget", forget=["biology"])
    read: list[int] = []

    def rows_of(part: str):
        rows = rows_without(part)
        return lambda step: (read.append(step), rows(step))[1]

    how = {"lr": 1000.0, "seed": 0, "micro_batch_sequences": 4}
    before = state_of(routed.model)
    with recovery(routed, TokenLosses(routed), rows_of, 3, **how)("biology"):
        assert are_equal(before, routed.model.state_dict())
    assert sorted(read) == [0, 1, 2, 3, 4, 5, 6], "four steps' rows are only read"


def test_the_model_without_a_domain_is_attacked_as_it_was_recovered():
    routed = make_routed("forget", forget=["biology"])
    token_losses = TokenLosses(routed)
    recover = recovery(
        routed, token_losses, rows_without, 10, lr=0.3, seed=0, micro_batch_sequences=4
    )
    config = settings(relearn_steps=1, relearn_lrs=[1e-2])
    plain, recovered = found(routed, config), found(routed, config, recover=recover)
    losses = [
        {view: [r.loss_nats for r in [*rows, *relearned] if r.view is view] for view in View}
        for rows, relearned in (plain, recovered)
    ]
    assert losses[0][View.calibrated_full] == losses[1][View.calibrated_full]
    for view in (View.calibrated_removed, View.removed):
        assert losses[0][view] and losses[0][view] != losses[1][view]


STEP = 6 * 8
"""Tokens of a step of an attack."""


def attack(routed, *lrs: float, steps: int) -> list:
    config = settings(
        calibrate=False, relearn_steps=steps, relearn_lrs=list(lrs), relearn_documents=6,
        relearn_batch_sequences=6,
    )  # fmt: skip
    return found(routed, config, without=["biology"])[1]


def test_an_attack_teaches_a_model_what_it_never_saw():
    routed = make_routed()
    losses = TokenLosses(routed)
    fine_tune(losses, text().rows("", ["code", "creative"]), 40, lr=1e-2, seed=0)
    rows = attack(routed, 1e-3, 1e-2, steps=25)
    assert {(row.view, row.part, row.domain) for row in rows} == {(View.full, "biology", "biology")}
    mean = {}
    for lr in (1e-3, 1e-2):
        for step in (0, 1, 2, 4, 8, 16, 25):
            of = [row for row in rows if (row.lr, row.trained_tokens) == (lr, STEP * step)]
            mean[lr, step] = sum(row.loss_nats for row in of) / sum(row.tokens for row in of)
    assert len(rows) == len(mean) * len(of)
    untouched = mean_losses(held_out().losses(losses))["biology"]
    assert mean[1e-3, 0] == mean[1e-2, 0] == pytest.approx(untouched, rel=1e-6)
    assert untouched - 0.05 > mean[1e-3, 25] > mean[1e-2, 25]


def test_every_learning_rate_begins_with_the_same_weights():
    """The first of them breaks the model, which stops nothing."""
    alone = attack(make_routed(), 1e-2, steps=5)
    together = attack(make_routed(), 1e30, 1e-2, steps=5)
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
