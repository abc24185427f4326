"""The procedure `alternate` from end to end on tiny models, in this process."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from gr_sweep import alternate, job
from gr_sweep.cli.app import main
from gr_sweep.config import (
    AdaptersConfig,
    Attribution,
    PlanConfig,
    PlanKind,
    ProcedureConfig,
    ProcedureKind,
    RunConfig,
)
from gr_sweep.data.prepare import prepare_data
from gr_sweep.errors import ConfigError, PlanError
from gr_sweep.export.run import load_routed, open_run
from gr_sweep.metrics.losses import RelearnLoss, View, read_losses
from gr_sweep.model.sizes import shape_of
from gr_sweep.planning import Phase, phases_of, plan_of_last_round
from gr_sweep.report.collect import read_samples
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train import loop
from tests import jobs
from tests.jobs import DOMAINS, rows_of, run

THREE_ROUNDS = {"rounds": 3, "documents": 4}
ADDED = PlanConfig(adapters=AdaptersConfig(unembed=4, mlp=4))


@pytest.fixture(scope="module")
def make_config(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def make(*, procedure=THREE_ROUNDS, steps=6, train=None, eval=None, **parts) -> RunConfig:
        procedure = {"name": ProcedureKind.alternate} | procedure
        return jobs.make_config(
            cache,
            procedure=ProcedureConfig(**procedure),
            data={"documents": 160},
            train={"steps": steps, "batch_sequences": 12, "checkpoint_every": None} | (train or {}),
            eval={"curve_tokens": 64, "bootstrap": 20, "sample_tokens": 2} | (eval or {}),
            **parts,
        )

    return make


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    """A run of three rounds, its folder and its summary."""
    folder = tmp_path_factory.mktemp("alternate") / "job"
    return folder, run(make_config(plan=ADDED), folder)


def round_of(folder, number: int) -> dict:
    return json.loads((folder / "rounds" / str(number) / "round.json").read_text())


def test_three_rounds_split_every_expert_twice(finished):
    folder, summary = finished
    counts = [len(round_of(folder, number)["labels"]) for number in (1, 2, 3)]
    assert counts == [3, 6, 12]
    assert round_of(folder, 2)["labels"][:2] == ["code/0", "code/1"]
    # core, then per domain itself, two children, and four of these
    assert len(round_of(folder, 3)["blocks"]) == 1 + 3 * (1 + 2 + 4)
    plan = RoutePlan.from_json((folder / "plan.json").read_text())
    assert [sum(s.sizes) for (_, kind), s in plan.splits.items() if kind == "mlp"] == [192, 192]
    # Each block's four adapter units belong to its four leaves, and none to their common blocks.
    assert plan.splits[0, "unembed"].sizes == (0, *(0, 0, 1, 1, 0, 1, 1) * 3)
    assert plan.splits[0, "mlp"].sizes == plan.splits[1, "mlp"].sizes
    # The first two rounds' experts are apart: code from biology, code/0 from code/1.
    assert plan.always_off("code/0/1") == set(plan.domains) - {"code/0/0", "code/0/1"}
    assert summary["domains"] == DOMAINS
    for number in (1, 2, 3):
        about = round_of(folder, number)
        assert 0 <= about["modularity"] <= 1 and 0 <= about["modularity_assigned"] <= 1
        assert set(about["stability"]) >= {"mlp", "attn"}
        scores = np.load(folder / "rounds" / str(number) / "scores.npz")
        assert scores["0.mlp"].shape == (len(about["labels"]), 192)
        assert scores["0.mlp"].sum(1) == pytest.approx(1)


def test_experts_shrink_and_each_document_is_read_by_its_own(finished):
    folder, summary = finished
    kept = [max(round_of(folder, number)["parameters_kept"].values()) for number in (1, 2, 3)]
    assert summary["metrics"]["cost/parameters"] > kept[0] > kept[1] > kept[2]
    rows = read_losses(folder / "rounds" / "3" / "document_losses.csv")
    own = [row for row in rows if row.view is View.kept and row.part == row.domain]
    for domain in DOMAINS:
        of_domain = [row for row in own if row.domain.startswith(domain + "/")]
        loss = sum(row.loss_nats for row in of_domain) / sum(row.tokens for row in of_domain)
        assert summary["metrics"][f"loss/expert/{domain}"] == pytest.approx(loss)
        assert round_of(folder, 3)["expert_loss"][domain] == pytest.approx(loss)
        served = summary["metrics"][f"loss/served/{domain}"]
        assert round_of(folder, 3)["served_loss"][domain] == pytest.approx(served)
        assert served != summary["metrics"][f"loss/full/{domain}"]


def test_the_jobs_own_table_is_by_the_partition_and_reads_what_other_jobs_read(
    finished, make_config, tmp_path
):
    folder, _ = finished
    rows = read_losses(folder / "document_losses.csv")
    assert {row.domain for row in rows} == set(DOMAINS)
    assert {row.part for row in rows} == {"", *DOMAINS}
    assert {row.part for row in rows if row.view is View.served_removed} == {*DOMAINS}
    samples = [sample for prompt in read_samples(folder) for sample in prompt["samples"]]
    assert {(s["kind"], s["part"]) for s in samples} == {
        ("full", None), *(("removed", d) for d in DOMAINS), *(("kept", d) for d in DOMAINS),
    }  # fmt: skip
    fixed = make_config(procedure={"name": ProcedureKind.fixed}, steps=1)
    run(fixed, tmp_path / "fixed")

    def documents(table):
        full = [row for row in read_losses(table) if row.view is View.full]
        return sorted((row.domain, row.document, row.tokens) for row in full)

    assert documents(folder / "document_losses.csv") == documents(
        tmp_path / "fixed" / "document_losses.csv"
    )


class Killed(BaseException):
    """Stands for a process that ends at once."""


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [
        (loop, "train_step", 3),  # the first of round 2, where it is dense
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (loop, "train_step", 4),
                (alternate, "assign_units", 2),
                (alternate, "fit_children", 1),
                (alternate, "removal_losses", 2),
                (alternate, "write_losses", 1),
                (job, "robustness_losses", 1),
            )
        ),
    ],
)
def test_a_run_that_is_killed_ends_as_one_that_was_not(
    finished, make_config, tmp_path, monkeypatch, module, name, number
):
    whole, folder, config = finished[0], tmp_path / "job", make_config(plan=ADDED)
    plain, calls = getattr(module, name), itertools.count(1)

    def dies(*args, **kwargs):
        if next(calls) == number:
            raise Killed
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, name, dies)
        run(config, folder)
    run(config, folder)
    names = ["plan.json", "document_losses.csv", "rounds/2/plan.json", "rounds/3/round.json"]
    names += ["rounds/1/round.json", "rounds/2/round.json", "rounds/3/document_losses.csv"]
    for file in names:
        assert (folder / file).read_text() == (whole / file).read_text(), file
    weights = [load_routed(open_run(of))[0].model.state_dict() for of in (folder, whole)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    def rows(of):
        of_time = ("time_s", "train/tokens_per_second")
        return [{key: x for key, x in row.items() if key not in of_time} for row in rows_of(of)]

    assert rows(folder) == rows(whole)


def test_the_rate_warms_up_in_every_phase_and_a_round_of_weights_that_are_gone_is_read_again(
    make_config, tmp_path
):
    config = make_config(
        steps=16,
        plan=PlanConfig(kind=PlanKind.peers, attn_shared=0.25),
        train={"log_every": 1, "warmup": 0.25, "checkpoint_every": None},
        procedure={"rounds": 1, "documents": 4, "rewarm": 0.5},
    )
    whole = run(config, tmp_path / "job")
    written = RoutePlan.from_json((tmp_path / "job" / "plan.json").read_text())
    assert written.splits[0, "attn"].sizes == (1, 1, 1, 1), "heads are assigned as units are"
    rates = {r["step"]: r["train/lr"] for r in rows_of(tmp_path / "job") if "train/lr" in r}
    peak = config.train.lr
    assert rates[1] == pytest.approx(peak / 2) and rates[2] == pytest.approx(peak)
    assert rates[9] == pytest.approx(peak / 4) and rates[10] == pytest.approx(peak / 2)
    assert rates[8] < 0.3 * peak
    table = tmp_path / "job" / "rounds" / "1" / "document_losses.csv"
    before = table.read_text()
    table.write_text(before.splitlines()[0] + "\n")
    (tmp_path / "job" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "job" / "checkpoints")
    again = run(config, tmp_path / "job")
    assert again["metrics"]["mean_loss"] == whole["metrics"]["mean_loss"]
    assert table.read_text() == before


def test_a_run_that_was_stopped_in_a_routed_phase_is_exported_by_its_checkpoint(
    make_config, tmp_path, monkeypatch
):
    folder = tmp_path / "job"

    def killed(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(alternate, "removal_losses", killed)
        with pytest.raises(Killed):
            run(make_config(steps=4, procedure={"rounds": 1, "documents": 4}), folder)
    (folder / "plan.json").write_text(RoutePlan.none(domains=DOMAINS).to_json())
    opened = open_run(folder)
    assert len(opened.plan.blocks) == 4
    assert main(["export", str(folder), "--keep", "code", "--to", str(tmp_path / "code")]) == 0
    made = json.loads((tmp_path / "code" / "export.json").read_text())
    assert sorted(made["removed_domains"]) == ["biology", "creative"]


def test_scores_are_of_training_text_in_the_experts_own_network(make_config, tmp_path, monkeypatch):
    scored, offs, plain_scores = set(), [], alternate.score_units

    def scores(model, losses, documents, method, **how):
        documents = {domain: list(texts) for domain, texts in documents.items()}
        scored.update(tuple(text[1:]) for texts in documents.values() for text in texts)
        if how.get("off") is not None:
            offs.append(sum(int(is_off.sum()) for is_off in how["off"].values()))
        return plain_scores(model, losses, documents, method, **how)

    monkeypatch.setattr(alternate, "score_units", scores)
    config = make_config(steps=4, procedure={"rounds": 2, "documents": 30})
    run(config, tmp_path / "job")
    shards = prepare_data(config.data, config.partition).heldout.values()
    documents = [shard.document(index) for shard in shards for index in range(shard.num_documents)]
    heldout = {tuple(document[: config.train.sequence_length]) for document in documents}
    assert heldout and scored and not scored & heldout
    # Round 1, its two measurements, then an expert at a time with the others' 32 of 96 units off.
    assert offs[0] == 0 and offs[1:4] == [2 * 64] * 3


ATTACKS = {"relearn_steps": 1, "relearn_documents": 2, "relearn_lrs": [1e-3], "calibrate": True}


def test_experts_of_unequal_layers_that_stay_together_are_attacked(make_config, tmp_path):
    settings = {"attribution": Attribution.fisher, "equal_layers": False, "prune": False}
    config = make_config(
        steps=4, procedure={"rounds": 2, "documents": 4} | settings, eval={"samples": 0} | ATTACKS
    )
    metrics = run(config, tmp_path / "job")["metrics"]
    plan = RoutePlan.from_json((tmp_path / "job" / "rounds" / "2" / "plan.json").read_text())
    assert not plan.isolated_domains and len({split.sizes for split in plan.splits.values()}) > 1
    # The attacks are on the domains of the partition.
    attacks = read_losses(tmp_path / "job" / "relearn.csv", RelearnLoss)
    assert {row.part for row in attacks} == set(DOMAINS)
    calibrated = {key for key in metrics if key.startswith("loss/calibrated_removed/")}
    assert calibrated == {f"loss/calibrated_removed/{d}/{d}" for d in DOMAINS}


def test_without_attribution_units_stay_where_they_are(make_config, tmp_path):
    settings = {"attribution": Attribution.none, "rounds": 2, "dense": 0.0}
    run(make_config(steps=2, procedure=settings, eval={"samples": 0}), tmp_path / "job")
    plan = RoutePlan.from_json((tmp_path / "job" / "rounds" / "2" / "plan.json").read_text())
    assert {split.order for split in plan.splits.values()} == {None}


def test_rounds_have_their_own_lengths_and_a_dense_share(make_config):
    config = make_config(steps=40, procedure={"rounds": [2, 1, 1], "dense": 0.25})
    assert phases_of(config) == [
        Phase(1, True, 0, 5),
        Phase(1, False, 5, 20),
        Phase(2, True, 20, 22),
        Phase(2, False, 22, 30),
        Phase(3, True, 30, 32),
        Phase(3, False, 32, 40),
    ]
    assert phases_of(make_config(procedure={"name": ProcedureKind.fixed})) == [
        Phase(1, False, 0, 6)
    ]


def test_impossible_rounds_are_refused(make_config):
    for parts, message in (
        ({"procedure": {"rounds": 0}}, "procedure.rounds: 0"),
        ({"plan": PlanConfig(kind=PlanKind.lattice)}, "plan=lattice .* it has no tree"),
        ({"domains": ["code", "biology", "biology/virology"]}, "domain biology .* it is a label"),
        ({"plan": PlanConfig(adapters=AdaptersConfig(embed="full"))}, "plan.adapters.embed=full"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_config(**parts)
    with pytest.raises(ConfigError, match=r"round 1 of procedure\.rounds has 1 of 3 steps"):
        phases_of(make_config(steps=3, procedure={"rounds": 3, "dense": 1.0}))
    with pytest.raises(PlanError, match="gets no hidden units"):
        plan_of_last_round(make_config(procedure={"rounds": 8}), shape_of("tiny"))
