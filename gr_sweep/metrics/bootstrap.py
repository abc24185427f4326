"""95 % intervals by bootstrap over documents.

Documents are drawn, not tokens, since the tokens of a text are not independent. A mean loss is
resampled as sum of losses over sum of tokens, so that long documents weigh as they do in the
metric. All columns of a call share their draws, so that differences of columns are paired.
Intervals are percentiles (Efron and Tibshirani 1993, chapter 13).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
DRAWS_AT_ONCE = 2_000_000
"""Draws in memory at a time: some tens of megabytes for any number of documents."""

_NONE = np.empty(0)


@dataclass(frozen=True, slots=True)
class Sample:
    """A number, nan where it cannot be computed, and the same number in every resample.

    Samples of the same documents must come from the same draws: their differences are then paired.
    """

    value: float
    resampled: FloatArray = field(default_factory=lambda: _NONE)
    """Empty where there is no interval."""

    def __sub__(self, other: "Sample") -> "Sample":
        value = self.value - other.value
        if self.resampled.size == 0 or other.resampled.size == 0:
            return Sample(value)
        return Sample(value, self.resampled - other.resampled)


MISSING = Sample(math.nan)
"""A number that cannot be computed."""


def combined(formula: Callable[..., float | FloatArray], *samples: Sample) -> Sample:
    """An elementwise formula, applied to numbers and to each resample of them."""
    value = float(formula(*(sample.value for sample in samples)))
    if any(sample.resampled.size == 0 for sample in samples):
        return Sample(value)
    return Sample(value, np.asarray(formula(*(sample.resampled for sample in samples))))


def mean_of(samples: Sequence[Sample]) -> Sample:
    """Mean with equal weights; missing where one of the samples is, or there are none."""
    if len(samples) < 2:
        return samples[0] if samples else MISSING
    return combined(lambda *values: sum(values[1:], start=values[0]) / len(values), *samples)


class Estimates:
    """Metrics and their intervals by key; values that are not finite are left out."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.intervals: dict[str, tuple[float, float]] = {}
        self.samples: dict[str, Sample] = {}

    def add(self, key: str, sample: Sample) -> None:
        """Adds a number, and its interval where there is one."""
        self.samples[key] = sample
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
