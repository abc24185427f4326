"""Utility: what the model is worth on held-out text.

Losses are means in nats per token. Functions of numbers or of arrays of resamples, elementwise; nan
where there is no answer. Knows nothing of documents. Definitions: DESIGN.md section 6.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Numbers = TypeVar("Numbers", float, npt.NDArray[np.float64])


def bits_per_byte(loss_nats: Numbers, num_bytes: Numbers) -> Numbers:
    """Bits per byte of UTF-8 text from the summed loss in nats of that text; lower is better."""
    return loss_nats / (math.log(2) * num_bytes)


def tax(loss: Numbers, baseline: Numbers) -> Numbers:
    """What a model loses on a domain against a baseline; 0 is free, below 0 it beats it.

    L(d) - D(d) for the full model, L[d](d) - D(d) for the expert alone, L[d](d) - A[d](d) for the
    expert against a dense model of its size, L[-e](d) - F[e](d) for what removing e leaves of d.
    """
    return loss - baseline


def transfer(filtered: Numbers, dense: Numbers) -> Numbers:
    """F[e](d) - D(d): what d gains in a dense model from e being there; above 0 it helps."""
    return filtered - dense


def compute_equivalent(
    loss: Numbers, shares: Sequence[float], dense: Sequence[Numbers]
) -> npt.NDArray[np.float64]:
    """Share of the dense run's tokens at which dense training reaches the loss; 1 is free.

    Between the dense runs the loss is taken to be linear in the logarithm of the tokens (over a
    factor of two a power law, Kaplan et al. 2020, arXiv 2001.08361, is close to that). Where more
    tokens gave a higher loss, the lowest loss so far counts (running minimum).

    Args:
        loss: of the model in question.
        shares: tokens of dense runs that each finished their schedule, as shares of the model's
            own, rising to 1.
        dense: their losses, in the same order.

    Returns:
        At most 1, also below the last dense loss; nan above the first (less than the first share),
        and where a dense loss is nan.
    """
    curve = np.minimum.accumulate(np.stack([np.asarray(point, dtype=float) for point in dense]))
    wanted = np.asarray(loss, dtype=float)
    found = np.where(wanted < curve[-1], 1.0, np.nan)
    logs = np.log(shares)
    for at in reversed(range(len(logs) - 1)):
        above, below = curve[at], curve[at + 1]
        inside = (below <= wanted) & (wanted < above)
        # Where a segment is flat nothing is inside; 1 only keeps the division quiet.
        way = (above - wanted) / np.where(above > below, above - below, 1.0)
        way = np.clip(way, 0.0, 1.0)  # outside the segment it counts for nothing
        found = np.where(inside, np.exp(logs[at] + way * (logs[at + 1] - logs[at])), found)
    found = np.where(wanted == curve[0], shares[0], found)
    # A nan anywhere in the curve has come down to its last point.
    return np.where(np.isnan(curve[-1]), np.nan, found)
