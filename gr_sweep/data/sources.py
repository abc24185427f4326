"""Where documents come from: generated text, local files, or data sets of the Hugging Face Hub.

To add one, add a function to `_SOURCES` and see `config.DataKind`. `datasets` is slow to import and
is imported only where it is needed.
"""

import dataclasses
import glob
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gr_sweep.config import DataConfig, DataKind, HubSource
from gr_sweep.data import synthetic
from gr_sweep.data.formats import LARGEST_TEXT, Record, pieces, read_file, record_of
from gr_sweep.data.rules import Rules, holds, text_id
from gr_sweep.errors import DataError

logger = logging.getLogger(__name__)

_HUB_TIMEOUT_S = 5.0


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
    """JSON values that change whenever the documents do, unless the content of `files` does."""
    documents: Iterator[Document]
    """They are read once, from when the first is asked for."""
    files: Sequence[Path] = ()
    """Those on this machine."""


def sources_of(data: DataConfig, rules: Rules) -> list[Source]:
    """The sources of a partition, in the order of its domains; no document is read.

    Raises:
        DataError: a source that is missing.
    """
    if data.kind is DataKind.synthetic:
        return [_synthetic(data, rules)]
    return [_SOURCES[data.kind](data, name, rules) for name in rules.sources]


def _synthetic(data: DataConfig, rules: Rules) -> Source:
    settings: dict[str, Any] = {n: getattr(data, n) for n in ("documents", "overlap", "seed")}

    def documents() -> Iterator[Document]:
        for domain, texts in synthetic.generate(rules.domains, **settings).items():
            for text in texts:
                yield Document(domain, text, text_id(text))

    key = [synthetic.GENERATOR, settings]
    return Source("the generated text", rules.domains, key, documents())


def _local(data: DataConfig, name: str, rules: Rules) -> Source:
    files = local_files(data, name)

    def documents() -> Iterator[Document]:
        for file in files:
            records = read_file(file, data.text_field, rules.fields_of(name), data.split)
            yield from _documents(records, str(file), name, rules, data.split)

    suffixes = ["".join(file.suffixes[-2:]) for file in files]
    key = [name, suffixes, data.text_field, rules.key(name), data.split]
    return Source(str(files[0]), rules.domains_of(name), key, documents(), files)


def _hub(data: DataConfig, name: str, rules: Rules) -> Source:
    hub = data.sources[name]
    where = f"data set {hub.path}" + (f" ({hub.data_files})" if hub.data_files else "")
    documents = _documents(_read_hub(hub), where, name, rules, data.split)
    key = [name, dataclasses.asdict(hub), rules.key(name), data.split]
    return Source(where, rules.domains_of(name), key, documents, hub_files(hub))


_SOURCES = {DataKind.local: _local, DataKind.hub: _hub}
"""A function from the settings and the name of a source to the `Source`, by kind."""


def _documents(
    records: Iterator[Record | None],
    where: str,
    source: str,
    rules: Rules,
    split: str | int | None,
) -> Iterator[Document]:
    """The documents of the domains that take them, of which some may be blank.

    `records` has None for one that is skipped, which still counts in the numbers of errors.
    """
    number = num_left = 0
    try:
        while True:
            number += 1  # here, so that it is also right where the record cannot be read
            try:
                record = next(records)
            except StopIteration:
                break
            if record is None:
                continue
            if len(record.text) > LARGEST_TEXT:
                raise DataError(
                    f"{where}: document {number} has more than {LARGEST_TEXT:,} characters; split "
                    "it with data.split=paragraphs, or data.split=4000 for so many characters"
                )
            texts: Iterable[str] = [record.text]
            if split is not None:
                texts = pieces(record.text.splitlines(keepends=True), split)
            for text in texts:
                domain = rules.domain_of(source, text, record.fields)
                if domain is None:
                    num_left += 1
                else:
                    yield Document(domain, text, text_id(text))
    except (OSError, EOFError, ValueError) as error:
        said = f"{where}: cannot read record {number} ({first_line(error)})"
        raise DataError(said) from error
    if num_left:
        logger.info("%s: %d documents fit no rule of the partition", where, num_left)


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
        is_named = re.compile(re.escape(source) + r"(\.\w+)?(\.(gz|bz2|zst))?").fullmatch
        named = sorted(entry for entry in Path(where).glob("*") if is_named(entry.name))
        entries = [entry for entry in named if entry.name == source or not entry.is_dir()]
        if len(entries) > 1:
            names = " and ".join(entry.name for entry in entries)
            raise DataError(f"{where} contains {names}; choose one with data.paths.{source}")
    files = [file for entry in entries for file in _files_of(entry)]
    if not files:
        raise DataError(
            f"source {source} has no file in {where}; set data.paths.{source}, or add a folder "
            f"{source} or a file {source}.jsonl (.json, .csv, .tsv, .parquet, .txt; .gz, .zst)"
        )
    return files


def _files_of(entry: Path) -> list[Path]:
    """The file, or the files below the folder, without hidden ones such as .git/config. Links are
    followed, and a folder that has several paths is read once."""
    if not entry.is_dir():
        return [entry] if entry.is_file() else []
    found: list[Path] = []
    seen = set()
    for folder, folders, names in os.walk(entry, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(n for n in folders if real not in seen and not n.startswith("."))
        found += (Path(folder, n) for n in names if real not in seen and not n.startswith("."))
        seen.add(real)
    return sorted(path for path in found if path.is_file())


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error


def hub_files(source: HubSource) -> list[Path]:
    """The local files that a data set is read from; none if it is on the Hub."""
    names, pattern = [os.path.expanduser(source.path)], source.data_files or ""
    if pattern and "/" not in source.path:  # the name of a file format
        names = sorted(glob.glob(pattern, recursive=True))
        if not names and "://" not in pattern:
            raise DataError(f"data_files={pattern} matches no file")
    return [file for name in names for file in _files_of(Path(name))]


def _read_hub(source: HubSource) -> Iterator[Record | None]:
    """The rows of a data set, streamed, and None for those that its filter leaves out."""
    if not hub_files(source):
        check_hub(f"data set {source.path}")
    import datasets

    options = {"name": source.name, "data_files": source.data_files}
    given = {name: value for name, value in options.items() if value is not None}
    column, values = source.filter_column, source.filter_values or []
    try:
        rows = datasets.load_dataset(source.path, split=source.split, streaming=True, **given)
        for fields in rows:
            if column is not None and column.split(".")[0] not in fields:
                raise ValueError(f"no column {column!r}, only {', '.join(fields)}")
            is_wanted = column is None or holds(fields, column, values)
            yield record_of(fields, source.column) if is_wanted else None
    except datasets.exceptions.DatasetsError as error:
        cause = error.__cause__ or error
        raise ValueError(first_line(cause)) from error


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
