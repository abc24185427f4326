"""The table in the terminal and the verb that prints it."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from gr_sweep.cli import report as verb
from gr_sweep.errors import JobError
from gr_sweep.report import print_table, read_sweep
from gr_sweep.report.collect import Sweep
from gr_sweep.report.tables import comparison

MakeJob = Callable[..., Path]


def test_table_has_a_row_a_job_and_names_the_unfinished(sweep: Path) -> None:
    (sweep / "edges=act_seed=9" / ".hydra").mkdir(parents=True)
    out = io.StringIO()
    print_table(read_sweep(sweep), Console(file=out, width=160))
    text = out.getvalue()
    for word in ("dense", "none", "weight", "act", "both", "selectivity", "tokens/s"):
        assert word in text
    assert "edges=act_seed=9: not finished" in text


def printed(sweep: Sweep, width: int) -> str:
    """The table in a terminal of that width."""
    out = io.StringIO()
    print_table(sweep, Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_table_of_methods_is_not_folded(read_study: Sweep, width: int) -> None:
    text = printed(read_study, width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("filtered", "lattice", "random", "[creative]", "removal", "equivalent", "<1/8"):
        assert word in text, f"{word} is cut or gone"
    rows = [line for line in text.splitlines() if line.split()[:1] == ["weight"]]
    assert len(rows) == 4, "a row a job"
    assert "6 dense runs of fewer tokens" in text


def test_line_below_names_what_is_better_low(read_study: Sweep) -> None:
    [line] = [line for line in printed(read_study, 400).splitlines() if "Lower is better" in line]
    lower = line.split("Lower is better: ")[1].split(";")[0].split(", ")
    table = comparison(read_study)
    assert "forget compute" in lower
    assert set(lower) == {column.group for column in table.columns if column.direction < 0}
    assert line.endswith("all else: higher.")


def heading(text: str) -> str:
    """What stands above the line."""
    return text.split("\u2500")[0]


def test_columns_go_where_there_is_no_room(read_study: Sweep) -> None:
    wide, narrow = (heading(printed(read_study, width)) for width in (400, 80))
    assert "tokens/s" in wide and "selectivity" in wide
    assert "tokens/s" not in narrow and "selectivity" not in narrow
    assert "equivalent" in narrow and "removal" in narrow


def test_single_domains_are_left_out_where_there_are_many_columns(
    tmp_path: Path, make_job: MakeJob, read_study: Sweep
) -> None:
    assert "creative" not in heading(printed(read_study, 400))
    for edges in ("act", "both"):
        make_job(tmp_path / "two", edges=edges, num_documents=2, resamples=0)
    assert "creative" in heading(printed(read_sweep(tmp_path / "two"), 160))


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
    with pytest.raises(JobError):
        verb.main([str(tmp_path / "missing")])


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        verb.main(["--help"])
    assert stop.value.code == 0
    assert "gr-sweep report outputs/" in capsys.readouterr().out
