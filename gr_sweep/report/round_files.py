"""Reads what a job of `procedure=alternate` leaves of each round, and computes the losses of its
served model and its experts.

A round that is unfinished or cannot be read is left out. To add a number of a round, write it to
round.json, read it here, and show it in `rounds.COLUMNS`.
"""

import csv
import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gr_sweep.config import is_number
from gr_sweep.domains import is_under
from gr_sweep.errors import DataError
from gr_sweep.jobdir import DOCUMENT_LOSSES, ROUND, ROUNDS
from gr_sweep.metrics.losses import DocumentLoss, Text, View, read_losses

_UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error, DataError,
    ArithmeticError, RecursionError,
)  # fmt: skip
"""Raised while reading a file that is cut off or holds something else."""

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
    metrics: Mapping[str, float]
    rows: tuple[DocumentLoss, ...] = ()
    """Losses of each document in the served model, and in its own label's expert alone."""
    losses: Mapping[View, Mapping[str, float]] = field(default_factory=dict)
    """The same by view (`served` or `kept`) and domain of the partition."""
    taxes: Mapping[View, Mapping[str, float]] = field(default_factory=dict)
    """The same minus the dense baseline's, on the documents that both read."""


def with_taxes(
    found: Round,
    domains: Sequence[str],
    own: Iterable[DocumentLoss],
    dense: Iterable[DocumentLoss] | None,
) -> Round:
    """The round with `losses` and, if there is a dense baseline, `taxes`.

    Args:
        domains: of the partition.
        own: the job's table, which says to which domain a document belongs if the round's label
            covers several.
        dense: table of the dense baseline.
    """
    known = {(row.domain, row.document) for row in own}
    of_dense = {
        (row.domain, row.document): row
        for row in dense or ()
        if row.view is View.full and row.text is Text.plain
    }
    known |= of_dense.keys()
    rows: dict[tuple[View, str], list[DocumentLoss]] = {}
    for row in found.rows:
        of = [d for d in domains if is_under(row.domain, d) or is_under(d, row.domain)]
        if len(of) > 1:
            of = [domain for domain in of if (domain, row.document) in known]
        for domain in of[:1]:
            rows.setdefault((row.view, domain), []).append(row)
    losses: dict[View, dict[str, float]] = {View.served: {}, View.kept: {}}
    taxes: dict[View, dict[str, float]] = {View.served: {}, View.kept: {}}
    for (view, domain), of_domain in rows.items():
        tokens = sum(row.tokens for row in of_domain)
        if tokens:
            losses[view][domain] = sum(row.loss_nats for row in of_domain) / tokens
        pairs = [
            (row, other)
            for row in of_domain
            if (other := of_dense.get((domain, row.document))) is not None
            and other.tokens == row.tokens
        ]
        tokens = sum(row.tokens for row, _ in pairs)
        if tokens:
            taxes[view][domain] = sum(a.loss_nats - b.loss_nats for a, b in pairs) / tokens
    return dataclasses.replace(found, losses=losses, taxes=taxes)


def read_rounds(job: Path) -> list[Round]:
    """Finished rounds of a job, by number; one that cannot be read is logged."""
    found = []
    for path in (job / ROUNDS).glob(f"*/{ROUND}"):
        try:
            found.append(_read_round(path.parent))
        except _UNREADABLE as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning("%s cannot be read: %s", path.parent, said)
    return sorted(found, key=lambda of: of.number)


def _read_round(folder: Path) -> Round:
    content = json.loads((folder / ROUND).read_text(encoding="utf-8"))
    losses = folder / DOCUMENT_LOSSES
    modularity = content.get("modularity")
    return Round(
        number=int(content["round"]),
        tokens=int(content["tokens"]),
        labels=tuple(map(str, content["labels"])),
        parameters_kept=_numbers(content.get("parameters_kept")),
        modularity=float(modularity) if is_number(modularity) else None,
        metrics=_numbers(content.get("metrics")),
        rows=tuple(
            row
            for row in (read_losses(losses) if losses.exists() else ())
            if row.text is Text.plain
            and (row.view is View.served or (row.view is View.kept and row.part == row.domain))
        ),
    )


def _numbers(values: Any) -> dict[str, float]:
    return {str(name): float(of) for name, of in dict(values or {}).items() if is_number(of)}
