"""The table in the terminal and the verb that prints it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from gr_sweep.cli import report as verb
from gr_sweep.report import print_table, read_sweep
from gr_sweep.report.sweep import Sweep
from tests.report.conftest import edit, write_job


def printed(sweep: Sweep, width: int) -> str:
    """The table in a terminal of that width."""
    out = io.StringIO()
    print_table(sweep, Console(file=out, width=width))
    return out.getvalue()


def test_unfinished_jobs_and_mixed_code_are_told(tmp_path: Path) -> None:
    for edges in ("act", "both"):
        job = write_job(tmp_path, edges=edges)
    edit(job, lambda summary: summary["fingerprints"].update(code="other"))
    (tmp_path / "waiting" / ".hydra").mkdir(parents=True)
    text = printed(read_sweep(tmp_path), 160)
    assert text.startswith("Warning: ") and "versions of the code" in text
    assert "waiting: not finished" in text


def test_verb_prints_the_table_and_then_the_path(
    edges_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb.main([str(edges_folder)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == str(edges_folder / "report" / "index.html")
    assert any("weight" in line for line in lines)
