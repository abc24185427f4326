"""The losses of held-out documents, as rows of document_losses.csv and relearn.csv.

A row holds one document in one view of the model. The rows are all that metrics need: which domains
were removed or kept follows from them.
"""

import csv
import enum
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gr_sweep.errors import DataError
from gr_sweep.files import write_whole


class View(enum.StrEnum):
    """Which blocks were on, or what was done to the model before the text was read; the metrics
    `loss/*` of the registry explain them."""

    full = "full"
    removed = "removed"
    kept = "kept"
    off = "off"
    """One block was off; the part is its name."""
    expert = "expert"
    served = "served"
    served_removed = "served_removed"
    calibrated_full = "calibrated_full"
    calibrated_removed = "calibrated_removed"
    unlearned = "unlearned"
    calibrated_unlearned = "calibrated_unlearned"


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


def write_losses(
    path: Path, rows: Iterable[DocumentLoss | RelearnLoss], kind: Any = DocumentLoss
) -> None:
    """Writes rows of one kind as CSV, atomically; losses read back as the same float."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(kind._fields)
    # csv writes a float as repr does, so that it reads back the same.
    writer.writerows(row._replace(loss_nats=float(row.loss_nats)) for row in rows)
    write_whole(path, text.getvalue())


def read_losses(path: Path, kind: Any = DocumentLoss) -> list[Any]:
    """The rows of a document_losses.csv, or of another `kind` of file.

    Raises:
        DataError: a missing file, another header, or an invalid row, with its number.
    """
    # Looking values up is ten times as fast as calling the enum, and there are many lines.
    enums: dict[Any, Any] = {of: of.__members__.__getitem__ for of in (View, Text)}
    converters = [enums.get(of, of) for of in kind.__annotations__.values()]
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
        raise DataError(f"{path}, row {len(rows) + 1}: invalid: {error}") from error
    return rows
