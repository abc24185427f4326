"""Which block each unit of a layer goes to: an exact assignment to blocks of fixed sizes.

Works on the attribution shares of one group of units; does not know where they come from.
"""

# K = domains, B = blocks (the core first), U = units of one layer and kind.

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment, linprog

_MATCHING_UNITS = 256
"""Up to this many units a matching is faster than a linear program (12 s against 0.3 s at 2048)."""
_TOLERANCE = 1e-10
"""Of the linear program, with costs scaled to 1: the smallest that HiGHS accepts."""
_TIE = 1e-9
"""Costs that differ by less, relative to a unit's largest share, are equal."""


def misfit(shares_KU: np.ndarray, owns_BK: np.ndarray) -> np.ndarray:
    """Cost [B, U] of giving a unit to a block: how far its use is from that of the block's owners.

    The sum over domains of |share - m * owns|, where m is the largest of the unit's shares: 0 if
    all owners use it alike and nobody else does. It counts attribution of a domain in a block that
    it does not own, which is lost when the domain is kept alone, and a unit of few domains in a
    block of many, which stays when the few are removed.

    Args:
        shares_KU: attribution; each domain's shares sum to 1 over a layer's units.
        owns_BK: whether a domain owns a block.
    """
    ideal_BKU = np.asarray(owns_BK, dtype=np.float64)[:, :, None] * shares_KU.max(axis=0)
    return np.abs(shares_KU - ideal_BKU).sum(axis=1)


def fitting_sets(shares_KU: np.ndarray, sets: Sequence[frozenset[int]]) -> np.ndarray:
    """The index in `sets` [U] of the owners that each unit would have if block sizes were free: the
    set of the least `misfit`, the larger set in case of ties.

    Args:
        sets: sets of indices of domains; for a lattice all there are.
    """
    by_size = sorted(range(len(sets)), key=lambda index: -len(sets[index]))
    owns_SK = np.array([[k in sets[index] for k in range(len(shares_KU))] for index in by_size])
    cost_SU = misfit(shares_KU, owns_SK)
    is_least_SU = cost_SU <= cost_SU.min(axis=0) + _TIE * shares_KU.max(axis=0)
    return np.array(by_size)[is_least_SU.argmax(axis=0)]


def allocate(cost_BU: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The block [U] of each unit if exactly `sizes[b]` go to block b, at the least total cost: a
    matching of units to places, or for many units a linear program, whose vertices are integral."""
    # What a unit costs in every block does not matter; without it costs are most precise.
    cost_BU = cost_BU - cost_BU.min(axis=0)
    solve = _by_matching if cost_BU.shape[1] <= _MATCHING_UNITS else _by_linear_program
    return solve(cost_BU, sizes)


def _by_matching(cost_BU: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    block_of_place = np.repeat(np.arange(len(sizes)), sizes)
    places, units = linear_sum_assignment(cost_BU[block_of_place])
    return block_of_place[places[np.argsort(units)]]


def _by_linear_program(cost_BU: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    num_blocks, num_units = cost_BU.shape
    each_unit_once = sparse.kron(np.ones((1, num_blocks)), sparse.eye(num_units))
    each_block_full = sparse.kron(sparse.eye(num_blocks), np.ones((1, num_units)))
    result = linprog(
        (cost_BU / (np.abs(cost_BU).max() or 1.0)).ravel(),
        A_eq=sparse.vstack([each_unit_once, each_block_full]).tocsr(),
        b_eq=np.concatenate([np.ones(num_units), sizes]),
        bounds=(0, None),
        method="highs-ds",
        options={
            "presolve": False,
            "dual_feasibility_tolerance": _TOLERANCE,
            "primal_feasibility_tolerance": _TOLERANCE,
        },
    )
    assert result.x is not None, result.message
    block_of_unit: np.ndarray = result.x.reshape(num_blocks, num_units).argmax(axis=0)
    assert np.array_equal(np.bincount(block_of_unit, minlength=num_blocks), sizes)
    return block_of_unit


def prices(cost_BU: np.ndarray, block_of_unit: np.ndarray) -> np.ndarray:
    """Prices [B] at which each unit's cheapest block, `argmin(cost - price)`, is the one it has.

    They are dual variables of an assignment of least cost without empty blocks: price[b] - price[a]
    must not exceed the least extra cost of a unit of a in b, along any path. The mean over the
    shortest paths from and to every block is inside the allowed range. The mean price is 0.
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
