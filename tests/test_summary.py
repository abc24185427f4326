import json
import os

import pytest

from gr_sweep.errors import DataError
from gr_sweep.files import content_digest
from gr_sweep.summary import (
    SAMPLES,
    check_files,
    is_finished,
    read_summary,
    set_aside_damaged,
    write_summary,
)

SUMMARY = {"format": 1, "job": "a b", "metrics": {"loss/full/ä": 0.1 + 0.2, "n": 3}, "domains": []}


@pytest.fixture
def path(tmp_path):
    write_summary(tmp_path / "summary.json", SUMMARY)
    return tmp_path / "summary.json"


def test_a_summary_comes_back_as_it_was_written(path):
    assert read_summary(path) == SUMMARY and is_finished(path)
    set_aside_damaged(path)
    assert path.exists()


def test_other_programs_read_it_as_json_with_one_more_field(path):
    content = json.loads(path.read_text())
    assert len(content.pop("checksum")) == 64 and content == SUMMARY


def test_every_bit_that_flips_is_found_out_or_changes_no_value(path):
    """In the name of the checksum's field a bit makes another field of it, and harms nothing."""
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 4):
            content = bytearray(whole)
            content[place] ^= bit
            path.write_bytes(content)
            try:
                found = read_summary(path)
            except DataError as error:
                assert str(error).startswith(f"{path} is damaged (")
                assert not is_finished(path)
            else:
                assert SUMMARY.items() <= found.items() and is_finished(path), place


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"checksum": "a"}', b"\xff\xfe"])
def test_what_is_no_summary_is_damaged(path, content):
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"summary\.json is damaged"):
        read_summary(path)
    assert not is_finished(path)


def test_a_summary_that_is_cut_off_is_damaged(path):
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="its checksum is another"):
        read_summary(path)


def test_a_summary_of_an_older_version_has_no_checksum_and_is_taken_as_it_stands(path):
    path.write_text(json.dumps(SUMMARY, indent=1) + "\n")
    assert read_summary(path) == SUMMARY and is_finished(path)


def test_one_that_was_written_anew_by_another_program_is_not_relied_on(path):
    """Its checksum cannot be compared any more."""
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    with pytest.raises(DataError, match="not where it was written"):
        read_summary(path)


def test_a_damaged_one_is_set_aside_and_named(path, caplog):
    path.write_bytes(path.read_bytes().replace(b"0.3", b"0.4"))
    set_aside_damaged(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["summary.json.unreadable"]
    assert f"{path} is damaged" in caplog.text and "evaluates again" in caplog.text
    assert not is_finished(path)
    set_aside_damaged(path)  # there is none


def test_that_there_is_none_is_not_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_summary(tmp_path / "summary.json")
    assert not is_finished(tmp_path / "summary.json")


def test_tables_have_to_be_as_they_were_written_and_text_to_look_at_need_not(tmp_path):
    for name in ("document_losses.csv", SAMPLES):
        (tmp_path / name).write_text("as the job wrote it")
    digests = {name: content_digest(tmp_path / name) for name in ("document_losses.csv", SAMPLES)}
    check_files(tmp_path, digests)
    (tmp_path / SAMPLES).write_text("some of it taken out")
    check_files(tmp_path, digests)
    (tmp_path / SAMPLES).unlink()
    check_files(tmp_path, digests)
    check_files(tmp_path, {})
    (tmp_path / "document_losses.csv").write_text("something else")
    with pytest.raises(DataError, match=r"document_losses\.csv is damaged"):
        check_files(tmp_path, digests)
