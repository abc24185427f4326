"""Each formula on numbers worked out by hand, and each key as the documentation spells it."""

import math

import numpy as np
import pytest

from gr_sweep.metrics import robustness, separability, utility


def test_bits_per_byte_of_a_fair_coin_a_byte_is_one() -> None:
    assert utility.bits_per_byte(8 * math.log(2), 8) == pytest.approx(1.0)


def test_selectivity_sets_the_own_cost_against_the_mean_of_the_others() -> None:
    row = {"code": 0.5, "biology": 0.1, "creative": -0.1}
    assert separability.selectivity(row, "code") == pytest.approx(0.5)
    assert separability.selectivity(row, "biology") == pytest.approx(0.1 - 0.2)


def test_selectivity_is_zero_where_removal_hits_everybody_alike() -> None:
    assert separability.selectivity({"code": 2.0, "biology": 2.0}, "code") == 0


def test_selectivity_works_on_resamples_elementwise() -> None:
    row = {"code": np.array([1.0, 2.0]), "biology": np.array([0.5, 0.0])}
    np.testing.assert_allclose(separability.selectivity(row, "code"), [0.5, 2.0])


@pytest.mark.parametrize("row", [{}, {"code": 1.0}, {"biology": 1.0}])
def test_selectivity_without_own_or_others_is_none(row: dict[str, float]) -> None:
    assert separability.selectivity(row, "code") is None


def test_removal_is_the_share_of_the_way_to_never_trained_and_is_not_clipped() -> None:
    assert separability.removal(5.0, 4.0, 8.0) == 0.25
    assert separability.removal(9.0, 4.0, 8.0) == 1.25
    assert separability.removal(3.0, 4.0, 8.0) == -0.25


@pytest.mark.parametrize("filtered", [4.0, 3.0])
def test_removal_is_nan_where_there_is_no_way_to_go(filtered: float) -> None:
    assert math.isnan(separability.removal(5.0, 4.0, filtered))


def test_removal_works_on_resamples_elementwise() -> None:
    found = separability.removal(*(np.array(row) for row in ([5.0, 5.0], [4.0, 4.0], [8.0, 4.0])))
    np.testing.assert_array_equal(found, [0.25, math.nan])


def test_leakage_sets_what_is_left_against_all_that_slipped_through() -> None:
    assert separability.leakage(8.0, 8.0, 6.0) == 0
    assert separability.leakage(6.0, 8.0, 6.0) == 1
    assert separability.leakage(7.5, 8.0, 6.0) == 0.25
    assert math.isnan(separability.leakage(7.5, 8.0, 8.0)), "hidden text that teaches nothing"


def test_tax_and_transfer_are_differences() -> None:
    assert utility.tax(4.5, 4.0) == 0.5
    assert utility.transfer(4.5, 4.0) == 0.5


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
    ],
)
def test_compute_equivalent_is_linear_in_the_logarithm_of_the_tokens(
    loss: float, share: float
) -> None:
    assert utility.compute_equivalent(loss, SHARES, [6.0, 5.0, 4.0]) == pytest.approx(share)


def test_compute_equivalent_is_nan_above_the_loss_at_the_first_share() -> None:
    assert math.isnan(utility.compute_equivalent(6.01, SHARES, [6.0, 5.0, 4.0]))


def test_compute_equivalent_takes_the_lowest_loss_so_far_of_a_curve_that_rises() -> None:
    curve = [6.0, 5.0, 5.5]
    assert utility.compute_equivalent(5.5, SHARES, curve) == pytest.approx(0.25 * 2**0.5)
    assert utility.compute_equivalent(5.0, SHARES, curve) == 0.5, "reached there first"
    assert utility.compute_equivalent(4.9, SHARES, curve) == 1.0, "never reached"


@pytest.mark.parametrize("curve", [[6.0, math.nan, 4.0], [math.nan, 5.0, 4.0]])
def test_compute_equivalent_of_a_curve_with_a_hole_is_nan(curve: list[float]) -> None:
    for loss in (6.0, 5.5, 4.5, 3.0):
        assert math.isnan(utility.compute_equivalent(loss, SHARES, curve))


def test_compute_equivalent_of_resamples_equals_that_of_each() -> None:
    rng = np.random.default_rng(0)
    losses, curve = rng.normal(5, 1, 200), rng.normal(5, 1, (3, 200))
    found = utility.compute_equivalent(losses, SHARES, list(curve))
    each = [
        utility.compute_equivalent(float(loss), SHARES, [float(x) for x in curve[:, at]])
        for at, loss in enumerate(losses)
    ]
    np.testing.assert_array_equal(found, each)
    assert 0 < np.isnan(found).mean() < 1


@pytest.mark.filterwarnings("error")
def test_compute_equivalent_is_quiet_where_a_segment_is_nearly_flat() -> None:
    curve = [6.0, 5.0, 5.0 - 1e-12]
    assert math.isnan(utility.compute_equivalent(600.0, SHARES, curve))
    assert utility.compute_equivalent(1.0, SHARES, curve) == 1.0


def test_relearning_takes_the_steps_to_half_of_what_there_is_to_learn() -> None:
    # F = 8 and D = 4: half of the way is 6, which lies between steps 10 and 20.
    attack = ([0, 10, 20], [8.0, 6.5, 4.5])
    assert robustness.steps_to_relearn([attack], 8.0, 4.0) == (12.5, 0)


def test_relearning_counts_the_strongest_attack() -> None:
    slow, fast = ([0, 10, 20], [8.0, 7.0, 5.0]), ([0, 10, 20], [8.0, 4.0, 9.0])
    assert robustness.steps_to_relearn([slow, fast], 8.0, 4.0) == (5.0, 0)
    assert robustness.lowest_loss([slow[1], fast[1]]) == 4.0


def test_relearning_that_never_comes_half_of_the_way_is_censored_at_the_last_step() -> None:
    attack = ([0, 10, 20], [8.0, 7.0, 6.5])
    assert robustness.steps_to_relearn([attack], 8.0, 4.0) == (20, 1)


def test_model_that_was_never_far_away_takes_no_steps() -> None:
    assert robustness.steps_to_relearn([([0, 10], [5.0, 4.5])], 8.0, 4.0) == (0, 0)


def test_attack_that_diverged_is_no_success_and_leaves_the_others_theirs() -> None:
    diverged, other = ([0, 10, 20], [8.0, math.nan, math.nan]), ([0, 10, 20], [8.0, 7.0, 5.0])
    assert robustness.steps_to_relearn([diverged, other], 8.0, 4.0) == (15.0, 0)
    assert robustness.steps_to_relearn([diverged], 8.0, 4.0) == (20, 1)
    assert robustness.steps_to_relearn([([0, 10, 20], [8.0, math.nan, 5.0])], 8.0, 4.0) == (20, 0)
    assert robustness.lowest_loss([diverged[1], other[1]]) == 5.0
    assert math.isnan(robustness.lowest_loss([[math.nan, math.nan]]))


def test_relearning_is_nan_where_there_is_nothing_to_learn() -> None:
    steps, censored = robustness.steps_to_relearn([([0, 10], [5.0, 4.0])], 4.0, 4.0)
    assert math.isnan(steps) and math.isnan(censored)


def test_relearning_works_on_resamples_elementwise() -> None:
    rows = np.array([[8.0, 6.5, 4.5], [8.0, 7.0, 6.5], [5.0, 4.0, 4.0]])
    steps, censored = robustness.steps_to_relearn(
        [([0, 10, 20], list(rows.T))], np.full(3, 8.0), np.full(3, 4.0)
    )
    np.testing.assert_array_equal(steps, [12.5, 20, 0])
    np.testing.assert_array_equal(censored, [0, 1, 0])


def test_spurious_gap_is_what_a_wrong_marker_costs() -> None:
    assert robustness.spurious_gap(4.5, 4.0) == 0.5
