"""Reads what a job of `procedure=alternate` leaves of each round.

A round that is unfinished or cannot be read is left out. To add a number of a round, write it to
round.json, read it here, and show it in `rounds.COLUMNS`.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gr_sweep.jobdir import ROUND, ROUNDS
from gr_sweep.metrics.losses import View

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Round:
    """A finished round."""

    number: int
    """Counted from 1."""
    tokens: int
    """Training tokens up to its end."""
    labels: tuple[str, ...]
    parameters_kept: Mapping[str, float]
    """Parameters of each label's expert alone."""
    modularity: float | None
    losses: Mapping[View, Mapping[str, float]]
    """Of the served model, and of each document in its own label's expert alone (view `kept`), by
    domain of the partition."""
    metrics: Mapping[str, float]


def read_rounds(job: Path) -> list[Round]:
    """Finished rounds of a job, by number; one that cannot be read is logged."""
    found = []
    for path in (job / ROUNDS).glob(f"*/{ROUND}"):
        try:
            found.append(_read_round(path))
        except (OSError, ValueError, LookupError, TypeError) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning("%s cannot be read: %s", path, said)
    return sorted(found, key=lambda of: of.number)


def _read_round(path: Path) -> Round:
    content = json.loads(path.read_text(encoding="utf-8"))
    return Round(
        number=int(content["round"]),
        tokens=int(content["tokens"]),
        labels=tuple(content["labels"]),
        parameters_kept=content["parameters_kept"],
        modularity=content["modularity"],
        losses={View.served: content["served_loss"], View.kept: content["expert_loss"]},
        metrics=content["metrics"],
    )
