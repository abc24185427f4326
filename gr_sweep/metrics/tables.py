"""Losses of a job and of its baselines, resampled together; the registry's formulas read them.

Every loss is a sample as in `metrics/bootstrap.py`. Documents with the same text (the same hash)
count once.
"""

import functools
import math
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gr_sweep.config import Baseline
from gr_sweep.domains import is_under
from gr_sweep.metrics import bootstrap, formulas
from gr_sweep.metrics.bootstrap import FloatArray
from gr_sweep.metrics.losses import DocumentLoss, Text, View

Run = tuple[Baseline, str | float]
"""A baseline: its kind, and the domain or node that it is without or alone on, or its share of the
dense run's tokens."""

DENSE: Run = (Baseline.dense, 1.0)


class _Column(NamedTuple):
    """A model in one state."""

    view: View
    part: str
    run: Run | None
    """None for the job itself."""


_Reads = dict[_Column, dict[str, tuple[float, tuple[int, int]]]]
"""Loss of each document as a model read it, and the document's tokens and bytes."""


class Node(str):
    """A node of the domain tree, which stands for the domains at or below it. A domain may have the
    same name, and then stands for its own text alone."""


class LossTables:
    """The losses of a job, and of its baselines on the same documents, by domain and text.

    The documents are those of the job. A model that lacks one of them, or read another length of
    it, has no loss (nan); documents that only baselines read are left out. The loss on a node of
    the domain tree is the mean over the domains under it, each with the same weight. The resamples
    of domains are independent; a domain with a single document has none.
    """

    def __init__(
        self,
        rows: Iterable[DocumentLoss],
        domains: Sequence[str],
        baselines: Mapping[Run, Iterable[DocumentLoss]],
        *,
        seed: int,
        resamples: int,
        blocks: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """The draws of a domain come from its name and `seed`, whichever other domains there are.

        Args:
            rows: the job's; other domains than `domains` are ignored.
            blocks: the owners of each block that was switched off alone, by its name.
        """
        self.domains, self.blocks = tuple(domains), blocks or {}
        self.missing = np.full(1 + resamples, np.nan)
        """The sample of a number that cannot be computed."""
        self._shares = sorted(float(of) for kind, of in baselines if kind is Baseline.compute)
        self._losses: dict[tuple[str, Text, _Column], FloatArray] = {}
        self._bits_per_byte: dict[str, FloatArray] = {}
        self._documents: dict[tuple[str, Text], list[str]] = {}
        tables: dict[tuple[str, Text], _Reads] = {}
        runs: list[tuple[Run | None, Iterable[DocumentLoss]]] = [(None, rows), *baselines.items()]
        for run, of_run in runs:
            for view, part, domain, text, document, loss, tokens, num_bytes in of_run:
                column = _Column(view, part, run)
                reads = tables.setdefault((domain, text), {}).setdefault(column, {})
                reads[document] = loss, (tokens, num_bytes)
        for (domain, text), table in tables.items():
            if domain in self.domains:
                rng = np.random.default_rng([seed, zlib.crc32(domain.encode())])
                self._add(domain, text, table, rng)
        own = [column for *_, column in self._losses if column.run is None]
        without = [str(part) for kind, part in baselines if kind is Baseline.filtered]
        self.parts = list(dict.fromkeys([*(c.part for c in own if c.part), *without]))
        """The parts that the job's views, and filtered baselines, are without or alone on."""
        self._views = {(column.view, column.part) for column in own}

    def _add(self, domain: str, text: Text, table: _Reads, rng: np.random.Generator) -> None:
        """Computes the losses on the documents of one domain, which are resampled together."""
        sizes: dict[str, tuple[int, int]] = {}
        for column, reads in table.items():
            if column.run is None:
                sizes |= {document: size for document, (_, size) in reads.items()}
        # A text of one token has no loss; without it no resample has 0 tokens.
        documents = sorted(document for document, (tokens, _) in sizes.items() if tokens > 0)
        self._documents[domain, text] = documents
        if not documents:
            return
        values = np.full((len(documents), len(table) + 2), np.nan)
        for row, document in enumerate(documents):
            for at, reads in enumerate(table.values()):
                loss, size = reads.get(document, (math.nan, None))
                # An infinite loss stays nan: 0 x inf would be nan with a warning.
                if size == sizes[document] and math.isfinite(loss):
                    values[row, at] = loss
            values[row, -2:] = sizes[document]
        resamples = len(self.missing) - 1
        drawn = np.full((resamples, values.shape[1]), np.nan)
        if len(documents) > 1:
            drawn = bootstrap.resampled_sums(values, resamples, rng)
        *sums, tokens, num_bytes = np.vstack([values.sum(axis=0), drawn]).T.copy()
        for column, summed in zip(table, sums, strict=True):
            self._losses[domain, text, column] = summed / tokens
            if text is Text.plain and column == (View.full, "", None):
                self._bits_per_byte[domain] = summed / (math.log(2) * num_bytes)

    def under(self, part: str) -> list[str]:
        """The domains at or below a node of the domain tree."""
        return [domain for domain in self.domains if is_under(domain, part)]

    def outside(self, part: str) -> list[str]:
        """The other domains."""
        return [domain for domain in self.domains if not is_under(domain, part)]

    def removed_domains(self) -> list[str]:
        """The domains, without inner nodes, that were removed, or else unlearned, while another
        domain stayed."""
        domains = [part for part in self.parts if part in self.domains and self.outside(part)]
        removed = [part for part in domains if (View.removed, part) in self._views]
        return removed or [part for part in domains if (View.unlearned, part) in self._views]

    def mean(self, samples: Sequence[FloatArray]) -> FloatArray:
        """Mean with equal weights; nan where one of the samples is, or there are none."""
        return sum(samples[1:], start=samples[0]) / len(samples) if samples else self.missing

    def loss(
        self, view: View, *names: str, run: Run | None = None, text: Text = Text.plain
    ) -> FloatArray:
        """Mean loss in nats per token; `names` are the part, if the view has one, and the domain or
        `Node` of the domain tree whose text is read."""
        *part, last = names
        column = _Column(view, "".join(part), run)
        domains = self.under(last) if isinstance(last, Node) else [last]
        keys = [(domain, text, column) for domain in domains]
        return self.mean([self._losses.get(key, self.missing) for key in keys])

    full = functools.partialmethod(loss, View.full)
    served = functools.partialmethod(loss, View.served)
    expert = functools.partialmethod(loss, View.expert)
    kept = functools.partialmethod(loss, View.kept)
    removed = functools.partialmethod(loss, View.removed)
    served_removed = functools.partialmethod(loss, View.served_removed)
    unlearned = functools.partialmethod(loss, View.unlearned)
    dense = functools.partialmethod(loss, View.full, run=DENSE)
    ratio = staticmethod(formulas.ratio)
    removal = staticmethod(formulas.removal)

    def filtered(self, part: str, node: str) -> FloatArray:
        """Loss of the model that was never trained on a part."""
        return self.loss(View.full, node, run=(Baseline.filtered, part))

    def alone_tax(self, domain: str) -> FloatArray:
        """Loss of a domain's expert minus that of a dense model of its size trained on it alone."""
        # Where rounds have split a domain, its experts have the size of the baseline.
        is_split = (View.expert, "") in self._views
        own = self.expert(domain) if is_split else self.kept(domain, domain)
        return own - self.loss(View.full, domain, run=(Baseline.alone, domain))

    def bits_per_byte(self, domain: str) -> FloatArray:
        """Of the full model."""
        return self._bits_per_byte.get(domain, self.missing)

    def calibrated_removal(self, part: str) -> FloatArray:
        """Removal, or removal by unlearning, with a bias fitted to each model."""
        is_unlearned = (View.calibrated_unlearned, part) in self._views
        left = View.calibrated_unlearned if is_unlearned else View.calibrated_removed
        full, filtered = (
            self.loss(View.calibrated_full, part, part, run=run)
            for run in (None, (Baseline.filtered, part))
        )
        return self.removal(full, self.loss(left, part, part), filtered)

    def leakage(self, part: str) -> FloatArray:
        """What is left of what the part's text without its label could teach."""
        filtered = self.filtered(part, part)
        observed = self.loss(View.full, part, run=(Baseline.filtered_observed, part))
        return self.ratio(filtered - self.removed(part, part), filtered - observed)

    def compute_equivalent(self, loss: FloatArray, node: str) -> FloatArray:
        """Share of the dense run's tokens at which it reaches a loss on a domain or node. In a
        resample in which no run is as bad, the first share counts."""
        if not self._shares:
            return self.missing
        runs = [*((Baseline.compute, share) for share in self._shares), DENSE]
        curve = [self.loss(View.full, node, run=run) for run in runs]
        found = formulas.compute_equivalent(loss, [*self._shares, 1.0], curve)
        is_below = np.isnan(found[1:]) & np.isfinite(loss[1:])
        found[1:] = np.where(is_below, self._shares[0], found[1:])
        return found

    def selectivity(self, part: str) -> FloatArray:
        """What removing a part costs it, minus what it costs the others."""
        own = [self.removed(part, d) - self.full(d) for d in self.under(part)]
        others = [self.removed(part, d) - self.full(d) for d in self.outside(part)]
        return self.mean(own) - self.mean([np.maximum(cost, 0) for cost in others])

    def entanglement(self, block: str) -> tuple[FloatArray, FloatArray]:
        """Loss that switching a block off adds on its owners and on the other domains."""
        owners = self.blocks.get(block, ())
        costs = [self.loss(View.off, block, d) - self.full(d) for d in self.domains]
        inside = [cost for d, cost in zip(self.domains, costs, strict=True) if d in owners]
        outside = [cost for d, cost in zip(self.domains, costs, strict=True) if d not in owners]
        if not inside or not outside:
            return self.missing, self.missing
        return self.mean(inside), self.mean(outside)

    def spurious_gap(self, view: View, *names: str) -> FloatArray:
        """Loss with a swapped marker minus that with the right one, on the same documents."""
        marked, swapped = (
            (self._documents.get((names[-1], text)), self.loss(view, *names, text=text))
            for text in (Text.marked, Text.swapped)
        )
        return swapped[1] - marked[1] if marked[0] == swapped[0] else self.missing
