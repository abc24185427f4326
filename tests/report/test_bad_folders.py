"""A corpus of damaged folders of sweeps: `report` names what is broken, makes a page of the rest,
and changes no file but its own; what it cannot begin with is one line.

On top of test_collect.py and test_baselines.py.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gr_sweep.cli import app
from gr_sweep.errors import GrSweepError
from gr_sweep.report import read_sweep
from gr_sweep.report.collect import Sweep
from tests.refused import assert_refused, contents, is_one_line, within

Damage = Callable[[Path], None]
EVIL = '"><script>alert(1)</script>'
HUGE = 10**400


@pytest.fixture
def small(tmp_path: Path, make_job: Callable[..., Path]) -> tuple[Path, Path]:
    """A sweep of two small jobs, and one of them to be damaged."""
    folder = tmp_path / "sweep"
    make_job(folder, edges="dense", num_documents=3, resamples=4)
    return folder, make_job(folder, edges="act", num_documents=3, resamples=4)


def summary(*path: Any, value: Any) -> Damage:
    """Puts a value into summary.json; a function makes it of the one that is there."""

    def damage(job: Path) -> None:
        content = json.loads((job / "summary.json").read_text())
        content.pop("checksum", None)
        node = content
        for name in path[:-1]:
            node = node[name]
        node[path[-1]] = value(node[path[-1]]) if callable(value) else value
        (job / "summary.json").write_text(json.dumps(content))

    return damage


def without(name: str) -> Damage:
    def damage(job: Path) -> None:
        content = json.loads((job / "summary.json").read_text())
        content.pop("checksum", None)
        del content[name]
        (job / "summary.json").write_text(json.dumps(content))

    return damage


def bytes_of(name: str, content: bytes | Callable[[bytes], bytes]) -> Damage:
    def damage(job: Path) -> None:
        path = job / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return damage


def a_folder(name: str) -> Damage:
    def damage(job: Path) -> None:
        (job / name).unlink(missing_ok=True)
        (job / name).mkdir()

    return damage


def cells(place: int, text: str) -> Damage:
    """The cell of every line of document_losses.csv, counted from its end."""

    def damage(job: Path) -> None:
        head, *lines = (job / "document_losses.csv").read_text().splitlines()
        rows = [line.split(",") for line in lines]
        for row in rows:
            row[place] = text
        (job / "document_losses.csv").write_text("\n".join([head, *map(",".join, rows)]) + "\n")

    return damage


NAMED: dict[str, tuple[Damage, str]] = {
    **{f"no {name}": (without(name), name) for name in ("metrics", "config", "domains")},
    **{
        f"{name} is {value}": (summary(name, value=value), f"lacks '{name}'")
        for name, value in (
            ("metrics", None), ("metrics", 3), ("config", []), ("domains", "code"),
            ("domains", {}), ("overrides", "x"), ("intervals", [1]), ("environment", None),
            ("fingerprints", 3),
        )
    },
    "format is text": (summary("format", value="1"), "has format '1'"),
    "format is none": (summary("format", value=None), "has format None"),
    "seed is null": (summary("config", "seed", value=None), "seed=None is no whole number"),
    "seed is text": (summary("config", "seed", value="x"), "seed='x' is no whole number"),
    "seed is negative": (summary("config", "seed", value=-1), "seed=-1 is no whole number"),
    "seed is a list": (summary("config", "seed", value=[[1]]), "is no whole number"),
    "resamples are text": (summary("config", "eval", "bootstrap", value="x"), "eval.bootstrap='x'"),
    "resamples are none": (summary("config", "eval", "bootstrap", value=None), "eval.bootstrap"),
    "resamples are huge": (summary("config", "eval", "bootstrap", value=10**12), "eval.bootstrap"),
    "an interval of one": (summary("intervals", "mean_loss", value=[1]), "is no pair of numbers"),
    "an interval of text": (summary("intervals", "mean_loss", value=["a", 1]), "is no pair"),
    "an interval of NaN": (
        summary("intervals", "mean_loss", value=[float("nan"), 1]),
        "is no pair",
    ),
    "an interval that is huge": (summary("intervals", "mean_loss", value=[HUGE, 1]), "is no pair"),
    "summary is empty": (bytes_of("summary.json", b""), "cannot be read"),
    "summary is a list": (bytes_of("summary.json", b"[1]"), "holds no object"),
    "summary is null": (bytes_of("summary.json", b"null"), "holds no object"),
    "summary is zeros": (bytes_of("summary.json", bytes(99)), "cannot be read"),
    "summary is half": (bytes_of("summary.json", lambda b: b[: len(b) // 2]), "cannot be read"),
    "summary is Latin-1": (bytes_of("summary.json", b'{"a": "\xe9"}'), "cannot be read"),
    "summary is deep": (bytes_of("summary.json", b"[" * 200_000), "cannot be read"),
    "summary is a pickle": (bytes_of("summary.json", b"\x80\x04cos\nsystem\n."), "cannot be read"),
    "summary is twice": (bytes_of("summary.json", lambda b: b + b), "cannot be read"),
    "summary is a folder": (a_folder("summary.json"), "cannot be read"),
}  # fmt: skip
"""What makes a job unfinished in the report's eyes, and what it says of it."""

PASSED: dict[str, Damage] = {
    "metrics.jsonl is empty": bytes_of("metrics.jsonl", b""),
    "metrics.jsonl is zeros": bytes_of("metrics.jsonl", bytes(99)),
    "metrics.jsonl is bytes": bytes_of("metrics.jsonl", bytes(range(256)) * 9),
    "metrics.jsonl is deep": bytes_of("metrics.jsonl", b"[" * 200_000),
    "metrics.jsonl is a folder": a_folder("metrics.jsonl"),
    "metrics.jsonl holds lists": bytes_of("metrics.jsonl", b'[1]\n"x"\nnull\n3\n'),
    "metrics.jsonl holds other types": bytes_of(
        "metrics.jsonl", b'{"step": 1, "train/loss": "x"}\n{"step": 2, "train/loss": null}\n'
    ),
    "metrics.jsonl holds NaN": bytes_of("metrics.jsonl", b'{"step": 1, "train/loss": NaN}\n' * 3),
    "metrics.jsonl holds huge steps": bytes_of("metrics.jsonl", b'{"step": 9%s}\n' % (b"9" * 5000)),
    "metrics.jsonl holds markup": bytes_of(
        "metrics.jsonl", json.dumps({"step": 1, EVIL: 2.0}).encode() + b"\n"
    ),
    "losses are empty": bytes_of("document_losses.csv", b""),
    "losses have another header": bytes_of("document_losses.csv", b"a,b\n1,2\n"),
    "losses are the header alone": bytes_of("document_losses.csv", lambda b: b.split(b"\n")[0]),
    "losses are cut": bytes_of("document_losses.csv", lambda b: b[: len(b) // 2]),
    "losses are bytes": bytes_of("document_losses.csv", bytes(range(256)) * 9),
    "losses with a byte": bytes_of("document_losses.csv", lambda b: b[:9] + b"\xff" + b[9:]),
    "losses have zeros": bytes_of("document_losses.csv", lambda b: b + bytes(9)),
    "losses have a quote": bytes_of("document_losses.csv", lambda b: b + b'"' + b"x" * 150_000),
    "losses are a long line": bytes_of("document_losses.csv", b"x" * 200_000),
    "losses are a folder": a_folder("document_losses.csv"),
    "losses are of another domain": cells(2, "law"),
    "losses are of markup": cells(2, EVIL),
    "losses are of an unknown view": cells(0, "nope"),
    "losses are NaN": cells(-3, "nan"),
    "losses are infinite": cells(-3, "inf"),
    "losses are huge": cells(-3, "1e308"),
    "losses are text": cells(-3, "x"),
    "documents are of no tokens": cells(-2, "0"),
    "documents are of negative tokens": cells(-2, "-5"),
    "documents are huge": cells(-2, "9" * 400),
    "documents are larger than floats count": cells(-2, "9223372036854775808"),
    "documents are one": cells(4, "x"),
    "plan is empty": bytes_of("plan.json", b""),
    "plan is deep": bytes_of("plan.json", b"[" * 200_000),
    "plan is null": bytes_of("plan.json", b"null"),
    "attack is bytes": bytes_of("relearn.csv", bytes(range(256)) * 9),
    "attack is a long line": bytes_of("relearn.csv", b"x" * 200_000),
    "a metric is null": summary("metrics", "mean_loss", value=None),
    "a metric is text": summary("metrics", "mean_loss", value=EVIL),
    "a metric is a list": summary("metrics", "mean_loss", value=[1]),
    "a metric is true": summary("metrics", "mean_loss", value=True),
    "a metric is infinite": summary("metrics", "mean_loss", value=float("inf")),
    "a metric is huge": summary("metrics", "mean_loss", value=HUGE),
    "metrics have odd names": summary(
        "metrics",
        value={EVIL: 1, "a\nb": 2, "": 3, "loss/full/": 1, "separability/matrix/x": 1, "/": 2},
    ),
    "the config is empty of groups": summary("config", value={"seed": 0}),
    "the model is a number": summary("config", "model", value=3),
    "the plan is a list": summary("config", "plan", value=[1]),
    "the method is null": summary("config", "method", value=None),
    "the method is unknown": summary("config", "method", "name", value=EVIL),
    "the edges are a list": summary("config", "edges", value=[[1]]),
    "the steps are text": summary("config", "train", "steps", value="x"),
    "the steps are huge": summary("config", "train", "steps", value=HUGE),
    "the shares are text": summary("config", "partition", "unlabelled", value="x"),
    "what is left out is a number": summary("config", "method", "without", value=3),
    "the partition is called as markup": summary("config", "partition", "name", value=EVIL),
    "domains are none": summary("domains", value=[]),
    "domains are numbers": summary("domains", value=[1, None]),
    "domains are one twice": summary("domains", value=["code", "code"]),
    "domains are markup": summary("domains", value=[EVIL, "a\nb", "../x"]),
    "the command is markup": summary("command", value=EVIL),
    "the command is a list": summary("command", value=[1, {}]),
    "the sweep is null": summary("sweep", value=None),
    "the time is a number": summary("finished", value=3),
    "the environment is deep": summary("environment", value={"a": {"b": [None]}, EVIL: EVIL}),
    "the fingerprint is a list": summary("fingerprints", "data", value=[1]),
}  # fmt: skip
"""What does not make a job unfinished: what is damaged is left out of the page."""


def report(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The page that `report` makes of it; checks that it changes nothing beside."""
    before = contents(folder)
    with within():
        status = app.main(["report", str(folder)])
    printed = capsys.readouterr()
    assert status == 0 and "Traceback" not in printed.err, printed.err
    after = contents(folder)
    made = str(folder / "report")
    assert {path: of for path, of in after.items() if not path.startswith(made)} == before
    page = Path(printed.out.splitlines()[-1]).read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    return page


@pytest.mark.parametrize(("damage", "said"), NAMED.values(), ids=NAMED)
def test_a_job_whose_summary_is_wrong_is_named_with_what_is(small, damage, said):
    folder, job = small
    damage(job)
    before = contents(folder)
    with within():
        found = read_sweep(folder)
    [unfinished] = found.unfinished
    assert unfinished.name == job.name and said in unfinished.why
    assert is_one_line(unfinished.why) and len(found.jobs) == 1
    assert contents(folder) == before


@pytest.mark.parametrize("damage", PASSED.values(), ids=PASSED)
def test_a_job_with_damage_elsewhere_is_on_the_page_without_it(small, capsys, damage):
    folder, job = small
    damage(job)
    assert "</html>" in report(folder, capsys)
    assert len(read_sweep(folder).jobs) == 2


def test_a_page_of_nothing_but_broken_jobs_says_so_of_each(small, capsys):
    folder, job = small
    for at, path in enumerate(sorted(folder.iterdir())):
        (path / "summary.json").write_bytes(b"{" * (at + 1))
    page = report(folder, capsys)
    assert job.name in page and "cannot be read" in page


@pytest.mark.parametrize(
    "round_json",
    [b"", b"[]", b"null", b"[" * 200_000, b'{"blocks": []}', b'{"round": 1e400, "blocks": [{}]}',
     b"\xff", b'{"blocks": [{"name": 1}], "round": "x"}'],
    ids=["empty", "list", "null", "deep", "no blocks", "infinite", "bytes", "text"],
)  # fmt: skip
def test_a_round_that_is_broken_is_left_out(small, capsys, caplog, round_json):
    folder, job = small
    (job / "rounds" / "1").mkdir(parents=True)
    (job / "rounds" / "1" / "round.json").write_bytes(round_json)
    assert "</html>" in report(folder, capsys)
    assert "is no round" in caplog.text


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "is no folder"),
        (lambda path: path.write_text("x"), "is no folder"),
        (lambda path: path.mkdir(), "holds no job"),
        (lambda path: path.symlink_to("nowhere"), "is no folder"),
        (lambda path: path.symlink_to(path), "is no folder"),
        (lambda path: os.mkfifo(path), "is no folder"),
        (lambda path: (path / "x" / "y").mkdir(parents=True), "holds no job"),
    ],
    ids=["missing", "file", "empty", "dangling", "loop", "pipe", "folders of folders"],
)
def test_what_is_no_sweep_is_one_line(tmp_path, capsys, make, said):
    make(tmp_path / "sweep")
    assert_refused(["report", str(tmp_path / "sweep")], said, tmp_path, capsys)


def test_a_page_that_cannot_be_written_is_one_line(small, capsys):
    folder, _ = small
    (folder / "report").write_text("x")
    assert_refused(["report", str(folder)], "report", folder, capsys)


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_folder_with_any_damage_is_read_or_refused_in_one_line(small, data):
    folder, job = small
    name = data.draw(st.sampled_from(["summary.json", "metrics.jsonl", "document_losses.csv"]))
    content = (job / name).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.sampled_from([b"", b"9", b"-", b'"', b"\xff", b"\0", b"null", b"[{"]))
    (job / name).write_bytes(content[:place] + change + content[place + 1 :])
    before = contents(folder)
    with within():
        try:
            assert isinstance(read_sweep(folder), Sweep)
        except GrSweepError as error:
            assert is_one_line(str(error))
        finally:
            assert contents(folder) == before
            (job / name).write_bytes(content)
