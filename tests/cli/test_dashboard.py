"""What ends `gr-sweep dashboard` before it asks a server."""

import importlib.util as importlib_util
import json
from pathlib import Path
from typing import Any

import pytest

from gr_sweep.cli.app import main
from tests.report.conftest import write_job

FEW: dict[str, Any] = {"num_documents": 6, "resamples": 5, "steps": 20}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two jobs that logged to W&B, and one that did not."""
    folder = tmp_path / "a sweep"
    for edges in ("both", "act"):
        job = write_job(folder, edges=edges, **FEW)
        (job / "wandb").mkdir()
        (job / "wandb" / "run_id").write_text(f"{edges}0123\n")
    write_job(folder, edges="dense", method="dense", **FEW)
    return folder


def test_a_dry_run_prints_the_panels_and_asks_nobody(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setattr("gr_sweep.tracking.wandb_server.connect", lambda: 1 / 0)
    assert main(["dashboard", str(sweep), "--dry-run"]) == 0
    sections = json.loads(capsys.readouterr().out)
    scatter, *_, parallel = sections["Utility and separability"]
    assert scatter["panel"] == "ScatterPlot"
    assert (scatter["x"]["name"], scatter["y"]["name"]) == ("mean_served_tax", "mean_selectivity")
    # What tells the runs apart: the dense one is only a baseline.
    assert parallel["columns"][0]["metric"]["name"] == "edges"
    pictures = [panel["media_keys"] for panel in sections["Removal"] if "media_keys" in panel]
    assert pictures == [["separability/heat_map"]]


def test_a_dashboard_that_cannot_be_made_is_refused_in_one_line(
    sweep: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refusal(folder: Path) -> str:
        assert main(["dashboard", str(folder)]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    write_job(tmp_path / "s", edges="both", **FEW)
    assert "no finished job of" in refusal(tmp_path / "s")
    find = importlib_util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "wandb_workspaces" else find(name, *rest),
    )
    assert "pip install gr-sweep[dashboards]" in refusal(sweep)
    job = write_job(sweep, edges="weight", settings={"tracking.project": "other"}, **FEW)
    (job / "wandb").mkdir()
    (job / "wandb" / "run_id").write_text("x\n")
    assert "None/gr-sweep, None/other" in refusal(sweep)
