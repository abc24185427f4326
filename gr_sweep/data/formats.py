"""The records of a file: text, JSON, CSV, TSV or Parquet, compressed or not.

JSON is not read by `datasets`, which infers one schema for all records: it turns dates into
timestamps and stops at fields whose type varies. `pyarrow` is imported only where it is needed.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from gr_sweep.data.rules import lookup

LARGEST_TEXT = 16 << 20
"""Characters of the largest document."""

COMPRESSED = (".gz", ".bz2", ".zst")
_TABLES = (".csv", ".tsv", ".parquet")
_LINES = (".jsonl", ".ndjson")
_ROWS = 1024
_LARGEST_FIELD = 4 * LARGEST_TEXT
_LINE = 1 << 16
"""Characters of a text that are read at once."""


class Record(NamedTuple):
    """A text before it has a domain."""

    text: str
    fields: Mapping[str, Any]
    """All fields of the record; empty for a text file."""


def record_of(fields: Any, text_field: str) -> Record:
    """A record with its text; raises ValueError if the field holds no text."""
    found = fields if isinstance(fields, dict) else {}
    text = lookup(found, text_field)
    if not isinstance(text, str):
        names = f"; the fields are {', '.join(found)}" if found else ""
        raise ValueError(
            f"expected text in field {text_field!r}, got {text!r:.50}{names}; choose one with "
            "data.text_field, or column of a data set"
        )
    return Record(text, found)


def read_file(
    path: Path, text_field: str, columns: Sequence[str] = (), split: str | int | None = None
) -> Iterator[Record]:
    """The records of a file: JSON values, rows of a table, or the whole file as one document of
    UTF-8, by the suffix of its name.

    Args:
        text_field: the field or column that contains the text.
        columns: other columns to read from Parquet; absent ones are ignored.
        split: as `pieces` takes it; a text file is then read piece by piece.

    Raises:
        OSError, ValueError: the file cannot be read to its end, or a record has no text.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    suffix = next((s for s in reversed(suffixes) if s not in COMPRESSED), "")
    if suffix in _TABLES:
        columns = [text_field, *columns]
        rows = _parquet_rows(path, columns) if suffix == ".parquet" else _rows(path, suffix)
        yield from (record_of(row, text_field) for row in rows)
        return
    with _open(path) as text:
        if suffix in (".json", *_LINES):
            yield from (record_of(value, text_field) for value in _json_values(text, suffix))
        elif split is None:
            yield Record(text.read(LARGEST_TEXT + 1), {})
        else:
            lines = iter(lambda: text.readline(_LINE), "")
            yield from (Record(piece, {}) for piece in pieces(lines, split))


def pieces(lines: Iterable[str], split: str | int) -> Iterator[str]:
    """Divides a text, given as lines with their ends, into paragraphs or into pieces.

    Args:
        split: paragraphs: a blank line ends a piece, and is left out. A number: a piece has at most
            so many characters, and ends after a line, or else after a space, where it can.
    """
    by_paragraph = split == "paragraphs"
    largest = LARGEST_TEXT if by_paragraph else int(split)
    piece: list[str] = []
    size = 0
    for line in lines:
        is_blank = by_paragraph and not line.strip()
        if piece and (is_blank or size + len(line) > largest):
            yield "".join(piece).rstrip("\r\n") if by_paragraph else "".join(piece)
            piece, size = [], 0
        while len(line) > largest:
            end = line.rfind(" ", largest // 2, largest) + 1 or largest
            yield line[:end]
            line = line[end:]
        if line and not is_blank:
            piece.append(line)
            size += len(line)
    if piece:
        yield "".join(piece).rstrip("\r\n") if by_paragraph else "".join(piece)


def _open(path: Path) -> TextIO:
    if path.suffix.lower() not in COMPRESSED:
        return path.open(encoding="utf-8-sig", newline="")
    import pyarrow

    stream: Any = pyarrow.input_stream(path, compression="detect")
    return io.TextIOWrapper(io.BufferedReader(stream, _LINE), "utf-8-sig", newline="")


def _json_values(text: TextIO, suffix: str) -> Iterator[Any]:
    """A JSON value a line; a file of another suffix may also be one value, or an array of them."""
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            if number > 1 or suffix in _LINES:
                raise ValueError(f"line {number}: {error.msg}") from None
            value = json.loads(line + text.read())
        yield from value if isinstance(value, list) and suffix not in _LINES else [value]


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of these columns, of which absent ones are ignored, but not the first."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    names = file.schema_arrow.names
    if columns[0] not in names and columns[0].split(".")[0] not in names:
        record_of(dict.fromkeys(names), columns[0])  # raises
    for batch in file.iter_batches(_ROWS, columns=columns):
        yield from batch.to_pylist()


def _rows(path: Path, suffix: str) -> Iterator[dict[str, Any]]:
    """The rows of a CSV or TSV file, each with as many fields as the header."""
    csv.field_size_limit(_LARGEST_FIELD)
    with _open(path) as text:
        rows = csv.DictReader(text, delimiter="," if suffix == ".csv" else "\t", strict=True)
        try:
            for row in rows:
                if None in row or None in row.values():
                    much = "more" if None in row else "fewer"
                    raise ValueError(f"line {rows.reader.line_num}: {much} fields than the header")
                yield row
        except csv.Error as error:
            raise ValueError(f"line {rows.reader.line_num}: {error}") from None
