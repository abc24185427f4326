"""The table of losses per document, and the metrics that come from it with their intervals.

The table is a list of `DocumentLoss`, one a view and document; document_losses.csv holds it. It is
everything the metrics need: which parts were removed or kept is read from its rows. Knows nothing
of models and of how the losses were computed.
"""

import csv
import enum
import io
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gr_sweep.config import LARGEST
from gr_sweep.domains import is_under
from gr_sweep.errors import DataError
from gr_sweep.files import write_whole
from gr_sweep.metrics import registry, robustness, separability
from gr_sweep.metrics.bootstrap import MISSING, Estimates, Sample, combined
from gr_sweep.metrics.table import DocumentTable, Read

Row = TypeVar("Row")


class View(enum.StrEnum):
    """Which blocks were on, or what was done to the model before the text was read."""

    full = "full"
    removed = "removed"
    kept = "kept"
    off = "off"
    """One block alone was off; the part is its name."""
    expert = "expert"
    """Of `alternate`: each document by its own label's expert alone, whose label may lie below the
    document's domain."""
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
            float(loss_nats), _size(tokens), _size(num_bytes),
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
            float(loss_nats), _size(tokens), _size(num_bytes),
        )  # fmt: skip

    return _read(path, RelearnLoss._fields, row)


def _size(text: str) -> int:
    size = int(text)
    if not 0 <= size <= LARGEST:
        raise ValueError(f"a size of {text}")
    return size


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
        try:
            if tuple(next(lines, ())) != header:
                raise DataError(f"{path}:1 is not the header {','.join(header)}")
            for line in lines:
                rows.append(row(line))
        except (ValueError, KeyError, csv.Error, OSError) as error:
            raise DataError(
                f"{path}:{max(lines.line_num, 1)} is no document's loss: {error}"
            ) from error
    return rows


class LossColumn(NamedTuple):
    """A model in one state."""

    view: View
    part: str = ""
    run: Hashable = ""
    """Which baseline; empty for the job itself."""


class LossTables:
    """The losses of a job, and of its baselines on the same documents, a domain at a time.

    A mean over several domains weighs each the same; their resamples are independent.
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
        """
        Args:
            rows: of the job; rows of other domains are not read.
            baselines: rows by run.

        Raises:
            DataError: a document of the job whose tokens or bytes differ between views.
        """
        self.domains = tuple(domains)
        own = _columns(rows, "")
        others: dict[tuple[str, Text], _Columns] = {}
        for run, of_run in (baselines or {}).items():
            for place, columns in _columns(of_run, run).items():
                others.setdefault(place, {}).update(columns)
        self._tables = {
            (domain, text): DocumentTable(
                own[domain, text],
                others.get((domain, text)),
                domain=domain,
                seed=seed,
                resamples=resamples,
            )
            for domain in domains
            for text in Text
            if (domain, text) in own
        }
        self._parts: dict[View, list[str]] = {}
        for (domain, _), found in own.items():
            for column in found if domain in domains else ():
                parts = self._parts.setdefault(column.view, [])
                if column.part not in parts:
                    parts.append(column.part)

    def parts(self, view: View) -> list[str]:
        """The parts that the job's rows of a view have, in order of appearance."""
        return self._parts.get(view, [])

    def under(self, part: str) -> list[str]:
        """The domains at or below a node of the tree."""
        return [domain for domain in self.domains if is_under(domain, part)]

    def beside(self, part: str) -> list[str]:
        """The other domains."""
        return [domain for domain in self.domains if not is_under(domain, part)]

    def removable(self, view: View = View.removed) -> list[str]:
        """The domains, inner nodes aside, that were removed where another domain stayed."""
        return [part for part in self.parts(view) if part in self.domains and self.beside(part)]

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
        table = self._tables.get((domain, text))
        return MISSING if table is None else table.loss(LossColumn(view, part, run))

    def mean_loss(
        self, domains: Sequence[str], view: View, part: str = "", *, run: Hashable = ""
    ) -> Sample:
        """Mean over domains of `loss`."""
        return mean_of([self.loss(domain, view, part, run=run) for domain in domains])

    def bits_per_byte(self, domain: str) -> Sample:
        """Of the full model."""
        table = self._tables.get((domain, Text.plain))
        return MISSING if table is None else table.bits_per_byte(LossColumn(View.full))

    def spurious_gap(self, domain: str, view: View, part: str = "") -> Sample:
        """Loss with a swapped marker less that with the right one, on the same documents."""
        marked, swapped = (self._tables.get((domain, text)) for text in (Text.marked, Text.swapped))
        if marked is None or swapped is None or marked.documents != swapped.documents:
            return MISSING
        column = LossColumn(view, part)
        return combined(robustness.spurious_gap, swapped.loss(column), marked.loss(column))


def mean_of(samples: Sequence[Sample]) -> Sample:
    """Mean of samples, each weighing the same; missing where one is or there are none."""
    if not samples:
        return MISSING
    return combined(lambda *values: separability.mean(values), *samples)


_Columns = dict[LossColumn, dict[str, Read]]


def _columns(rows: Iterable[DocumentLoss], run: Hashable) -> dict[tuple[str, Text], _Columns]:
    """Rows by domain and text, then by column, then by document."""
    found: dict[tuple[str, Text], _Columns] = {}
    for view, part, domain, text, document, loss_nats, tokens, num_bytes in rows:
        columns = found.setdefault((domain, text), {})
        column = columns.setdefault(LossColumn(view, part, run), {})
        column[document] = Read(loss_nats, tokens, num_bytes)
    return found


def summarize_losses(
    rows: Sequence[DocumentLoss],
    domains: Sequence[str],
    *,
    seed: int,
    resamples: int = 1000,
    blocks: Mapping[str, Collection[str]] | None = None,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The metrics that a job's own table holds, and their 95 % intervals.

    They are loss/*, bits_per_byte/full/*, separability/{matrix,selectivity,entanglement}/*,
    robustness/spurious_gap/*, mean_loss and mean_selectivity. A metric that cannot be computed is
    absent, never nan: a domain without tokens, a loss that is not finite, a view that lacks one of
    the domain's documents, selectivity where there is no other domain, a mean where one of the
    domains lacks the metric. An interval is absent as well where a domain has one document alone.

    Differences between views are taken on the same resample of the documents; the resamples of
    different domains are independent, in selectivity too.

    Args:
        rows: every view of every document.
        domains: labels, in the order of the result; rows of other domains are not read.
        seed: of the resampling, not negative; equal seeds give equal intervals.
        resamples: 0 gives no intervals.
        blocks: the domains that own each block that was switched off alone, by its name; without
            it there is no entanglement.

    Raises:
        DataError: a document whose tokens or bytes differ between views.
    """
    estimates = Estimates()
    add_own(estimates, LossTables(rows, domains, seed=seed, resamples=resamples), blocks or {})
    return estimates.metrics, estimates.intervals


def add_own(
    estimates: Estimates, tables: LossTables, blocks: Mapping[str, Collection[str]]
) -> None:
    """Adds the metrics of `summarize_losses` from tables that may hold baselines as well."""
    domains = tables.domains
    for domain in domains:
        estimates.add(registry.LOSS_FULL(domain), tables.loss(domain, View.full))
        estimates.add(registry.BITS_PER_BYTE_FULL(domain), tables.bits_per_byte(domain))
        estimates.add(registry.LOSS_MIXED(domain), tables.loss(domain, View.mixed))
        estimates.add(registry.LOSS_EXPERT(domain), tables.loss(domain, View.expert))
        gap = tables.spurious_gap(domain, View.full)
        estimates.add(registry.SPURIOUS_GAP_FULL(domain), gap)
        gap = tables.spurious_gap(domain, View.kept, domain)
        estimates.add(registry.SPURIOUS_GAP_KEPT(domain), gap)
    estimates.add(registry.MEAN_LOSS, tables.mean_loss(domains, View.full))
    for view, key in _KEYS_OF_LOSSES.items():
        for part in tables.parts(view):
            for domain in domains:
                estimates.add(key(part, domain), tables.loss(domain, view, part))

    selectivities = {}
    for part in tables.parts(View.removed):
        costs = _costs(tables, View.removed, part)
        for domain, cost in costs.items():
            estimates.add(registry.MATRIX(part, domain), cost)
        if tables.under(part) and tables.beside(part):
            selectivities[part] = _selectivity(costs, part)
            estimates.add(registry.SELECTIVITY(part), selectivities[part])
    mean = mean_of([selectivities[part] for part in tables.removable()])
    estimates.add(registry.MEAN_SELECTIVITY, mean)

    for block in tables.parts(View.off):
        owners = blocks.get(block, ())
        costs = _costs(tables, View.off, block)
        inside = [cost for domain, cost in costs.items() if domain in owners]
        outside = [cost for domain, cost in costs.items() if domain not in owners]
        if inside and outside:
            estimates.add(registry.ENTANGLEMENT_INSIDE(block), mean_of(inside))
            estimates.add(registry.ENTANGLEMENT_OUTSIDE(block), mean_of(outside))


_KEYS_OF_LOSSES: dict[View, Callable[[str, str], str]] = {
    View.removed: registry.LOSS_REMOVED,
    View.kept: registry.LOSS_KEPT,
    View.off: registry.LOSS_OFF,
    View.calibrated_full: registry.LOSS_CALIBRATED_FULL,
    View.calibrated_removed: registry.LOSS_CALIBRATED_REMOVED,
    View.unlearned: registry.LOSS_UNLEARNED,
    View.calibrated_unlearned: registry.LOSS_CALIBRATED_UNLEARNED,
}


def _costs(tables: LossTables, view: View, part: str) -> dict[str, Sample]:
    """What the view costs every domain against the full model."""
    return {
        domain: combined(
            separability.matrix, tables.loss(domain, view, part), tables.loss(domain, View.full)
        )
        for domain in tables.domains
    }


def _selectivity(costs: Mapping[str, Sample], part: str) -> Sample:
    def formula(*row: Any) -> Any:
        return separability.selectivity(dict(zip(costs, row, strict=True)), part)

    return combined(formula, *costs.values())
