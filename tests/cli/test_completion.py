"""Completion in the shell, also as bash asks: by the function that the script defines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gr_sweep.cli import app
from gr_sweep.cli.app import VERBS

ASK = """
eval "$(gr-sweep -sc install=bash)"
complete -p gr-sweep
COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS=($1) COMP_CWORD=$2
hydra_bash_completion
printf '%s\\n' "${COMPREPLY[@]}"
"""


def query(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list:
    """What a shell is told about a line."""
    monkeypatch.setenv("COMP_LINE", line)
    assert app.main(["-sc", "query=bash"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gr-sweep est", ["estimate"]),
        ("gr-sweep edg", ["edges="]),
        ("gr-sweep edges=", ["edges=act", "edges=both", "edges=none", "edges=weight"]),
        ("gr-sweep -m -q seed=0,1 edges=a", ["edges=act"]),
        ("gr-sweep estimate --gpus 2 -m model=1", ["model=125m", "model=1b"]),
        ("gr-sweep train.batch", ["train.batch_sequences="]),
        ("gr-sweep a=[ edg", []),
        ("gr-sweep report edg", []),
        ("gr-sweep model=base", []),
        ("gr-sweep data.root=./base_", ["data.root=./base_text"]),
        ("gr-sweep --fo", []),
    ],
)
def test_words_are_completed(line, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("base_text").mkdir()
    assert query(line, monkeypatch, capsys) == expected


def test_the_first_word_is_a_verb_or_a_setting(monkeypatch, capsys):
    found = query("gr-sweep ", monkeypatch, capsys)
    assert found[: len(VERBS)] == [*VERBS] and {"edges=", "train.", "seed="} <= {*found}
    later = query("gr-sweep edges=act ", monkeypatch, capsys)
    assert not {*VERBS} & {*later} and "model=" in later
    assert query("gr-sweep", monkeypatch, capsys) == found


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_with_the_installed_function(tmp_path: Path) -> None:
    program = tmp_path / "gr-sweep"
    script = "import sys\nfrom gr_sweep.cli.app import main\nsys.exit(main())\n"  # as pip makes it
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", "gr-sweep -m edges=b", "2"],
        env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "edges=both", done.stderr
