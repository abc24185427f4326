import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.eval.removal import has_experts, is_lattice, mixed_losses, removal_losses
from gr_sweep.metrics.losses import DocumentLoss, Text, View
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import route_model
from gr_sweep.routing.plan import RoutePlan
from tests.eval.tiny import CPU, DOMAINS, held_out, make_routed, state_of
from tests.model.tiny import tiny_model

NESTED = ("code", "biology/cells", "biology/virology")


def plan_of(kind: str, domains=DOMAINS, **options) -> RoutePlan:
    shape = SimpleNamespace(num_hidden_layers=1, intermediate_size=64, num_attention_heads=8)
    return RoutePlan.make(kind, shape, domains=domains, **options)


def test_blocks_of_a_lattice_are_each_switched_off_alone():
    routed = make_routed("lattice")
    rows = removal_losses(routed, TokenLosses(routed), held_out())
    off = {row.part for row in rows if row.view is View.off}
    assert off == {block.name for block in routed.plan.blocks if not block.is_core}
    assert "code+biology" in off
    index = [block.name for block in routed.plan.blocks].index("code+biology")
    with routed.blocks_off([index]):
        alone = held_out().losses(TokenLosses(routed))
    found = [row.loss_nats for row in rows if (row.view, row.part) == (View.off, "code+biology")]
    assert found == pytest.approx([row.loss_nats for row in alone], rel=1e-6)


def test_just_a_lattice_has_blocks_of_several_unrelated_owners():
    assert is_lattice(plan_of("lattice"))
    for kind, options in (("peers", {}), ("none", {}), ("forget", {"forget": ["code", "biology"]})):
        assert not is_lattice(plan_of(kind, **options))
    assert not is_lattice(plan_of("tree", ("biology", "biology/virology", "code")))


def test_experts_are_mixed_where_every_domain_has_another_one():
    assert has_experts(plan_of("peers")) and has_experts(plan_of("lattice"))
    assert has_experts(plan_of("tree", NESTED))
    assert not has_experts(plan_of("none"))
    assert not has_experts(plan_of("forget", forget=["biology"])), "code and creative are one"
    assert not has_experts(plan_of("tree", ("biology", "biology/virology", "code")))
    assert not has_experts(plan_of("peers", ("code",)))


def test_mixing_experts_is_bayes_rule_token_by_token(length=11):
    """The literal computation over a document of several windows, in float64."""
    model = tiny_model()
    plan = RoutePlan.peers(model.config, domains=DOMAINS)
    routed = route_model(model, plan, "both")
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 17, (2, length + 1))
    windows = [
        (document, part)
        for document in range(2)
        for part in (slice(start, min(start + 4, length)) for start in range(0, length, 4))
    ]
    ids = np.zeros((len(windows), min(4, length)), np.int64)
    targets = np.full_like(ids, -100)
    for row, (document, part) in enumerate(windows):
        size = part.stop - part.start
        ids[row, :size] = tokens[document, part]
        targets[row, :size] = tokens[document, part.start + 1 : part.stop + 1]
    texts = SimpleNamespace(
        input_ids=ids, targets=targets, rows=np.array([document for document, _ in windows]),
        ids=("a" * 16, "b" * 16), num_tokens=np.array([length] * 2), num_bytes=np.array([9.0] * 2),
    )  # fmt: skip
    batches = HeldoutBatches({"code": texts}, batch_sequences=2, device=CPU)
    rows = removal_losses(routed, TokenLosses(routed), batches)
    mixed = [row.loss_nats for row in rows if row.view is View.mixed]

    probabilities = {}
    for domain in DOMAINS:
        with routed.keep([domain]), torch.no_grad():
            probabilities[domain] = routed(input_ids=torch.from_numpy(ids)).logits.softmax(-1)
    for document in range(2):
        posterior, loss = dict.fromkeys(DOMAINS, 1 / 3), 0.0
        for row in np.flatnonzero(texts.rows == document):
            for position, target in enumerate(targets[row]):
                if target == -100:
                    continue
                seen = {d: float(probabilities[d][row, position, target]) for d in DOMAINS}
                p = sum(posterior[d] * seen[d] for d in DOMAINS)
                loss -= math.log(p)
                posterior = {d: posterior[d] * seen[d] / p for d in DOMAINS}
        assert mixed[document] == pytest.approx(loss, rel=1e-12)


def test_a_mixture_loses_at_most_the_log_of_their_number_to_the_best_expert():
    def rows(*losses):
        return [
            DocumentLoss(View.kept, "x", "code", Text.marked, str(at), loss, 5, 9)
            for at, loss in enumerate(losses)
        ]

    mixed = mixed_losses([rows(2.0, 900.0), rows(2.0, 3000.0)])
    assert [row.loss_nats for row in mixed] == [
        pytest.approx(2.0), pytest.approx(900 + math.log(2)),
    ]  # fmt: skip
    assert {(row.view, row.part, row.text) for row in mixed} == {(View.mixed, "", Text.marked)}


def test_a_network_has_the_same_losses_kept_and_removed_after_recovery_too():
    """Under `forget` keeping code is removing biology: one network, which was recovered."""
    routed = make_routed("forget", forget=["biology"])
    token_losses = TokenLosses(routed)

    @contextlib.contextmanager
    def recovered(part):
        before = state_of(routed.model)
        with torch.no_grad():
            for parameter in routed.model.parameters():
                parameter.mul_(0.5)
        yield
        routed.model.load_state_dict(before)

    rows = removal_losses(routed, token_losses, held_out(), recovered=recovered)

    def of(view: View, part: str) -> list:
        return [row.loss_nats for row in rows if (row.view, row.part) == (view, part)]

    removed = of(View.removed, "biology")
    assert of(View.kept, "code") == of(View.kept, "creative") == removed
    assert of(View.kept, "biology") != removed
    with recovered("biology"), routed.remove(["biology"]):
        assert [row.loss_nats for row in held_out().losses(token_losses)] == removed
    plain = removal_losses(routed, token_losses, held_out())
    assert removed != [r.loss_nats for r in plain if (r.view, r.part) == (View.removed, "biology")]
    assert len(rows) == len(plain)
