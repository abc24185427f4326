"""The losses of held-out documents, as rows of document_losses.csv and relearn.csv.

A row holds one document in one view of the model. The rows are all that metrics need: which domains
were removed or kept follows from them.
"""

import csv
import enum
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gr_sweep.config import LARGEST
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
    mixed = "mixed"
    """The experts, mixed by the posterior over domains."""
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
    step: int
    """Steps of the attack so far; 0: before it."""
    domain: str
    document: str
    loss_nats: float
    tokens: int
    bytes: int


def write_losses(path: Path, rows: Iterable[DocumentLoss]) -> None:
    """Writes document_losses.csv atomically; losses read back as the same float."""
    _write(path, DocumentLoss._fields, rows)


def write_relearn(path: Path, rows: Iterable[RelearnLoss]) -> None:
    """Writes relearn.csv as `write_losses` does."""
    _write(path, RelearnLoss._fields, rows)


def read_losses(path: Path) -> list[DocumentLoss]:
    """The rows of a document_losses.csv.

    Raises:
        DataError: a missing file, another header, or an invalid line, with its number.
    """
    return [DocumentLoss._make(values) for values in _read(path, DocumentLoss._fields)]


def read_relearn(path: Path) -> list[RelearnLoss]:
    """The rows of a relearn.csv.

    Raises:
        DataError: as `read_losses`.
    """
    return [RelearnLoss._make(values) for values in _read(path, RelearnLoss._fields)]


def _size(text: str) -> int:
    size = int(text)
    if not 0 <= size <= LARGEST:
        raise ValueError(f"a size of {text}")
    return size


_CONVERTERS: dict[str, Callable[[str], Any]] = {
    # Looking values up is ten times as fast as calling the enum, and there are many lines.
    "view": {view.value: view for view in View}.__getitem__,
    "text": {text.value: text for text in Text}.__getitem__,
    "lr": float,
    "step": int,
    "loss_nats": float,
    "tokens": _size,
    "bytes": _size,
}
"""Of the columns that are not names."""


def _write(path: Path, header: Sequence[str], rows: Iterable[DocumentLoss | RelearnLoss]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    # csv writes a float as repr does, so that it reads back the same.
    writer.writerows(row._replace(loss_nats=float(row.loss_nats)) for row in rows)
    write_whole(path, text.getvalue())


def _read(path: Path, header: Sequence[str]) -> Iterator[list[Any]]:
    """The values of each line."""
    converters = [_CONVERTERS.get(name, str) for name in header]
    try:
        file = path.open(newline="", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        lines = csv.reader(file)
        try:
            if tuple(next(lines, ())) != header:
                raise DataError(f"{path}:1: expected the header {','.join(header)}")
            for line in lines:
                yield [convert(text) for convert, text in zip(converters, line, strict=True)]
        except (ValueError, KeyError, csv.Error, OSError) as error:
            number = max(lines.line_num, 1)
            raise DataError(f"{path}:{number}: not the loss of a document: {error}") from error
