"""Rounds of `procedure=alternate`: the trade-off, and the table."""

import numpy as np
import pytest

from gr_sweep.metrics.losses import View
from gr_sweep.report import rounds
from gr_sweep.report.sweep import Sweep


def test_trade_off_has_a_line_for_each_group(read_alternating: Sweep) -> None:
    groups = rounds.groups(read_alternating)
    figure = rounds.trade_off(groups)
    assert figure is not None
    lines = {trace["name"]: trace for trace in figure["data"]}
    once, thrice, control = (lines[group.name] for group in groups)
    assert once["x"] == [1, 3] and once["y"][0] == 0, "it saw all its tokens: joined to dense"
    assert thrice["x"] == [3, 6, 12]
    assert thrice["marker"]["symbol"] == ["circle-open", "circle-open", "circle"]
    assert [line["line"]["dash"] for line in (once, thrice, control)] == ["solid", "solid", "dash"]
    dense = {job.seed: job.metrics["mean_loss"] for job in read_alternating.jobs[:2]}
    taxes = [
        np.mean([*job.rounds[2].losses[View.served].values()]) - dense[job.seed]
        for job in groups[1].jobs
    ]
    assert thrice["y"][2] == pytest.approx(np.mean(taxes))
    assert thrice["error_y"]["array"][2] > 0, "two seeds have an interval"


def test_table_has_a_row_for_each_group_and_round(read_alternating: Sweep) -> None:
    groups = rounds.groups(read_alternating)
    table = rounds.table(groups)
    assert table is not None and len(table.rows) == 7
    names = [column.name for column in table.columns[1:]]
    cells = dict(zip(names, table.rows[3].cells, strict=True))
    assert table.rows[3].name == groups[1].name
    assert (cells["round"].text, cells["experts"].text) == ("3", "12")
    assert (cells["expert size"].text, cells["modularity"].text) == ("0.53", "0.79")
    assert cells["selectivity"].value == pytest.approx(0.4 / 3 + 0.01)
    for name, view in (("served tax", View.served), ("leaf tax", View.kept)):
        expected = [rounds.tax(view)(job, job.rounds[2]) or 0 for job in groups[1].jobs]
        assert cells[name].value == pytest.approx(np.mean(expected))
        assert " to " in cells[name].interval
    assert cells["served loss S(d)"].value == pytest.approx(
        cells["loss in the own expert"].value + 0.02
    )
