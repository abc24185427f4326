"""Assignments of units to blocks: exact, deterministic, and what they cost."""

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from gr_sweep.assign.allocate import allocate, fitting_sets, misfit, prices

LATTICE = [
    frozenset(chosen) for size in (3, 2, 1) for chosen in itertools.combinations(range(3), size)
]
"""All owner sets of three domains, the core first."""
OWNS = np.array([[domain in owners for domain in range(3)] for owners in LATTICE])


def total(cost_BU: np.ndarray, block_of_unit: np.ndarray) -> float:
    return float(cost_BU[block_of_unit, np.arange(cost_BU.shape[1])].sum())


def random_sizes(random: np.random.Generator, num_units: int, num_blocks: int) -> list[int]:
    return random.multinomial(num_units, np.full(num_blocks, 1 / num_blocks)).tolist()


def heavy_tailed(random: np.random.Generator, num_units: int) -> np.ndarray:
    """Shares of three domains, some units with thousands of times the attribution of others."""
    shares_KU = random.dirichlet([0.5] * 3, num_units).T * random.lognormal(0, 2, num_units)
    return shares_KU / shares_KU.sum(axis=1, keepdims=True)


def test_the_cost_is_the_distance_from_use_by_all_owners_alike_and_nobody_else():
    shares_KU = np.array([[1.0, 0.5, 0.0, 1.0], [0.0, 0.5, 0.0, 0.75], [0.0, 0.5, 0.0, 0.0]])
    owns_BK = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    np.testing.assert_allclose(
        misfit(shares_KU, owns_BK),
        [[2, 0, 0, 1.25], [0, 1, 0, 0.75], [1, 0.5, 0, 0.25]],
    )


@pytest.mark.parametrize(
    ("seed", "num_units", "num_blocks"), [(0, 5, 3), (1, 7, 4), (2, 1, 1), (3, 500, 7)]
)
def test_no_assignment_costs_less_than_a_matching_of_units_and_places(seed, num_units, num_blocks):
    random = np.random.default_rng(seed)
    cost_BU = random.integers(0, 4, (num_blocks, num_units)) / 4  # many ties
    if num_units == 500:
        cost_BU = misfit(heavy_tailed(random, num_units), OWNS) * 1e-3
    sizes = random_sizes(random, num_units, num_blocks)
    block_of_unit = allocate(cost_BU, sizes)
    assert np.bincount(block_of_unit, minlength=num_blocks).tolist() == sizes
    cost_of_place = np.repeat(cost_BU, sizes, axis=0)
    least = cost_of_place[linear_sum_assignment(cost_of_place)].sum()
    assert total(cost_BU, block_of_unit) == pytest.approx(float(least), rel=1e-9)


@pytest.mark.parametrize("num_units", [40, 600])
def test_units_that_two_domains_share_go_to_the_block_of_those_two(num_units):
    """The truth: each unit serves the domains of one owner set, alike but for noise."""
    random = np.random.default_rng(1)
    sizes = [num_units * 2 // 5, *[num_units // 10] * 6]
    truth = random.permutation(np.repeat(np.arange(7), sizes))
    shares_KU = OWNS[truth].T * random.uniform(0.9, 1.1, (3, num_units))
    shares_KU += random.uniform(0, 0.02, (3, num_units))
    shares_KU /= shares_KU.sum(axis=1, keepdims=True)
    assert np.array_equal(fitting_sets(shares_KU, LATTICE), truth)
    block_of_unit = allocate(misfit(shares_KU, OWNS), sizes)
    is_shared = np.isin(truth, [0, 1, 2, 3])  # the core and the pairs
    assert np.array_equal(block_of_unit[is_shared], truth[is_shared])
    assert np.array_equal(block_of_unit, truth)


@pytest.mark.parametrize("seed", range(2))
def test_at_its_prices_every_unit_has_its_cheapest_block(seed):
    random = np.random.default_rng(seed)
    num_blocks, num_units = 4, 120
    cost_BU = random.normal(size=(num_blocks, num_units)) + np.arange(num_blocks)[:, None]
    sizes = (1 + random.multinomial(num_units - num_blocks, [0.4, 0.3, 0.2, 0.1])).tolist()
    block_of_unit = allocate(cost_BU, sizes)
    found = prices(cost_BU, block_of_unit)
    assert np.array_equal((cost_BU - found[:, None]).argmin(axis=0), block_of_unit)
    ordered = np.sort(cost_BU - found[:, None], axis=0)
    assert (ordered[1] - ordered[0]).min() > 1e-9  # no unit at a tie
    assert found.mean() == pytest.approx(0)


def test_fitting_sets_of_hand_made_units():
    shares_KU = np.array(
        [
            [1.0, 0.3, 0.5, 0.8, 0.9, 0.0],
            [0.0, 0.3, 0.5, 0.4, 0.0, 0.0],
            [0.0, 0.3, 0.0, 0.0, 0.1, 0.0],
        ]
    )
    owners = [LATTICE[place] for place in fitting_sets(shares_KU, LATTICE)]
    # 2 : 1 is as far from one domain alone as from both: the larger set.
    assert owners == [{0}, {0, 1, 2}, {0, 1}, {0, 1}, {0}, {0, 1, 2}]
    # In whichever order the sets stand.
    backwards = LATTICE[::-1]
    assert [backwards[place] for place in fitting_sets(shares_KU, backwards)] == owners
