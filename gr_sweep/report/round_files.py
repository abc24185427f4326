"""Reads what a job of `procedure=alternate` leaves of each round, and computes the losses of its
experts.

A round that is unfinished or cannot be read is logged and left out. To add a number of a round,
write it to round.json, read it here, and show it in `rounds.COLUMNS`.
"""

import csv
import dataclasses
import json
import logging
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gr_sweep.config import is_number
from gr_sweep.domains import is_under
from gr_sweep.errors import DataError, PlanError
from gr_sweep.jobdir import DOCUMENT_LOSSES, PLAN
from gr_sweep.metrics import registry
from gr_sweep.metrics.losses import DocumentLoss, Text, View, read_losses
from gr_sweep.routing.plan import RoutePlan

_UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile,
    csv.Error, DataError, PlanError, ArithmeticError, RecursionError,
)  # fmt: skip
"""Raised while reading a file that is cut off or holds something else."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of the round's plan."""

    name: str
    owners: tuple[str, ...]
    units: Mapping[str, int]
    """Number of units over all layers, by kind."""
    is_core: bool


@dataclass(frozen=True, kw_only=True)
class Network:
    """Which units belong to which block, and how much each domain uses each unit."""

    plan: RoutePlan
    domains: tuple[str, ...]
    shares: Mapping[tuple[int, str], np.ndarray]
    """By layer and kind, [domains, units]: the unit's fraction of the domain's attribution."""

    def sizes(self, place: tuple[int, str]) -> tuple[int, ...]:
        """Units of each block in a layer and kind. A layer that is not split is all core."""
        split = self.plan.splits.get(place)
        if split is not None:
            return split.sizes
        return (self.shares[place].shape[1], *(0 for _ in self.plan.blocks[1:]))


@dataclass(frozen=True, kw_only=True)
class Round:
    """A finished round."""

    number: int
    """Counted from 1."""
    tokens: int
    """Training tokens up to its end."""
    labels: tuple[str, ...]
    blocks: tuple[Block, ...]
    parameters_kept: Mapping[str, float]
    """Parameters of each label's expert alone."""
    modularity_assigned: float | None
    modularity: float | None
    stability: Mapping[str, float]
    """By kind of units."""
    metrics: Mapping[str, float]
    rows: tuple[DocumentLoss, ...] = ()
    """Losses of the full model, and of experts on their own documents."""
    network: Network | None = None
    leaf_loss: Mapping[str, float] = field(default_factory=dict)
    """Loss of each document in its own label's expert alone, by domain of the partition."""
    leaf_tax: Mapping[str, float] = field(default_factory=dict)
    """The same minus the dense baseline's, on the documents that both read."""

    @property
    def kinds(self) -> list[str]:
        """Kinds of units that the plan splits."""
        return list(dict.fromkeys(kind for block in self.blocks for kind in block.units))

    @property
    def selectivities(self) -> list[float]:
        """Of the labels that have one."""
        found = (self.metrics.get(registry.SELECTIVITY(label)) for label in self.labels)
        return [value for value in found if value is not None]

    @property
    def mean_parameters(self) -> float | None:
        """Mean over the labels' experts alone."""
        return mean_over(self.parameters_kept, self.labels)

    @property
    def mean_stability(self) -> float | None:
        """Mean over the kinds that the plan splits."""
        found = [self.stability[kind] for kind in self.kinds if kind in self.stability]
        return sum(found) / len(found) if found else None

    def losses(self, block: Block) -> tuple[float | None, float | None]:
        """Loss on a block's documents, nats per token: in the block's expert alone, and in the full
        model. The core's documents are read each by its own label's expert."""
        part = None
        if len(block.owners) == 1:
            part = block.owners[0]
        elif not block.is_core and any(row.part == block.name for row in self.rows):
            part = block.name
        rows = [row for row in self.rows if row.domain in block.owners]
        own = [
            row
            for row in rows
            if row.view is View.kept and row.part == (row.domain if part is None else part)
        ]
        return _loss(own), _loss([row for row in rows if row.view is View.full])


def mean_over(by_domain: Mapping[str, float], domains: Sequence[str]) -> float | None:
    """Mean over domains or labels; None if one lacks the number."""
    if not domains or any(domain not in by_domain for domain in domains):
        return None
    return sum(by_domain[domain] for domain in domains) / len(domains)


def with_leaf_tax(
    found: Round,
    domains: Sequence[str],
    own: Iterable[DocumentLoss],
    dense: Iterable[DocumentLoss] | None,
) -> Round:
    """The round with `leaf_loss` and, if there is a dense baseline, `leaf_tax`.

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
    rows: dict[str, list[DocumentLoss]] = {}
    for row in found.rows:
        if row.view is not View.kept or row.part != row.domain:
            continue
        of = [d for d in domains if is_under(row.domain, d) or is_under(d, row.domain)]
        if len(of) > 1:
            of = [domain for domain in of if (domain, row.document) in known]
        for domain in of[:1]:
            rows.setdefault(domain, []).append(row)
    leaf_loss, leaf_tax = {}, {}
    for domain, of_domain in rows.items():
        loss = _loss(of_domain)
        if loss is not None:
            leaf_loss[domain] = loss
        pairs = [
            (row, other)
            for row in of_domain
            if (other := of_dense.get((domain, row.document))) is not None
            and other.tokens == row.tokens
        ]
        tokens = sum(row.tokens for row, _ in pairs)
        if tokens:
            leaf_tax[domain] = sum(a.loss_nats - b.loss_nats for a, b in pairs) / tokens
    return dataclasses.replace(found, leaf_loss=leaf_loss, leaf_tax=leaf_tax)


def read_rounds(job: Path) -> list[Round]:
    """Finished rounds of a job, by number."""
    folder = job / "rounds"
    if not folder.is_dir():
        return []
    found = []
    for entry in sorted(
        (e for e in folder.iterdir() if e.name.isdecimal()), key=lambda e: int(e.name)
    ):
        if not (entry / "round.json").is_file():
            continue  # Unfinished.
        try:
            found.append(_read_round(entry))
        except _UNREADABLE as error:
            logger.warning("%s cannot be read: %s: %s", entry, type(error).__name__, error)
    return found


def _read_round(folder: Path) -> Round:
    content = json.loads((folder / "round.json").read_text(encoding="utf-8"))
    core = content["blocks"][0]["name"]
    return Round(
        number=int(content["round"]),
        tokens=int(content["tokens"]),
        labels=tuple(map(str, content["labels"])),
        blocks=tuple(
            Block(
                name=str(block["name"]),
                owners=tuple(map(str, block["owners"])),
                units={str(kind): int(size) for kind, size in block["units"].items()},
                is_core=block["name"] == core,
            )
            for block in content["blocks"]
        ),
        parameters_kept=_numbers(content.get("parameters_kept")),
        modularity_assigned=_number(content.get("modularity_assigned")),
        modularity=_number(content.get("modularity")),
        stability=_numbers(content.get("stability")),
        metrics=_numbers(content.get("metrics")),
        rows=tuple(_read_rows(folder / DOCUMENT_LOSSES)),
        network=_read_network(folder),
    )


def _read_rows(path: Path) -> list[DocumentLoss]:
    if not path.is_file():
        return []
    try:
        rows = read_losses(path)
    except _UNREADABLE as error:
        logger.warning("%s cannot be read: %s", path, error)
        return []
    return [
        row
        for row in rows
        if row.text is Text.plain
        and (row.view is View.full or (row.view is View.kept and is_under(row.domain, row.part)))
    ]


def _read_network(folder: Path) -> Network | None:
    plan_path, scores = folder / PLAN, folder / "scores.npz"
    if not (plan_path.is_file() and scores.is_file()):
        return None
    try:
        plan = RoutePlan.from_json(plan_path.read_text(encoding="utf-8"))
        kinds = {kind for _, kind in plan.splits}
        shares = {}
        with np.load(scores, allow_pickle=False) as file:
            domains = tuple(map(str, file["domains"]))
            for name in file.files:
                layer, _, kind = name.partition(".")
                if kind in kinds:
                    shares[int(layer), kind] = np.asarray(file[name], dtype=np.float32)
        network = Network(plan=plan, domains=domains, shares=shares)
        for place, of_place in shares.items():
            if of_place.shape != (len(domains), sum(network.sizes(place))):
                raise ValueError(f"the scores of {place} have shape {of_place.shape}")
    except _UNREADABLE as error:
        logger.warning("%s: no picture of its units: %s", folder, error)
        return None
    return network if shares else None


def _loss(rows: Sequence[DocumentLoss]) -> float | None:
    tokens = sum(row.tokens for row in rows)
    return sum(row.loss_nats for row in rows) / tokens if tokens else None


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _numbers(values: Any) -> dict[str, float]:
    found = ((str(name), _number(value)) for name, value in dict(values or {}).items())
    return {name: value for name, value in found if value is not None}
