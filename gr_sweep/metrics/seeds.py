"""Intervals between seeds: how much training again with other random numbers would change.

Student's t on one number per seed.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from gr_sweep.metrics.bootstrap import CONFIDENCE


def t_interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Mean of one value per seed and its 95 % interval: mean, low, high.

    mean +- t(0.975, n - 1) s / sqrt(n) (Student 1908). None with fewer than two values.
    """
    if len(values) < 2:
        return None
    # scipy loads slowly, and most uses of this package do not need it.
    from scipy.special import stdtrit  # type: ignore[import-untyped, unused-ignore]

    mean = fmean(values)
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    half = quantile * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half
