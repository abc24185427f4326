"""Which of a run's measured losses are those of the exported network."""

import json
from dataclasses import replace

import pytest

from gr_sweep.cli.export import alone_runs
from gr_sweep.config import (
    DomainConfig,
    Method,
    ProcedureConfig,
    ProcedureKind,
    RunConfig,
    effective,
    to_plain,
)
from gr_sweep.export.losses import DomainLoss, Loss, losses_of, with_alone
from gr_sweep.export.run import Run
from gr_sweep.layout import labels_of_rounds, named_shape, plan_of_round
from gr_sweep.metrics.losses import DocumentLoss, Text, View, write_losses
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


LABELS = ["code/0", "code/1", "biology/0", "biology/1"]
TREE = RoutePlan.tree(SIZES["tiny"], domains=LABELS)
OF_PARTITION = {
    "domains": ["code", "biology"],
    "metrics": {"loss/full/code": 1.0, "loss/full/biology": 2.0, "loss/kept/code/code": 1.5},
}
OF_ROUND = {
    "metrics": {
        "loss/full/code.0": 3.0,
        "loss/full/code.1": 4.0,
        "loss/kept/code.1/code.1": 4.5,
        "loss/kept/code/code.1": 4.25,
    },
    "intervals": {"loss/kept/code.1/code.1": [4.4, 4.6]},
}


def test_a_kept_label_of_the_last_round_has_its_losses_beside_those_of_its_domain():
    found = losses_of(OF_PARTITION, TREE, TREE.kept_off(["code/1"]), ["code/1"], OF_ROUND)
    assert list(found) == ["code", "code/1", "biology"]
    assert found["code/1"] == DomainLoss(Loss(4.0, None), Loss(4.5, (4.4, 4.6)))
    assert found["code"] == DomainLoss(Loss(1.0, None), None), "the round's labels alone were read"


def test_a_kept_domain_needs_no_labels():
    found = losses_of(OF_PARTITION, TREE, TREE.kept_off(["code"]), ["code"], OF_ROUND)
    assert list(found) == ["code", "biology"]
    assert found["code"].extracted == Loss(1.5, None)


def test_labels_that_the_run_has_read_in_no_network_like_it_have_the_full_loss_alone():
    keep = ["code/1", "biology/0"]
    found = losses_of(OF_PARTITION, TREE, TREE.kept_off(keep), keep, OF_ROUND)
    assert found["code/1"] == DomainLoss(Loss(4.0, None), None) and "biology/0" not in found


def row(view, part, domain, document, nats):
    return DocumentLoss(View(view), part, domain, Text.plain, document, 10.0 * nats, 10, 40)


def job_of(folder, config, rows):
    """A folder as the report reads it; the summary."""
    folder.mkdir(parents=True)
    write_losses(folder / "document_losses.csv", rows)
    domains = list(config.partition.domains)
    summary = {
        "format": 1,
        "domains": domains,
        "config": to_plain(effective(config)),
        "fingerprints": {"text": "d"},
        "metrics": {f"loss/full/{domain}": 5.0 for domain in domains},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary


def config_of(*domains, width=None, without=()):
    config = RunConfig()
    config.partition.domains = {domain: DomainConfig() for domain in domains}
    config.model.intermediate_size = width
    if without:
        config.method.name, config.method.without = Method.filtered, list(without)
    return config


TWO = ["code", "biology"]
OWN = [row("full", "", domain, f"{domain}{n}", 5.0) for domain in TWO for n in range(3)]
THEIRS = [row("full", "", d, f"{d}{n}", 4.0 + n) for d in TWO for n in range(3)]


def exported(folder, summary, plan, keep, width):
    """As the command does it."""
    run = Run(folder, plan, summary)
    last = run.last_round(plan)
    losses = losses_of(summary, plan, plan.kept_off(keep), keep, last and last[1])
    return with_alone(losses, run, plan, keep, width, alone_runs(folder))


def test_a_dense_model_of_its_size_that_was_trained_on_the_kept_domain_is_beside_it(tmp_path):
    plan = RoutePlan.peers(SIZES["nano"], domains=TWO)
    summary = job_of(tmp_path / "job", config_of(*TWO), OWN)
    # Without biology, as wide as the model itself: no small model of code.
    job_of(tmp_path / "a", config_of(*TWO, without=["biology"]), THEIRS)
    assert exported(tmp_path / "job", summary, plan, ["code"], 576)[1] == ""
    job_of(tmp_path / "b", config_of(*TWO, without=["biology"], width=576), THEIRS)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "summary.json").write_text("{")
    losses, name = exported(tmp_path / "job", summary, plan, ["code"], 576)
    assert name == "b"
    assert losses["code"].alone is not None and losses["code"].alone.nats == pytest.approx(5.0)
    low, high = losses["code"].alone.interval
    assert 4.0 <= low < 5.0 < high <= 6.0
    assert losses["biology"].alone is None
    for keep in (["biology"], TWO):
        assert exported(tmp_path / "job", summary, plan, keep, 576)[1] == ""
    assert exported(tmp_path / "job", {}, plan, ["code"], 576) == ({}, "")


def test_of_a_kept_label_it_is_read_on_the_label_s_own_documents(tmp_path):
    config = config_of(*TWO)
    config.procedure = ProcedureConfig(name=ProcedureKind.alternate, rounds=2)
    plan = None
    for labels in labels_of_rounds(config):
        plan = plan_of_round(config, named_shape(config), labels, plan)
    summary = job_of(tmp_path / "job", config, OWN)
    # 384 of the core, 96 of code, 48 of a half of it.
    job_of(tmp_path / "alone", config_of(*TWO, without=["biology"], width=528), THEIRS)
    for number in (1, 2, 10):
        folder = tmp_path / "job" / "rounds" / str(number)
        folder.mkdir(parents=True)
        is_last = number == 10
        about = OF_ROUND | {"labels": list(plan.domains) if is_last else TWO}
        (folder / "round.json").write_text(json.dumps(about))
        labelled = [row("full", "", "code/1", "code2", 5.0), row("full", "", "code/0", "code0", 5)]
        write_losses(folder / "document_losses.csv", labelled if is_last else OWN)
    losses, name = exported(tmp_path / "job", summary, plan, ["code/1"], 528)
    assert name == "alone"
    assert losses["code"].alone.nats == pytest.approx(5.0)
    assert losses["code/1"].alone == Loss(6.0, None), "one document has no interval"
    assert losses["code/1"].extracted == Loss(4.5, (4.4, 4.6))
    assert losses["biology"].alone is None
    # All of code is larger.
    assert exported(tmp_path / "job", summary, plan, ["code"], 576)[1] == ""
    other = replace(plan, domains=plan.domains[::-1])
    assert Run(tmp_path / "job", other, summary).last_round(other) is None, "of other labels"
