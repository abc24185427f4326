"""The tables: what is a row, a column, marked best, and a difference to what."""

from pathlib import Path

import pytest

from gr_sweep.metrics import registry
from gr_sweep.report import measures, read_sweep, tables
from gr_sweep.report.sweep import Sweep
from gr_sweep.report.tables import Cell, Row, Table
from tests.report.conftest import edit, write_job

DASH = "\N{EN DASH}"


def cell(table: Table, row: Row, group: str, name: str) -> Cell:
    headings = [(column.group, column.name) for column in table.columns]
    return row.cells[headings.index((group, name)) - 1]


def test_best_values_are_marked_and_missing_ones_are_dashes(read_edges: Sweep) -> None:
    table = tables.comparison(read_edges)
    assert table.columns[0].name == "edges"
    rows = {row.jobs[0].edges: row for row in table.rows}
    best = {
        group: [edges for edges, row in rows.items() if cell(table, row, group, "mean").best]
        for group in ("loss L(d)", "selectivity")
    }
    assert best == {"loss L(d)": ["dense"], "selectivity": ["weight"]}
    missing = cell(table, rows["dense"], "selectivity", "mean")
    assert (missing.text, missing.value) == (DASH, None)
    losses = [(c.name, c.is_detail) for c in table.columns if c.group == "loss L(d)"]
    assert losses == [("mean", False), ("code", True), ("biology", True), ("creative", True)]
    assert tables.over_seeds(read_edges) is None and tables.robustness(read_edges) is None


def test_methods_and_settings_of_routing(read_edges: Sweep, read_study: Sweep) -> None:
    assert "method" not in [found.name for found in tables.comparison(read_edges).columns]
    table = tables.comparison(read_study)
    kinds = {cell(table, row, "", "method").text for row in table.rows}
    assert kinds == {"dense", "filtered", "peers", "lattice", "sgtm", "demix", "random"}
    dropouts = {
        row.jobs[0].kind: cell(table, row, "", "route.foreign_dropout").text for row in table.rows
    }
    assert dropouts["dense"] == dropouts["filtered"] == DASH and dropouts["sgtm"] == "1.0"


def test_missing_compute_equivalent_is_shown_as_a_bound(read_study: Sweep) -> None:
    table = tables.comparison(read_study)
    [row, *_] = [row for row in table.rows if row.jobs[0].edges == "both"]
    assert row.jobs[0].smallest_share == 1 / 8
    for name in ("mean", "code"):
        found = cell(table, row, "compute-equivalent", name)
        assert (found.text, found.value, found.best) == ("<1/8", None, False)
    assert [measures.below(bound) for bound in (0.25, 0.1875)] == ["<1/4", "<0.19"]


def test_seeds_become_means_and_paired_differences(read_study: Sweep) -> None:
    table = tables.over_seeds(read_study)
    assert table is not None
    by_label = {row.label: row for row in table.rows}
    act = by_label["edges=act plan=peers route.foreign_dropout=0.5"]
    none = by_label["edges=none plan=peers route.foreign_dropout=0.5"]
    assert [cell(table, row, "", "seeds").text for row in (act, none)] == ["2", "2"]
    assert cell(table, none, "loss L(d)", "difference").text == "reference"
    losses = [[job.metrics["mean_loss"] for job in row.jobs] for row in (act, none)]
    assert cell(table, act, "loss L(d)", "mean").value == pytest.approx(sum(losses[0]) / 2)
    first, second = (a - b for a, b in zip(*losses, strict=True))
    difference = cell(table, act, "loss L(d)", "difference")
    assert difference.value == pytest.approx((first + second) / 2)
    low = measures.unsigned((first + second) / 2 - 12.7062 * abs(first - second) / 2)
    assert difference.interval.startswith(f"{low} to ")


def test_mean_that_a_seed_lacks_is_a_bound_without_a_difference(read_study: Sweep) -> None:
    table = tables.over_seeds(read_study)
    assert table is not None
    [row] = [row for row in table.rows if row.label.startswith("edges=weight plan=peers")]
    assert any("mean_compute_equivalent" not in job.metrics for job in row.jobs)
    mean = cell(table, row, "compute-equivalent", "mean")
    assert mean.text.startswith("<") and mean.value is None
    assert cell(table, row, "compute-equivalent", "difference").text == DASH


def references(read: Sweep) -> dict[str, str | None]:
    """Label of the reference of each group."""
    found = {}
    for group in read.replicates:
        reference = tables.reference_of(read, group)
        label = read.label(reference[0], seed=False) if reference else None
        found[read.label(group[0], seed=False)] = label
    return found


def test_reference_without_an_uncut_group_is_the_dense_one_of_the_same_text(
    tmp_path: Path,
) -> None:
    for overlap in (0.0, 1.0):
        for seed in range(2):
            for edges in ("dense", "act", "both") if overlap else ("act", "both"):
                write_job(tmp_path, edges=edges, seed=seed, settings={"data.overlap": overlap})
    read = read_sweep(tmp_path)
    found = references(read)
    assert (found["edges=act data.overlap=1.0"] or "").startswith("dense")
    assert found["edges=act data.overlap=0.0"] is None
    table = tables.over_seeds(read)
    assert table is not None
    for row in table.rows:
        is_compared = "1.0" in row.label and "edges" in row.label
        assert (cell(table, row, "loss L(d)", "difference").value is not None) == is_compared


def test_robustness_is_of_attacked_jobs_and_their_filtered_models(read_study: Sweep) -> None:
    table = tables.robustness(read_study)
    assert table is not None
    assert {row.jobs[0].kind for row in table.rows} == {"peers", "sgtm"}
    [row, *_] = [row for row in table.rows if row.jobs[0].kind == "sgtm"]
    metrics = row.jobs[0].metrics
    assert metrics[registry.RELEARN_CENSORED("biology")] == 1
    assert cell(table, row, "relearning steps", "biology").text == "\N{GREATER-THAN OR EQUAL TO} 40"
    expected = f"{metrics[registry.RELEARN_FILTERED_LOSS('biology')]:.3f}"
    assert cell(table, row, "filtered: loss", "biology").text == expected


def test_mean_is_of_the_domains_and_not_of_the_nodes_above_them(tmp_path: Path) -> None:
    domains = ["code", "biology/cells", "biology/virology"]
    job = write_job(tmp_path, domains=domains, plan="tree")
    (job / "document_losses.csv").unlink()
    losses = {"code": 5.0, "biology/cells": 6.0, "biology/virology": 7.0, "biology": 100.0}
    found = {registry.RELEARN_LOSS(part): loss for part, loss in losses.items()}
    edit(job, lambda summary: summary["metrics"].update(found))
    [measure] = [item for item in measures.ROBUST if item.name == "relearned loss"]
    mean = measure.mean(read_sweep(tmp_path).jobs[0])
    assert mean is not None and mean.value == 6.0
