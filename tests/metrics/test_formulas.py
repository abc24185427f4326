"""Each formula on numbers worked out by hand."""

import math

import numpy as np
import pytest

from gr_sweep.metrics.formulas import compute_equivalent, tokens_to_relearn

SHARES = [0.25, 0.5, 1.0]


@pytest.mark.parametrize(
    ("loss", "share"),
    [
        (6.0, 0.25),
        (5.5, 0.25 * 2**0.5),
        (5.0, 0.5),
        (4.75, 0.5 * 2**0.25),
        (4.0, 1.0),
        (3.0, 1.0),
        (6.01, math.nan),
    ],
)
def test_compute_equivalent_is_linear_in_the_logarithm_of_the_tokens(
    loss: float, share: float
) -> None:
    assert compute_equivalent(loss, SHARES, [6.0, 5.0, 4.0]) == pytest.approx(share, nan_ok=True)


def test_compute_equivalent_takes_the_lowest_loss_so_far_of_a_curve_that_rises() -> None:
    curve = [6.0, 5.0, 5.5]
    assert compute_equivalent(5.5, SHARES, curve) == pytest.approx(0.25 * 2**0.5)
    assert compute_equivalent(5.0, SHARES, curve) == 0.5, "reached there first"
    assert compute_equivalent(4.9, SHARES, curve) == 1.0, "never reached"
    for hole in ([6.0, math.nan, 4.0], [math.nan, 5.0, 4.0]):
        assert math.isnan(compute_equivalent(5.5, SHARES, hole))


def test_relearning_takes_the_tokens_to_half_of_what_there_is_to_learn() -> None:
    # F = 8 and D = 4: half of the way is 6, a quarter of the way from 10 to 160 in the logarithm.
    attack = ([0, 10, 160], [8.0, 6.5, 4.5])
    assert tokens_to_relearn([attack], 8.0, 4.0) == (pytest.approx(20), 0)


def test_relearning_counts_the_strongest_attack() -> None:
    slow, fast = ([0, 10, 20], [8.0, 7.0, 5.0]), ([0, 10, 20], [8.0, 4.0, 9.0])
    assert tokens_to_relearn([slow, fast], 8.0, 4.0) == (5.0, 0)


def test_attack_that_diverged_is_no_success_and_leaves_the_others_theirs() -> None:
    diverged, other = ([0, 10, 20], [8.0, math.nan, math.nan]), ([0, 10, 20], [8.0, 7.0, 5.0])
    assert tokens_to_relearn([diverged, other], 8.0, 4.0) == (pytest.approx(200**0.5), 0)
    assert tokens_to_relearn([diverged], 8.0, 4.0) == (20, 1)
    assert tokens_to_relearn([([0, 10, 20], [8.0, math.nan, 5.0])], 8.0, 4.0) == (20, 0)


def test_relearning_works_on_resamples_elementwise() -> None:
    rows = np.array([[8.0, 6.5, 4.5], [8.0, 7.0, 6.5], [5.0, 4.0, 4.0], [5.0, 4.0, 4.0]])
    filtered = np.array([8.0, 8.0, 8.0, 4.0])  # in the last there is nothing to learn
    tokens, censored = tokens_to_relearn([([0, 10, 160], list(rows.T))], filtered, np.full(4, 4.0))
    np.testing.assert_allclose(tokens, [20, 160, 0, math.nan])
    np.testing.assert_array_equal(censored, [0, 1, 0, math.nan])
