"""The records of a file: text, JSON, CSV, Parquet or Arrow, compressed or not.

JSON and CSV are not read by `datasets`, which infers one schema for all records: it turns dates
into timestamps and stops at fields whose type varies. `pyarrow` is imported only where it is
needed.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from gr_sweep.data.rules import lookup
from gr_sweep.errors import DataError

LARGEST_TEXT = 16 << 20
"""Characters of the largest document, and of the largest CSV field."""

COMPRESSED = (".gz", ".bz2", ".zst")
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
"""Compressions of pyarrow by a file's first bytes."""
_TABLES = {".csv": ",", ".tsv": "\t"}
_ROWS = 1024
_START = 1 << 16
"""Bytes from which the format of a file is guessed."""


class Record(NamedTuple):
    """A text before it has a domain."""

    text: str
    fields: Mapping[str, Any]
    """All fields of the record; empty for a text file."""


def record_of(fields: Any, text_field: str) -> Record:
    """A record with its text; raises ValueError if the field holds no text."""
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        raise ValueError(f"expected an object with text in field {text_field!r}, got {kind}")
    text = lookup(fields, text_field)
    if not isinstance(text, str):
        raise ValueError(
            f"expected text in field {text_field!r}, got {text!r:.50}; the fields are "
            f"{', '.join(fields)}; choose one with data.text_field, or column of a data set"
        )
    return Record(text, fields)


def read_file(
    path: Path, text_field: str, columns: Sequence[str] = (), split: str | int | None = None
) -> Iterator[Record]:
    """The records of a file: JSON values, rows of a table, or the whole file as one document.

    Tables of text are known by their name, JSON also by its start, everything else by its start.

    Args:
        text_field: the field or column that contains the text.
        columns: other columns to read from Parquet and Arrow; absent ones are ignored.
        split: as `pieces` takes it; a text file is then read piece by piece.

    Raises:
        DataError: the file is not text.
        OSError, ValueError, RecursionError: the file cannot be read to its end, or a record has no
            text.
    """
    with _open(path) as stream:
        start, suffix = stream.peek(_START), _suffix(path)
        if start.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
            yield from _columns(stream, start, text_field, columns)
            return
        is_binary = b"\0" in start or start.startswith(b"%PDF-")
        if is_binary or suffix in (".parquet", ".arrow"):
            raise DataError(
                f"{path} is not text, and not a file of Parquet or Arrow; data=local reads text, "
                "JSON, CSV, TSV, Parquet and Arrow, also as gz, bz2 and zst"
            )
        beginning = start.decode("utf-8-sig", "ignore").lstrip()
        is_array = beginning.startswith("[")
        text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
        if suffix in _TABLES:
            yield from (record_of(row, text_field) for row in _rows(text, _TABLES[suffix]))
        elif suffix in (".jsonl", ".json", ".ndjson") or (
            beginning.startswith(("[", "{")) and _is_json(path, text_field)
        ):
            values = json.load(text) if is_array else _json_values(text, suffix)
            yield from (record_of(value, text_field) for value in values)
        elif split is None:
            yield Record(text.read(LARGEST_TEXT + 1), {})
        else:
            lines = iter(lambda: text.readline(_START), "")
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


def _open(path: Path) -> io.BufferedReader:
    """The unpacked content of a file, whatever its name says; reading raises OSError where
    compressed data is damaged or cut off."""
    file: io.BufferedReader = io.BufferedReader(io.FileIO(path), _START)
    start = file.peek(4)
    for magic, name in _PACKED.items():
        if start.startswith(magic):
            import pyarrow

            raw: Any = pyarrow.CompressedInputStream(file, name)
            return io.BufferedReader(raw, _START)
    return file


def _suffix(path: Path) -> str:
    """The last suffix of the name that is not that of a compression, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return next((suffix for suffix in reversed(suffixes) if suffix not in COMPRESSED), "")


def _rows(text: Iterable[str], delimiter: str) -> Iterator[dict[str, str]]:
    """The rows of a table by column; ValueError where a row has more or fewer values."""
    csv.field_size_limit(LARGEST_TEXT)
    rows = csv.DictReader(text, delimiter=delimiter, strict=True)
    try:
        names = list(rows.fieldnames or [])
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"several columns are named {min(twice)!r}; rename all but one")
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(
                    f"line {rows.line_num} does not fit the columns {', '.join(names)}"
                )
            yield row
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None


def _is_json(path: Path, text_field: str) -> bool:
    """Whether a file of any name begins with a JSON record, in an array or not, with the field."""
    with _open(path) as stream:
        start = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape").read(LARGEST_TEXT)
    try:
        first = re.match(r"\s*(\[\s*)?", start)
        record, end = json.JSONDecoder().raw_decode(start, first.end() if first else 0)
    except (ValueError, RecursionError):
        return False
    is_alone = re.match(
        r"\s*[,\]]" if first and first[1] else r"[ \t]*(\n|$)", start[end : end + 99]
    )
    return isinstance(record, dict) and lookup(record, text_field) is not None and bool(is_alone)


def _json_values(text: TextIO, suffix: str) -> Iterator[Any]:
    """A JSON value a line; a file that is not named so may also be one value over several lines."""
    for number, line in enumerate(text, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                if number == 1 and suffix not in (".jsonl", ".ndjson"):
                    yield json.loads(line + text.read())
                else:
                    raise ValueError(f"line {number}: {error.msg}") from None


def _columns(file: Any, start: bytes, text_field: str, columns: Sequence[str]) -> Iterator[Record]:
    """The rows of a Parquet or Arrow file."""
    import pyarrow.ipc
    import pyarrow.parquet

    if not file.seekable():  # compressed; the tables of a Parquet file are at its end
        file = io.BytesIO(file.read())

    def chosen(names: Sequence[str]) -> list[str]:
        """The columns, or the structs that contain them."""
        wanted = {n if n in names else n.split(".")[0] for n in (text_field, *columns)}
        return sorted(wanted.intersection(names)) or list(names)

    batches: Any
    try:
        if start.startswith(b"PAR1"):
            table = pyarrow.parquet.ParquetFile(file)
            found = chosen(table.schema_arrow.names)
            batches = table.iter_batches(_ROWS, columns=found)
        elif start.startswith(b"ARROW1"):
            table = pyarrow.ipc.open_file(file)
            found = chosen(table.schema.names)
            batches = (table.get_batch(n) for n in range(table.num_record_batches))
        else:
            batches = pyarrow.ipc.open_stream(file)
            found = chosen(batches.schema.names)
        for batch in batches:
            for first in range(0, batch.num_rows, _ROWS):
                for fields in batch.select(found).slice(first, _ROWS).to_pylist():
                    yield record_of(fields, text_field)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error
