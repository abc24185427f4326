"""Tables of losses, resampled, and the metrics that come from a job's own table.

`LossTables` gives the mean loss of any model on any domain with its resamples; `metrics/compare.py`
uses it for a job and its baselines. Documents with the same text (the same hash) count once.
"""

import math
import operator
import zlib
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gr_sweep.domains import is_under
from gr_sweep.errors import DataError
from gr_sweep.metrics import bootstrap, registry
from gr_sweep.metrics.bootstrap import MISSING, Estimates, Sample, combined, mean_of
from gr_sweep.metrics.formulas import bits_per_byte
from gr_sweep.metrics.losses import DocumentLoss, Text, View


class Read(NamedTuple):
    """A document as one model read it."""

    loss_nats: float
    tokens: int
    bytes: int


class Column(NamedTuple):
    """A model in one state."""

    view: View
    part: str = ""
    run: Hashable = ""
    """Which baseline; empty for the job itself."""


_Columns = dict[Column, dict[str, Read]]


class LossTables:
    """The losses of a job, and of its baselines on the same documents, by domain and text.

    The documents are those of the job. A model that lacks one of them, or a baseline that read
    another length of it, has no loss; documents that only baselines read are left out. Means over
    domains weigh each domain the same; the resamples of domains are independent.
    """

    def __init__(
        self,
        rows: Iterable[DocumentLoss],
        domains: Sequence[str],
        baselines: Mapping[Hashable, Iterable[DocumentLoss]] | None = None,
        *,
        seed: int,
        resamples: int,
    ) -> None:
        """`rows` are the job's, `baselines` those of other runs; other domains are ignored. The
        draws come from domain and seed, whichever other domains there are."""
        self.domains = tuple(domains)
        own: dict[tuple[str, Text], _Columns] = {}
        others: dict[tuple[str, Text], _Columns] = {}
        _add_columns(own, rows, "")
        for run, of_run in (baselines or {}).items():
            _add_columns(others, of_run, run)
        self._losses: dict[tuple[str, Text, Column], Sample] = {}
        self._bits_per_byte: dict[str, Sample] = {}
        self._documents: dict[tuple[str, Text], list[str]] = {}
        self._parts: dict[View, dict[str, None]] = {}
        for (domain, text), columns in own.items():
            if domain in self.domains:
                for column in columns:
                    self._parts.setdefault(column.view, {})[column.part] = None
                rng = np.random.default_rng([seed, zlib.crc32(domain.encode())])
                self._add(domain, text, columns, others.get((domain, text), {}), resamples, rng)

    def _add(
        self,
        domain: str,
        text: Text,
        own: _Columns,
        baselines: _Columns,
        resamples: int,
        rng: np.random.Generator,
    ) -> None:
        """Computes the losses on the documents of one domain, which are resampled together."""
        sizes: dict[str, tuple[int, int]] = {}
        for reads in own.values():
            for document, read in reads.items():
                if sizes.setdefault(document, read[1:]) != read[1:]:
                    raise DataError(
                        f"document {document} of {domain} differs in size between views"
                    )
        # A text of one token has no loss; without it no resample has 0 tokens.
        documents = sorted(document for document in sizes if sizes[document][0] > 0)
        self._documents[domain, text] = documents
        if not documents:
            return
        columns = {**own, **baselines}
        table = np.full((len(documents), len(columns) + 2), np.nan)
        for row, document in enumerate(documents):
            for at, reads in enumerate(columns.values()):
                found = reads.get(document)
                # Losses that are not finite stay nan: 0 x inf would be nan with a warning.
                if found and found[1:] == sizes[document] and math.isfinite(found.loss_nats):
                    table[row, at] = found.loss_nats
            table[row, -2:] = sizes[document]
        has_draws = len(documents) > 1 and resamples > 0
        drawn = bootstrap.resampled_sums(table, resamples, rng) if has_draws else table[:0]
        *sums, tokens, num_bytes = (
            Sample(float(value), drawn[:, at]) for at, value in enumerate(table.sum(axis=0))
        )
        for column, loss in zip(columns, sums, strict=True):
            self._losses[domain, text, column] = combined(operator.truediv, loss, tokens)
        if text is Text.plain and Column(View.full) in own and num_bytes.value > 0:
            loss = sums[list(columns).index(Column(View.full))]
            self._bits_per_byte[domain] = combined(bits_per_byte, loss, num_bytes)

    def parts(self, view: View) -> list[str]:
        """The parts that the job's rows of a view have, in order of appearance."""
        return list(self._parts.get(view, ()))

    def under(self, part: str) -> list[str]:
        """The domains at or below a node of the domain tree."""
        return [domain for domain in self.domains if is_under(domain, part)]

    def outside(self, part: str) -> list[str]:
        """The other domains."""
        return [domain for domain in self.domains if not is_under(domain, part)]

    def removable(self, view: View = View.removed) -> list[str]:
        """The domains, without inner nodes, that were removed while another domain stayed."""
        return [part for part in self.parts(view) if part in self.domains and self.outside(part)]

    def loss(
        self,
        domain: str,
        view: View,
        part: str = "",
        *,
        run: Hashable = "",
        text: Text = Text.plain,
    ) -> Sample:
        """Mean loss on a domain, nats per token."""
        return self._losses.get((domain, text, Column(view, part, run)), MISSING)

    def mean_loss(
        self, domains: Sequence[str], view: View, part: str = "", *, run: Hashable = ""
    ) -> Sample:
        """Mean of `loss` over domains."""
        return mean_of([self.loss(domain, view, part, run=run) for domain in domains])

    def costs(self, view: View, part: str, whole: View = View.full) -> dict[str, Sample]:
        """Loss that a view adds to the full model, or another `whole`, by domain."""
        return {
            domain: self.loss(domain, view, part) - self.loss(domain, whole)
            for domain in self.domains
        }

    def bits_per_byte(self, domain: str) -> Sample:
        """Of the full model."""
        return self._bits_per_byte.get(domain, MISSING)

    def spurious_gap(self, domain: str, view: View, part: str = "") -> Sample:
        """Loss with a swapped marker minus that with the right one, on the same documents."""
        marked, swapped = Text.marked, Text.swapped
        if self._documents.get((domain, marked)) != self._documents.get((domain, swapped)):
            return MISSING
        right, wrong = (self.loss(domain, view, part, text=text) for text in (marked, swapped))
        return wrong - right


def _add_columns(
    columns: dict[tuple[str, Text], _Columns], rows: Iterable[DocumentLoss], run: Hashable
) -> None:
    """Adds rows by domain and text, then by column, then by document."""
    for view, part, domain, text, document, loss_nats, tokens, num_bytes in rows:
        column = columns.setdefault((domain, text), {}).setdefault(Column(view, part, run), {})
        column[document] = Read(loss_nats, tokens, num_bytes)


_LOSSES = {
    View.removed: registry.LOSS_REMOVED,
    View.served_removed: registry.LOSS_SERVED_REMOVED,
    View.kept: registry.LOSS_KEPT,
    View.off: registry.LOSS_OFF,
    View.calibrated_full: registry.LOSS_CALIBRATED_FULL,
    View.calibrated_removed: registry.LOSS_CALIBRATED_REMOVED,
    View.unlearned: registry.LOSS_UNLEARNED,
    View.calibrated_unlearned: registry.LOSS_CALIBRATED_UNLEARNED,
}


def add_own(
    estimates: Estimates, tables: LossTables, blocks: Mapping[str, Collection[str]]
) -> None:
    """Adds the metrics that need no baseline, without their means.

    Args:
        tables: may also hold baselines.
        blocks: as in `summarize_losses`.
    """
    add, domains = estimates.add, tables.domains
    for domain in domains:
        add(registry.LOSS_FULL(domain), tables.loss(domain, View.full))
        add(registry.BITS_PER_BYTE_FULL(domain), tables.bits_per_byte(domain))
        add(registry.LOSS_SERVED(domain), tables.loss(domain, View.served))
        add(registry.LOSS_EXPERT(domain), tables.loss(domain, View.expert))
        add(registry.SPURIOUS_GAP_FULL(domain), tables.spurious_gap(domain, View.full))
        add(registry.SPURIOUS_GAP_KEPT(domain), tables.spurious_gap(domain, View.kept, domain))
    for view, metric in _LOSSES.items():
        for part in tables.parts(view):
            for domain in domains:
                add(metric(part, domain), tables.loss(domain, view, part))

    for part in tables.parts(View.removed):
        costs = tables.costs(View.removed, part)
        for domain, cost in costs.items():
            add(registry.MATRIX(part, domain), cost)
        under, rest = tables.under(part), tables.outside(part)
        if under and rest:
            others = mean_of([combined(lambda cost: np.maximum(cost, 0), costs[d]) for d in rest])
            own = mean_of([costs[domain] for domain in under])
            add(registry.SELECTIVITY(part), own - others)
        for domain, cost in tables.costs(View.served_removed, part, View.served).items():
            add(registry.SERVED_MATRIX(part, domain), cost)

    for block in tables.parts(View.off):
        owners = blocks.get(block, ())
        costs = tables.costs(View.off, block)
        inside = [cost for domain, cost in costs.items() if domain in owners]
        outside = [cost for domain, cost in costs.items() if domain not in owners]
        if inside and outside:
            add(registry.ENTANGLEMENT_INSIDE(block), mean_of(inside))
            add(registry.ENTANGLEMENT_OUTSIDE(block), mean_of(outside))
