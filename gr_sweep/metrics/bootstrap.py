"""95 % intervals by bootstrap over documents.

Documents, not tokens, are drawn: tokens of one text go together. A mean loss is resampled as sum of
loss over sum of tokens, so that long documents weigh as they do in the metric. The columns of one
call share their draws, and so does a difference of two columns: that is what pairs views on the
same documents. Intervals are percentiles (Efron and Tibshirani 1993, chapter 13). Knows nothing of
domains and views.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
_DRAWS_AT_ONCE = 2_000_000
"""Draws in memory at a time: some tens of megabytes for any number of documents."""


_NONE = np.empty(0)


@dataclass(frozen=True, slots=True)
class Sample:
    """A number, nan where it cannot be computed, and the same number in every resample."""

    value: float
    resampled: FloatArray = field(default_factory=lambda: _NONE)
    """Empty where there is no interval."""


MISSING = Sample(math.nan)
"""What cannot be computed."""


def combined(formula: Callable[..., float | FloatArray], *samples: Sample) -> Sample:
    """An elementwise formula of numbers, and of each resample of them.

    Samples of the same documents must come from the same draws: that pairs them.
    """
    value = float(formula(*(sample.value for sample in samples)))
    if any(sample.resampled.size == 0 for sample in samples):
        return Sample(value)
    return Sample(value, np.asarray(formula(*(sample.resampled for sample in samples))))


class Estimates:
    """Metrics and their intervals by key; what is not finite stays out."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.intervals: dict[str, tuple[float, float]] = {}

    def add(self, key: str, sample: Sample) -> None:
        """Takes a number in, and its interval where there is one."""
        if not math.isfinite(sample.value):
            return
        self.metrics[key] = sample.value
        bounds = interval(sample.resampled)
        if bounds is not None:
            self.intervals[key] = bounds


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
