"""Each formula on numbers worked out by hand, and each key as the documentation spells it."""

import math

import numpy as np
import pytest

from gr_sweep.metrics import keys, separability, utility


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


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (keys.loss_full("biology/virology"), "loss/full/biology.virology"),
        (keys.loss_removed("code", "a/b"), "loss/removed/code/a.b"),
        (keys.loss_kept("a/b", "code"), "loss/kept/a.b/code"),
        (keys.bits_per_byte_full("code"), "bits_per_byte/full/code"),
        (keys.matrix("code", "biology"), "separability/matrix/code/biology"),
        (keys.selectivity("a/b"), "separability/selectivity/a.b"),
        (keys.train_loss("a/b"), "train/loss/a.b"),
        (keys.eval_loss("a/b"), "eval/loss/a.b"),
        (keys.grad_norm("core"), "train/grad_norm/core"),
        (keys.parameters_kept("a/b"), "cost/parameters/kept/a.b"),
    ],
)
def test_keys_are_spelt_as_documented(key: str, expected: str) -> None:
    assert key == expected
