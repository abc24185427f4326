"""The screen of `gr-sweep doctor`, on this machine and on machines that lack something."""

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
