"""Which block each unit of a layer goes to: an exact assignment to blocks of fixed sizes.

Works on one layer's shares of attribution; where they come from and what they are laid over is not
known here.
"""

# K = domains, B = blocks (the core first), U = units of one layer and kind.

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment, linprog

from gr_sweep.errors import PlanError

_MATCHING_UNITS = 256
"""Up to so many units a matching is quicker than a linear program (a tie at 256 units and 4 blocks;
at 2048 units 12 s against 0.3 s)."""
_TOLERANCE = 1e-10
"""Of the linear program, with costs scaled to 1: the least that HiGHS takes. Its default 1e-7 is
as large as a unit's share where there are many."""
_TIE = 1e-9
"""Costs that differ by less, as a share of a unit's largest, are equal."""


def misfit(shares_KU: np.ndarray, owns_BK: np.ndarray) -> np.ndarray:
    """Cost [B, U] of giving a unit to a block: how far its use is from that of the block's owners.

    A unit that suits a block is used by all who own it alike, as much as by anybody, and by nobody
    else. The cost is the distance from that, the sum over domains of |share - m * owns|, m being
    the largest of the unit's shares. It counts two harms once each: attribution of a domain in a
    block that it does not own, which is lost when the domain is kept alone; and a unit of few in a
    block of many, which stays when these few are removed. Of one domain's units and those of all,
    the core gets what more than half of the domains use.

    Args:
        shares_KU: attribution, each domain's summing to 1 over a layer's units.
        owns_BK: whether a domain owns a block.
    """
    ideal_BKU = np.asarray(owns_BK, dtype=np.float64)[:, :, None] * shares_KU.max(axis=0)
    return np.abs(shares_KU - ideal_BKU).sum(axis=1)


def fitting_sets(shares_KU: np.ndarray, sets: Sequence[frozenset[int]]) -> np.ndarray:
    """The place in `sets` [U] of the owners that each unit would have if sizes were free.

    Those at the least `misfit`, the larger set of several.

    Args:
        sets: sets of domain places; for a lattice all there are.
    """
    by_size = sorted(range(len(sets)), key=lambda place: -len(sets[place]))
    owns_SK = np.array([[k in sets[place] for k in range(len(shares_KU))] for place in by_size])
    cost_SU = misfit(shares_KU, owns_SK)
    is_least_SU = cost_SU <= cost_SU.min(axis=0) + _TIE * shares_KU.max(axis=0)
    return np.array(by_size)[is_least_SU.argmax(axis=0)]


def allocate(cost_BU: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The block [U] of each unit where exactly `sizes[b]` go to block b, at the least total cost.

    Exact, and the same each time: a matching of units to places where there are few units, a linear
    program (the transportation problem, whose vertices are integral) where there are many.

    Raises:
        PlanError: sizes that are not those of as many blocks, or do not sum to the units.
    """
    num_blocks, num_units = cost_BU.shape
    if len(sizes) != num_blocks or min(sizes) < 0 or sum(sizes) != num_units:
        raise PlanError(
            f"blocks of sizes {list(sizes)} (sum {sum(sizes)}) do not fit {num_blocks} blocks and "
            f"{num_units} units; give each block a size, the sum being the units"
        )
    # What a unit costs in every block alike changes nothing; without it the costs are as precise as
    # they can be.
    cost_BU = cost_BU - cost_BU.min(axis=0)
    solve = _by_matching if num_units <= _MATCHING_UNITS else _by_linear_program
    return solve(cost_BU, sizes)


def _by_matching(cost_BU: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    block_of_place = np.repeat(np.arange(len(sizes)), sizes)
    places, units = linear_sum_assignment(cost_BU[block_of_place])
    block_of_unit = np.empty(cost_BU.shape[1], dtype=np.int64)
    block_of_unit[units] = block_of_place[places]
    return block_of_unit


def _by_linear_program(cost_BU: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    num_blocks, num_units = cost_BU.shape
    largest = np.abs(cost_BU).max()
    once = sparse.kron(np.ones((1, num_blocks)), sparse.eye(num_units))
    full = sparse.kron(sparse.eye(num_blocks), np.ones((1, num_units)))
    result = linprog(
        (cost_BU / (largest or 1.0)).ravel(),
        A_eq=sparse.vstack([once, full]).tocsr(),
        b_eq=np.concatenate([np.ones(num_units), sizes]),
        bounds=(0, None),
        method="highs-ds",
        options={
            "presolve": False,
            "dual_feasibility_tolerance": _TOLERANCE,
            "primal_feasibility_tolerance": _TOLERANCE,
        },
    )
    if result.x is None:
        raise RuntimeError(f"HiGHS did not solve the assignment: {result.message}")
    given_BU = result.x.reshape(num_blocks, num_units)
    block_of_unit = given_BU.argmax(axis=0)
    counts = np.bincount(block_of_unit, minlength=num_blocks)
    if np.abs(given_BU - given_BU.round()).max() > 1e-6 or not np.array_equal(counts, sizes):
        raise RuntimeError("HiGHS returned no vertex of the assignment: units in parts")
    return block_of_unit


def prices(cost_BU: np.ndarray, block_of_unit: np.ndarray) -> np.ndarray:
    """Prices [B] at which each unit's cheapest block, `argmin(cost - price)`, is the one it has.

    Dual variables of an assignment of least cost in which no block is empty. They are any that meet
    price[b] - price[a] <= the least extra cost of a unit of a in b, for all a and b: shortest paths
    between blocks. The mean of those from and to every block lies inside of what is allowed, so
    that no unit stands at a tie unless the costs have one. Their mean is 0.
    """
    num_blocks = len(cost_BU)
    path_BB = np.array(
        [
            (cost_BU[:, units] - cost_BU[block, units]).min(axis=1)
            for block in range(num_blocks)
            for units in [np.flatnonzero(block_of_unit == block)]
        ]
    )
    for over in range(num_blocks):
        path_BB = np.minimum(path_BB, path_BB[:, over, None] + path_BB[None, over, :])
    found = (path_BB.mean(axis=0) - path_BB.mean(axis=1)) / 2
    return found - found.mean()


def modularity(shares_KU: np.ndarray, block_of_unit: np.ndarray, owns_BK: np.ndarray) -> np.ndarray:
    """Of each domain's attribution outside the core the share [K] that lies in blocks it owns.

    1: nothing is lost when the domain is kept alone. Units given at random to K blocks of one size,
    one for each domain, have about 1/K. nan where a domain has no attribution outside the core.
    The core is block 0.
    """
    outside_U = block_of_unit != 0
    owns_KU = np.asarray(owns_BK, dtype=bool)[block_of_unit].T
    total_K = (shares_KU * outside_U).sum(axis=1)
    own_K = (shares_KU * (outside_U & owns_KU)).sum(axis=1)
    return np.divide(own_K, total_K, out=np.full(len(total_K), np.nan), where=total_K > 0)


def contiguous_order(
    block_of_unit: np.ndarray, num_blocks: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The order that brings each block's units together, and the blocks' sizes.

    Returns:
        The old index of the unit at each new position, within a block in the old order, and the
        units of each block: `order` and `sizes` of a `plan.Split`.
    """
    order = np.argsort(block_of_unit, kind="stable")
    sizes = np.bincount(block_of_unit, minlength=num_blocks)
    return tuple(order.tolist()), tuple(sizes.tolist())
