"""samples.json is read as it is written; a broken file is named and skipped."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.files import content_digest
from gr_sweep.report.samples import Prompt, Sample, read_samples
from tests.refused import is_one_line

FULL = {"kind": "full", "part": None, "text": "\x00 <b>é</b>", "end": "length"}
REMOVED = {"kind": "removed", "part": "code", "text": "", "end": "not_finite"}


def content(**changes: Any) -> dict[str, Any]:
    prompt = {
        "domain": "code", "document": "00ff", "prompt": "a", "reference": "b",
        "samples": [FULL, REMOVED],
    }  # fmt: skip
    return {"format": 1, "prompts": [prompt | changes]}


def test_samples_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "samples.json"
    path.write_text(json.dumps(content()))
    samples = (
        Sample(kind="full", part=None, text="\x00 <b>é</b>", end="length"),
        Sample(kind="removed", part="code", text="", end="not_finite"),
    )
    prompt = Prompt(domain="code", document="00ff", prompt="a", reference="b", samples=samples)
    assert read_samples(tmp_path) == read_samples(tmp_path, content_digest(path)) == [prompt]


BROKEN = {
    "bytes": bytes(range(256)),
    "deep": b"[" * 200_000,
    "of another format": json.dumps(content() | {"format": 2}).encode(),
    "a prompt is null": json.dumps(content() | {"prompts": [None]}).encode(),
    "a kind is unknown": json.dumps(content(samples=[FULL | {"kind": "<b>"}])).encode(),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_broken_file_is_named_and_skipped(tmp_path: Path, caplog, broken: bytes) -> None:
    (tmp_path / "samples.json").write_bytes(broken)
    with caplog.at_level(logging.WARNING):
        assert read_samples(tmp_path) == []
    [record] = caplog.records
    assert str(tmp_path / "samples.json") in record.getMessage()
    assert is_one_line(record.getMessage())


def test_file_that_is_not_as_the_job_wrote_it_is_skipped(tmp_path: Path, caplog) -> None:
    assert read_samples(tmp_path) == [] and not caplog.records, "there is none"
    (tmp_path / "samples.json").write_text(json.dumps(content()))
    assert read_samples(tmp_path, "0" * 64) == []
    assert "checksum" in caplog.text


def test_half_a_surrogate_pair_becomes_text_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text(json.dumps(content(prompt="a\ud800b")))
    [prompt] = read_samples(tmp_path)
    assert prompt.prompt.encode("utf-8") == b"a?b"
