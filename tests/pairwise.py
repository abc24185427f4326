"""Crosses parameters of tests pairwise: every two values meet in some case, without the whole
product."""

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import pytest


def pairwise(*parameters: Sequence[Hashable]) -> list[tuple[Any, ...]]:
    """Few cases in which every value of a parameter meets every value of every other one.

    Deterministic: the next case is the first of the whole product with the most pairs that no
    earlier case has.
    """
    cases = list(itertools.product(*parameters))
    pairs = [set(itertools.combinations(enumerate(case), 2)) for case in cases]
    missing = set().union(*pairs)
    chosen = []
    while missing:
        best = max(range(len(cases)), key=lambda index: len(pairs[index] & missing))
        chosen.append(cases[best])
        missing -= pairs[best]
    return chosen


def crossed(*parameters: Sequence[Hashable]) -> list[Any]:
    """The whole product for `pytest.mark.parametrize`; the default run has a pairwise selection."""
    quick = set(pairwise(*parameters))
    return [
        pytest.param(*case, marks=() if case in quick else pytest.mark.slow)
        for case in itertools.product(*parameters)
    ]
