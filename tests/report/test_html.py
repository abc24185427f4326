"""The page and results.csv: whole, self-contained, and with the numbers of the summaries."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gr_sweep.report import read_sweep, write_report
from gr_sweep.report.html import render
from gr_sweep.report.sweep import Sweep
from tests.report.conftest import edit, write_job


def script(page: str, name: str) -> Any:
    """JSON that the page's script reads."""
    [text] = re.findall(rf'<script type="application/json" id="{name}">(.*)</script>', page)
    return json.loads(text)


@pytest.fixture(scope="module")
def edges_page(read_edges: Sweep) -> str:
    return render(read_edges)


def test_report_is_a_page_and_a_table_and_nothing_half_written(edges_folder: Path) -> None:
    page = write_report(edges_folder)
    assert page == edges_folder / "report" / "index.html"
    assert sorted(entry.name for entry in page.parent.iterdir()) == ["index.html", "results.csv"]
    assert len(pd.read_csv(page.parent / "results.csv")) == 5
    assert write_report(edges_folder) == page, "a report folder is not a job"


def test_page_has_numbers_intervals_command_and_config(read_edges: Sweep, edges_page: str) -> None:
    job = next(job for job in read_edges.jobs if job.edges == "weight")
    low, high = job.intervals["mean_loss"]
    mean = f"<span>{job.metrics['mean_loss']:.2f}</span><small>{low:.2f} to {high:.2f}<"
    assert mean in edges_page
    commands = [of["command"] for of in script(edges_page, "data")["jobs"]]
    assert commands == [job.command for job in read_edges.compared] and len(set(commands)) == 5
    for fact in ("train.beta2", "b1946ac9", "2.13.0", "4300000.0"):
        assert fact in edges_page


def test_unfinished_jobs_and_mixed_text_are_told_at_the_top(tmp_path: Path) -> None:
    (tmp_path / "edges=act_seed=9").mkdir()
    (tmp_path / "edges=act_seed=9" / "metrics.jsonl").write_text('{"step": 40}\n')
    write_job(tmp_path, edges="act")
    job = write_job(tmp_path, edges="both")
    assert "Mixed jobs" not in render(read_sweep(tmp_path))
    edit(job, lambda summary: summary["fingerprints"].update(text="other"))
    page = render(read_sweep(tmp_path))
    header = page.split("</header>")[0]
    assert "different texts" in header.split("<h1>")[0]
    assert "2 jobs finished, 1 not" in header
    assert re.search(r"<code>edges=act_seed=9</code>\s*at step 40, not finished", header)


def test_sweep_without_a_finished_job_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "job" / ".hydra").mkdir(parents=True)
    page = write_report(tmp_path)
    assert "No job has finished yet" in page.read_text(encoding="utf-8")
    assert not (page.parent / "results.csv").exists()
