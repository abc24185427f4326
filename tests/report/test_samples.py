import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.eval import samples as written_by
from gr_sweep.files import content_digest
from gr_sweep.report import samples
from gr_sweep.report.samples import Prompt, Sample, read_samples
from tests.refused import is_one_line, within

FULL = {"kind": "full", "part": None, "text": "\x00 <b>é</b>", "end": "length"}
REMOVED = {"kind": "removed", "part": "code", "text": "", "end": "not_finite"}


def content(**changes: Any) -> dict[str, Any]:
    prompt = {
        "domain": "code", "document": "00ff", "prompt": "a", "reference": "b",
        "samples": [FULL, REMOVED],
    }  # fmt: skip
    return {
        "format": 1, "seed": 0, "temperature": 0.8, "min_p": 0.05, "prompts": [prompt | changes],
    }  # fmt: skip


def test_samples_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text(json.dumps(content()))
    digest = content_digest(tmp_path / "samples.json")
    expected = [
        Prompt(
            domain="code",
            document="00ff",
            prompt="a",
            reference="b",
            samples=(
                Sample(kind="full", part=None, text="\x00 <b>é</b>", end=samples.LENGTH),
                Sample(kind="removed", part="code", text="", end=samples.NOT_FINITE),
            ),
        )
    ]
    assert read_samples(tmp_path) == read_samples(tmp_path, digest) == expected


def test_a_job_without_samples_has_none_and_nothing_is_said(tmp_path: Path, caplog) -> None:
    (tmp_path / "folder" / "samples.json").mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "samples.json")
    with within():
        for name in ("folder", "pipe", "nowhere", "."):
            assert read_samples(tmp_path / name) == []
    assert not caplog.records


BROKEN = {
    "empty": b"",
    "zeros": bytes(99),
    "bytes": bytes(range(256)),
    "a list": b"[1]",
    "null": b"null",
    "a number": b"3",
    "text": b'"x"',
    "deep": b"[" * 200_000,
    "cut": json.dumps(content()).encode()[:-9],
    "a huge number": b'{"format": 9%s}' % (b"9" * 5000),
    "of no format": b'{"prompts": []}',
    "of another format": json.dumps(content() | {"format": 2}).encode(),
    "without prompts": b'{"format": 1}',
    **{
        name: json.dumps(part).encode()
        for name, part in (
            ("prompts are text", content() | {"prompts": "x"}),
            ("a prompt is null", content() | {"prompts": [None]}),
            ("a prompt is a list", content() | {"prompts": [[]]}),
            ("the domain is null", content(domain=None)),
            ("the reference is a number", content(reference=3)),
            ("samples are null", content(samples=None)),
            ("samples are an object", content(samples={"full": "x"})),
            ("a sample is text", content(samples=["x"])),
            ("a sample without text", content(samples=[{"kind": "full", "end": "length"}])),
            ("a text is a list", content(samples=[FULL | {"text": ["x"]}])),
            ("a kind is unknown", content(samples=[FULL | {"kind": "<b>"}])),
            ("a kind is a list", content(samples=[FULL | {"kind": ["full"]}])),
            ("a removed part is null", content(samples=[REMOVED | {"part": None}])),
            ("an end is unknown", content(samples=[FULL | {"end": 3}])),
        )
    },
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_and_passed_over(tmp_path: Path, caplog, broken: bytes) -> None:
    (tmp_path / "samples.json").write_bytes(broken)
    with within(), caplog.at_level(logging.WARNING):
        assert read_samples(tmp_path) == []
    [record] = caplog.records
    assert f"{tmp_path / 'samples.json'} cannot be read" in record.getMessage()
    assert is_one_line(record.getMessage())


def test_a_file_that_is_not_as_the_job_wrote_it_is_passed_over(tmp_path: Path, caplog) -> None:
    (tmp_path / "samples.json").write_text(json.dumps(content()))
    assert read_samples(tmp_path, "0" * 64) == []
    assert "its checksum is another" in caplog.text


def test_halves_of_a_character_become_text_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text(json.dumps(content(prompt="a\ud800b")))
    [prompt] = read_samples(tmp_path)
    assert prompt.prompt == "a?b"


def test_reader_and_writer_have_the_same_words() -> None:
    assert written_by.FORMAT == samples.FORMAT
    assert list(written_by.End) == [samples.LENGTH, samples.END_OF_TEXT, samples.NOT_FINITE]
