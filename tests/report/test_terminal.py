"""The table in the terminal and the verb that prints it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from gr_sweep.cli import report as verb
from gr_sweep.errors import ReportError
from gr_sweep.report import print_table, read_sweep


def test_table_has_a_row_a_job_and_names_the_unfinished(sweep: Path) -> None:
    (sweep / "edges=act_seed=9" / ".hydra").mkdir(parents=True)
    out = io.StringIO()
    print_table(read_sweep(sweep), Console(file=out, width=160))
    text = out.getvalue()
    for word in ("dense", "none", "weight", "act", "both", "selectivity", "tokens/s"):
        assert word in text
    assert "edges=act_seed=9: not finished" in text


def test_verb_prints_the_table_and_then_the_path(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verb.main([str(sweep)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(sweep / "report" / "index.html")
    assert any("weight" in line for line in lines)


def test_verb_prints_the_path_alone_without_a_table(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb.main([str(sweep), "--no-table"])
    assert capsys.readouterr().out == f"{sweep / 'report' / 'index.html'}\n"


def test_verb_leaves_errors_to_its_caller(tmp_path: Path) -> None:
    with pytest.raises(ReportError):
        verb.main([str(tmp_path / "missing")])


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        verb.main(["--help"])
    assert stop.value.code == 0
    assert "gr-sweep report outputs/" in capsys.readouterr().out
