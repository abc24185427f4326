"""The scripts of docs/examples/: they run, and what they say is right."""

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import gr_sweep
from tests.report.conftest import write_job

ROOT = Path(gr_sweep.__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "a sweep"
    for edges in ("dense", "none", "weight"):
        write_job(folder, edges=edges, num_documents=12, resamples=50)
    return folder


@pytest.fixture
def said(
    request: pytest.FixtureRequest,
    sweep: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[list[str]]:
    """The lines that the script of a test's parameter prints about the sweep, run in this process:
    a new one would load torch again. tests/test_docs.py compares notebooks with their scripts."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [request.param, str(sweep)])
    runpy.run_path(str(EXAMPLES / request.param), run_name="__main__")
    yield capsys.readouterr().out.splitlines()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("said", ["compare_edges.py"], indirect=True)
def test_edges_are_compared(said: list[str], sweep: Path) -> None:
    frame = gr_sweep.results(sweep).set_index("label")
    for label, loss in frame["mean_served_loss"].items():
        [line] = [line for line in said if str(label) in line]
        assert f"{loss:.3f}" in line.split()
    for name in ("compare_edges.html", "curves.html"):
        assert "edges=weight" in (sweep / name).read_text("utf-8")


@pytest.mark.parametrize("said", ["removal_matrix.py"], indirect=True)
def test_a_removal_matrix_is_read(said: list[str], sweep: Path) -> None:
    frame = gr_sweep.results(sweep)
    job = frame.loc[frame["mean_selectivity"].idxmax()]
    [row] = [line.split() for line in said if line.startswith("code ")]
    assert f"{job['separability/matrix/code/code']:.3f}" in row[1:]
    assert (sweep / "removal_matrix.html").exists()


@pytest.mark.parametrize("said", ["route_own_model.py"], indirect=True)
def test_an_own_model_is_routed(said: list[str]) -> None:
    losses = {
        line[:20].strip(): [float(word) for word in line[20:].split()]
        for line in said
        if re.search(r"\d\.\d{3}$", line)
    }
    domains = ["code", "biology", "creative"]
    full = losses["full model"]
    for at, domain in enumerate(domains):
        added = [
            loss - of_full for loss, of_full in zip(losses[f"without {domain}"], full, strict=True)
        ]
        assert added.pop(at) > 1 and max(map(abs, added)) < 0.2
    assert losses["biology alone"][1] == pytest.approx(full[1], abs=0.2)
    found = re.match(r"extracted: ([\d,]+) of ([\d,]+) parameters.*by (\S+) at most", said[-1])
    assert found is not None and float(found[3]) < 1e-4
    assert int(found[1].replace(",", "")) < int(found[2].replace(",", ""))


@pytest.mark.slow
def test_examples_make_their_own_sweep_where_none_is_given(tmp_path: Path) -> None:
    for name in ("compare_edges.py", "removal_matrix.py"):
        done = subprocess.run(
            [sys.executable, EXAMPLES / name], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f"outputs/example/{name.removesuffix('.py')}.html" in done.stdout
    assert len(gr_sweep.results(tmp_path / "outputs" / "example")) == 3
