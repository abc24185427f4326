"""From scores to a plan whose blocks hold the units that their owners use most.

K domains, B blocks, U units of a layer and kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gr_sweep.assign.allocate import allocate, fitting_sets, misfit
from gr_sweep.assign.attribution import UnitScores
from gr_sweep.routing.divide import origins
from gr_sweep.routing.kinds import KINDS, Place
from gr_sweep.routing.plan import Block, RoutePlan, Split


def assign_units(
    plan: RoutePlan,
    before: RoutePlan,
    scores: Mapping[int, UnitScores],
    *,
    equal_layers: bool = True,
) -> RoutePlan:
    """The plan with an order of units that gives each block the units that belong to it.

    Of all assignments that fill the blocks, this is the one of the least `misfit`. Units move only
    within the old block that theirs is divided from.

    Args:
        plan: the sizes of the blocks and their owners.
        before: plan of the model that was scored, whose units are in its order; a single block
            before the first round.
        scores: for each divided block of `before`, scores for the domains that own its parts.
        equal_layers: each layer's blocks have the sizes that `plan` gives the layer; otherwise
            only the sums over all layers are kept.
    """
    origin_of = origins(plan, before)
    splits: dict[Place, Split] = {}
    for kind in KINDS:
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
                shares = [scores[old].shares(*place)[:, where[place]].numpy() for place in group]
                cost_BU = np.concatenate([misfit(part, owns_BK) for part in shares], axis=1)
                sizes = [sum(plan.splits[place].sizes[index] for place in group) for index in new]
                chosen = np.array(new)[allocate(cost_BU, sizes)]
                stops = np.cumsum([part.shape[1] for part in shares])
                for place, part in zip(group, np.split(chosen, stops[:-1]), strict=True):
                    block_of_unit[place][where[place]] = part
        for place in places:
            splits[place] = _contiguous(block_of_unit[place], len(plan.blocks))
    return replace(plan, splits={place: splits[place] for place in plan.splits})


def wanted_sizes(plan: RoutePlan, scores: UnitScores) -> dict[str, dict[str, int]]:
    """By kind and name of the block, how many units each block would have if sizes were free.

    Each unit goes to the owners that fit its use best (`fitting_sets`).
    """
    domains = scores.domains
    sets = [
        frozenset(domains.index(owner) for owner in block.owners if owner in domains)
        for block in plan.blocks
    ]
    found: dict[str, dict[str, int]] = {}
    for kind in KINDS:
        chosen = [
            fitting_sets(scores.shares(*place).numpy(), sets)
            for place in scores.halves
            if place[1] == kind and place in plan.splits
        ]
        if chosen:
            counts = np.bincount(np.concatenate(chosen), minlength=len(sets)).tolist()
            names = (block.name for block in plan.blocks)
            found[kind] = dict(zip(names, counts, strict=True))
    return found


def modularity_of(plan: RoutePlan, scores: UnitScores) -> float:
    """Fraction of the domains' attribution outside the core that lies in blocks they own.

    Mean over layers, kinds and domains; nan if there is nothing outside the core. Units were scored
    in the plan's order.
    """
    owns_BK = _owns(plan.blocks, scores.domains)
    values = []
    for place, split in plan.splits.items():
        block_of_unit = np.repeat(np.arange(len(split.sizes)), split.sizes)
        shares_KU = scores.shares(*place).numpy() * (block_of_unit != 0)
        total_K = shares_KU.sum(axis=1)
        own_K = (shares_KU * owns_BK[block_of_unit].T).sum(axis=1)
        nothing = np.full(len(total_K), np.nan)
        values.append(np.divide(own_K, total_K, out=nothing, where=total_K > 0))
    found = np.array(values)
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def modularity_by_chance(plan: RoutePlan) -> float:
    """What `modularity_of` would be if every domain used all units outside the core alike."""
    own_BK = _owns(plan.blocks, plan.domains)[1:]
    outside = [np.array(split.sizes[1:]) for split in plan.splits.values() if any(split.sizes[1:])]
    shares = [sizes_B @ own_BK / sizes_B.sum() for sizes_B in outside]
    return float(np.mean(shares)) if shares else float("nan")


def _contiguous(block_of_unit: np.ndarray, num_blocks: int) -> Split:
    """Brings each block's units together, within a block in their old order."""
    order = np.argsort(block_of_unit, kind="stable")
    sizes = np.bincount(block_of_unit, minlength=num_blocks)
    return Split(tuple(sizes.tolist()), tuple(order.tolist()))


def _owns(blocks: Sequence[Block], domains: Sequence[str]) -> np.ndarray:
    return np.array([[domain in block.owners for domain in domains] for block in blocks])


def _units(before: RoutePlan, place: Place, block: int, plan: RoutePlan) -> slice:
    """Where a block's units are; those of a layer that was not split are the core's."""
    if place in before.splits:
        return before.splits[place].slices()[block]
    return slice(0, plan.splits[place].num_units if block == 0 else 0)
