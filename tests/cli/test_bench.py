import sys
import types

import pytest

from gr_sweep.cli import app
from gr_sweep.cli.bench import BENCHMARKS


def test_a_benchmark_gets_what_follows_its_name(monkeypatch):
    calls = []
    played = types.SimpleNamespace(main=lambda argv: calls.append(argv) or 0)
    monkeypatch.setitem(sys.modules, "gr_sweep.bench.step", played)
    assert app.main(["bench", "step", "--model", "tiny"]) == 0
    assert calls == [["--model", "tiny"]]


@pytest.mark.parametrize("argv", [["bench"], ["bench", "--help"]])
def test_without_a_name_the_benchmarks_are_listed(argv, capsys):
    assert app.main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in BENCHMARKS)


def test_an_unknown_benchmark_is_refused_in_one_line(capsys):
    assert app.main(["bench", "stepp"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == "gr-sweep: unknown benchmark 'stepp'; there are mlp, step, scaling, sweep, kills"
