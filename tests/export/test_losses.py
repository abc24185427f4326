"""Which of a run's measured losses are those of the exported network."""

import pytest

from gr_sweep.export.losses import Loss, losses_of
from gr_sweep.model.sizes import SIZES
from gr_sweep.routing.plan import RoutePlan

DOMAINS = ["code", "biology", "creative"]
PEERS = RoutePlan.peers(SIZES["tiny"], domains=DOMAINS)
FORGET = RoutePlan.forget(SIZES["tiny"], domains=DOMAINS, forget=["biology"])

SUMMARY = {
    "metrics": {
        "loss/full/code": 1.0,
        "loss/kept/code/code": 1.1,
        "loss/removed/biology/code": 1.2,
    },
    "intervals": {"loss/kept/code/code": [1.05, 1.15]},
}


def test_one_domain_kept_has_the_loss_of_that_view_and_its_interval():
    found = losses_of(SUMMARY, PEERS, PEERS.kept_off(["code"]))
    assert found.keys() == {"code"}, "of no other domain there is a number"
    assert found["code"].full == Loss(1.0, None)
    assert found["code"].extracted == Loss(1.1, (1.05, 1.15))


def test_all_but_one_kept_has_the_loss_of_the_removal():
    found = losses_of(SUMMARY, PEERS, PEERS.kept_off(["code", "creative"]))
    assert found["code"].extracted == Loss(1.2, None)


def test_everything_kept_has_the_loss_of_the_full_model():
    assert losses_of(SUMMARY, PEERS, ())["code"].extracted == Loss(1.0, None)


def test_a_network_that_the_run_has_not_read_has_none():
    plan = RoutePlan.peers(SIZES["tiny"], domains=[*DOMAINS, "law"])
    found = losses_of(SUMMARY, plan, plan.kept_off(["code", "creative"]))
    assert found["code"].full == Loss(1.0, None) and found["code"].extracted is None


@pytest.mark.parametrize(("recovery", "is_there"), [(0.0, True), (0.01, False)])
def test_what_recovery_trained_on_is_another_network(recovery, is_there):
    summary = SUMMARY | {"config": {"method": {"recovery": recovery}}}
    found = losses_of(summary, FORGET, FORGET.kept_off(["code"]))
    assert (found["code"].extracted is not None) is is_there


def test_a_run_that_is_not_finished_has_no_losses():
    assert losses_of({}, PEERS, PEERS.kept_off(["code"])) == {}
