"""Where documents come from: generated text, local files, or data sets of the Hugging Face Hub.

To add one, add a member to `config.DataKind` and a function next to `_local` and `_hub`, which
`_SOURCES` names; `checks` and `_resolve_data` say which of its settings it needs.

JSON lines are read here and not by `datasets`, whose reader infers one schema for all lines: it
turns dates into timestamps and stops at fields whose type varies. `datasets` and `pyarrow` are slow
to import and are imported only where they are needed.
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

Digests = Callable[[Sequence[Path]], list[str]]
"""Digests of the content of files."""


class Document(NamedTuple):
    """A text and the domain it belongs to."""

    domain: str
    text: str
    id: int
    """`rules.text_id` of the text."""


class Record(NamedTuple):
    """A text before it has a domain."""

    text: str
    fields: Mapping[str, Any]
    """All fields of the record; empty for a text file."""


@dataclass(frozen=True, slots=True)
class Source:
    """Documents of some domains, and what identifies them."""

    where: str
    """File or data set, for errors."""
    domains: Sequence[str]
    key: Any
    """JSON values that change whenever the documents do."""
    documents: Callable[[], Iterator[Document]]


def sources_of(data: DataConfig, rules: Rules, digests: Digests) -> list[Source]:
    """The sources of a partition, in the order of its domains; no document is read.

    Raises:
        DataError: a source that is missing or cannot be read.
    """
    if data.kind is DataKind.synthetic:
        return [_synthetic(data, rules)]
    source = _SOURCES[data.kind]
    return [source(data, name, rules, digests) for name in rules.sources]


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


def _local(data: DataConfig, name: str, rules: Rules, digests: Digests) -> Source:
    files = local_files(data, name)

    def documents() -> Iterator[Document]:
        for file in files:
            records = read_file(file, data.text_field, rules.fields_of(name))
            yield from _divided(records, name, rules)

    suffixes = ["".join(file.suffixes[-2:]) for file in files]
    contents = list(zip(suffixes, digests(files), strict=True))
    key = [name, contents, data.text_field, rules.key(name)]
    return Source(str(files[0]), rules.domains_of(name), key, documents)


def _hub(data: DataConfig, name: str, rules: Rules, digests: Digests) -> Source:
    hub = data.sources[name]
    key = [name, dataclasses.asdict(hub), digests(hub_files(hub)), rules.key(name)]
    where = f"data set {hub.path}"
    return Source(where, rules.domains_of(name), key, lambda: _divided(read_hub(hub), name, rules))


_SOURCES = {DataKind.local: _local, DataKind.hub: _hub}
"""A function from the settings and the name of a source to the `Source`, by kind."""


def _divided(records: Iterable[Record], source: str, rules: Rules) -> Iterator[Document]:
    """The records that a rule wants."""
    for record in records:
        domain = rules.domain_of(source, record.text, record.fields)
        if domain is not None:
            yield Document(domain, record.text, text_id(record.text))


def _record(fields: Any, text_field: str) -> Record:
    text = lookup(fields, text_field) if isinstance(fields, dict) else None
    if not isinstance(text, str):
        got = "nothing" if text is None else type(text).__name__
        found = ", ".join(fields) if isinstance(fields, dict) else "none"
        raise ValueError(
            f"expected text in field {text_field!r}, got {got}; the fields are {found}; choose one "
            "with data.text_field, or column of a data set"
        )
    text.encode()  # JSON can hold half of a surrogate pair
    return Record(text, fields)


def _with_text(records: Iterator[Record], where: str, *errors: type[Exception]) -> Iterator[Record]:
    """The records that have text; an error names the file or data set, and the line or row."""
    number = 0
    expected: tuple[type[Exception], ...] = (
        *(OSError, EOFError, ValueError, RecursionError, zlib.error),
        *errors,
    )
    try:
        for number, record in enumerate(records, start=1):  # noqa: B007
            if record.text and not record.text.isspace():
                yield record
    except expected as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # `datasets` wraps it several times
            cause = cause.__cause__
        reason = first_line(cause)
        raise DataError(f"{where}: cannot read record {number + 1} ({reason})") from error


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
        entries = [Path(entry) for entry in found]
    else:
        assert data.root is not None  # checks.validate
        where = os.path.expanduser(data.root)
        entries = sorted(entry for entry in Path(where).glob("*") if _is_named(entry, source))
        if len(entries) > 1:
            names = " and ".join(entry.name for entry in entries)
            raise DataError(f"{where} contains {names}; choose one with data.paths.{source}")
    files = [file for entry in entries for file in _files_below(entry)]
    if not files:
        raise DataError(
            f"source {source} has no file in {where}; set data.paths.{source}, or add a folder "
            f"{source} or a file {source}.jsonl (.json, .txt, .parquet; .gz, .zst)"
        )
    return files


def _is_named(entry: Path, source: str) -> bool:
    # Not `stem`: a source may have a dot in its name, and a file two suffixes.
    if entry.name == source:
        return True
    plain = entry.name.removesuffix(entry.suffix) if entry.suffix in _COMPRESSED else entry.name
    return entry.is_file() and plain.removesuffix(Path(plain).suffix) == source


def _files_below(entry: Path) -> list[Path]:
    """The file, or the files of the folder, without hidden ones such as .git/config."""
    if entry.is_file():
        return [entry]
    return [
        path
        for path in sorted(entry.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(entry).parts)
    ]


def read_file(path: Path, text_field: str, columns: Sequence[str] = ()) -> Iterator[Record]:
    """The documents of a file: lines of JSON, rows of Parquet, or the whole file as one document.

    Args:
        text_field: the field or column that contains the text.
        columns: other columns to read from a Parquet file; absent ones are ignored.

    Raises:
        DataError: the file cannot be read to its end, or a record has no text.
    """
    if path.suffix == ".parquet":
        import pyarrow

        records = _read_parquet(path, text_field, columns)
        return _with_text(records, str(path), pyarrow.ArrowException)
    return _with_text(_read_text(path, text_field), str(path))


def _read_text(path: Path, text_field: str) -> Iterator[Record]:
    suffix = Path(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix
    with _open(path) as stream:
        if suffix not in _JSON_LINES:
            yield Record(stream.read().decode("utf-8-sig"), {})
            return
        for number, line in enumerate(stream):
            text = line.decode("utf-8" if number else "utf-8-sig")
            # A blank line counts as a record, so that errors have the number of the line.
            yield _record(json.loads(text), text_field) if text.strip() else Record("", {})


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix == ".zst":
        import pyarrow

        # Unlike the reader of `zstandard`, it reports a file that is cut off.
        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"), 1 << 20)
    return open(path, "rb")


def _read_parquet(path: Path, text_field: str, columns: Sequence[str]) -> Iterator[Record]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as table:
        names = table.schema_arrow.names
        # A column, or the struct that contains it.
        wanted = {n if n in names else n.split(".")[0] for n in (text_field, *columns)}
        for batch in table.iter_batches(_PARQUET_ROWS, columns=sorted(wanted & set(names))):
            for fields in batch.to_pylist():
                yield _record(fields, text_field)


# Data sets of the Hugging Face Hub


def hub_files(source: HubSource) -> list[Path]:
    """The local files that a data set is read from; none if it is on the Hub."""
    names = [os.path.expanduser(source.path)]
    if source.path in _HUB_FORMATS:
        names = sorted(glob.glob(source.data_files or "", recursive=True))
        if not names and "://" not in (source.data_files or "://"):
            raise DataError(f"data_files={source.data_files} matches no file")
    return [file for name in names for file in _files_below(Path(name))]


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
    errors = (pyarrow.ArrowException, datasets.exceptions.DatasetsError)
    return _with_text(_read_rows(source), f"data set {where}", *errors)


def _read_rows(source: HubSource) -> Iterator[Record]:
    import datasets

    options = {"name": source.name, "data_files": source.data_files}
    given = {name: value for name, value in options.items() if value is not None}
    for fields in datasets.load_dataset(source.path, split=source.split, streaming=True, **given):
        column, values = source.filter_column, source.filter_values or []
        if column is not None and column.split(".")[0] not in fields:
            raise ValueError(f"no column {column!r}, only {', '.join(fields)}")
        is_wanted = column is None or holds(fields, column, values)
        # Other rows count as records without text, so that errors have the number of the row.
        yield _record(fields, source.column) if is_wanted else Record("", {})


def check_hub(wanted: str) -> None:
    """Checks that the Hub answers, so that a machine without network fails within seconds.

    `huggingface_hub` would retry for minutes.

    Raises:
        DataError: the Hub does not answer, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants

    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_S):
            pass
    except urllib.error.HTTPError:
        return  # Any answer means that it can be reached.
    except OSError as error:
        raise DataError(
            f"{wanted} needs the Hugging Face Hub, but {constants.ENDPOINT} does not answer "
            f"({error}); use data=local or data=synthetic, or local files"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
