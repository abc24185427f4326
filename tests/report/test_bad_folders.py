"""Damaged folders of sweeps: `report` names what is broken, makes a page of the rest, and changes
no file but its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.cli import app
from gr_sweep.report import read_sweep
from tests.refused import assert_refused, contents, is_one_line, within
from tests.report.conftest import edit, write_job, write_rounds

Damage = Callable[[Path], None]
EVIL = '"><script>alert(1)</script>'


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """A sweep of two small jobs, and one of them to be damaged."""
    folder = tmp_path / "sweep"
    write_job(folder, edges="dense", num_documents=3, resamples=4)
    return folder, write_job(folder, edges="act", num_documents=3, resamples=4)


def summary(**changes: Any) -> Damage:
    return lambda job: edit(job, lambda of: of.update(changes))


def file(name: str, content: bytes | Callable[[bytes], bytes]) -> Damage:
    def damage(job: Path) -> None:
        path = job / name
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return damage


UNFINISHED: dict[str, tuple[Damage, str]] = {
    "no metrics": (summary(metrics=None), "cannot be read"),
    "another format": (summary(format=7), "has format 7"),
    "half": (file("summary.json", lambda b: b[: len(b) // 2]), "cannot be read"),
}
"""Damage that makes a job unfinished for the report, and what the report says."""

READ: dict[str, Damage] = {
    "metrics.jsonl is bytes": file("metrics.jsonl", bytes(range(256)) * 9),
    "losses are cut": file("document_losses.csv", lambda b: b[: len(b) // 2]),
    "attack is bytes": file("relearn.csv", bytes(range(256)) * 9),
    "samples are bytes": file("samples.json", bytes(range(256))),
    "names are markup": summary(
        domains=[EVIL, "../x"], command=EVIL, environment={"a": {EVIL: 1}}, metrics={EVIL: 1},
    ),
}  # fmt: skip
"""Damage that leaves the job in the report, without the damaged part."""


@pytest.mark.parametrize(("damage", "said"), UNFINISHED.values(), ids=UNFINISHED)
def test_job_with_a_wrong_summary_is_named_with_the_reason(small, damage, said) -> None:
    folder, job = small
    damage(job)
    found = read_sweep(folder)
    [unfinished] = found.unfinished
    assert unfinished.name == job.name and said in unfinished.why
    assert is_one_line(unfinished.why) and len(found.jobs) == 1


@pytest.mark.parametrize("damage", READ.values(), ids=READ)
def test_job_with_damage_elsewhere_is_on_the_page_without_it(small, capsys, damage) -> None:
    folder, job = small
    damage(job)
    before = contents(folder)
    with within():
        status = app.main(["report", str(folder)])
    printed = capsys.readouterr()
    assert status == 0 and "Traceback" not in printed.err, printed.err
    made = str(folder / "report")
    after = {path: of for path, of in contents(folder).items() if not path.startswith(made)}
    assert after == before
    page = Path(printed.out.splitlines()[-1]).read_text(encoding="utf-8")
    assert "</html>" in page and "<script>alert(1)" not in page
    assert len(read_sweep(folder).jobs) == 2


def test_round_that_cannot_be_read_is_left_out(tmp_path: Path, caplog) -> None:
    job = write_job(tmp_path)
    write_rounds(job, rounds=3)
    (job / "rounds" / "2" / "round.json").write_bytes(b'{"round": 2}')
    (job / "rounds" / "3" / "round.json").unlink()  # unfinished
    [found] = read_sweep(tmp_path).jobs
    assert [of["round"] for of in found.rounds] == [1]
    assert str(job / "rounds" / "2") in caplog.text
    assert str(job / "rounds" / "3") not in caplog.text


def test_page_that_cannot_be_written_is_one_line(small, capsys) -> None:
    folder, _ = small
    (folder / "report").write_text("x")
    assert_refused(["report", str(folder)], "report", folder, capsys)
