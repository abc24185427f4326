"""Documents of a source, one at a time: files on this machine, or data sets of the Hub.

The Hub is Hugging Face's. A record is a text, the other fields it came with, and where it stood;
which domain it belongs to is not decided here. `datasets` and `pyarrow` are imported only where
they are needed.
"""

import glob
import gzip
import json
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gr_sweep.config import DataConfig, HubSource
from gr_sweep.data.rules import holds, lookup
from gr_sweep.errors import DataError

_PACKED = (".gz", ".zst")
_RECORD_FILES = (".jsonl", ".json", ".ndjson")
_PARQUET = ".parquet"
_CHUNK_BYTES = 1 << 20
_PARQUET_ROWS = 1024
_HUB_TIMEOUT_S = 5.0

_HUB_FORMATS = ("json", "parquet", "csv", "text", "arrow", "xml", "webdataset")
"""Formats that `datasets` reads from files, instead of a data set's name."""


@dataclass(frozen=True, slots=True)
class Record:
    """A document and where it is from."""

    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else the record held; empty for a text file."""
    file: str = ""
    line: int | None = None
    """Counted from 1; the row in a Parquet file or data set; None where a file is one document."""


# Files on this machine


def local_files(data: DataConfig, source: str) -> list[Path]:
    """The files of a source in a fixed order: those of `data.paths`, else those below `data.root`.

    Raises:
        DataError: nothing there, or a file and a folder that both could be meant.
    """
    if source in data.paths:
        given = os.path.expanduser(data.paths[source])
        # A name that exists is meant literally, whatever characters it holds.
        found = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        if not found:
            raise DataError(f"data.paths.{source}={data.paths[source]} matches no file or folder")
        files = [file for entry in found for file in _files_below(Path(entry))]
        where = given
    elif data.root is not None:
        root = Path(data.root).expanduser()
        if not root.is_dir():
            raise DataError(f"data.root={data.root} is not a folder")
        entries = sorted(entry for entry in root.iterdir() if _names_source(entry, source))
        if not entries:
            raise DataError(
                f"{root} holds neither a folder {source} nor a file {source}.jsonl (.json, .txt, "
                f".parquet; .gz, .zst); add one, or set data.paths.{source}"
            )
        if len(entries) > 1:
            names = " and ".join(entry.name for entry in entries)
            raise DataError(f"{root} holds {names}; say which is meant with data.paths.{source}")
        files, where = _files_below(entries[0]), str(entries[0])
    else:
        raise DataError(f"source {source} has no files; set data.root or data.paths.{source}")
    if not files:
        raise DataError(f"{where} holds no file")
    return files


def read_file(path: Path, text_field: str, columns: Sequence[str] = ()) -> Iterator[Record]:
    """The documents of a file: lines of JSON, rows of Parquet, or the file as one document.

    Args:
        text_field: the field or column that holds the text.
        columns: the other columns that are wanted of a Parquet file; absent ones are left out.

    Raises:
        DataError: the file cannot be read to its end, or a record is not as it should be.
    """
    kind = Path(path.stem).suffix if path.suffix in _PACKED else path.suffix
    if kind in _RECORD_FILES:
        yield from _read_lines(path, text_field)
    elif path.suffix == _PARQUET:
        yield from _read_parquet(path, text_field, columns)
    else:
        with _open(path) as stream:
            content = stream.read()
        yield Record(_decoded(content, path, first_line=1), {}, str(path))


def _names_source(entry: Path, source: str) -> bool:
    # Not `stem`: a source may have a dot in its name, and a file two suffixes.
    if entry.name == source:
        return True
    plain = entry.name.removesuffix(entry.suffix) if entry.suffix in _PACKED else entry.name
    return entry.is_file() and plain.removesuffix(Path(plain).suffix) == source


def _files_below(entry: Path) -> list[Path]:
    if entry.is_file():
        return [entry]
    # Hidden files and folders (.git, .DS_Store) are nobody's text.
    return sorted(
        path
        for path in entry.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(entry).parts)
    )


class _ZstdStream:
    """Reads a zstandard file and notices when its last frame is not whole.

    The reader of `zstandard` itself takes a file that was cut off for one that ends there.
    """

    def __init__(self, path: Path) -> None:
        import zstandard

        self._decompressor = zstandard.ZstdDecompressor
        self._file = open(path, "rb")  # noqa: SIM115 - closed by `close`

    def chunks(self) -> Iterator[bytes]:
        import zstandard

        frame = self._decompressor().decompressobj()
        is_inside = False
        try:
            while chunk := self._file.read(_CHUNK_BYTES):
                while chunk:
                    is_inside = True
                    yield frame.decompress(chunk)
                    if not frame.eof:
                        break
                    chunk, is_inside = frame.unused_data, False
                    frame = self._decompressor().decompressobj()
        except zstandard.ZstdError as error:
            raise OSError(f"not zstandard, or damaged ({error})") from error
        if is_inside:
            raise EOFError("compressed file ended before its end marker")

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        for chunk in self.chunks():
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                yield line + b"\n"
        if rest:
            yield rest

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def close(self) -> None:
        self._file.close()


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO | Any]:
    """The file's bytes, unpacked; what goes wrong while reading it becomes a DataError."""
    stream: Any = None
    try:
        if path.suffix == ".gz":
            stream = gzip.open(path, "rb")  # noqa: SIM115 - closed below
        elif path.suffix == ".zst":
            stream = _ZstdStream(path)
        else:
            stream = open(path, "rb")  # noqa: SIM115 - closed below
        yield stream
    except EOFError as error:
        raise DataError(f"{path}: the file is cut off ({error}); fetch it again") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    finally:
        if stream is not None:
            stream.close()


def _decoded(content: bytes, path: Path, first_line: int) -> str:
    try:
        return content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}, line {line}: not UTF-8 ({error.reason} at byte {error.start}); "
            "convert the file, for example with iconv"
        ) from error


def _read_lines(path: Path, text_field: str) -> Iterator[Record]:
    with _open(path) as stream:
        for number, raw in enumerate(stream, start=1):
            line = _decoded(raw, path, number)
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path}, line {number}: broken JSON ({error.msg} at column {error.colno}); "
                    "every line is one object"
                ) from error
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number}: JSON that Python does not read ({error})"
                ) from error
            if not isinstance(fields, dict):
                raise DataError(
                    f"{path}, line {number}: {type(fields).__name__} instead of a JSON object; "
                    f'every line is one object such as {{"{text_field}": "..."}}'
                )
            yield _record(fields, text_field, str(path), number, "data.text_field")


def _read_parquet(path: Path, text_field: str, columns: Sequence[str]) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if text_field not in names:
                raise DataError(
                    f"{path}: no column {text_field!r}; it has {', '.join(names)} "
                    "(set data.text_field)"
                )
            wanted = {text_field}
            wanted |= {name if name in names else name.split(".")[0] for name in columns}
            row = 0
            for batch in table.iter_batches(_PARQUET_ROWS, columns=sorted(wanted & set(names))):
                for fields in batch.to_pylist():
                    row += 1
                    yield _record(fields, text_field, str(path), row, "data.text_field")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({_first_line(error)})") from error


def _record(
    fields: Mapping[str, Any], text_field: str, file: str, line: int, setting: str
) -> Record:
    text = lookup(fields, text_field)
    if text is None and text_field not in fields:
        raise DataError(
            f"{file}, line {line}: no field {text_field!r}; it has {', '.join(fields) or 'none'} "
            f"(set {setting})"
        )
    if not isinstance(text, str):
        raise DataError(
            f"{file}, line {line}: field {text_field!r} is {type(text).__name__}, not text"
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{file}, line {line}: not Unicode text ({error.reason} at character {error.start})"
            ) from error
    return Record(text, fields, file, line)


# Data sets of the Hugging Face Hub


def hub_files(source: HubSource) -> list[Path]:
    """The files on this machine that a data set is read from; none where it is on the Hub."""
    folder = Path(source.path).expanduser()
    if source.path in _HUB_FORMATS:
        if source.data_files is None or "://" in source.data_files:
            return []
        found = [Path(name) for name in sorted(glob.glob(source.data_files, recursive=True))]
        if not found:
            raise DataError(f"data_files={source.data_files} matches no file")
        return found
    return _files_below(folder) if folder.is_dir() else []


def read_hub(source: HubSource) -> Iterator[Record]:
    """The rows of a data set, streamed: nothing is read beyond what the caller takes.

    Raises:
        DataError: the Hub or the data set cannot be reached or read, or a row has no text.
    """
    has_files = bool(hub_files(source))
    if not has_files:
        check_hub(f"data set {source.path}")
    import datasets
    import pyarrow

    where = source.path if source.data_files is None else f"{source.path} ({source.data_files})"
    options = {"name": source.name, "data_files": source.data_files}
    given = {name: value for name, value in options.items() if value is not None}
    row = 0
    try:
        rows = datasets.load_dataset(source.path, split=source.split, streaming=True, **given)
        for fields in rows:
            row += 1
            if source.filter_column is not None:
                if row == 1 and source.filter_column.split(".")[0] not in fields:
                    raise DataError(
                        f"{where}: no column {source.filter_column!r}; it has {', '.join(fields)}"
                    )
                if not holds(fields, source.filter_column, source.filter_values or []):
                    continue
            yield _record(fields, source.column, where, row, "the source's column")
    except (
        OSError,
        ValueError,
        EOFError,
        pyarrow.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:
        # A failure inside a file comes wrapped; what broke is the innermost cause.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        place = f" after row {row}" if row else ""
        raise DataError(
            f"data set {where}: cannot be read{place} ({_first_line(cause)})"
        ) from error


def check_hub(wanted: str) -> None:
    """Asks the Hub for a sign of life, so that a machine without network fails in seconds.

    `huggingface_hub` would try again and again for minutes.

    Raises:
        DataError: the Hub does not answer, or it is switched off by HF_HUB_OFFLINE.
    """
    from huggingface_hub import constants

    advice = "use data=local or data=synthetic, or files of your own"
    if constants.HF_HUB_OFFLINE:
        raise DataError(f"{wanted} needs the Hugging Face Hub, but HF_HUB_OFFLINE is set; {advice}")
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S):
            pass
    except urllib.error.HTTPError:
        return  # An answer, of whatever kind, is a sign of life.
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"{wanted} needs the Hugging Face Hub, but {constants.ENDPOINT} does not answer "
            f"({reason}); {advice}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
