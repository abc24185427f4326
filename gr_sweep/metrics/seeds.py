"""Intervals between seeds: how much training again with other random numbers would change.

Student's t on one number per seed.
"""

import functools
import math
from collections.abc import Sequence
from statistics import fmean, stdev

import numpy as np

from gr_sweep.metrics.bootstrap import CONFIDENCE, FloatArray


@functools.cache
def t_quantile(num_seeds: int) -> float:
    """How many standard errors the 95 % interval reaches from the mean of at least 2 seeds."""
    # scipy loads slowly, and most uses of this package do not need it.
    from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

    return float(stdtrit(num_seeds - 1, (1 + CONFIDENCE) / 2))


def t_interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Mean of one value per seed and its 95 % interval: mean, low, high.

    mean +- t(0.975, n - 1) s / sqrt(n) (Student 1908). None with fewer than two values.
    """
    if len(values) < 2:
        return None
    mean = fmean(values)
    half = t_quantile(len(values)) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def paired_differences(values_GS: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean difference of every two settings over the seeds that both have.

    Args:
        values_GS: a row for each setting, a column for each seed; NaN where a value is missing.

    Returns:
        mean_GG and half_GG: row minus column, and half the width of its 95 % t-interval. NaN
        without a common seed, and half_GG with only one.
    """
    has_GS = np.isfinite(values_GS)
    num_GG = (has_GS[:, None] & has_GS[None]).sum(2)
    quantiles = [math.nan] * 2 + [t_quantile(n) for n in range(2, values_GS.shape[1] + 1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        difference_GGS = values_GS[:, None] - values_GS[None]
        mean_GG = np.nansum(difference_GGS, 2) / num_GG
        squares_GG = np.nansum((difference_GGS - mean_GG[..., None]) ** 2, 2)
        error_GG = np.sqrt(squares_GG / (num_GG - 1) / num_GG)
    return mean_GG, np.array(quantiles)[num_GG] * error_GG
