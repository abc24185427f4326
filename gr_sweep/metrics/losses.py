"""The losses of held-out documents, as rows of document_losses.csv and relearn.csv.

A row holds one document in one view of the model. The rows are all that metrics need: which domains
were removed or kept follows from them.
"""

import csv
import enum
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gr_sweep.errors import DataError
from gr_sweep.files import write_whole


class View(enum.StrEnum):
    """Which blocks were on, or what was done to the model before the text was read."""

    full = "full"
    removed = "removed"
    kept = "kept"
    off = "off"
    """One block was off; the part is its name."""
    expert = "expert"
    """Of `alternate`: each document by the expert of its own label alone, which may lie below the
    document's domain."""
    served = "served"
    """The label is unknown: the distinct networks of the domains kept alone, mixed by the posterior
    over them."""
    served_removed = "served_removed"
    """The same without the part: the networks of labels that are not under it, its blocks off."""
    calibrated_full = "calibrated_full"
    """Full model with a bias on the logits, fitted on training text of the part."""
    calibrated_removed = "calibrated_removed"
    """The same after the part was removed."""
    unlearned = "unlearned"
    """Dense model after the part was unlearned."""
    calibrated_unlearned = "calibrated_unlearned"
    """The same with a fitted bias."""


class Text(enum.StrEnum):
    """Which version of a document was read (`data.spurious`)."""

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
    document: str
    """Hash of the text, 16 hexadecimal digits."""
    loss_nats: float
    """Sum over the document's tokens."""
    tokens: int
    """Tokens that have a loss."""
    bytes: int
    """Length of the text in UTF-8."""


class RelearnLoss(NamedTuple):
    """One held-out document in one evaluation of a relearning attack."""

    view: View
    """The attacked model: removed, full (of a job that never saw the part) or unlearned."""
    part: str
    """The domain that is taught again."""
    lr: float
    """Learning rate of the attack."""
    trained_tokens: int
    """Tokens that the attack has trained on so far; 0: before it."""
    domain: str
    document: str
    loss_nats: float
    tokens: int
    bytes: int


def write_losses(path: Path, rows: Iterable[DocumentLoss]) -> None:
    """Writes document_losses.csv atomically; losses read back as the same float."""
    _write(path, DocumentLoss, rows)


def write_relearn(path: Path, rows: Iterable[RelearnLoss]) -> None:
    """Writes relearn.csv as `write_losses` does."""
    _write(path, RelearnLoss, rows)


def read_losses(path: Path) -> list[DocumentLoss]:
    """The rows of a document_losses.csv.

    Raises:
        DataError: a missing file, another header, or an invalid row, with its number.
    """
    return _read(path, DocumentLoss)


def read_relearn(path: Path) -> list[RelearnLoss]:
    """The rows of a relearn.csv; raises as `read_losses`."""
    return _read(path, RelearnLoss)


_CONVERTERS: dict[Any, Callable[[str], Any]] = {
    # Looking values up is ten times as fast as calling the enum, and there are many lines.
    View: View.__members__.__getitem__,
    Text: Text.__members__.__getitem__,
}
"""By the type of a column, where it is not the type itself."""


def _write(path: Path, kind: Any, rows: Iterable[DocumentLoss | RelearnLoss]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(kind._fields)
    # csv writes a float as repr does, so that it reads back the same.
    writer.writerows(row._replace(loss_nats=float(row.loss_nats)) for row in rows)
    write_whole(path, text.getvalue())


def _read(path: Path, kind: Any) -> list[Any]:
    converters = [_CONVERTERS.get(of, of) for of in kind.__annotations__.values()]
    rows: list[Any] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            if tuple(next(lines, ())) != kind._fields:
                raise DataError(f"{path}: expected the header {','.join(kind._fields)}")
            for line in lines:
                values = zip(converters, line, strict=True)
                rows.append(kind._make([convert(text) for convert, text in values]))
    except (ValueError, KeyError, csv.Error, OSError) as error:
        said: object = error
        if isinstance(error, KeyError):
            said = f"unknown view or text {error}, as of an earlier version of gr-sweep"
        raise DataError(f"{path}, row {len(rows) + 1}: {said}") from error
    return rows
