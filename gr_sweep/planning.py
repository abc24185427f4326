"""Plans a job from its config, before there is a model: shape, route plans and phases.

Without torch: the command line checks here what the job builds later.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gr_sweep.config import (
    WITHOUT_TREE,
    PlanKind,
    ProcedureKind,
    RunConfig,
    num_steps,
    round_lengths,
    to_plain,
)
from gr_sweep.domains import UNLABELLED, expand, is_under, labels_of_round
from gr_sweep.errors import ConfigError
from gr_sweep.model.sizes import SIZES, Size, full_width, shape_of
from gr_sweep.routing.divide import split_further
from gr_sweep.routing.kinds import ADAPTERS, MLP, ModelShape
from gr_sweep.routing.plan import RoutePlan, Split


def named_shape(config: RunConfig) -> Size:
    """Shape of the job's named size, wider if `plan.full_width` asks for it.

    Raises:
        ConfigError: the size is unknown.
        PlanError: no width fits the plan.
    """
    model, plan = config.model, config.plan
    assert model.size is not None  # checks.validate
    shape = shape_of(model.size, model.intermediate_size)
    if not plan.full_width or plan.kind is PlanKind.none:
        return shape
    return full_width(
        shape,
        plan.kind.value,
        domains=list(config.partition.domains),
        forget=plan.forget,
        mlp_shared=plan.mlp_shared,
    )


def width_of_size(size: Any) -> int | None:
    """MLP hidden units per layer of a named size; None for an unknown name."""
    found = SIZES.get(size) if isinstance(size, str) else None
    return None if found is None else found.intermediate_size


def make_plan(
    config: RunConfig, shape: ModelShape | Any, domains: Sequence[str] | None = None
) -> RoutePlan:
    """The job's route plan for a model of this shape (a `Size` or a Hugging Face config).

    Args:
        domains: labels of a round; None for the partition's domains.

    Raises:
        PlanError: the model has too few units or layers for the plan.
    """
    plan = config.plan
    return RoutePlan.make(
        plan.kind.value,
        shape,
        domains=list(config.partition.domains) if domains is None else domains,
        forget=plan.forget,
        mlp_shared=plan.mlp_shared,
        attn_shared=plan.attn_shared,
        layers=plan.layers,
        layer_share=plan.layer_share,
        adapters=to_plain(plan.adapters),
    )


@dataclass(frozen=True)
class Phase:
    """A part of the training steps with one plan."""

    round: int
    """Counted from 1."""
    is_dense: bool
    """Whether nothing is routed, or of `branch` the core trains alone. Otherwise the round's plan
    is active."""
    start: int
    """Step before its first."""
    stop: int
    """Its last step."""
    labels: tuple[str, ...] | None = None
    """Those that its rows carry; None for all."""


def makes_plan_in_training(config: RunConfig) -> bool:
    """Whether the plan is made in rounds while the job trains (`gr_sweep.alternate`)."""
    return config.procedure.name is ProcedureKind.alternate


def phases_of(config: RunConfig) -> list[Phase]:
    """The phases of a job's training: one, or in each round a dense and a routed one, or one of
    the core and one of the blocks.

    Raises:
        ConfigError: a round has no routed step, or a phase of `branch` has none.
    """
    total, procedure = num_steps(config.train), config.procedure
    if procedure.name is ProcedureKind.branch:
        return _phases_of_branch(config, total)
    if procedure.name is ProcedureKind.fixed:
        return [Phase(1, False, 0, total)]
    ends = [0, *itertools.accumulate(round_lengths(procedure.rounds))]
    bounds = [round(total * end / ends[-1]) for end in ends]
    phases = []
    for number, (start, stop) in enumerate(itertools.pairwise(bounds), start=1):
        middle = start + round(procedure.dense * (stop - start))
        if middle == stop:
            raise ConfigError(
                f"round {number} of procedure.rounds has {stop - start} of {total} steps, and none "
                "of them to route; train longer, or lower procedure.dense"
            )
        if middle > start:
            phases.append(Phase(number, True, start, middle))
        phases.append(Phase(number, False, middle, stop))
    return phases


def _phases_of_branch(config: RunConfig, total: int) -> list[Phase]:
    owners = core_owners(config)
    own = tuple(d for d in config.partition.domains if d not in owners) or owners
    trunk = config.procedure.trunk
    middle = round(trunk * total)
    if middle == total or (trunk and not middle):
        raise ConfigError(
            f"procedure.trunk={trunk} gives the core {middle} of {total} steps, which leaves the "
            f"{'core' if middle == 0 else 'blocks'} none; train longer, or choose another share"
        )
    branches = Phase(1, False, middle, total, own)
    return [Phase(1, True, 0, middle, (*owners, UNLABELLED)), branches] if middle else [branches]


def core_owners(config: RunConfig) -> tuple[str, ...]:
    """The domains that own the core."""
    domains = list(config.partition.domains)
    forgotten = expand(config.plan.forget, domains) if config.plan.forget else ()
    return tuple(domain for domain in domains if domain not in forgotten)


def labels_of_rounds(config: RunConfig) -> list[tuple[str, ...]]:
    """The labels of each round; the domains if there are no rounds."""
    domains = list(config.partition.domains)
    if not makes_plan_in_training(config) or config.plan.kind in WITHOUT_TREE:
        return [tuple(domains)]
    rounds = range(1, len(round_lengths(config.procedure.rounds)) + 1)
    return [labels_of_round(domains, number, config.procedure.children) for number in rounds]


def plan_of_round(
    config: RunConfig, shape: ModelShape | Any, labels: Sequence[str], before: RoutePlan | None
) -> RoutePlan:
    """The plan of a round, with block sizes but no assignment of units;
    `before` is that of the round before.

    Raises:
        PlanError: the model has too few units or layers.
    """
    if before is None or len(before.blocks) == 1:  # nothing was split before
        plan = make_plan(config, shape, labels)
        if len(plan.blocks) == 1:
            plan = replace(plan, splits={**plan.splits, **plan_before_rounds(config, shape).splits})
        return plan
    shared = {"mlp_shared": config.plan.mlp_shared, "attn_shared": config.plan.attn_shared}
    return split_further(before, labels, **shared)


def plan_before_rounds(config: RunConfig, shape: ModelShape | Any) -> RoutePlan:
    """The core alone, with the adapter units that the rounds divide: the optimizer knows them from
    the start."""
    labels, *later = labels_of_rounds(config)
    # Blocks, and with them adapters, begin where the domain tree first divides.
    first = next((found for found in (labels, *later) if len(found) > 1), labels)
    return replace(
        RoutePlan.none(domains=labels),
        splits={
            place: Split((split.num_units,))
            for place, split in make_plan(config, shape, first).splits.items()
            if place[1] in ADAPTERS.values()
        },
    )


def plan_of_last_round(config: RunConfig, shape: ModelShape | Any) -> RoutePlan:
    """The plan after all rounds; raises as `plan_of_round`."""
    plan: RoutePlan | None = None
    for labels in labels_of_rounds(config):
        plan = plan_of_round(config, shape, labels, plan)
    assert plan is not None  # round_lengths: there is a round
    return plan


def expert_widths(config: RunConfig) -> dict[str, int]:
    """MLP hidden units a layer of the network that keeping each domain of the partition leaves;
    with rounds, the widest of the labels at or under it after the last round. A domain is left out
    if it owns only the core, or if keeping it leaves the full network.

    Raises:
        ConfigError: the widths are not known before there is a model or text.
        PlanError: as `make_plan`.
    """
    if config.plan.kind is PlanKind.none:
        return {}
    if config.model.size is None:
        raise ConfigError(
            "baselines=[alone] trains models as wide as an expert from random weights; leave it "
            f"out for the checkpoint {config.model.path}"
        )
    shape = named_shape(config)
    plan = plan_of_last_round(config, shape)
    found: dict[str, int] = {}
    for label in plan.domains:
        above = [domain for domain in config.partition.domains if is_under(label, domain)]
        off = plan.kept_off([label])
        own = set(expand([label], plan.domains))
        has_own = any(block.owners & own for block in plan.blocks if not block.is_core)
        if above and off and has_own:
            left = plan.units_left(MLP, shape.intermediate_size, shape.num_hidden_layers, off)
            domain = max(above, key=len)
            found[domain] = max(found.get(domain, 1), *left)
    return found
