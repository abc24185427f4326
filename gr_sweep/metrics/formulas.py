"""Formulas of metrics that are more than a difference or a mean of losses.

They take numbers or arrays of resamples, elementwise; nan where there is no answer. Losses are
held-out means in nats per token. What L, D and F mean is in `metrics/registry.py`.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Numbers = TypeVar("Numbers", float, FloatArray)


def bits_per_byte(loss_nats: Numbers, num_bytes: Numbers) -> Numbers:
    """Bits per byte of UTF-8 text from the summed loss in nats of that text."""
    return loss_nats / (math.log(2) * num_bytes)


def ratio(part: Numbers, whole: Numbers) -> FloatArray:
    """part / whole, and nan where the whole is not above 0. Not clipped.

    Removal is the ratio of L[-e](e) - L(e) and F[e](e) - L(e); with the losses of models that have
    a bias on their logits fitted to e, it is the calibrated removal of SGTM (arXiv 2512.05648).
    """
    part_, whole_ = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    positive = whole_ > 0
    return np.where(positive, part_ / np.where(positive, whole_, 1.0), np.nan)


def compute_equivalent(
    loss: Numbers, shares: Sequence[float], dense: Sequence[Numbers]
) -> FloatArray:
    """Share of the dense run's tokens at which dense training reaches the loss; 1 is free.

    Between dense runs the loss is taken as linear in the logarithm of the tokens (over a factor of
    two close to a power law, Kaplan et al. 2020, arXiv 2001.08361). Where more tokens gave a
    higher loss, the lowest loss so far counts (running minimum).

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
        # Nothing is inside a flat segment; 1 only avoids a division by 0.
        way = (above - wanted) / np.where(above > below, above - below, 1.0)
        way = np.clip(way, 0.0, 1.0)  # outside the segment it is not used
        found = np.where(inside, np.exp(logs[at] + way * (logs[at + 1] - logs[at])), found)
    found = np.where(wanted == curve[0], shares[0], found)
    # A nan anywhere in the curve has come down to its last point.
    return np.where(np.isnan(curve[-1]), np.nan, found)


def lowest_loss(losses: Sequence[Numbers]) -> FloatArray:
    """The lowest loss on e at any time of any attack: the strongest attack counts.

    Args:
        losses: at all evaluations; nan (the attack diverged) does not count as a success.
    """
    lowest = np.min(_high_if_nan(losses), axis=0)
    return np.where(np.isinf(lowest), np.nan, lowest)


def tokens_to_relearn(
    attacks: Sequence[tuple[Sequence[int], Sequence[Numbers]]], filtered: Numbers, dense: Numbers
) -> tuple[FloatArray, FloatArray]:
    """Tokens of the fastest attack to half of what there is to learn about e, F[e](e) - D(e).

    Between evaluations the loss is taken as linear in the logarithm of the tokens, and from 0 to
    the first as linear in the tokens. Relearning after unlearning as in Deeb and Roger 2024 (arXiv
    2410.08827) and SGTM (arXiv 2512.05648); half of the gap is ours.

    Args:
        attacks: for each learning rate, the tokens trained on at its evaluations, rising from 0,
            and the losses; nan as in `lowest_loss`.
        filtered: F[e](e), of a dense model never trained on e.
        dense: D(e).

    Returns:
        Tokens, at most those of the longest attack, and whether they are censored: 1 where no
        attack reached half, else 0. Both nan where filtered <= dense.
    """
    target = (np.asarray(filtered, dtype=float) + np.asarray(dense, dtype=float)) / 2
    longest = max(tokens[-1] for tokens, _ in attacks)
    fastest = np.full(target.shape, np.inf)
    for tokens, losses in attacks:
        curve = _high_if_nan(losses)
        reached = np.where(curve[0] <= target, float(tokens[0]), np.inf)
        for at in range(1, len(tokens)):
            before, after = curve[at - 1], curve[at]
            crosses = np.isinf(reached) & (after <= target)
            between = crosses & np.isfinite(before)
            # Elsewhere the way is 1: after a loss that is nan, this evaluation is the first.
            top, bottom = np.where(between, before, 1.0), np.where(between, after, 0.0)
            way = (top - np.where(between, target, 0.0)) / (top - bottom)
            first, last = tokens[at - 1], tokens[at]
            crossing = first * (last / first) ** way if first else way * last
            reached = np.where(crosses, crossing, reached)
        fastest = np.minimum(fastest, reached)
    is_learnable = np.asarray(filtered) > np.asarray(dense)
    censored = np.isinf(fastest)
    return (
        np.where(is_learnable, np.where(censored, float(longest), fastest), np.nan),
        np.where(is_learnable, censored.astype(float), np.nan),
    )


def _high_if_nan(losses: Sequence[Numbers]) -> FloatArray:
    curve = np.stack([np.asarray(loss, dtype=float) for loss in losses])
    return np.where(np.isnan(curve), np.inf, curve)
