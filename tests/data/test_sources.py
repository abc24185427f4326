import gzip
import json
import socket
import time
from pathlib import Path

import pytest

from gr_sweep.config import DataConfig, DataKind, HubSource
from gr_sweep.data.sources import check_hub, hub_files, local_files, read_file, read_hub
from gr_sweep.errors import DataError
from tests.data.corpus import write_lines

RECORDS = [{"text": f"text {number}\nwith a line", "tag": number} for number in range(5)]


def write_parquet(path: Path, records: list[dict]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson"])
def test_json_lines_keep_text_fields_and_place(tmp_path, name):
    path = write_lines(tmp_path / name, RECORDS)
    found = list(read_file(path, "text"))
    assert [record.text for record in found] == [record["text"] for record in RECORDS]
    assert [record.line for record in found] == [1, 2, 3, 4, 5]
    assert found[3].fields["tag"] == 3 and found[3].file == str(path)


def test_parquet_reads_the_columns_that_are_wanted(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [r | {"other": 1} for r in RECORDS])
    found = list(read_file(path, "text", ["tag", "absent"]))
    assert [record.text for record in found] == [record["text"] for record in RECORDS]
    assert found[2].fields == {"text": RECORDS[2]["text"], "tag": 2}


def test_any_other_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.py.gz").write_bytes(gzip.compress("pass # ü\n".encode()))
    assert [r.text for r in read_file(tmp_path / "a.txt", "text")] == ["one\n\ntwo\n"]
    assert [r.text for r in read_file(tmp_path / "b.py.gz", "text")] == ["pass # ü\n"]


def test_zstandard_of_several_frames_is_read_to_its_end(tmp_path):
    import zstandard

    lines = [json.dumps(record).encode() + b"\n" for record in RECORDS]
    # A frame may end in the middle of a line.
    content = b"".join(lines)
    packed = zstandard.compress(content[:30]) + zstandard.compress(content[30:])
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    found = list(read_file(tmp_path / "a.jsonl.zst", "text"))
    assert [record.fields for record in found] == RECORDS


def test_byte_order_mark_and_empty_lines_are_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "x"}\n\n{"text": "y"}\n')
    assert [(r.text, r.line) for r in read_file(path, "text")] == [("x", 1), ("y", 3)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2: broken JSON"),
        ("a.jsonl", b'{"text": "x"}\n["x"]\n', r"a\.jsonl, line 2: list instead of a JSON object"),
        ("a.jsonl", b'{"body": "x"}\n', r"a\.jsonl, line 1: no field 'text'; it has body"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r"a\.jsonl, line 2: field 'text' is int"),
        ("a.jsonl", b'{"text": null}\n', r"a\.jsonl, line 1: field 'text' is NoneType"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"a\.jsonl, line 2: not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl, line 1: not Unicode text"),
        ("a.txt", b"one\ntwo\xff\n", r"a\.txt, line 2: not UTF-8"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: cannot be read"),
        ("a.jsonl.zst", b"no zstandard", r"a\.jsonl\.zst: cannot be read"),
        ("a.parquet", b"no parquet", r"a\.parquet: cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        list(read_file(tmp_path / name, "text"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.txt.zst"])
def test_a_packed_file_that_is_cut_off_is_noticed(tmp_path, name):
    path = write_lines(tmp_path / name, RECORDS * 200)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=f"{name}: the file is cut off"):
        list(read_file(path, "text"))


def test_a_parquet_column_that_is_missing_or_no_text_is_named(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"body": "x"}])
    with pytest.raises(DataError, match="no column 'text'; it has body"):
        list(read_file(path, "text"))
    path = write_parquet(tmp_path / "a.parquet", [{"text": "x"}, {"text": None}])
    with pytest.raises(DataError, match="line 2: field 'text' is NoneType"):
        list(read_file(path, "text"))


def test_root_holds_a_file_or_a_folder_a_source(tmp_path):
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


def test_a_source_that_is_missing_empty_or_there_twice_is_named(tmp_path):
    data = DataConfig(kind=DataKind.local, root=str(tmp_path), paths={"x": "nowhere/*.txt"})
    with pytest.raises(DataError, match=r"holds neither a folder code nor a file code\.jsonl"):
        local_files(data, "code")
    with pytest.raises(DataError, match=r"data\.paths\.x=nowhere"):
        local_files(data, "x")
    (tmp_path / "code").mkdir()
    with pytest.raises(DataError, match="code holds no file"):
        local_files(data, "code")
    (tmp_path / "code.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds code and code\.txt"):
        local_files(data, "code")
    with pytest.raises(DataError, match=r"is not a folder"):
        local_files(DataConfig(root=str(tmp_path / "none")), "code")
    with pytest.raises(DataError, match=r"set data\.root or data\.paths\.code"):
        local_files(DataConfig(), "code")


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
    folder = tmp_path / "set"
    folder.mkdir()
    write_parquet(folder / "train.parquet", [{"body": "one"}, {"body": "two"}])
    found = list(read_hub(HubSource(path=str(folder), column="body")))
    assert [record.text for record in found] == ["one", "two"]


def test_hub_errors_are_one_line_that_names_the_data_set(tmp_path):
    write_lines(tmp_path / "a.jsonl", RECORDS)
    files = {"path": "json", "data_files": str(tmp_path / "a.jsonl")}
    with pytest.raises(DataError, match=r"a\.jsonl\), line 1: no field 'body'; it has text, tag"):
        list(read_hub(HubSource(**files, column="body")))
    with pytest.raises(DataError, match="no column 'language'; it has text, tag"):
        list(read_hub(HubSource(**files, filter_column="language", filter_values=["en"])))
    with pytest.raises(DataError, match="cannot be read") as error:
        list(read_hub(HubSource(**files, split="nowhere")))
    assert "\n" not in str(error.value)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"text"')
    with pytest.raises(DataError, match=r"data set json .*cannot be read") as error:
        list(read_hub(HubSource(**files)))
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="matches no file"):
        list(read_hub(HubSource(path="json", data_files="nowhere/*.json")))


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
        assert "\n" not in str(error.value)


def test_a_hub_that_is_switched_off_is_said(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        check_hub("data set x")
