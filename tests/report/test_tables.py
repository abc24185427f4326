"""The tables: what is a row, a column, marked best, and a difference to what."""

from pathlib import Path

import pytest

from gr_sweep.metrics import registry
from gr_sweep.report import measures, read_sweep, tables
from gr_sweep.report.sweep import Estimate, Sweep
from gr_sweep.report.tables import Cell, Row, Table
from tests.report.conftest import DOMAINS, edit, write_job

DASH = "\N{EN DASH}"


def cell(table: Table, row: Row, name: str) -> Cell:
    return row.cells[[column.name for column in table.columns].index(name) - 1]


def difference(table: Table, row: Row, name: str) -> Cell:
    """The cell after the one of the mean."""
    return row.cells[[column.name for column in table.columns].index(name)]


def test_best_values_are_marked_and_missing_ones_are_dashes(read_edges: Sweep) -> None:
    table = tables.comparison(read_edges)
    assert table.columns[0].name == "edges"
    rows = {row.jobs[0].edges: row for row in table.rows}
    best = {
        name: [edges for edges, row in rows.items() if cell(table, row, name).best]
        for name in ("loss L(d)", "selectivity")
    }
    assert best == {"loss L(d)": ["dense"], "selectivity": ["weight"]}
    missing = cell(table, rows["dense"], "selectivity")
    assert (missing.text, missing.value) == (DASH, None)
    losses = [(c.name, c.is_detail) for c in table.columns if c.name.startswith("loss L(d)")]
    details = [(f"loss L(d) {domain}", True) for domain in ("code", "biology", "creative")]
    assert losses == [("loss L(d)", False), *details]
    assert tables.over_seeds(read_edges) is None and tables.robustness(read_edges) is None


def test_missing_compute_equivalent_is_shown_as_a_bound(read_study: Sweep) -> None:
    table = tables.comparison(read_study)
    [row, *_] = [row for row in table.rows if row.jobs[0].edges == "both"]
    for name in ("served compute", "served compute code"):
        found = cell(table, row, name)
        assert (found.text, found.value, found.best) == ("<1/8", 1 / 8, False)
    mean = measures.mean_of([Estimate(value=0.25), Estimate(value=0.125, bound="<")])
    assert measures.written(mean, measures.fraction) == "<0.19"


def test_seeds_become_means_and_paired_differences(read_study: Sweep) -> None:
    table = tables.over_seeds(read_study)
    assert table is not None
    by_label = {row.label: row for row in table.rows}
    act = by_label["edges=act plan=peers route.foreign_dropout=0.5"]
    none = by_label["edges=none plan=peers route.foreign_dropout=0.5"]
    assert [cell(table, row, "seeds").text for row in (act, none)] == ["2", "2"]
    assert difference(table, none, "served loss S(d)").text == "reference"
    losses = [[job.metrics["mean_served_loss"] for job in row.jobs] for row in (act, none)]
    assert cell(table, act, "served loss S(d)").value == pytest.approx(sum(losses[0]) / 2)
    first, second = (a - b for a, b in zip(*losses, strict=True))
    found = difference(table, act, "served loss S(d)")
    assert found.value == pytest.approx((first + second) / 2)
    low = measures.fraction((first + second) / 2 - 12.7062 * abs(first - second) / 2)
    assert found.interval.startswith(f"{low} to ")
    # One of two seeds has only a bound.
    [weight] = [row for row in table.rows if row.label.startswith("edges=weight plan=peers")]
    assert any("mean_served_compute_equivalent" not in job.metrics for job in weight.jobs)
    assert cell(table, weight, "served compute").text.startswith("<")
    assert difference(table, weight, "served compute").text == DASH


def test_reference_without_an_uncut_group_is_the_dense_one_of_the_same_text(
    tmp_path: Path,
) -> None:
    for overlap in (0.0, 1.0):
        for seed in range(2):
            for edges in ("dense", "act", "both") if overlap else ("act", "both"):
                write_job(tmp_path, edges=edges, seed=seed, settings={"data.overlap": overlap})
    read = read_sweep(tmp_path)
    found = {
        read.label(group[0], seed=False): tables.reference_of(read, group)
        for group in read.replicates
    }
    reference = found["edges=act data.overlap=1.0"]
    assert reference is not None and reference[0].kind == "dense"
    assert found["edges=act data.overlap=0.0"] is None
    table = tables.over_seeds(read)
    assert table is not None
    for row in table.rows:
        is_compared = "1.0" in row.label and "edges" in row.label
        assert (difference(table, row, "served loss S(d)").value is not None) == is_compared


def test_a_relearning_ratio_is_shown_as_the_bound_that_it_is(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    (job / "document_losses.csv").unlink()
    own, filtered = registry.RELEARN_CENSORED, registry.RELEARN_FILTERED_CENSORED
    found = {own("code"): 1, filtered("code"): 0, own("biology"): 0, filtered("biology"): 1}
    ratios = {registry.RELEARN_RATIO(part): 1.7 for part in DOMAINS}
    edit(job, lambda summary: summary["metrics"].update(ratios | found))
    [read] = read_sweep(tmp_path).jobs
    ratio = measures.RELEARN_RATIO
    bounds = {part: one.bound for part in DOMAINS if (one := ratio.of(read, part)) is not None}
    assert bounds == {"code": measures.FROM, "biology": measures.BELOW, "creative": ""}
    assert ratio.of(read) is None, "a mean of an upper and a lower bound bounds nothing"


def test_matrices_show_removal_blocks_of_a_lattice_and_transfer(read_study: Sweep) -> None:
    found = {
        (job.kind, matrix.corner): (job, dict(matrix.rows))
        for job in read_study.compared
        for matrix in tables.matrices(job)
    }
    kinds = ("peers", "lattice", "sgtm", "demix", "random")
    assert {kind for kind, corner in found if corner == "removed"} == set(kinds)
    job, rows = found["sgtm", "removed"]
    assert list(rows) == ["biology"] and [of.best for of in rows["biology"]] == [False, True, False]
    assert rows["biology"][0].value == job.metrics[registry.MATRIX("biology", "code")]
    _, rows = found["sgtm", "kept alone"]
    assert list(rows) == ["full model", "biology"]
    job, rows = found["lattice", "block off"]
    assert list(rows) == [
        "code", "biology", "creative", "code+biology", "code+creative", "biology+creative",
    ]  # fmt: skip
    inside, outside = rows["code+biology"]
    assert inside.value == job.metrics[registry.ENTANGLEMENT_INSIDE("code+biology")]
    assert outside.value == job.metrics[registry.ENTANGLEMENT_OUTSIDE("code+biology")]
    assert {kind for kind, corner in found if corner == "gain from"} == {"dense"}
    _, rows = found["dense", "gain from"]
    assert [of.value for of in rows["code"]] == [None, pytest.approx(0.05), pytest.approx(0.05)]
