"""The resampling itself, apart from domains and views."""

import numpy as np
import pytest

from gr_sweep.metrics import bootstrap


def test_interval_holds_the_middle_95_percent() -> None:
    assert bootstrap.interval(np.arange(1001.0)) == pytest.approx((25, 975))


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [1.0, np.inf]])
def test_interval_of_empty_or_infinite_values_is_none(values: list[float]) -> None:
    assert bootstrap.interval(np.array(values)) is None
