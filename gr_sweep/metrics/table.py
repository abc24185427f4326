"""Losses of one domain's documents in several columns, drawn together.

A column is one model in one state; all columns, of a job and of its baselines, are resampled on the
same draws of the same documents, so that differences are paired. Knows nothing of what the columns
mean.
"""

import math
import zlib
from collections.abc import Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from gr_sweep.errors import DataError
from gr_sweep.metrics import bootstrap, utility
from gr_sweep.metrics.bootstrap import Sample

Column = TypeVar("Column", bound=Hashable)


class Read(NamedTuple):
    """A document as one column read it."""

    loss_nats: float
    tokens: int
    bytes: int


class DocumentTable(Generic[Column]):
    """Mean losses of columns with their resamples.

    The documents are those of the job's own columns; a text that occurs twice (the same hash)
    counts once. A column that lacks one of them, or a baseline that read another length of it, has
    no loss; what a baseline read beside them is left out.
    """

    def __init__(
        self,
        own: Mapping[Column, Mapping[str, Read]],
        baselines: Mapping[Column, Mapping[str, Read]] | None = None,
        *,
        domain: str,
        seed: int,
        resamples: int,
    ) -> None:
        """
        Args:
            own: document to loss, a column each, of the job itself.
            baselines: the same of other jobs.
            domain: with the seed, what the draws come from: the same whichever other domains there
                are.

        Raises:
            DataError: a document whose tokens or bytes differ between the job's own columns.
        """
        # A text of one token has no loss and says nothing; without it no resample has 0 tokens.
        sizes = {
            document: read[1:]
            for column in own.values()
            for document, read in column.items()
            if read.tokens > 0
        }
        for column in own.values():
            for document, read in column.items():
                if document in sizes and sizes[document] != read[1:]:
                    raise DataError(
                        f"document {document} of {domain} differs in size between views"
                    )
        self.documents = tuple(sorted(sizes))
        columns = {**own, **(baselines or {})}
        self._at = {column: at for at, column in enumerate(columns)}
        table = np.full((len(sizes), len(columns) + 2), np.nan)
        for at, reads in enumerate(columns.values()):
            for row, document in enumerate(self.documents):
                found = reads.get(document)
                # nan from the start: 0 x inf would be nan as well, with a warning.
                if found and found[1:] == sizes[document] and math.isfinite(found.loss_nats):
                    table[row, at] = found.loss_nats
        for row, document in enumerate(self.documents):
            table[row, -2:] = sizes[document]
        self._sums = table.sum(axis=0)
        if len(sizes) > 1 and resamples > 0:
            rng = np.random.default_rng([seed, zlib.crc32(domain.encode())])
            self._resampled = bootstrap.resampled_sums(table, resamples, rng)
        else:
            self._resampled = table[:0]

    def loss(self, column: Column) -> Sample:
        """Mean loss in nats per token; nan where a document's is missing or not finite."""
        at = self._at.get(column)
        if at is None or self._sums[-2] == 0:
            return bootstrap.MISSING
        return Sample(
            float(self._sums[at] / self._sums[-2]), self._resampled[:, at] / self._resampled[:, -2]
        )

    def bits_per_byte(self, column: Column) -> Sample:
        """The same loss in bits per byte of text."""
        at = self._at.get(column)
        if at is None or self._sums[-1] == 0:
            return bootstrap.MISSING
        return Sample(
            utility.bits_per_byte(float(self._sums[at]), float(self._sums[-1])),
            utility.bits_per_byte(self._resampled[:, at], self._resampled[:, -1]),
        )
