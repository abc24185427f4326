"""The table in the terminal and the verb that prints it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from gr_sweep.cli import report as verb
from gr_sweep.report import answer, print_table, read_sweep, tables
from gr_sweep.report.sweep import Sweep
from tests.report.conftest import edit, write_job


def printed(sweep: Sweep, width: int) -> str:
    """The table in a terminal of that width."""
    out = io.StringIO()
    print_table(sweep, Console(file=out, width=width))
    return out.getvalue()


def heading(text: str) -> str:
    return text.split("\u2500")[0].rpartition("rank")[0].rpartition("baselines")[2]


def test_table_of_methods_fits_and_leaves_out_what_matters_least(read_study: Sweep) -> None:
    text = printed(read_study, 80)
    assert max(map(len, text.splitlines())) <= 80
    for word in ("filtered", "lattice", "random", "[creative]", "removal", "served", "<1/8"):
        assert word in text, f"{word} is cut or gone"
    [ranking, *_] = answer.rankings(read_study)
    table = tables.settings(read_study, [ranking])
    [row] = [row for row in table.rows if row.name == "act"]
    assert all(part in text for part in row.cells[1].interval.split()), "the interval of the mean"
    assert f"For separation take {ranking.by(1)[0].name}" in " ".join(text.split())
    assert "6 dense runs" in text
    wide, narrow = heading(printed(read_study, 400)), heading(text)
    assert "tokens/s" in wide and "selectivity" in wide and "tokens/s" not in narrow
    assert "creative" not in wide, "single domains are left out"


def test_unfinished_jobs_and_mixed_code_are_told(tmp_path: Path) -> None:
    for edges in ("act", "both"):
        job = write_job(tmp_path, edges=edges)
    edit(job, lambda summary: summary["fingerprints"].update(code="other"))
    (tmp_path / "waiting" / ".hydra").mkdir(parents=True)
    text = printed(read_sweep(tmp_path), 160)
    assert text.startswith("Warning: These jobs were run by 2 versions of the code")
    assert "waiting: not finished" in text


def test_verb_prints_the_table_and_then_the_path(
    edges_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb.main([str(edges_folder)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == str(edges_folder / "report" / "index.html")
    assert any("weight" in line for line in lines)
