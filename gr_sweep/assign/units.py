"""From scores to a plan whose blocks hold the units that their owners use most.

K domains, B blocks, U units of a layer and kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gr_sweep.assign.allocate import (
    allocate,
    contiguous_order,
    fitting_sets,
    misfit,
    modularity,
)
from gr_sweep.assign.scores import UnitScores
from gr_sweep.routing.divide import origins
from gr_sweep.routing.plan import ATTN, MLP, Block, RoutePlan, Split


def assign_units(
    plan: RoutePlan,
    before: RoutePlan,
    scores: Mapping[int, UnitScores],
    *,
    equal_layers: bool = True,
) -> RoutePlan:
    """The plan with an order of units in which each block has the units that belong to it.

    Of all assignments that fill the blocks, the one of least `misfit`: little of a domain's
    attribution lies in blocks that it does not own, and little of what is shared is one domain's.
    Units change places within the block that theirs is divided from.

    Args:
        plan: sizes of the blocks, and who owns them.
        before: plan of the model that was scored, whose units lie in its order; of one block alone
            before the first round.
        scores: by block of `before` that is divided, of the domains that own its parts.
        equal_layers: each layer's blocks have the sizes that `plan` gives the layer; otherwise all
            layers together have their sum.
    """
    origin_of = origins(plan, before)
    splits: dict[tuple[int, str], Split] = {}
    for kind in (MLP, ATTN):
        places = [place for place in plan.splits if place[1] == kind]
        block_of_unit = {
            place: np.zeros(plan.splits[place].num_units, dtype=np.int64) for place in places
        }
        for old in range(len(before.blocks)):
            new = [index for index, origin in enumerate(origin_of) if origin == old]
            where = {place: _units(before, place, old, plan) for place in places}
            if len(new) == 1:
                for place, units in where.items():
                    block_of_unit[place][units] = new[0]
                continue
            owns_BK = _owns([plan.blocks[index] for index in new], scores[old].domains)
            groups = [[place] for place in places] if equal_layers else [places] * bool(places)
            for group in groups:
                cost_BU = np.concatenate(
                    [
                        misfit(scores[old].shares(*place)[:, where[place]].numpy(), owns_BK)
                        for place in group
                    ],
                    axis=1,
                )
                sizes = [sum(plan.splits[place].sizes[index] for place in group) for index in new]
                chosen = np.array(new)[allocate(cost_BU, sizes)]
                stops = np.cumsum([where[place].stop - where[place].start for place in group])
                for place, part in zip(group, np.split(chosen, stops[:-1]), strict=True):
                    block_of_unit[place][where[place]] = part
        for place in places:
            order, found = contiguous_order(block_of_unit[place], len(plan.blocks))
            splits[place] = Split(found, order)
    return replace(plan, splits={place: splits[place] for place in plan.splits})


def wanted_sizes(plan: RoutePlan, scores: UnitScores) -> dict[str, dict[str, int]]:
    """By kind, how many units each block of the plan would have without capacities, by its name.

    Each unit goes to the owners that fit its use best (`fitting_sets`): what the model wants to be
    shared, and by whom.
    """
    domains = scores.domains
    sets = [
        frozenset(domains.index(owner) for owner in block.owners if owner in domains)
        for block in plan.blocks
    ]
    found: dict[str, dict[str, int]] = {}
    for kind in (MLP, ATTN):
        chosen = [
            fitting_sets(scores.shares(*place).numpy(), sets)
            for place in scores.halves
            if place[1] == kind and place in plan.splits
        ]
        if chosen:
            counts = np.bincount(np.concatenate(chosen), minlength=len(sets))
            found[kind] = {
                block.name: int(count) for block, count in zip(plan.blocks, counts, strict=True)
            }
    return found


def modularity_of(plan: RoutePlan, scores: UnitScores) -> float:
    """Share of the domains' attribution outside the core that lies in blocks they own.

    Mean over layers, kinds and domains. Blocks that everybody owns leave nothing to tell apart:
    1 / K for K equal blocks of one domain each whose units are dealt out at random, 1 where no
    domain uses another's units.

    Args:
        plan: in whose order the units lay that were scored.
    """
    owns_BK = _owns(plan.blocks, scores.domains)
    values = []
    for place, split in plan.splits.items():
        block_of_unit = np.repeat(np.arange(len(split.sizes)), split.sizes)
        values.append(modularity(scores.shares(*place).numpy(), block_of_unit, owns_BK))
    found = np.array(values)
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def modularity_by_chance(plan: RoutePlan) -> float:
    """What `modularity_of` would be if every domain used all units outside the core alike."""
    shares = []
    for split in plan.splits.values():
        outside = sum(split.sizes) - split.sizes[0]
        for domain in plan.domains if outside else ():
            own = sum(
                size
                for block, size in zip(plan.blocks, split.sizes, strict=True)
                if not block.is_core and plan.owns(domain, block)
            )
            shares.append(own / outside)
    return float(np.mean(shares)) if shares else float("nan")


def _owns(blocks: Sequence[Block], domains: Sequence[str]) -> np.ndarray:
    return np.array([[domain in block.owners for domain in domains] for block in blocks])


def _units(before: RoutePlan, place: tuple[int, str], block: int, plan: RoutePlan) -> slice:
    """Where a block's units lie; of a layer that was not split all are the core's."""
    if place in before.splits:
        return before.splits[place].slices()[block]
    return slice(0, plan.splits[place].num_units if block == 0 else 0)
