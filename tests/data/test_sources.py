import csv
import errno
import io
import json
import os
import socket
import time
from collections.abc import Iterator

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from gr_sweep.config import DataConfig, DataKind, HubSource
from gr_sweep.data.formats import pieces, read_file
from gr_sweep.data.rules import Rules
from gr_sweep.data.sources import check_hub, hub_files, local_files, sources_of
from gr_sweep.errors import DataError
from tests.data.corpus import packed, partition, write_lines
from tests.refused import is_one_line

RECORDS = [{"text": f"text {number}\nwith a line", "tag": f"{number}"} for number in range(5)]
VARIED = [*RECORDS, {"text": "a", "day": "2024-01-02", "tag": 1}, {"text": "b", "tag": ["x"]}]


def parquet(columns: dict[str, list[object]]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def table(delimiter: str) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["text", "tag"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(RECORDS)
    return file.getvalue().encode()


LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
FORMATS = {
    "jsonl": LINES,
    "json": json.dumps(RECORDS, indent=1).encode(),
    "csv": table(","),
    "tsv": table("\t"),
    "parquet": parquet({name: [r[name] for r in RECORDS] for name in ("text", "tag")}),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_is_read_by_its_suffix_packed_or_not(tmp_path, kind):
    files = {f"a.{kind}": FORMATS[kind]}
    for suffix in () if kind == "parquet" else ("gz", "bz2", "zst"):
        files[f"a.{kind}.{suffix}"] = packed(FORMATS[kind], suffix)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        found = list(read_file(tmp_path / name, "text", ["tag", "absent"]))
        assert [record.fields for record in found] == RECORDS, name
        assert [record.text for record in found] == [record["text"] for record in RECORDS]


@pytest.mark.parametrize(
    ("name", "content", "records"),
    [
        *(("a.md", text, [{"text": text}]) for text in ("text, lies\n", "", '{"text": "x"}\n')),
        ("a.json", json.dumps(RECORDS[0], indent=1), RECORDS[:1]),
        ("a.jsonl", "".join(json.dumps(record) + "\n" for record in VARIED), VARIED),
        ("a.jsonl", '\ufeff{"text": "x"}\n\n{"text": "y"}\n', [{"text": "x"}, {"text": "y"}]),
        ("a.csv", "text,tag\nNA,1.0\n", [{"text": "NA", "tag": "1.0"}]),
    ],
)
def test_text_and_fields_are_those_of_the_file(tmp_path, name, content, records):
    (tmp_path / name).write_text(content, "utf-8")
    found = list(read_file(tmp_path / name, "text"))
    assert [record.text for record in found] == [record["text"] for record in records]
    assert name == "a.md" or [record.fields for record in found] == records


@settings(max_examples=50, deadline=None)
@drawn(st.text("ab \n\r\u2028é", max_size=80), st.integers(1, 30))
def test_pieces_are_a_text_without_loss(text, largest):
    found = list(pieces(text.splitlines(keepends=True), largest))
    assert "".join(found) == text and all(len(piece) <= largest for piece in found)
    paragraphs = list(pieces(text.splitlines(keepends=True), "paragraphs"))
    assert "".join("".join(paragraphs).split()) == "".join(text.split())
    assert all(line.strip() for p in paragraphs for line in p.splitlines())


def test_a_long_text_is_refused_or_split(tmp_path):
    path = tmp_path / "a.txt"
    lines = (f"line {number} ".ljust(999, "x") for number in range(17_000))
    path.write_text("".join(line + "\n" * (1 + n % 2) for n, line in enumerate(lines)))
    with pytest.raises(DataError, match=r"a.txt: document 1 has more .* data.split=paragraphs"):
        list(documents(DataConfig(kind=DataKind.local, paths={"a": str(path)})))
    for split, number in (("paragraphs", 8500), (4000, 5667)):
        data = DataConfig(kind=DataKind.local, paths={"a": str(path)}, split=split)
        found = [document.text for document in documents(data)]
        assert len(found) == number and found[0].startswith("line 0")
        assert max(map(len, found)) <= 4000 and found[-1].startswith("line 169")


def documents(data: DataConfig) -> Iterator:
    """The documents of source a."""
    [source] = sources_of(data, Rules(partition("a")))
    return source.documents


def test_root_contains_a_file_or_a_folder_for_each_source(tmp_path):
    write_lines(tmp_path / "code.jsonl.gz", RECORDS)
    for name in ("b/2.txt", "a/1.txt", "a/.hidden", ".git/config"):
        (tmp_path / "tales" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tales" / name).write_text("x")
    (tmp_path / "codes.jsonl").write_text("")
    (tmp_path / "code.old").mkdir()
    (tmp_path / "code.old/1.txt").write_text("x")
    data = DataConfig(kind=DataKind.local, root=str(tmp_path))
    assert local_files(data, "code") == [tmp_path / "code.jsonl.gz"]
    assert local_files(data, "tales") == [tmp_path / "tales/a/1.txt", tmp_path / "tales/b/2.txt"]


def test_folders_behind_links_are_read_once_and_unreadable_ones_refused(tmp_path, monkeypatch):
    for name in ("a/1.txt", "elsewhere/2.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("x")
    (tmp_path / "a/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "a")
    data = DataConfig(kind=DataKind.local, root=str(tmp_path))
    assert local_files(data, "a") == [tmp_path / "a/1.txt", tmp_path / "a/link/2.txt"]
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("link"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"a/link: cannot be read \(Permission denied"):
        local_files(data, "a")


def test_paths_take_globs_and_names_with_odd_characters(tmp_path):
    odd = tmp_path / 'it\'s [a] "name" with spaces'
    odd.mkdir()
    for name in ("2.txt", "1.txt", "3.md"):
        (odd / name).write_text("x")
    data = DataConfig(
        kind=DataKind.local,
        paths={"file": str(odd / "3.md"), "folder": str(odd), "glob": f"{tmp_path}/it's*/*.txt"},
    )
    assert local_files(data, "file") == [odd / "3.md"]
    assert [path.name for path in local_files(data, "folder")] == ["1.txt", "2.txt", "3.md"]
    assert [path.name for path in local_files(data, "glob")] == ["1.txt", "2.txt"]


CUT = LINES + b'\n{"text": "abc'
UNREADABLE: dict[str, tuple[str, bytes, str]] = {
    "gzip that is cut off": ("a.jsonl.gz", packed(LINES, "gz")[:-4], "cannot read record"),
    "binary data": ("a.txt", b"a\xff\xfeb", "a.txt: cannot read record 1 ('utf-8' codec"),
    "text named Parquet": ("a.parquet", b"some text", "a.parquet: cannot read record 1 (Parquet"),
    "rows that are too long": ("a.csv", b"text,tag\na,b,c\nd,e,f\n", "line 2: more fields than"),
    "a row that is too short": ("a.csv", b"text,tag\na,b\nc\n", "line 3: fewer fields than"),
    "a quote without end": ("a.csv", b'text,tag\na,"b\n', "line 2: unexpected end of data"),
    "a table without text": ("a.tsv", b"body\ttag\na\tb\n", "the fields are body, tag"),
    "a Parquet file without text": ("a.parquet", parquet({"body": ["a"]}), "the fields are body"),
    "an array without end": ("a.json", b'[{"text": "x"},', "cannot read record 1"),
    "cut within a line": ("a.jsonl", CUT, "cannot read record 6 (line 7: U"),
    "half a character": ("a.jsonl", LINES + b'{"text": "\\ud800"}', "cannot read record 6 ("),
    "text is null": ("a.jsonl", b'{"text": null}\n', "got None; the fields are text"),
    "hidden files only": ("a/.x.jsonl", LINES, "source a has no file"),
}


@pytest.mark.parametrize(("name", "content", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, content, said):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        list(documents(DataConfig(kind=DataKind.local, root=str(tmp_path))))
    assert said in str(error.value) and is_one_line(str(error.value))


def test_a_file_and_a_folder_of_one_source_are_refused(tmp_path):
    write_lines(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"choose one with data\.paths\.a"):
        local_files(DataConfig(kind=DataKind.local, root=str(tmp_path)), "a")


# The Hub


def hub_texts(source: HubSource) -> list[str]:
    return [d.text for d in documents(DataConfig(kind=DataKind.hub, sources={"a": source}))]


def test_hub_reads_local_files_in_its_formats_with_a_filter(tmp_path):
    write_lines(tmp_path / "a.jsonl", RECORDS)
    source = HubSource(
        path="json",
        data_files=str(tmp_path / "*.jsonl"),
        filter_column="tag",
        filter_values=["1", "3"],
    )
    assert hub_files(source) == [tmp_path / "a.jsonl"]
    assert hub_texts(source) == [RECORDS[1]["text"], RECORDS[3]["text"]]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").write_bytes(parquet({"body": ["one", "two"]}))
    assert hub_texts(HubSource(path=str(tmp_path / "set"), column="body")) == ["one", "two"]


def test_hub_errors_are_one_line_that_names_the_data_set(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    for changes, said in (
        ({"column": "body"}, "record 1 (expected text in field 'body', got None; the fields are"),
        ({"filter_column": "language", "filter_values": ["en"]}, "no column 'language'"),
    ):
        with pytest.raises(DataError) as error:
            hub_texts(HubSource(**{"path": "json", "data_files": str(path)} | changes))
        assert said in str(error.value) and is_one_line(str(error.value))


def test_without_network_the_hub_fails_at_once_in_one_line(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        start = time.monotonic()
        with pytest.raises(DataError, match=f"{address} does not answer") as error:
            hub_texts(HubSource(path="somebody/some-data-set"))
        assert time.monotonic() - start < 8
    assert is_one_line(str(error.value))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        check_hub("data set x")
