"""Robustness: how fast what was removed can be taught again, and what a marker line does.

Losses are held-out means in nats per token. Functions of arrays of resamples, elementwise; nan
where there is no answer. Knows nothing of documents. Definitions: DESIGN.md section 6.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Numbers = TypeVar("Numbers", float, FloatArray)


def spurious_gap(swapped: Numbers, marked: Numbers) -> Numbers:
    """Loss with the marker of another domain less that with its own; 0: the marker is not used."""
    return swapped - marked


def lowest_loss(attacks: Sequence[Sequence[Numbers]]) -> FloatArray:
    """The lowest loss on e at any step of any attack: the strongest attack counts.

    Args:
        attacks: a learning rate each: the losses at its evaluations. One that is nan (the attack
            diverged) is no success.
    """
    lowest = np.min([np.min(_high_if_nan(losses), axis=0) for losses in attacks], axis=0)
    return np.where(np.isinf(lowest), np.nan, lowest)


def steps_to_relearn(
    attacks: Sequence[tuple[Sequence[int], Sequence[Numbers]]], filtered: Numbers, dense: Numbers
) -> tuple[FloatArray, FloatArray]:
    """Steps of the fastest attack to half of what there is to learn about e, F[e](e) - D(e).

    Between evaluations the loss is taken to be linear in the steps. Relearning after unlearning as
    in Deeb and Roger 2024 (arXiv 2410.08827) and SGTM (arXiv 2512.05648); half of the gap is ours.

    Args:
        attacks: a learning rate each: steps at its evaluations, rising from 0, and the losses; nan
            as in `lowest_loss`.
        filtered: F[e](e), of a dense model never trained on e.
        dense: D(e).

    Returns:
        Steps, at most those of the longest attack, and whether they are censored: 1 where no attack
        came half of the way, else 0. Both nan where filtered <= dense.
    """
    target = (np.asarray(filtered, dtype=float) + np.asarray(dense, dtype=float)) / 2
    longest = max(steps[-1] for steps, _ in attacks)
    fastest = np.full(target.shape, np.inf)
    for steps, losses in attacks:
        curve = _high_if_nan(losses)
        reached = np.where(curve[0] <= target, float(steps[0]), np.inf)
        for at in range(1, len(steps)):
            before, after = curve[at - 1], curve[at]
            crosses = np.isinf(reached) & (after <= target)
            between = crosses & np.isfinite(before)
            # Elsewhere the way is 1: after a loss that is no number, this evaluation is the first.
            top, bottom = np.where(between, before, 1.0), np.where(between, after, 0.0)
            way = (top - np.where(between, target, 0.0)) / (top - bottom)
            crossing = steps[at - 1] + way * (steps[at] - steps[at - 1])
            reached = np.where(crosses, crossing, reached)
        fastest = np.minimum(fastest, reached)
    there_is_a_way = np.asarray(filtered) > np.asarray(dense)
    censored = np.isinf(fastest)
    return (
        np.where(there_is_a_way, np.where(censored, float(longest), fastest), np.nan),
        np.where(there_is_a_way, censored.astype(float), np.nan),
    )


def _high_if_nan(losses: Sequence[Numbers]) -> FloatArray:
    curve = np.stack([np.asarray(loss, dtype=float) for loss in losses])
    return np.where(np.isnan(curve), np.inf, curve)
