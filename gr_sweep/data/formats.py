"""The records of a file by its content: text, JSON, CSV, Parquet or Arrow, compressed or not.

JSON and CSV are not read by `datasets`, which infers one schema for all records: it turns dates
into timestamps and stops at fields whose type varies. `pyarrow` and `zstandard` are imported only
where they are needed.
"""

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gr_sweep.data.rules import lookup
from gr_sweep.errors import DataError

LARGEST_TEXT = 16 << 20
"""Characters of the largest document, and of the largest JSON value or CSV field."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_JSON_NAMES = (".jsonl", ".json", ".ndjson")
_TABLES = {".csv": ",", ".tsv": "\t"}
_DELIMITERS = (",", "\t", ";", "|")
_ROWS = 1024
_START = 1 << 16
"""Bytes from which the format of a file is guessed."""

_JSON_START = re.compile(r"\s*(\[\s*)?\{\s*[\"}]")
_OTHER = {
    b"%PDF-": "a PDF document",
    b"PK\x03\x04": "a zip archive (or .docx, .xlsx, .epub, .npz)",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x7fELF": "a program",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!\x1a": "a RAR archive",
    b"\xd0\xcf\x11\xe0": "a document of an old Office format",
    b"{\\rtf": "an RTF document",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}
"""What cannot be read, by its first bytes."""


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
        got = type(text).__name__
        if text is None:
            got = "null" if text_field in fields else "nothing"
        raise ValueError(
            f"expected text in field {text_field!r}, got {got}; the fields are "
            f"{', '.join(fields)}; choose one with data.text_field, or column of a data set"
        )
    return Record(text, fields)


def read_file(
    path: Path, text_field: str, columns: Sequence[str] = (), split: str | int | None = None
) -> Iterator[Record]:
    """The records of a file: JSON values, rows of a table, or the whole file as one document.

    The start of the file decides, and its name where that leaves a doubt.

    Args:
        text_field: the field or column that contains the text.
        columns: other columns to read from Parquet and Arrow; absent ones are ignored.
        split: as `pieces` takes it; a text file is then read piece by piece.

    Raises:
        DataError: the file is of a format that cannot be read.
        OSError, EOFError, ValueError, RecursionError, zlib.error, lzma.LZMAError: the file cannot
            be read to its end, or a record has no text.
    """
    with contextlib.ExitStack() as stack:
        stream, start = stack.enter_context(_open(path)), b""
        with contextlib.suppress(EOFError):
            while len(start) < _START and (block := stream.read1(_START)):
                start += block
        if stream.seekable():
            stream.seek(0)
        else:
            stream = stack.enter_context(_open(path))
        if start.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
            yield from _columns(stream, text_field, columns)
            return
        suffix = _suffix(path)
        if unreadable := _unreadable(start, suffix):
            raise DataError(
                f"{path} is {unreadable}, which cannot be read; data=local reads text, JSON, CSV, "
                "TSV, Parquet and Arrow, also as gz, bz2, xz and zst"
            )
        beginning = start.decode("utf-8-sig", "ignore")
        is_json, delimiter = _JSON_START.match(beginning) is not None, _TABLES.get(suffix, "")
        if not is_json:
            delimiter = _delimiter(beginning, text_field, suffix)
        field = re.escape(json.dumps(text_field.rpartition(".")[2]))
        has_field = is_json and re.search(rf'{field}\s*:\s*"', beginning)
        if has_field or (suffix in _JSON_NAMES and not delimiter):
            yield from (record_of(value, text_field) for value in _json_values(_decoded(stream)))
            return
        text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
        if delimiter:
            yield from (record_of(row, text_field) for row in _rows(text, delimiter))
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


def _unreadable(start: bytes, suffix: str) -> str:
    """What a file is that cannot be read, by its first bytes; empty for text."""
    named = next((name for magic, name in _OTHER.items() if start.startswith(magic)), "")
    if start[257:262] == b"ustar":
        named = "a tar archive"
    if not named and suffix in (".parquet", ".arrow"):
        named = "not a Parquet file" if suffix == ".parquet" else "not an Arrow file"
    return named or ("binary data" if b"\0" in start else "")


def _suffix(path: Path) -> str:
    """The last suffix of the name that is not that of a compression, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return next((suffix for suffix in reversed(suffixes) if suffix not in COMPRESSED), "")


def _delimiter(beginning: str, text_field: str, suffix: str) -> str:
    """What separates the columns of a table; empty for text that is none.

    Without the suffix of a table, its first line must be two or more plain names, among them that
    of the text.
    """
    first_line = beginning.partition("\n")[0]
    for delimiter in _DELIMITERS if text_field in first_line else ():
        header = next(csv.reader(first_line.splitlines()[:1], delimiter=delimiter), [])
        is_plain = len(header) > 1 and all(re.fullmatch(r"[\w.-]+", name) for name in header)
        if text_field in header and (is_plain or suffix in _TABLES):
            return delimiter
    return _TABLES.get(suffix, "")


def _rows(text: Iterable[str], delimiter: str) -> Iterator[dict[str, str]]:
    """The rows of a table by column; ValueError where a row has more or fewer values."""
    csv.field_size_limit(LARGEST_TEXT)
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        if len(set(header)) < len(header):
            raise ValueError(f"two columns have the same name: {', '.join(header)}")
        for row in rows:
            if row:
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} values for {len(header)} columns")
                yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None


def _decoded(stream: Any) -> Iterator[str]:
    """The text of a file, as far as it can be read; bytes that are no UTF-8 become surrogates."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    while block := stream.read1(_START):
        yield decoder.decode(block)
    yield decoder.decode(b"", final=True)


def _json_values(text: Iterator[str]) -> Iterator[Any]:
    """JSON values one after another, usually one a line, or the items of one array."""
    parse = json.JSONDecoder().raw_decode
    buffer, place, line = next(text), 0, 1
    is_array = buffer.lstrip().startswith("[")
    if is_array:
        place = buffer.index("[") + 1
    between = re.compile(r"[\s,]*" if is_array else r"\s*")
    while True:
        if (gap := between.match(buffer, place)) is not None:
            place = gap.end()
        if is_array and buffer.startswith("]", place):
            if (buffer[place + 1 :] + "".join(itertools.islice(text, 9))).strip():
                raise ValueError("more text after the array")
            return
        try:
            value, place = parse(buffer, place)
        except json.JSONDecodeError as error:
            # The value may only be cut off. With twice as much each time it is parsed a few times.
            left, more = len(buffer) - place, ""
            while left <= 4 * LARGEST_TEXT and len(more) <= left and (block := next(text, None)):
                more += block
            if more:
                line += buffer.count("\n", 0, place)
                buffer, place = buffer[place:] + more, 0
                continue
            if left or is_array:
                found = error.msg if left else "the array has no end"
                # `error` counts lines from the beginning of the buffer.
                raise ValueError(f"line {line + error.lineno - 1}: {found}") from None
            return
        yield value


def _columns(file: Any, text_field: str, columns: Sequence[str]) -> Iterator[Record]:
    """The rows of a Parquet or Arrow file."""
    import pyarrow.ipc
    import pyarrow.parquet

    try:
        with contextlib.ExitStack() as stack:
            if not isinstance(getattr(file, "raw", None), io.FileIO):
                # Compressed; the tables of a Parquet file are at its end.
                packed, file = file, stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(packed, file)
                file.seek(0)
            magic = file.read(4)
            file.seek(0)
            batches: Iterable[Any]
            if magic == b"PAR1":
                table = stack.enter_context(pyarrow.parquet.ParquetFile(file))
                names = table.schema_arrow.names
            else:
                opened = pyarrow.ipc.open_file if magic == b"ARRO" else pyarrow.ipc.open_stream
                table = stack.enter_context(opened(file))
                names = table.schema.names
            # A column, or the struct that contains it.
            wanted = {n if n in names else n.split(".")[0] for n in (text_field, *columns)}
            has_text = {text_field, text_field.split(".")[0]} & set(names)
            found = sorted(wanted & set(names)) if has_text else names
            if magic == b"PAR1":
                batches = table.iter_batches(_ROWS, columns=found)
            elif magic == b"ARRO":
                batches = (table.get_batch(n) for n in range(table.num_record_batches))
            else:
                batches = table
            for batch in batches:
                for first in range(0, batch.num_rows, _ROWS):
                    for fields in batch.select(found).slice(first, _ROWS).to_pylist():
                        yield record_of(fields, text_field)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


# Compression


class _Zstandard(io.RawIOBase):
    """Unpacks zstandard; unlike the readers of `zstandard`, it reports a file that is cut off."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = open(path, "rb")  # noqa: SIM115 - closed with this
        # The default refuses what `zstd --ultra --long=31` writes.
        self._new = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._error = zstandard.ZstdError
        self._frame, self._packed, self._ready = self._new(), b"", memoryview(b"")
        self._is_cut = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            # A few bytes can become a thousand times as many.
            block = self._packed or self._file.read(4096)
            if not block and self._is_cut:
                raise EOFError("the compressed data is cut off")
            if not block:
                return 0
            try:
                self._ready = memoryview(self._frame.decompress(block))
            except self._error as error:
                raise ValueError(str(error)) from error
            self._packed, self._is_cut = self._frame.unused_data, not self._frame.eof
            if self._frame.eof:
                self._frame = self._new()
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


_UNPACKED: dict[bytes, Callable[[Path], Any]] = {
    rb"\x1f\x8b": gzip.open,
    rb"BZh[1-9](1AY&SY|\x17rE8)": bz2.open,
    rb"\xfd7zXZ\0": lzma.open,
    rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18": lambda path: io.BufferedReader(_Zstandard(path)),
}
"""What opens a compressed file, by a pattern of its first bytes."""


def _open(path: Path) -> Any:
    """The unpacked content of a file, whatever its name says, as a binary stream with `read1`."""
    file = open(path, "rb")  # noqa: SIM115 - the caller closes it
    start = file.peek(16)
    for magic, unpacked in _UNPACKED.items():
        if re.match(magic, start):
            file.close()
            return unpacked(path)
    return file
