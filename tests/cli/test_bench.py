import pytest

from gr_sweep.cli import app
from gr_sweep.cli.bench import BENCHMARKS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_options_go_to_the_benchmark_that_is_named(name, capsys):
    with pytest.raises(SystemExit):
        app.main(["bench", name, "--help"])
    assert f"gr-sweep bench {name}" in capsys.readouterr().out
    assert app.main(["bench"]) == 0 and f"\n  {name} " in capsys.readouterr().out
