"""95 % intervals by bootstrap over documents.

Documents are drawn, not tokens, since the tokens of a text are not independent. A mean loss is
resampled as sum of losses over sum of tokens, so that long documents weigh as they do in the
metric. All columns of a call share their draws, so that differences of columns are paired.
Intervals are percentiles (Efron and Tibshirani 1993, chapter 13).

A sample is an array: a number, then the same number in every resample. Formulas apply to it
elementwise. It is nan where a number cannot be computed.
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
DRAWS_AT_ONCE = 2_000_000
"""Draws in memory at a time: some tens of megabytes for any number of documents."""


def resampled_sums(values: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Sums over documents drawn with replacement, float64 (resamples, columns).

    Args:
        values: (documents, columns), at least one document. A column with nan has nan sums.
        resamples: how often as many documents are drawn as there are.
        rng: advanced by resamples x documents draws, however many columns there are.
    """
    num_documents = values.shape[0]
    sums = np.empty((resamples, values.shape[1]))
    chunk = max(1, DRAWS_AT_ONCE // num_documents)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(num_documents, size=(size, num_documents))
        # Row r counts in its own range of bins, so that one bincount serves the whole chunk.
        drawn += np.arange(size)[:, None] * num_documents
        counts = np.bincount(drawn.ravel(), minlength=size * num_documents)
        sums[start : start + size] = counts.reshape(size, num_documents) @ values
    return sums


def estimates(
    samples: Mapping[str, FloatArray],
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The numbers of samples and their intervals, by key, without those that are not finite."""
    metrics = {key: float(of[0]) for key, of in samples.items() if math.isfinite(of[0])}
    intervals = {key: interval(samples[key][1:]) for key in metrics}
    return metrics, {key: bounds for key, bounds in intervals.items() if bounds is not None}


def interval(resampled: FloatArray) -> tuple[float, float] | None:
    """The middle 95 % of resampled values (1-D); None where one of them is not finite."""
    if resampled.size == 0 or not np.isfinite(resampled).all():
        return None
    values, tail = np.sort(resampled), (1 - CONFIDENCE) / 2

    def quantile(share: float) -> float:
        # np.percentile is ten times as slow for so few values.
        below, rest = divmod(share * (len(values) - 1), 1)
        low, high = values[int(below)], values[min(int(below) + 1, len(values) - 1)]
        return float(low + rest * (high - low))

    return quantile(tail), quantile(1 - tail)
