"""The resampling itself, apart from domains and views."""

import numpy as np
import pytest

from gr_sweep.metrics import bootstrap


def test_columns_of_one_call_share_their_draws_of_as_many_documents() -> None:
    values = np.arange(20.0)[:, None] * [1.0, 3.0, 0.0] + [0.0, 0.0, 1.0]
    sums = bootstrap.resampled_sums(values, 50, np.random.default_rng(0))
    np.testing.assert_allclose(sums[:, 1], 3 * sums[:, 0])
    np.testing.assert_array_equal(sums[:, 2], 20)
    assert len(np.unique(sums[:, 0])) > 20


def test_chunks_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=(30, 2))
    whole = bootstrap.resampled_sums(values, 40, np.random.default_rng(0))
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 100)
    chunked = bootstrap.resampled_sums(values, 40, np.random.default_rng(0))
    # Not bit for bit: a matrix product sums in an order that depends on its shape.
    np.testing.assert_allclose(chunked, whole, rtol=1e-12)


def test_interval_holds_the_middle_95_percent() -> None:
    assert bootstrap.interval(np.arange(1001.0)) == pytest.approx((25, 975))


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [1.0, np.inf]])
def test_interval_of_empty_or_infinite_values_is_none(values: list[float]) -> None:
    assert bootstrap.interval(np.array(values)) is None
