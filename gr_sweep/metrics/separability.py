"""Separability: what removing a part takes from its own domain and from the others.

Losses are held-out means in nats per token. Functions of numbers or of arrays of resamples,
elementwise; nan where there is no answer. Knows nothing of documents. Definitions: DESIGN.md
section 6.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gr_sweep.domains import is_under

FloatArray = npt.NDArray[np.float64]
Numbers = TypeVar("Numbers", float, FloatArray)


def matrix(removed: Numbers, full: Numbers) -> Numbers:
    """L[-e](d) - L(d), nats per token: above 0 where removing e hurts d."""
    return removed - full


def selectivity(row: Mapping[str, Numbers], part: str) -> Numbers | None:
    """What removing `part` costs its own domain, less the mean of what it costs the others.

    Higher is better; 0 where removal hits everybody alike. A node of the tree stands for all
    domains at or below it: its own cost is then the mean over them.

    Args:
        row: matrix/e/d for every domain d, nats per token.
        part: the removed domain e, or an inner node of the tree.

    Returns:
        None where the row holds no domain of the part, or no other.
    """
    own = [cost for domain, cost in row.items() if is_under(domain, part)]
    others = [cost for domain, cost in row.items() if not is_under(domain, part)]
    if not own or not others:
        return None
    return mean(own) - mean(others)


def removal(loss_without_e: Numbers, loss_full: Numbers, filtered: Numbers) -> FloatArray:
    """Share of the way on e from the full model to one never trained on it; 1 = as never trained.

    Not clipped: above 1 means worse than never trained. nan where filtered <= loss_full: there is
    no way to go. With losses of models whose logits have a bias fitted to e, this is the calibrated
    removal (the calibration of SGTM, arXiv 2512.05648).
    """
    return share(loss_without_e - loss_full, filtered - loss_full)


def leakage(loss_without_e: Numbers, filtered: Numbers, filtered_observed: Numbers) -> FloatArray:
    """How much of e's text that carries no or another label is left after e was removed.

    0: as a model never trained on any text of e; 1: as a dense model trained on all of e's text
    whose label is hidden or wrong; above 1: labelled text is left too. nan where that text teaches
    nothing about e.
    """
    return share(filtered - loss_without_e, filtered - filtered_observed)


def share(part: Numbers, whole: Numbers) -> FloatArray:
    """part / whole, and nan where the whole is not above 0."""
    part_, whole_ = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    positive = whole_ > 0
    return np.where(positive, part_ / np.where(positive, whole_, 1.0), np.nan)


def mean(values: Sequence[Numbers]) -> Numbers:
    """Mean over domains, each weighing the same."""
    return sum(values[1:], start=values[0]) / len(values)
