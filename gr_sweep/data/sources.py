"""Where documents come from: generated text, local files, or data sets of the Hugging Face Hub.

To add one, add a member to `config.DataKind` and a function next to `_local` and `_hub` that
returns a `Source`, and call it in `sources_of`.

JSON lines are read here and not by `datasets`, whose reader infers one schema for all lines: it
turns dates into timestamps, stops at fields whose type varies, and cannot name the line it stops
at. `datasets` and `pyarrow` are slow to import and are imported only where they are needed.
"""

import dataclasses
import glob
import gzip
import io
import json
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from gr_sweep.config import DataConfig, DataKind, HubSource
from gr_sweep.data import synthetic
from gr_sweep.data.rules import Rules, holds, lookup, text_id
from gr_sweep.errors import DataError

_COMPRESSED = (".gz", ".zst")
_JSON_LINES = (".jsonl", ".json", ".ndjson")
_PARQUET_ROWS = 1024
_HUB_TIMEOUT_S = 5.0

_HUB_FORMATS = ("json", "parquet", "csv", "text", "arrow", "xml", "webdataset")
"""File formats that `datasets` accepts in place of a data set's name."""


class Document(NamedTuple):
    """A text and the domain it belongs to."""

    domain: str
    text: str
    id: int
    """`rules.text_id` of the text."""


@dataclass(frozen=True, slots=True)
class Source:
    """Documents of some domains, and what identifies them."""

    where: str
    """File or data set, for errors."""
    domains: Sequence[str]
    key: Any
    """JSON values that change whenever the documents do."""
    documents: Callable[[], Iterator[Document]]


@dataclass(frozen=True, slots=True)
class Record:
    """A text before it has a domain."""

    text: str
    fields: Mapping[str, Any]
    """All fields of the record; empty for a text file."""


def sources_of(
    data: DataConfig, rules: Rules, digests: Callable[[Sequence[Path]], list[str]]
) -> list[Source]:
    """The sources of a partition, in the order of its domains; no document is read.

    Args:
        digests: of the content of each file, for the keys.

    Raises:
        DataError: a source that is missing or cannot be read.
    """
    if data.kind is DataKind.synthetic:
        return [_synthetic(data, rules)]
    kind = _local if data.kind is DataKind.local else _hub
    return [kind(data, name, rules, digests) for name in rules.sources]


def _synthetic(data: DataConfig, rules: Rules) -> Source:
    settings: dict[str, Any] = {
        "documents": data.documents,
        "overlap": data.overlap,
        "seed": data.seed,
    }

    def documents() -> Iterator[Document]:
        for domain, texts in synthetic.generate(rules.domains, **settings).items():
            for text in texts:
                yield Document(domain, text, text_id(text))

    key = [synthetic.GENERATOR, settings]
    return Source("the generated text", rules.domains, key, documents)


def _local(
    data: DataConfig, name: str, rules: Rules, digests: Callable[[Sequence[Path]], list[str]]
) -> Source:
    files = local_files(data, name)
    fields = rules.fields_of(name)

    def documents() -> Iterator[Document]:
        for file in files:
            yield from _divided(read_file(file, data.text_field, fields), name, rules)

    suffixes = ["".join(file.suffixes[-2:]) for file in files]
    contents = list(zip(suffixes, digests(files), strict=True))
    key = [name, contents, data.text_field, rules.key(name)]
    where = f"{files[0]}" + (" and others" if len(files) > 1 else "")
    return Source(where, rules.domains_of(name), key, documents)


def _hub(
    data: DataConfig, name: str, rules: Rules, digests: Callable[[Sequence[Path]], list[str]]
) -> Source:
    hub = data.sources[name]
    key = [name, dataclasses.asdict(hub), digests(hub_files(hub)), rules.key(name)]
    where = f"data set {hub.path}"
    return Source(where, rules.domains_of(name), key, lambda: _divided(read_hub(hub), name, rules))


def _divided(records: Iterable[Record], source: str, rules: Rules) -> Iterator[Document]:
    """The records that have text and that a rule wants."""
    for record in records:
        if record.text and not record.text.isspace():
            domain = rules.domain_of(source, record.text, record.fields)
            if domain is not None:
                yield Document(domain, record.text, text_id(record.text))


# Local files


def local_files(data: DataConfig, source: str) -> list[Path]:
    """The files of a source, sorted: those of `data.paths`, else those below `data.root`.

    Raises:
        DataError: no file, or both a file and a folder with the source's name.
    """
    if source in data.paths:
        where = os.path.expanduser(data.paths[source])
        # A name that exists is taken literally, whatever characters it contains.
        found = [where] if os.path.exists(where) else sorted(glob.glob(where, recursive=True))
        if not found:
            raise DataError(f"data.paths.{source}={data.paths[source]} matches no file or folder")
        entries = [Path(entry) for entry in found]
    else:
        assert data.root is not None  # checks.validate
        root = Path(data.root).expanduser()
        entries = sorted(entry for entry in root.glob("*") if _is_named(entry, source))
        if not entries:
            raise DataError(
                f"{root} contains neither a folder {source} nor a file {source}.jsonl (.json, "
                f".txt, .parquet; .gz, .zst); add one, or set data.paths.{source}"
            )
        if len(entries) > 1:
            names = " and ".join(entry.name for entry in entries)
            raise DataError(f"{root} contains {names}; choose one with data.paths.{source}")
        where = str(entries[0])
    files = [file for entry in entries for file in _files_below(entry)]
    if not files:
        raise DataError(f"{where} contains no file")
    return files


def _is_named(entry: Path, source: str) -> bool:
    # Not `stem`: a source may have a dot in its name, and a file two suffixes.
    if entry.name == source:
        return True
    plain = entry.name.removesuffix(entry.suffix) if entry.suffix in _COMPRESSED else entry.name
    return entry.is_file() and plain.removesuffix(Path(plain).suffix) == source


def _files_below(entry: Path) -> list[Path]:
    if entry.is_file():
        return [entry]
    files = []
    for folder, subfolders, names in os.walk(entry):
        # Hidden files and folders (.git, .DS_Store) are not text.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    # Sorted folder by folder, as `Path` compares.
    return [Path(f) for f in sorted(files, key=lambda f: f.split(os.sep)) if os.path.isfile(f)]


def read_file(path: Path, text_field: str, columns: Sequence[str] = ()) -> Iterator[Record]:
    """The documents of a file: lines of JSON, rows of Parquet, or the whole file as one document.

    Args:
        text_field: the field or column that contains the text.
        columns: other columns to read from a Parquet file; absent ones are ignored.

    Raises:
        DataError: the file cannot be read to its end, or a record has no text.
    """
    suffix = Path(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix
    if path.suffix == ".parquet":
        yield from _read_parquet(path, text_field, columns)
        return
    try:
        with _open(path) as stream:
            if suffix in _JSON_LINES:
                yield from _read_lines(stream, path, text_field)
            else:
                yield Record(stream.read().decode("utf-8-sig"), {})
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix == ".zst":
        import pyarrow

        # Unlike the reader of `zstandard`, it reports a file that is cut off.
        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"), 1 << 20)
    return open(path, "rb")


def _read_lines(stream: BinaryIO, path: Path, text_field: str) -> Iterator[Record]:
    for number, raw in enumerate(stream, start=1):
        where = f"{path}, line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            if not line.strip():
                continue
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise DataError(f"{where}: expected one JSON object in UTF-8 ({reason})") from error
        if not isinstance(fields, dict):
            raise DataError(f"{where}: expected a JSON object, got {type(fields).__name__}")
        yield _record(fields, text_field, where, "data.text_field")


def _read_parquet(path: Path, text_field: str, columns: Sequence[str]) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            # A column, or the struct that contains it.
            wanted = {n if n in names else n.split(".")[0] for n in (text_field, *columns)}
            for batch in table.iter_batches(_PARQUET_ROWS, columns=sorted(wanted & set(names))):
                for fields in batch.to_pylist():
                    row += 1
                    yield _record(fields, text_field, f"{path}, row {row}", "data.text_field")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error


def _record(fields: Mapping[str, Any], text_field: str, where: str, setting: str) -> Record:
    text = lookup(fields, text_field)
    if text is None and text_field not in fields:
        raise DataError(
            f"{where}: no field {text_field!r}, only {', '.join(fields) or 'none'}; set {setting}"
        )
    if not isinstance(text, str):
        raise DataError(
            f"{where}: expected text in field {text_field!r}, got {type(text).__name__}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: expected Unicode text ({error.reason})") from error
    return Record(text, fields)


# Data sets of the Hugging Face Hub


def hub_files(source: HubSource) -> list[Path]:
    """The local files that a data set is read from; none if it is on the Hub."""
    if source.path not in _HUB_FORMATS:
        folder = Path(source.path).expanduser()
        return _files_below(folder) if folder.is_dir() else []
    if source.data_files is None or "://" in source.data_files:
        return []
    found = [Path(name) for name in sorted(glob.glob(source.data_files, recursive=True))]
    if not found:
        raise DataError(f"data_files={source.data_files} matches no file")
    return found


def read_hub(source: HubSource) -> Iterator[Record]:
    """The rows of a data set, streamed: nothing is read beyond what the caller takes.

    Raises:
        DataError: the Hub or the data set cannot be reached or read, or a row has no text.
    """
    if not hub_files(source):
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
                        f"{where}: no column {source.filter_column!r}, only {', '.join(fields)}"
                    )
                if not holds(fields, source.filter_column, source.filter_values or []):
                    continue
            yield _record(fields, source.column, f"{where}, row {row}", "the source's column")
    except (
        OSError,
        ValueError,
        EOFError,
        pyarrow.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:
        # A failure inside a file is wrapped several times; the innermost cause says what broke.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise DataError(
            f"data set {where}: cannot be read after row {row} ({first_line(cause)})"
        ) from error


def check_hub(wanted: str) -> None:
    """Checks that the Hub answers, so that a machine without network fails within seconds.

    `huggingface_hub` would retry for minutes.

    Raises:
        DataError: the Hub does not answer, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants

    advice = "use data=local or data=synthetic, or local files"
    if constants.HF_HUB_OFFLINE:
        raise DataError(f"{wanted} needs the Hugging Face Hub, but HF_HUB_OFFLINE is set; {advice}")
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S):
            pass
    except urllib.error.HTTPError:
        return  # Any answer means that it can be reached.
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"{wanted} needs the Hugging Face Hub, but {constants.ENDPOINT} does not answer "
            f"({reason}); {advice}"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
