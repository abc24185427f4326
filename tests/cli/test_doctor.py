"""The screen of `gr-sweep doctor`, on this machine and on machines that lack something."""

import os
from pathlib import Path

import pytest

from gr_sweep.cli import doctor


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("GR_SWEEP_CACHE", str(tmp_path / "my cache"))


def test_the_screen_is_whole_and_changes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert doctor.main([]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for subject in ("gr-sweep", "python", "torch", "processor", "w&b", "slurm", "cache", "outputs"):
        assert subject in printed.out
    assert "broken" not in printed.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "mark", "found"),
    [
        ("echo 'gpu* up'; echo 'cpu down'", "ok", "gpu* up, cpu down"),
        ("echo 'no controller' >&2; exit 1", "warn", "not reachable: no controller"),
        ("exec sleep 30", "warn", "no answer"),
    ],
)
def test_slurm_lists_its_partitions_or_warns(tmp_path, monkeypatch, script, mark, found):
    sinfo = tmp_path / "sinfo"
    sinfo.write_text(f"#!/bin/sh\n{script}\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "SLURM_TIMEOUT_S", 1.0 if "sleep" in script else 60.0)
    assert doctor.slurm()[0] == mark and found in doctor.slurm()[2]
