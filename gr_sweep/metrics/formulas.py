"""Formulas of metrics that are more than a difference or a mean of losses.

They apply elementwise to arrays of held-out losses in nats per token, and give nan where there is
no answer. What L, D and F mean is in `metrics/registry.py`.
"""

from collections.abc import Sequence

import numpy as np

from gr_sweep.metrics.bootstrap import FloatArray


def ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """part / whole, and nan where the whole is not above 0. Not clipped."""
    is_positive = whole > 0
    return np.where(is_positive, part / np.where(is_positive, whole, 1.0), np.nan)


def removal(full: FloatArray, removed: FloatArray, filtered: FloatArray) -> FloatArray:
    """Share of the way from the full model to one never trained on a domain; 1 is as if never
    trained, and above 1 is worse than that.

    Losses with a bias on the logits fitted to the domain give the calibrated removal of SGTM
    (arXiv 2512.05648).
    """
    return ratio(removed - full, filtered - full)


def compute_equivalent(
    loss: FloatArray, shares: Sequence[float], dense: Sequence[FloatArray]
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
    curve, logs = np.minimum.accumulate(np.stack(dense)), np.log(shares)
    found = np.where(loss < curve[-1], 1.0, np.nan)
    for above, below, start, end in zip(curve, curve[1:], logs, logs[1:], strict=False):
        inside = (below <= loss) & (loss < above)
        way = np.where(inside, above - loss, 0.0) / np.where(inside, above - below, 1.0)
        found = np.where(inside, np.exp(start + way * (end - start)), found)
    found = np.where(loss == curve[0], shares[0], found)
    # A nan anywhere in the curve has come down to its last point.
    return np.where(np.isnan(curve[-1]), np.nan, found)


def tokens_to_relearn(
    attacks: Sequence[tuple[Sequence[int], Sequence[FloatArray]]],
    filtered: FloatArray,
    dense: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Tokens of the fastest attack to half of what there is to learn about e, F[e](e) - D(e).

    Between evaluations the loss is taken as linear in the logarithm of the tokens, and from 0 to
    the first as linear in the tokens. Relearning after unlearning as in Deeb and Roger 2024 (arXiv
    2410.08827) and SGTM (arXiv 2512.05648); half of the gap is ours.

    Args:
        attacks: for each learning rate, the tokens trained on at its evaluations, rising from 0,
            and the losses; nan (the attack diverged) fails.
        filtered: F[e](e), of a dense model never trained on e.
        dense: D(e).

    Returns:
        Tokens, at most those of the longest attack, and whether they are censored: 1 where no
        attack reached half, else 0. Both nan where filtered <= dense.
    """
    target = (filtered + dense) / 2
    fastest = np.full_like(target, np.inf)
    for tokens, losses in attacks:
        curve = np.stack(losses)
        curve[np.isnan(curve)] = np.inf
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
    longest = max(tokens[-1] for tokens, _ in attacks)
    is_learnable, is_censored = filtered > dense, np.isinf(fastest)
    return (
        np.where(is_learnable, np.where(is_censored, float(longest), fastest), np.nan),
        np.where(is_learnable, is_censored.astype(float), np.nan),
    )
