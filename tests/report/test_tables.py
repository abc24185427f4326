"""The tables: what is a row, a column, and a difference to what."""

import pytest

from gr_sweep.metrics import registry
from gr_sweep.report import answer, measures, tables
from gr_sweep.report.measures import Text
from gr_sweep.report.sweep import Estimate, Sweep, mean_of
from gr_sweep.report.tables import Cell, Row, Table

DASH = "\N{EN DASH}"


def cell(table: Table, row: Row, name: str) -> Cell:
    return row.cells[[column.name for column in table.columns].index(name) - 1]


def difference(table: Table, row: Row, name: str) -> Cell:
    return cell(table, row, f"\N{GREEK CAPITAL LETTER DELTA} {name}")


def test_columns_are_means_and_then_domains_and_missing_ones_are_dashes(read_edges: Sweep) -> None:
    table = tables.settings(read_edges)
    assert table.columns[0].name == "setting"
    rows = {row.name: row for row in table.rows}
    missing = cell(table, rows["dense"], "selectivity")
    assert (missing.text, missing.value) == (DASH, None)
    losses = [(c.name, c.is_domain) for c in table.columns if c.name.startswith("loss L(d)")]
    details = [(f"loss L(d) {domain}", True) for domain in ("code", "biology", "creative")]
    assert losses == [("loss L(d)", False), *details]
    shown = table.columns[: -table.num_details]
    assert [c.name for c in shown[:4]] == ["setting", "rank", "served tax", "selectivity"]


def test_missing_compute_equivalent_is_shown_as_a_bound(read_study: Sweep) -> None:
    table = tables.settings(read_study)
    [row, *_] = [row for row in table.rows if row.jobs[0].edges == "both"]
    for name in ("served compute", "served compute code"):
        found = cell(table, row, name)
        assert (found.text, found.value) == ("<1/8", 1 / 8)
    mean = mean_of([Estimate(value=0.25), Estimate(value=0.125, bound="<")])
    assert measures.fraction.value(mean) == "<0.19"


def test_digits_follow_the_interval() -> None:
    def shown(value: float, low: float, high: float, text: Text = measures.nats) -> tuple[str, str]:
        estimate = Estimate(value=value, interval=(low, high))
        return text.value(estimate), text.interval(estimate)

    assert shown(5.12345, 5.12, 5.13) == ("5.123", "5.120 to 5.130")
    assert shown(5.12345, 5.0, 5.2) == ("5.12", "5.00 to 5.20")
    assert shown(0.31, -0.1, 0.72, measures.signed) == ("+0.3", "\N{MINUS SIGN}0.1 to 0.7")
    assert shown(0.043, 0.002, 0.084, measures.fraction) == ("0.043", "0.002 to 0.084")
    assert measures.nats.value(Estimate(value=5.12345)) == "5.123"
    for value, text in ((0.004, "+0.004"), (-0.00032, "\N{MINUS SIGN}0.0003"), (0.0, "0.00")):
        assert measures.signed.difference(Estimate(value=value)) == text


def test_seeds_become_means_and_paired_differences(read_study: Sweep) -> None:
    table = tables.settings(read_study)
    [ranking, *_] = answer.rankings(read_study)
    name = ranking.axes[0].metric.title
    by_name = {row.name: row for row in table.rows}
    best = by_name[ranking.by(0)[0].name]
    assert difference(table, best, name).text == "reference"
    act = by_name["act"]
    key = ranking.axes[0].metric.mean
    values = [[job.metrics[key] for job in row.jobs] for row in (act, best)]
    assert cell(table, act, name).value == pytest.approx(sum(values[0]) / 2)
    first, second = (a - b for a, b in zip(*values, strict=True))
    found = ranking.axes[0].difference(act.jobs, best.jobs)
    assert found is not None and found.interval is not None
    assert difference(table, act, name).value == pytest.approx((first + second) / 2)
    low = (first + second) / 2 - 12.7062 * abs(first - second) / 2
    assert found.interval[0] == pytest.approx(low)
    # One of two seeds has only a bound.
    [weight] = [row for row in table.rows if row.name == "weight"]
    assert any(key not in job.metrics for job in weight.jobs)
    assert cell(table, weight, "served compute").text.startswith("<")
    assert difference(table, weight, "served compute").text == DASH


def test_matrices_are_means_over_seeds(read_study: Sweep) -> None:
    [jobs] = [of for of in read_study.replicates if read_study.settings[of[0].name] == "act"]
    [served, *_] = tables.matrices(jobs)
    found = dict(served.rows)["code"][0]
    values = [job.metrics[registry.SERVED_MATRIX("code", "code")] for job in jobs]
    assert len(values) == 2 and found.value == pytest.approx(sum(values) / 2)
    assert found.interval


def test_matrices_show_removal_blocks_of_a_lattice_and_transfer(read_study: Sweep) -> None:
    found = {
        (job.kind, matrix.corner): (job, dict(matrix.rows))
        for job in read_study.compared
        for matrix in tables.matrices([job])
    }
    job, rows = found["sgtm", "removed"]
    assert list(rows) == ["biology"]
    assert rows["biology"][0].value == job.metrics[registry.MATRIX("biology", "code")]
    job, rows = found["lattice", "block off"]
    inside, outside = rows["code+biology"]
    assert inside.value == job.metrics[registry.ENTANGLEMENT_INSIDE("code+biology")]
    assert outside.value == job.metrics[registry.ENTANGLEMENT_OUTSIDE("code+biology")]
    _, rows = found["dense", "gain from"]
    assert [of.value for of in rows["code"]] == [None, pytest.approx(0.05), pytest.approx(0.05)]
