"""Intervals between seeds against textbook numbers."""

import pytest

from gr_sweep.metrics.seeds import t_interval


def test_two_values_use_one_degree_of_freedom_and_fewer_have_no_interval() -> None:
    # t(0.975, 1) = 12.706; s / sqrt(2) of {0, 2} is 1.
    assert t_interval([0.0, 2.0]) == pytest.approx((1, 1 - 12.706, 1 + 12.706), rel=1e-4)
    assert t_interval([1.0]) is None


def test_interval_of_paired_differences_is_that_of_gossets_sleep_data() -> None:
    """Student 1908, section IX: mean difference 1.58, t = 4.06 with 9 degrees of freedom."""
    first = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    second = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    found = t_interval([a - b for a, b in zip(first, second, strict=True)])
    assert found == pytest.approx((1.58, 0.70, 2.46), abs=0.005)
