"""The screen of `gr-sweep doctor`, on this machine and on machines that lack something."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gr_sweep.cli import doctor
from gr_sweep.cli.doctor import Mark
from gr_sweep.errors import ConfigError


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("GR_SWEEP_CACHE", str(tmp_path / "my cache"))


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """A program of that name, found before all others."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_screen_shows_everything_and_the_status_is_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor.main([]) == 0
    screen = capsys.readouterr().out
    for subject in ("gr-sweep", "python", "torch", "processor", "w&b", "slurm", "cache", "outputs"):
        assert subject in screen
    assert "broken" not in screen
    assert len(screen.splitlines()) <= 24


def test_it_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    doctor.main([])
    assert list(tmp_path.iterdir()) == []


def test_it_is_quick_and_silent_on_stderr_in_a_fresh_process(tmp_path: Path) -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", "from gr_sweep.cli.doctor import main; raise SystemExit(main([]))"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(doctor.__file__).parents[2])},
        cwd=tmp_path,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # 4 s on two idle cores; the margin is for machines that do other things as well.
    assert time.monotonic() - started < 30


def test_a_missing_package_is_broken_and_the_status_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("numpy", "no-such-package-anywhere"))
    assert doctor.main([]) == 1
    assert "no-such-package-anywhere is missing" in capsys.readouterr().out


def test_an_outputs_folder_that_cannot_be_written_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    finding = doctor.outputs(tmp_path / "outputs")
    assert finding.mark is Mark.broken
    assert finding.found == f"{tmp_path / 'outputs'} cannot be written: Permission denied"


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK_GIB", 1e9)
    assert doctor.outputs(tmp_path).mark is Mark.warn


def test_the_cache_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "my cache" / "shards").mkdir(parents=True)
    (tmp_path / "my cache" / "shards" / "tokens.bin").write_bytes(b"0" * 21_474_836)
    assert "my cache, holds 0.02 GiB" in doctor.cache().found


def test_slurm_lists_its_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path / "bin", monkeypatch, "sinfo", "echo 'gpu* up 4'; echo 'cpu down 2'")
    finding = doctor.slurm()
    assert (finding.mark, finding.found) == (
        Mark.ok,
        "gpu* up (4 nodes), cpu down (2 nodes)",
    )


def test_slurm_without_a_controller_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path / "bin", monkeypatch, "sinfo", "echo 'no controller' >&2; exit 1")
    finding = doctor.slurm()
    assert (finding.mark, finding.found) == (Mark.warn, "not reachable: no controller")


def test_slurm_that_does_not_answer_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_path(tmp_path / "bin", monkeypatch, "sinfo", "exec sleep 30")
    monkeypatch.setattr(doctor, "SLURM_TIMEOUT_S", 0.2)
    assert doctor.slurm().mark is Mark.warn


def test_no_slurm_is_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.slurm().mark is Mark.note


def test_the_login_state_says_where_the_key_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.wandb_login().found.startswith("no key, so tracking=auto is offline")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert doctor.wandb_login().found == "key from WANDB_API_KEY; tracking=auto is online"


def test_an_argument_is_refused() -> None:
    with pytest.raises(ConfigError, match="--no-such-flag; gr-sweep doctor --help says what there"):
        doctor.main(["--no-such-flag"])
