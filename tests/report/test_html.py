"""The page and results.csv: whole, self-contained, and with the numbers of the summaries."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pytest

from gr_sweep.errors import JobError
from gr_sweep.report import write_report

MakeJob = Callable[..., Path]


def own_text(page: Path) -> str:
    """The page without plotly.js, which holds URLs of its own that our plots never ask for."""
    from plotly.offline import get_plotlyjs

    return page.read_text(encoding="utf-8").replace(get_plotlyjs(), "")


def data_of(page: str) -> Any:
    """What the page's script reads."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    return json.loads(text)


def test_report_is_a_page_and_a_table_and_nothing_half_written(sweep: Path) -> None:
    page = write_report(sweep)
    assert page == sweep / "report" / "index.html"
    assert sorted(entry.name for entry in page.parent.iterdir()) == ["index.html", "results.csv"]
    assert len(pd.read_csv(page.parent / "results.csv")) == 5
    assert write_report(sweep) == page, "a report folder is no job"


def test_page_asks_the_network_for_nothing(sweep: Path) -> None:
    text = own_text(write_report(sweep))
    assert not re.findall(r"https?://|(?:src|href)=[\"']?//", text)
    assert "@import" not in text and "url(" not in text
    assert re.findall(r'href="([^#"]*)"', text) == ["data:,", "results.csv"]


def test_plotly_is_in_the_page_once(sweep: Path) -> None:
    from plotly.offline import get_plotlyjs

    assert write_report(sweep).read_text(encoding="utf-8").count(get_plotlyjs()) == 1


def test_page_shows_numbers_intervals_command_and_config(sweep: Path) -> None:
    page = own_text(write_report(sweep))
    job = next(entry for entry in sweep.iterdir() if "edges=weight" in entry.name)
    summary = json.loads((job / "summary.json").read_text())
    cost = summary["metrics"]["separability/matrix/code/code"]
    low, high = summary["intervals"]["separability/matrix/code/code"]
    assert f">+{cost:.2f}<small>{low:.2f} to {high:.2f}</small>" in page
    assert f"{summary['metrics']['loss/full/biology']:.3f}" in page
    assert f"{summary['metrics']['loss/kept/code/code']:.2f}" in page
    assert summary["command"] in page
    alone = [about["alone"] for about in data_of(page)["about"]]
    assert "gr-sweep edges=weight route.foreign_dropout=0.5 seed=0" in alone
    for fact in ("train.beta2", "b1946ac9", "2.13.0", "4,300,000"):
        assert fact in page


def test_unfinished_and_broken_jobs_are_named_on_the_page(sweep: Path) -> None:
    job = sweep / "edges=act_seed=9"
    job.mkdir()
    (job / "metrics.jsonl").write_text('{"step": 40}\n')
    page = own_text(write_report(sweep))
    assert "5 finished, 1 not" in page
    assert re.search(r"<code>edges=act_seed=9</code>\s*at step 40, not finished", page)


def test_sweep_without_a_finished_job_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "job" / ".hydra").mkdir(parents=True)
    page = write_report(tmp_path)
    assert "No job has finished yet" in own_text(page)
    assert not (page.parent / "results.csv").exists()


def test_names_from_outside_cannot_become_markup(tmp_path: Path, make_job: MakeJob) -> None:
    evil = "</script><script>alert(1)</script>"
    job = make_job(tmp_path / "sweep", num_documents=2, resamples=0)
    path = job / "summary.json"
    summary = json.loads(path.read_text())
    summary["config"]["partition"]["name"] = evil
    path.write_text(json.dumps(summary | {"command": evil, "overrides": [evil]}))
    make_job(tmp_path / "sweep", edges="act", num_documents=2, resamples=0)
    assert "alert(1)</script>" not in own_text(write_report(tmp_path / "sweep"))


def test_inner_nodes_of_the_tree_have_rows_of_their_own(tmp_path: Path, make_job: MakeJob) -> None:
    domains = ["biology/cells", "biology/virology", "code"]
    job = make_job(tmp_path, domains=domains, plan="tree", num_documents=2, resamples=0)
    path = job / "summary.json"
    summary = json.loads(path.read_text())
    summary["metrics"] |= {
        f"separability/matrix/biology/{name}": 9.5 for name in ("biology.cells", "code")
    }
    path.write_text(json.dumps(summary))
    (job / "document_losses.csv").unlink()
    page = own_text(write_report(tmp_path))
    assert '<th scope="row">biology</th>' in page
    assert "biology/cells without biology: +9.50" in page


def test_missing_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        write_report(tmp_path / "missing")
    assert "\n" not in str(caught.value)


def test_hundred_jobs_make_a_page_of_bearable_size(tmp_path: Path, make_job: MakeJob) -> None:
    for seed in range(100):
        make_job(tmp_path, seed=seed, num_documents=2, resamples=0, steps=100)
    page = own_text(write_report(tmp_path))
    waiting = data_of(page)["cards"]
    assert page.count('<article class="card"') == 48 and len(waiting) == 52
    assert [job for job, _ in waiting] == list(range(48, 100))
    assert all(card.count("<article") == 1 for _, card in waiting)
    assert "cards compact" in page
    assert len(page) < 3_000_000


def test_page_of_a_study_has_every_section(study: Path) -> None:
    page = own_text(write_report(study))
    for section in (
        "utility-separability", "comparison", "over-seeds", "settings", "removal", "sharing",
        "robustness", "baselines", "curves",
    ):  # fmt: skip
        assert f'<section id="{section}">' in page
    assert "&lt;1/8" in page, "a loss above that of the shortest dense run is told as such"


def test_sections_without_numbers_are_left_out(sweep: Path) -> None:
    page = own_text(write_report(sweep))
    for section in ("over-seeds", "settings", "sharing", "robustness", "baselines"):
        assert f'<section id="{section}">' not in page


def test_every_plot_that_the_page_asks_for_is_in_it(study: Path) -> None:
    page = own_text(write_report(study))
    asked = re.findall(r'data-plot="([^"]+)"', page)
    [text] = re.findall(r'<script type="application/json" id="plots">(.*)</script>', page)
    plots = json.loads(text)
    assert sorted(asked) == sorted(plots) and len(set(asked)) == len(asked)
    assert len(asked) == 2 + 3 + 3 + 1, "a setting, three attacks, three curves, a lattice"


def test_row_and_matrix_of_a_job_lead_to_it(study: Path) -> None:
    page = own_text(write_report(study))
    jobs = data_of(page)["jobs"]
    rows = re.findall(r'<a href="#job=[^"]+" data-open="(\d+)" title="([^"]+)">', page)
    assert rows and all(html.unescape(label) == jobs[int(at)]["label"] for at, label in rows)
    cards = re.findall(
        r'<article class="card" data-job="(\d+)">\s*<h3><a href="#job=([^"]+)" data-open="(\d+)"',
        page,
    )
    assert cards
    for at, name, opened in cards:
        assert at == opened and unquote(name) == jobs[int(at)]["name"]


def test_shorter_dense_runs_are_baselines_and_no_rows(study: Path) -> None:
    page = own_text(write_report(study))
    compared = page.split('id="compare"')[1].split("</table>")[0]
    assert "train.steps=50" not in compared
    baselines = page.split('id="dense"')[1].split("</table>")[0]
    for share in ("1/8", "1/4", "1/2", "1"):
        assert f"<span>{share}</span>" in baselines
