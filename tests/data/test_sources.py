import gzip
import io
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from gr_sweep.config import DataConfig, DataKind, HubSource
from gr_sweep.data.prepare import prepare_data
from gr_sweep.data.sources import check_hub, hub_files, local_files, read_file, read_hub
from gr_sweep.errors import DataError, GrSweepError
from tests.data.corpus import partition, write_lines
from tests.refused import contents, is_one_line, within

RECORDS = [{"text": f"text {number}\nwith a line", "tag": number} for number in range(5)]
VARIED = [*RECORDS, {"text": "a", "day": "2024-01-02", "tag": "one"}, {"text": "b", "tag": ["x"]}]
GOOD = b"".join(
    json.dumps({"text": f"some good text, the {n}th of its kind"}).encode() + b"\n"
    for n in range(60)
)
GZIP, ZSTD = gzip.compress(GOOD, mtime=0), zstandard.compress(GOOD)
DEEP = 100_000


def parquet(columns: dict[str, list[object]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


PARQUET = parquet({"text": [f"hello world {n}" for n in range(999)]})


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz", "a.jsonl.zst"])
def test_json_lines_keep_text_fields_and_line(tmp_path, name):
    path = write_lines(tmp_path / name, VARIED)
    found = list(read_file(path, "text"))
    assert [record.text for record in found] == [record["text"] for record in VARIED]
    assert [record.fields for record in found] == VARIED


def test_parquet_reads_the_columns_that_are_wanted(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet({"text": ["x", "y"], "tag": [1, 2], "other": [3, 4]}))
    found = list(read_file(path, "text", ["tag", "absent"]))
    assert [record.text for record in found] == ["x", "y"]
    assert found[1].fields == {"text": "y", "tag": 2}


def test_any_other_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.py.gz").write_bytes(gzip.compress("pass # ü\n".encode()))
    assert [r.text for r in read_file(tmp_path / "a.txt", "text")] == ["one\n\ntwo\n"]
    assert [r.text for r in read_file(tmp_path / "b.py.gz", "text")] == ["pass # ü\n"]


def test_a_byte_order_mark_and_empty_lines_are_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "x"}\n\n{"text": "y"}\n')
    assert [record.text for record in read_file(path, "text")] == ["x", "y"]


def test_root_contains_a_file_or_a_folder_for_each_source(tmp_path):
    write_lines(tmp_path / "code.jsonl.gz", RECORDS)
    for name in ("b/2.txt", "a/1.txt", "a/.hidden", ".git/config"):
        (tmp_path / "tales" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tales" / name).write_text("x")
    (tmp_path / "codes.jsonl").write_text("")
    data = DataConfig(kind=DataKind.local, root=str(tmp_path))
    assert local_files(data, "code") == [tmp_path / "code.jsonl.gz"]
    assert local_files(data, "tales") == [tmp_path / "tales/a/1.txt", tmp_path / "tales/b/2.txt"]


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


# What cannot be read

EMPTY = "domain a is empty"
FILES: dict[str, tuple[str, bytes, str]] = {
    "gzip that is cut off": ("a.jsonl.gz", GZIP[:-4], "a.jsonl.gz: cannot read record 61"),
    "zstandard that is cut off": ("a.txt.zst", ZSTD[:-2], "a.txt.zst: cannot read"),
    "text that is Parquet": ("a.txt", PARQUET, "a.txt: cannot read"),
    "lines of blank text": ("a.jsonl", b'{"text": " \\n"}\n' * 9, EMPTY),
    "cut within a line": ("a.jsonl", GOOD + b'\n{"text": "abc', "a.jsonl: cannot read record 62"),
    "a JSON array": ("a.json", b'[{"text": "x"}]', "expected text in field 'text'"),
    "text is a list": ("a.jsonl", b'{"text": ["x"]}\n', "in field 'text', got list"),
    "half a surrogate": ("a.jsonl", b'{"text": "a\\udfffb"}\n', "cannot read record 1"),
    "a name with escapes": ("a.jsonl", b'{"\\u001b[2J\\n": "x"}\n', r"fields are \x1b[2J"),
    "deep lists": ("a.jsonl", b"[" * DEEP + b"]" * DEEP, "cannot read record 1"),
    "Parquet that is cut off": ("a.parquet", PARQUET[:-10], "a.parquet: cannot read"),
    "Parquet, no text": ("a.parquet", parquet({"text": ["x", None]}), "cannot read record 2"),
    "hidden files only": ("a/.x.jsonl", GOOD, "source a has no file"),
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder in which the domain b has a good file."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "b.jsonl").write_bytes(GOOD)
    return tmp_path / "text"


def prepare(text: Path, **changes: object) -> None:
    data = {"kind": DataKind.local, "root": str(text), "vocab_size": 300}
    data["cache"] = str(text.parent / "cache")
    with within():
        prepare_data(DataConfig(**data | changes), partition("a", "b"))


def assert_refused(text: Path, said: str, **changes: object) -> None:
    before = contents(text)
    with pytest.raises(GrSweepError) as refusal:
        prepare(text, **changes)
    assert said in str(refusal.value) and is_one_line(str(refusal.value))
    assert contents(text) == before
    assert [path for path in (text.parent / "cache").glob("*") if path.suffix != ".lock"] == []


@pytest.mark.parametrize(("name", "content", "said"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_one_line_and_leaves_nothing(text, name, content, said):
    (text / name).parent.mkdir(exist_ok=True)
    (text / name).write_bytes(content)
    assert_refused(text, said)


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda text: None, "source a has no file"),
    "a pipe": (lambda text: os.mkfifo(text / "a.jsonl"), "source a has no file"),
    "a link to itself": (lambda text: (text / "a").symlink_to("a"), "source a has no file"),
    "a file and a folder": (
        lambda text: ((text / "a.jsonl").write_bytes(GOOD), (text / "a").mkdir()),
        "choose one with data.paths.a",
    ),
}


@pytest.mark.parametrize(("make", "said"), PLACES.values(), ids=PLACES)
def test_an_entry_that_is_not_a_file_is_refused_without_waiting(text, make, said):
    make(text)
    assert_refused(text, said)


@pytest.mark.parametrize("given", ["/dev/zero", "nowhere", "a\0b"])
def test_a_path_without_a_file_is_refused(text, given):
    assert_refused(text, "file", paths={"a": given})


def test_a_word_of_a_megabyte_does_not_stop_the_tokenizer(text):
    """Training a tokenizer takes the square of a word's length."""
    write_lines(text / "a.jsonl", [{"text": f"{n} y{'x' * 500_000}"} for n in range(2)])
    prepare(text)


# The Hub


def test_hub_reads_local_files_in_its_formats_with_a_filter(tmp_path):
    write_lines(tmp_path / "a.jsonl", RECORDS)
    source = HubSource(
        path="json",
        data_files=str(tmp_path / "*.jsonl"),
        filter_column="tag",
        filter_values=["1", "3"],
    )
    assert hub_files(source) == [tmp_path / "a.jsonl"]
    assert [record.text for record in read_hub(source)] == [RECORDS[1]["text"], RECORDS[3]["text"]]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.parquet").write_bytes(parquet({"body": ["one", "two"]}))
    found = list(read_hub(HubSource(path=str(tmp_path / "set"), column="body")))
    assert [record.text for record in found] == ["one", "two"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"column": "body"},
            "record 1 (expected text in field 'body', got nothing; the fields are text, tag",
        ),
        ({"filter_column": "language", "filter_values": ["en"]}, "no column 'language'"),
        ({"data_files": "nowhere/*.json"}, "matches no file"),
        ({}, "a.jsonl): cannot read record"),
    ],
)
def test_hub_errors_are_one_line_that_names_the_data_set(tmp_path, changes, said):
    path = write_lines(tmp_path / "a.jsonl", RECORDS)
    if not changes:
        path.write_bytes(b'{"text": "x"}\n{"text"')
    with pytest.raises(DataError) as error:
        list(read_hub(HubSource(**{"path": "json", "data_files": str(path)} | changes)))
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
            list(read_hub(HubSource(path="somebody/some-data-set")))
        assert time.monotonic() - start < 8
    assert is_one_line(str(error.value))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        check_hub("data set x")
