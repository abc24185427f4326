"""What is known of a job's network before there is one, against the network."""

import pytest

from gr_sweep.config import (
    AdaptersConfig,
    DomainConfig,
    PlanConfig,
    PlanKind,
    ProcedureConfig,
    ProcedureKind,
    RunConfig,
)
from gr_sweep.model.extract import kept_units
from gr_sweep.model.sizes import llama_config
from gr_sweep.planning import (
    expert_widths,
    labels_of_rounds,
    make_plan,
    named_shape,
    plan_before_rounds,
    plan_of_last_round,
    plan_of_round,
)
from gr_sweep.routing.kinds import ADAPTERS, MLP

FLAT = ["code", "biology", "creative"]
NESTED = ["code", "biology/virology", "biology/cells"]


def config_of(domains, kind=PlanKind.peers, procedure=None, **plan):
    config = RunConfig(plan=PlanConfig(kind=kind, **plan))
    config.partition.domains = {domain: DomainConfig() for domain in domains}
    config.procedure = procedure or ProcedureConfig()
    return config


def width_of(config, plan, label):
    shape = named_shape(config)
    model = llama_config(shape, vocab_size=300, eot_id=0, sequence_length=8)
    return kept_units(plan, model, plan.kept_off([label]))[MLP].extracted


@pytest.mark.parametrize(
    "config",
    [
        config_of(FLAT, mlp_shared=0.3),
        config_of(FLAT, mlp_shared=0.0, full_width=True),
        config_of(FLAT, attn_shared=0.25),
        config_of(FLAT, layer_share=0.5),
        config_of(FLAT, PlanKind.lattice),
        config_of(NESTED, PlanKind.tree, mlp_shared=0.1),
        config_of(FLAT, PlanKind.forget, forget=["biology", "creative"]),
    ],
)
def test_experts_are_as_wide_as_they_are_extracted(config):
    plan = make_plan(config, named_shape(config))
    found = expert_widths(config)
    assert found == {domain: width_of(config, plan, domain) for domain in found}
    own = ["biology", "creative"] if config.plan.forget else list(config.partition.domains)
    assert list(found) == own


def test_after_rounds_the_widest_expert_of_a_domain_counts():
    """768 units do not divide evenly: experts of one domain differ by a unit."""
    rounds = ProcedureConfig(name=ProcedureKind.alternate, rounds=2, children=5)
    config = config_of(FLAT, procedure=rounds, mlp_shared=0.3)
    plan = plan_of_last_round(config, named_shape(config))
    by_label = {label: width_of(config, plan, label) for label in plan.domains}
    widths = {d: {w for label, w in by_label.items() if label.startswith(d)} for d in FLAT}
    assert len(widths["code"]) == 2, "the case that is meant"
    assert expert_widths(config) == {domain: max(found) for domain, found in widths.items()}


@pytest.mark.parametrize("domains", [FLAT, ["bio/a", "bio/b"], ["bio/x/a", "bio/x/b"]])
def test_all_rounds_divide_the_adapter_units_that_the_optimizer_knows_from_the_start(domains):
    rounds = ProcedureConfig(name=ProcedureKind.alternate, rounds=3)
    config = config_of(domains, procedure=rounds, adapters=AdaptersConfig(mlp=8, unembed=8))
    shape = named_shape(config)
    plan, plans = None, [plan_before_rounds(config, shape)]
    for labels in labels_of_rounds(config):
        plan = plan_of_round(config, shape, labels, plan)
        plans.append(plan)
    kinds = ADAPTERS.values()
    first, *others = [
        {place: split.num_units for place, split in each.splits.items() if place[1] in kinds}
        for each in plans
    ]
    assert first and others == [first] * 3
