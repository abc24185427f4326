"""Separability: what removing a part takes from its own domain and from the others.

Functions of numbers or of arrays of resamples, elementwise. Knows nothing of documents.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gr_sweep.domains import is_under

Numbers = TypeVar("Numbers", float, npt.NDArray[np.float64])


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
    return _mean(own) - _mean(others)


def _mean(values: Sequence[Numbers]) -> Numbers:
    return sum(values[1:], start=values[0]) / len(values)
