"""95 % intervals by bootstrap over documents.

Documents, not tokens, are drawn: tokens of one text go together. A mean loss is resampled as sum of
loss over sum of tokens, so that long documents weigh as they do in the metric. The columns of one
call share their draws, and so does a difference of two columns: that is what pairs views on the
same documents. Intervals are percentiles (Efron and Tibshirani 1993, chapter 13). Knows nothing of
domains and views.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
_DRAWS_AT_ONCE = 2_000_000
"""Draws in memory at a time: some tens of megabytes for any number of documents."""


def resampled_sums(values: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Sums over documents drawn with replacement, float64 (resamples, columns).

    Args:
        values: (documents, columns), at least one document. A column with nan has nan sums.
        resamples: how many times as many documents are drawn as there are.
        rng: advanced by resamples x documents draws; the same for any number of columns.
    """
    num_documents = values.shape[0]
    sums = np.empty((resamples, values.shape[1]))
    chunk = max(1, _DRAWS_AT_ONCE // num_documents)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(num_documents, size=(size, num_documents))
        # Row r counts in its own range of bins, so that one bincount serves the whole chunk.
        drawn += np.arange(size)[:, None] * num_documents
        counts = np.bincount(drawn.ravel(), minlength=size * num_documents)
        sums[start : start + size] = counts.reshape(size, num_documents) @ values
    return sums


def interval(resampled: FloatArray) -> tuple[float, float] | None:
    """The middle 95 % of resampled values (one dimension); None where one of them is not finite."""
    if resampled.size == 0 or not np.isfinite(resampled).all():
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def interval_of_mean(
    values: Sequence[float], intervals: Sequence[tuple[float, float]]
) -> tuple[float, float] | None:
    """Interval of the mean of independent estimates: each side's distances add in quadrature.

    For losses of different domains, whose documents are different. None without values.
    """
    if not values:
        return None
    mean = sum(values) / len(values)
    pairs = list(zip(values, intervals, strict=True))
    below = math.sqrt(sum((value - low) ** 2 for value, (low, _) in pairs)) / len(values)
    above = math.sqrt(sum((high - value) ** 2 for value, (_, high) in pairs)) / len(values)
    return mean - below, mean + above
