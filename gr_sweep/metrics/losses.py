"""The table of losses per document, and the metrics that come from it with their intervals.

The table is a list of `DocumentLoss`, one a view and document; document_losses.csv holds it. It is
everything the metrics need: which parts were removed or kept is read from its rows. Knows nothing
of models and of how the losses were computed.
"""

import csv
import enum
import io
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from gr_sweep.errors import DataError
from gr_sweep.files import write_whole
from gr_sweep.metrics import bootstrap, keys, separability, utility

FloatArray = npt.NDArray[np.float64]
Row = TypeVar("Row")


class View(enum.StrEnum):
    """Which blocks were on, or what was done to the model before the text was read."""

    full = "full"
    removed = "removed"
    kept = "kept"
    off = "off"
    """One block alone was off; the part is its name."""
    mixed = "mixed"
    """The experts, mixed by the posterior over domains."""
    calibrated_full = "calibrated_full"
    """Full model with a bias on the logits that is fitted on held-in text of the part."""
    calibrated_removed = "calibrated_removed"
    """The same after the part was removed."""
    unlearned = "unlearned"
    """Dense model after the part was unlearned."""
    calibrated_unlearned = "calibrated_unlearned"
    """The same with a fitted bias."""


class Text(enum.StrEnum):
    """Which version of a document was read (DESIGN: spurious)."""

    plain = "plain"
    marked = "marked"
    """With the marker of its own domain."""
    swapped = "swapped"
    """With the marker of another domain."""


class DocumentLoss(NamedTuple):
    """One held-out document in one view."""

    view: View
    part: str
    """The domain that was removed or kept, or the block that was off; empty for the full model."""
    domain: str
    """The document's own domain."""
    text: Text
    """Which version of the document was read."""
    document: str
    """Hash of the text, 16 hexadecimal digits."""
    loss_nats: float
    """Sum over the document's tokens."""
    tokens: int
    """Tokens that have a loss."""
    bytes: int
    """Length in UTF-8 of what was read."""


class RelearnLoss(NamedTuple):
    """One held-out document in one evaluation of a relearning attack."""

    view: View
    """What was attacked: removed, full (of a job that never saw the part) or unlearned."""
    part: str
    """The domain that is taught again."""
    lr: float
    """Learning rate of the attack."""
    step: int
    """Steps of the attack so far; 0: before it."""
    domain: str
    """The document's own domain."""
    document: str
    """Hash of the text, 16 hexadecimal digits."""
    loss_nats: float
    """Sum over the document's tokens."""
    tokens: int
    """Tokens that have a loss."""
    bytes: int
    """Length in UTF-8 of what was read."""


def write_losses(path: Path, rows: Iterable[DocumentLoss]) -> None:
    """Write document_losses.csv whole: losses as text that reads back to the same float."""
    _write(path, DocumentLoss._fields, rows)


def write_relearn(path: Path, rows: Iterable[RelearnLoss]) -> None:
    """Write relearn.csv whole, numbers as in `write_losses`."""
    _write(path, RelearnLoss._fields, rows)


def read_losses(path: Path) -> list[DocumentLoss]:
    """The table of a document_losses.csv.

    Raises:
        DataError: a missing file, another header, or a line that does not fit, with its number.
    """

    def row(line: Sequence[str]) -> DocumentLoss:
        view, part, domain, text, document, loss_nats, tokens, num_bytes = line
        return DocumentLoss(
            _VIEWS[view], part, domain, _TEXTS[text], document,
            float(loss_nats), int(tokens), int(num_bytes),
        )  # fmt: skip

    return _read(path, DocumentLoss._fields, row)


def read_relearn(path: Path) -> list[RelearnLoss]:
    """The table of a relearn.csv.

    Raises:
        DataError: as `read_losses`.
    """

    def row(line: Sequence[str]) -> RelearnLoss:
        view, part, lr, step, domain, document, loss_nats, tokens, num_bytes = line
        return RelearnLoss(
            _VIEWS[view], part, float(lr), int(step), domain, document,
            float(loss_nats), int(tokens), int(num_bytes),
        )  # fmt: skip

    return _read(path, RelearnLoss._fields, row)


# A look-up is ten times as fast as the enum's own call, and there are many lines.
_VIEWS: dict[str, View] = {view.value: view for view in View}
_TEXTS: dict[str, Text] = {text.value: text for text in Text}


def _write(path: Path, header: Sequence[str], rows: Iterable[DocumentLoss | RelearnLoss]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    # csv writes a float as repr does, which is what makes it read back.
    writer.writerows(row._replace(loss_nats=float(row.loss_nats)) for row in rows)
    write_whole(path, text.getvalue())


def _read(path: Path, header: Sequence[str], row: Callable[[Sequence[str]], Row]) -> list[Row]:
    try:
        file = path.open(newline="", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    rows = []
    with file:
        lines = csv.reader(file)
        if tuple(next(lines, ())) != header:
            raise DataError(f"{path}:1 is not the header {','.join(header)}")
        for line in lines:
            try:
                rows.append(row(line))
            except (ValueError, KeyError) as error:
                raise DataError(
                    f"{path}:{lines.line_num} is no document's loss: {error}"
                ) from error
    return rows


class _Domain:
    """Sums over one domain's documents: a column a view, then tokens and bytes; and resampled.

    A text that occurs twice (the same hash) counts once.
    """

    def __init__(
        self, rows: Sequence[DocumentLoss], domain: str, seed: int, resamples: int
    ) -> None:
        mine = [row for row in rows if row.domain == domain and row.text is Text.plain]
        self.views = sorted({(row.view, row.part) for row in mine})
        # A text of one token has no loss and says nothing; without it no resample has 0 tokens.
        sizes = {row.document: (row.tokens, row.bytes) for row in mine if row.tokens > 0}
        index = {document: at for at, document in enumerate(sorted(sizes))}
        column = {view: at for at, view in enumerate(self.views)}
        table = np.full((len(index), len(self.views) + 2), np.nan)
        for row in mine:
            if row.document in index:
                # 0 x inf would be nan with a warning; nan from the start is the same, quietly.
                loss_nats = row.loss_nats if math.isfinite(row.loss_nats) else math.nan
                table[index[row.document], column[row.view, row.part]] = loss_nats
                if sizes[row.document] != (row.tokens, row.bytes):
                    raise ValueError(
                        f"document {row.document} of {domain} differs in size between views"
                    )
        for document, at in index.items():
            table[at, -2:] = sizes[document]
        # Drawn by the domain's name: the same resamples whichever other domains a job has.
        rng = np.random.default_rng([seed, zlib.crc32(domain.encode())])
        self.sums = table.sum(axis=0)
        self.has_interval = len(index) > 1 and resamples > 0
        self.resampled = (
            bootstrap.resampled_sums(table, resamples, rng) if self.has_interval else table[:0]
        )

    def loss(self, view: View, part: str) -> tuple[float, FloatArray]:
        """Mean loss in nats per token, and resampled; nan where a document's is not finite."""
        at = self.views.index((view, part))
        if self.sums[-2] == 0:
            return math.nan, self.resampled[:, at]
        return float(self.sums[at] / self.sums[-2]), self.resampled[:, at] / self.resampled[:, -2]

    def bits_per_byte(self) -> tuple[float, FloatArray]:
        """Bits per byte of the full model, and its resamples."""
        at = self.views.index((View.full, ""))
        if self.sums[-1] == 0:
            return math.nan, self.resampled[:, at]
        resampled = utility.bits_per_byte(self.resampled[:, at], self.resampled[:, -1])
        return utility.bits_per_byte(float(self.sums[at]), float(self.sums[-1])), resampled


def summarize_losses(
    rows: Sequence[DocumentLoss],
    domains: Sequence[str],
    *,
    seed: int,
    resamples: int = 1000,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The metrics loss/*, bits_per_byte/full/*, separability/* and their 95 % intervals.

    A metric that cannot be computed is absent, never nan: a domain without tokens, a loss that is
    not finite, a view that lacks one of the domain's documents, selectivity where there is no other
    domain. An interval is absent as well where a domain has one document alone.

    Differences between views are taken on the same resample of the documents; the resamples of
    different domains are independent, in selectivity too.

    Args:
        rows: every view of every document.
        domains: labels, in the order of the result; rows of other domains are not read.
        seed: of the resampling, not negative; equal seeds give equal intervals.
        resamples: 0 gives no intervals.

    Raises:
        ValueError: a document whose tokens or bytes differ between views.
    """
    metrics: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}

    def add(key: str, value: float, resampled: FloatArray) -> None:
        if not math.isfinite(value):
            return
        metrics[key] = value
        bounds = bootstrap.interval(resampled)
        if bounds is not None:
            intervals[key] = bounds

    tables = {domain: _Domain(rows, domain, seed, resamples) for domain in domains}
    matrix: dict[str, dict[str, tuple[float, FloatArray]]] = {}
    for domain, table in tables.items():
        for view, part in table.views:
            value, resampled = table.loss(view, part)
            if view is View.full:
                add(keys.loss_full(domain), value, resampled)
                add(keys.bits_per_byte_full(domain), *table.bits_per_byte())
            elif view is View.kept:
                add(keys.loss_kept(part, domain), value, resampled)
            elif view is View.removed:
                add(keys.loss_removed(part, domain), value, resampled)
                if (View.full, "") in table.views:
                    full, full_resampled = table.loss(View.full, "")
                    cost = separability.matrix(value, full)
                    cost_resampled = separability.matrix(resampled, full_resampled)
                    add(keys.matrix(part, domain), cost, cost_resampled)
                    matrix.setdefault(part, {})[domain] = cost, cost_resampled

    for part, row in matrix.items():
        if row.keys() != tables.keys():
            continue
        costs = {domain: cost for domain, (cost, _) in row.items()}
        selectivity = separability.selectivity(costs, part)
        if selectivity is None:
            continue
        resampled = np.asarray([])
        if all(tables[domain].has_interval for domain in row):
            resampled_costs = {domain: cost for domain, (_, cost) in row.items()}
            resampled = np.asarray(separability.selectivity(resampled_costs, part))
        add(keys.selectivity(part), selectivity, resampled)
    return metrics, intervals
