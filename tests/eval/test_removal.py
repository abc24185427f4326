import contextlib
import math

import numpy as np
import pytest
import torch

from gr_sweep.data.heldout import HeldoutDocument
from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.eval.removal import removal_losses, served_losses
from gr_sweep.metrics.compare import summarize_losses
from gr_sweep.metrics.losses import View
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import route_model
from gr_sweep.routing.plan import RoutePlan
from tests.eval.tiny import CPU, DOMAINS, held_out, make_routed, state_of
from tests.model.tiny import tiny_model

NESTED = ("biology", "biology/virology", "code")


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


@pytest.mark.parametrize(
    ("kind", "domains", "options", "part", "off"),
    [
        ("forget", DOMAINS, {"forget": ["biology"]}, "biology", [["biology"]]),
        # Code, and the core alone.
        (
            "forget", DOMAINS, {"forget": ["code", "biology"]}, "biology",
            [["biology"], ["code", "biology"]],
        ),
        ("tree", NESTED, {}, "biology", [["biology", "biology/virology"]]),
        # What is kept of the label above virology is without virology.
        (
            "tree", NESTED, {}, "biology/virology",
            [["biology/virology", "code"], ["biology", "biology/virology"]],
        ),
    ],
)  # fmt: skip
def test_without_a_part_the_networks_of_the_other_labels_are_served(
    kind, domains, options, part, off
):
    model = tiny_model()
    routed = route_model(model, RoutePlan.make(kind, model.config, domains=domains, **options))
    token_losses, text = TokenLosses(routed), held_out()
    rows = removal_losses(routed, token_losses, text)
    networks = []
    for labels in off:
        with routed.blocks_off(routed.plan.off_blocks(labels)):
            networks.append(text.losses(token_losses))
    found = [row for row in rows if (row.view, row.part) == (View.served_removed, part)]
    expected = [row.loss_nats for row in served_losses(networks)]
    assert [row.loss_nats for row in found] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "options", "networks"),
    [
        ("peers", {}, DOMAINS),
        ("forget", {"forget": ["biology"]}, ("code", "biology")),  # creative has that of code
    ],
)
def test_serving_is_bayes_rule_token_by_token(kind, options, networks, length=11):
    """The literal computation over a document of several windows, in float64."""
    model = tiny_model()
    plan = RoutePlan.make(kind, model.config, domains=DOMAINS, **options)
    routed = route_model(model, plan, "both")
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 17, (2, length + 1))
    texts = [
        HeldoutDocument(
            name * 16,
            length,
            9.0,
            [(part[:-1], part[1:]) for start in range(0, length, 4) for part in [own[start:][:5]]],
        )
        for name, own in zip("ab", tokens, strict=True)
    ]
    batches = HeldoutBatches({"code": texts}, batch_sequences=2, device=CPU)
    rows = removal_losses(routed, TokenLosses(routed), batches)
    served = [row.loss_nats for row in rows if row.view is View.served]

    losses = []
    for document in texts:
        posterior, loss = dict.fromkeys(networks, 1 / len(networks)), 0.0
        for ids, targets in document.windows:
            probabilities = {}
            for domain in networks:
                with routed.keep([domain]), torch.no_grad():
                    logits = routed(input_ids=torch.from_numpy(ids)[None]).logits
                probabilities[domain] = logits[0].softmax(-1)
            for position, target in enumerate(targets):
                seen = {d: float(probabilities[d][position, target]) for d in networks}
                p = sum(posterior[d] * seen[d] for d in networks)
                loss -= math.log(p)
                posterior = {d: posterior[d] * seen[d] / p for d in networks}
        losses.append(loss)
    assert served == pytest.approx(losses, rel=1e-12)
    metrics, _ = summarize_losses(rows, DOMAINS, seed=0)
    assert metrics["loss/served/code"] == pytest.approx(sum(losses) / (2 * length), rel=1e-12)


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
    assert of(View.served_removed, "biology") == pytest.approx(removed)
    served = [row.loss_nats for row in plain if row.view is View.served]
    assert of(View.served, "") == pytest.approx(served), "it is the model before the removal"
