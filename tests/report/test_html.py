"""The page and results.csv: whole, self-contained, and with the numbers of the summaries."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from gr_sweep.errors import ReportError
from gr_sweep.report import html, read_sweep, write_report

MakeJob = Callable[..., Path]


def own_text(page: Path) -> str:
    """The page without plotly.js, which holds URLs of its own that our plots never ask for."""
    from plotly.offline import get_plotlyjs

    return page.read_text(encoding="utf-8").replace(get_plotlyjs(), "")


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
    assert "<pre>gr-sweep edges=weight route.foreign_dropout=0.5 seed=0</pre>" in page
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


def test_best_values_are_marked_and_missing_ones_are_dashes(sweep: Path) -> None:
    table = html.comparison(read_sweep(sweep))
    names = [(column["group"], column["name"]) for column in table["columns"]]
    assert names[0] == ("", "edges")
    rows = {row["edges"]: row["cells"] for row in table["rows"]}
    columns = names[table["num_settings"] :]
    loss = columns.index(("loss L(d), nats", "mean"))
    selectivity = columns.index(("selectivity, nats", "mean"))
    assert [edges for edges, cells in rows.items() if cells[loss]["best"]] == ["dense"]
    assert [edges for edges, cells in rows.items() if cells[selectivity]["best"]] == ["weight"]
    assert rows["dense"][selectivity]["value"] is None
    assert rows["dense"][selectivity]["text"] == "\N{EN DASH}"


def test_many_settings_share_one_column(tmp_path: Path, make_job: MakeJob) -> None:
    for at, edges in enumerate(("act", "both")):
        job = make_job(tmp_path, edges=edges, num_documents=2, resamples=0)
        path = job / "summary.json"
        summary = json.loads(path.read_text())
        summary["config"]["train"] |= {
            name: at
            for name in ("lr", "steps", "beta1", "beta2", "decay", "warmup", "weight_decay")
        }
        path.write_text(json.dumps(summary))
    table = html.comparison(read_sweep(tmp_path))
    assert [column["name"] for column in table["columns"][:2]] == ["edges", "settings"]
    assert "train.lr=1" in table["rows"][1]["settings"][0]["text"]


def test_inner_nodes_of_the_tree_have_rows_of_their_own(tmp_path: Path, make_job: MakeJob) -> None:
    domains = ["biology/cells", "biology/virology", "code"]
    job = make_job(tmp_path, domains=domains, plan="tree", num_documents=2, resamples=0)
    path = job / "summary.json"
    summary = json.loads(path.read_text())
    summary["metrics"] |= {
        f"separability/matrix/biology/{name}": 9.5 for name in ("biology.cells", "code")
    }
    path.write_text(json.dumps(summary))
    page = own_text(write_report(tmp_path))
    assert '<th scope="row">biology</th>' in page
    assert "biology/cells without biology: +9.50" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "+0.50"), (-0.25, "\N{MINUS SIGN}0.25"), (-0.001, "0.00"), (12.0, "+12.00")],
)
def test_differences_are_shown_with_their_sign(value: float, text: str) -> None:
    assert html.signed(value) == text


def test_missing_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReportError) as caught:
        write_report(tmp_path / "missing")
    assert "\n" not in str(caught.value)


def test_hundred_jobs_make_a_page_of_bearable_size(tmp_path: Path, make_job: MakeJob) -> None:
    for seed in range(100):
        make_job(tmp_path, seed=seed, num_documents=2, resamples=0, steps=100)
    page = own_text(write_report(tmp_path))
    assert page.count('<table class="heat">') == 100
    assert "cards compact" in page
    assert len(page) < 3_000_000
