"""A corpus of text that cannot be read: each file is one DataError, in time, and leaves nothing in
the cache and no file changed.

On top of tests/data/test_sources.py and test_prepare.py.
"""

import gzip
import io
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gr_sweep.config import DataConfig, DataKind, DomainConfig
from gr_sweep.data import rules
from gr_sweep.data.prepare import prepare_data
from gr_sweep.data.sources import read_file
from gr_sweep.errors import DataError, GrSweepError
from tests.data.corpus import partition
from tests.refused import contents, is_one_line, within

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


def flipped(content: bytes, *places: int) -> bytes:
    damaged = bytearray(content)
    for place in places:
        damaged[place] ^= 0xFF
    return bytes(damaged)


PARQUET = parquet({"text": [f"hello world {n}" for n in range(999)]})

EMPTY = "domain a is empty"
CUT = "the file is cut off"
NO_ZSTD = "not zstandard, or damaged"
NO_UTF8 = "not UTF-8"
NO_JSON = "broken JSON"
NO_OBJECT = "instead of a JSON object"

FILES: dict[str, tuple[str, bytes, str]] = {
    "gzip, its header cut": ("a.jsonl.gz", GZIP[:5], CUT),
    "gzip, its checksum cut": ("a.jsonl.gz", GZIP[:-4], CUT),
    "gzip, another checksum": ("a.jsonl.gz", GZIP[:-8] + bytes(8), "CRC check failed"),
    "gzip, a byte flipped": ("a.jsonl.gz", flipped(GZIP, len(GZIP) // 2), "a.jsonl.gz"),
    "gzip, rubbish after it": ("a.jsonl.gz", GZIP + b"rubbish", "Not a gzipped file"),
    "gzip, empty": ("a.jsonl.gz", b"", EMPTY),
    "gzip that is zstandard": ("a.jsonl.gz", ZSTD, "Not a gzipped file"),
    "gzip that is text": ("a.jsonl.gz", GOOD, "Not a gzipped file"),
    "gzip of a document, cut": ("a.txt.gz", GZIP[:-9], CUT),
    "zstandard, its header cut": ("a.jsonl.zst", ZSTD[:3], CUT),
    "zstandard, a byte flipped": ("a.jsonl.zst", flipped(ZSTD, len(ZSTD) // 2), "a.jsonl.zst"),
    "zstandard, rubbish after it": ("a.jsonl.zst", ZSTD + b"rubbish!", NO_ZSTD),
    "zstandard, empty": ("a.jsonl.zst", b"", EMPTY),
    "zstandard that is gzip": ("a.jsonl.zst", GZIP, NO_ZSTD),
    "zstandard of a document, cut": ("a.txt.zst", ZSTD[:-2], CUT),
    "lines that are gzip": ("a.jsonl", GZIP, NO_UTF8),
    "text that is Parquet": ("a.txt", PARQUET, NO_UTF8),
    "lines, none": ("a.jsonl", b"", EMPTY),
    "lines, all blank": ("a.jsonl", b"\n\n  \n\t\n", EMPTY),
    "lines of blank text": ("a.jsonl", b'{"text": " \\n"}\n' * 9, EMPTY),
    "text, none": ("a.txt", b"", EMPTY),
    "zeros": ("a.jsonl", bytes(100), NO_JSON),
    "a zero at the end": ("a.jsonl", GOOD + b"\0\n", "line 61: broken JSON"),
    "UTF-16": ("a.jsonl", GOOD.decode().encode("utf-16"), NO_UTF8),
    "Latin-1": ("a.jsonl", '{"text": "été"}\n'.encode("latin-1"), NO_UTF8),
    "cut within a character": ("a.jsonl", GOOD + '{"text": "é'.encode()[:-1], "line 61: not UTF-8"),
    "cut within a line": ("a.jsonl", GOOD + b'{"text": "abc', "line 61: broken JSON"),
    "a JSON array": ("a.json", b'[{"text": "x"}]', "list instead of a JSON object"),
    "JSON over several lines": ("a.json", b'{\n "text": "x"\n}', NO_JSON),
    "a number": ("a.jsonl", b"3\n", NO_OBJECT),
    "null": ("a.jsonl", b"null\n", NO_OBJECT),
    "a word": ("a.jsonl", b'"x"\n', NO_OBJECT),
    "NaN": ("a.jsonl", b"NaN\n", NO_OBJECT),
    "text is NaN": ("a.jsonl", b'{"text": NaN}\n', "field 'text' is float"),
    "text is a list": ("a.jsonl", b'{"text": ["x"]}\n', "field 'text' is list"),
    "text is an object": ("a.jsonl", b'{"text": {"x": 1}}\n', "field 'text' is dict"),
    "text is true": ("a.jsonl", b'{"text": true}\n', "field 'text' is bool"),
    "no field": ("a.jsonl", b"{}\n", "no field 'text'; it has none"),
    "field in capitals": ("a.jsonl", b'{"Text": "x"}\n', "it has Text"),
    "two objects a line": ("a.jsonl", b'{"text": "x"}{"text": "y"}\n', NO_JSON),
    "a comma after it": ("a.jsonl", b'{"text": "x"},\n', NO_JSON),
    "single quotes": ("a.jsonl", b"{'text': 'x'}\n", NO_JSON),
    "a control character": ("a.jsonl", b'{"text": "a\x01b"}\n', NO_JSON),
    "lines of an old Mac": ("a.jsonl", GOOD.replace(b"\n", b"\r"), NO_JSON),
    "half a surrogate": ("a.jsonl", b'{"text": "a\\udfffb"}\n', "not Unicode text"),
    "a name with escapes": ("a.jsonl", b'{"\\u001b[2J\\n": "x"}\n', r"it has \x1b[2J"),
    "deep lists": (
        "a.jsonl",
        b'{"text": "x", "y": ' + b"[" * DEEP + b"]" * DEEP + b"}\n",
        "JSON that Python does not read",
    ),
    "deep objects": ("a.jsonl", b'{"a":' * DEEP + b"1" + b"}" * DEEP, "Python does not read"),
    "deep and cut": ("a.jsonl", b"[" * DEEP, "JSON that Python does not read"),
    "a huge number": ("a.jsonl", b'{"text": ' + b"9" * DEEP + b"}\n", "Python does not read"),
    "Parquet, its end cut": ("a.parquet", PARQUET[:-10], "cannot be read as Parquet"),
    "Parquet, its start alone": ("a.parquet", PARQUET[:10], "cannot be read as Parquet"),
    "Parquet, four bytes": ("a.parquet", b"PAR1", "cannot be read as Parquet"),
    "Parquet, zeros within": ("a.parquet", b"PAR1" + bytes(50) + b"PAR1", "read as Parquet"),
    "Parquet, empty": ("a.parquet", b"", "cannot be read as Parquet"),
    "Parquet, rubbish": ("a.parquet", GOOD, "cannot be read as Parquet"),
    "Parquet, bytes flipped": (
        "a.parquet",
        flipped(PARQUET, *range(50, len(PARQUET) // 2, 7)),
        "cannot be read as Parquet",
    ),
    "Parquet, no text": ("a.parquet", parquet({"text": ["x", None]}), "line 2: field 'text'"),
    "Parquet of numbers": ("a.parquet", parquet({"text": [1, 2]}), "field 'text' is int"),
    "Parquet of lists": ("a.parquet", parquet({"text": [["x"]]}), "field 'text' is list"),
    "Parquet of bytes": ("a.parquet", parquet({"text": [b"\xff"]}), "field 'text' is bytes"),
    "Parquet without rows": ("a.parquet", parquet({"text": []}), EMPTY),
    "hidden files alone": ("a/.x.jsonl", GOOD, "holds no file"),
}


def prepare(tmp_path: Path, rule: DomainConfig | None = None, **changes: object) -> None:
    """Prepares the text in `text/`; the domain b has a good file."""
    (tmp_path / "text" / "b.jsonl").write_bytes(GOOD)
    data = DataConfig(
        **{
            "kind": DataKind.local,
            "root": str(tmp_path / "text"),
            "cache": str(tmp_path / "cache"),
            "vocab_size": 300,
            **changes,
        }
    )
    with within():
        prepare_data(data, partition("a", "b", a=rule or DomainConfig()))


def assert_refused(tmp_path: Path, said: str, rule: DomainConfig | None = None, **changes) -> None:
    (tmp_path / "text" / "b.jsonl").write_bytes(GOOD)
    before = contents(tmp_path / "text")
    with pytest.raises(GrSweepError) as refusal:
        prepare(tmp_path, rule, **changes)
    assert said in str(refusal.value) and is_one_line(str(refusal.value))
    assert contents(tmp_path / "text") == before
    left = [path for path in (tmp_path / "cache").glob("*") if path.suffix != ".lock"]
    assert left == []


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    return tmp_path / "text"


@pytest.mark.parametrize(("name", "content", "said"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_one_line_and_leaves_nothing(
    text, tmp_path, name, content, said
):
    (text / name).parent.mkdir(exist_ok=True)
    (text / name).write_bytes(content)
    assert_refused(tmp_path, said)


def bound(path: Path) -> None:
    """A socket, whose path may be short alone."""
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(path))


NO_ENTRY = "holds neither a folder a nor a file a.jsonl"
PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda text: None, NO_ENTRY),
    "an empty folder": (lambda text: (text / "a").mkdir(), "holds no file"),
    "a folder called as a file": (lambda text: (text / "a.jsonl").mkdir(), NO_ENTRY),
    "a link to nowhere": (lambda text: (text / "a.jsonl").symlink_to("nowhere"), NO_ENTRY),
    "a link to itself": (lambda text: (text / "a").symlink_to("a"), "holds no file"),
    "a link to a device": (lambda text: (text / "a.txt").symlink_to("/dev/zero"), NO_ENTRY),
    "a pipe": (lambda text: os.mkfifo(text / "a.jsonl"), NO_ENTRY),
    "a socket": (lambda text: bound(text / "a.jsonl"), NO_ENTRY),
    "a file and a folder": (
        lambda text: ((text / "a.jsonl").write_bytes(GOOD), (text / "a").mkdir()),
        "say which is meant",
    ),
    "a folder of a pipe": (
        lambda text: ((text / "a").mkdir(), os.mkfifo(text / "a" / "x.jsonl")),
        "holds no file",
    ),
    "a folder of a link to nowhere": (
        lambda text: ((text / "a").mkdir(), (text / "a" / "x.jsonl").symlink_to("nowhere")),
        "holds no file",
    ),
    "a folder with a broken file": (
        lambda text: ((text / "a").mkdir(), (text / "a" / "x.jsonl").write_bytes(b"{")),
        "a/x.jsonl, line 1: broken JSON",
    ),
}


@pytest.mark.parametrize(("make", "said"), PLACES.values(), ids=PLACES)
def test_what_is_no_file_is_not_waited_for(text, tmp_path, monkeypatch, make, said):
    monkeypatch.chdir(text)
    make(text)
    assert_refused(tmp_path, said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("pipe", "pipe holds no file"),
        ("/dev/zero", "/dev/zero holds no file"),
        ("/dev/stdin", "holds no file"),
        ("/proc/self/mem", "/proc/self/mem: cannot be read"),
        ("nowhere", "data.paths.a=nowhere matches no file or folder"),
        ("*.nope", "matches no file or folder"),
        ("[", "matches no file or folder"),
        ("a\0b", r"data.paths.a=a\x00b matches no file"),
        ("a\nb", "data.paths.a=a b matches no file"),
        ("x" * 5000, "matches no file or folder"),
        ("", "data.paths.a= matches no file or folder"),
    ],
    ids=ascii,
)
def test_a_path_that_leads_to_no_file_is_named(text, tmp_path, monkeypatch, given, said):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    os.mkfifo("pipe")
    assert_refused(tmp_path, said, paths={"a": given})


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(text, tmp_path):
    (text / "a.jsonl").write_bytes(GOOD)
    (text / "a.jsonl").chmod(0)
    assert_refused(tmp_path, "a.jsonl: cannot be read (Permission denied)")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (DomainConfig(field="kind", values=["x"]), "kind in ['x']"),
        (DomainConfig(field="text.b.c", values=["x"]), "text.b.c in ['x']"),
        (DomainConfig(pattern="nowhere"), "1 matches of 'nowhere'"),
        (DomainConfig(pattern="("), "is no regular expression"),
        (DomainConfig(pattern="a{99999999999}"), "the repetition number is too large"),
        (DomainConfig(pattern="(" * 5000 + ")" * 5000), "is no regular expression"),
    ],
    ids=["no such field", "no such inner field", "no match", "unclosed", "too often", "deep"],
)
def test_a_rule_that_nothing_fits_is_said(text, tmp_path, rule, said):
    (text / "a.jsonl").write_bytes(GOOD)
    assert_refused(tmp_path, said, rule)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(\w+\s?)+\d$", r"(a|aa)+\d"])
def test_a_pattern_that_goes_back_and_forth_for_ever_is_stopped(
    text, tmp_path, monkeypatch, pattern
):
    monkeypatch.setattr(rules, "PATTERN_S", 0.1)
    record = json.dumps({"text": "a" * 60 + "!"}).encode() + b"\n"
    (text / "a.jsonl").write_bytes(GOOD + record)
    rule = DomainConfig(pattern=pattern, count=2)
    assert_refused(tmp_path, "a.jsonl, line 61: partition.domains.a.pattern takes more", rule)
    assert_refused(tmp_path, "takes more than 0.1 s on a text of 61 characters", rule)


@pytest.mark.parametrize("filler", ["x", " ", "\u00a0", "7", "-"], ids=ascii)
def test_a_word_of_a_megabyte_is_no_matter(text, tmp_path, filler):
    """The trainer of the tokenizer takes the square of a word's length."""
    records = [{"text": f"{n} y{filler * 500_000}"} for n in range(2)]
    (text / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare(tmp_path)
    shutil.rmtree(tmp_path / "cache")


def test_a_cache_that_is_a_file_is_one_line(text, tmp_path):
    (text / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "file").write_text("x")
    for cache in ("file", "file/x"):
        assert_refused(tmp_path, "cannot be made", cache=str(tmp_path / cache))
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be loaded"),
        (b"{}", "cannot be loaded"),
        (b"[" * DEEP, "cannot be loaded"),
        (b"\x80\x04\x95", "cannot be loaded"),
        (b'{"model": {"type": "BPE", "vocab": 3}}', "cannot be loaded"),
    ],
    ids=["empty", "no model", "deep", "a pickle's start", "another vocabulary"],
)
def test_a_tokenizer_that_is_damaged_is_one_line(text, tmp_path, content, said):
    (text / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(content)
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "x"}'
    )
    assert_refused(tmp_path, said, tokenizer=str(tmp_path / "tokenizer"))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content, flipped, cut or added to at some place."""
    place = draw(st.integers(0, len(content) - 1))
    return draw(
        st.sampled_from(
            [
                flipped(content, place),
                content[:place],
                content[:place] + content[place + 1 :],
                content[:place] + b'"' + content[place:],
                content[:place] + b"\xff\0" + content[place:],
                content[:place] + content,
            ]
        )
    )


SHORT = GOOD[:400]
WHOLE = {
    "jsonl": SHORT,
    "jsonl.gz": gzip.compress(SHORT, mtime=0),
    "jsonl.zst": zstandard.compress(SHORT),
    "txt": "Grüße, ein Text\n".encode() * 9,
    "parquet": parquet({"text": ["hello", "world"]}),
}


@pytest.mark.parametrize("kind", WHOLE)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_file_with_any_damage_is_read_or_refused_in_one_line(tmp_path, kind, data):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(data.draw(damaged(WHOLE[kind])))
    before = contents(tmp_path)
    with within():
        try:
            assert all(isinstance(record.text, str) for record in read_file(path, "text"))
        except DataError as error:
            assert is_one_line(str(error)) and path.name in str(error)
    assert contents(tmp_path) == before
