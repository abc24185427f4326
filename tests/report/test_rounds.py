"""Rounds of `procedure=alternate`: numbers from hand-made rows, the trade-off, and the table."""

from pathlib import Path

import numpy as np
import pytest

from gr_sweep.metrics.losses import DocumentLoss, Text, View
from gr_sweep.report import read_sweep, rounds
from gr_sweep.report.round_files import Round, with_taxes
from gr_sweep.report.sweep import Sweep
from tests.report.conftest import ALTERNATE, write_job, write_rounds


def row(
    view: View, part: str, domain: str, document: str, loss: float, tokens: int
) -> DocumentLoss:
    """A document with that loss per token."""
    return DocumentLoss(view, part, domain, Text.plain, document, loss * tokens, tokens, 1)


def kept(label: str, document: str, loss: float, tokens: int) -> DocumentLoss:
    return row(View.kept, label, label, document, loss, tokens)


def a_round(labels: tuple[str, ...], rows: list[DocumentLoss]) -> Round:
    return Round(
        number=1, tokens=10, labels=labels, parameters_kept={},
        modularity=None, metrics={}, rows=tuple(rows),
    )  # fmt: skip


def test_taxes_are_weighted_by_tokens_and_paired_by_document() -> None:
    found = a_round(
        ("code/0", "code/1", "biology"),
        [
            kept("code/0", "a", 2.0, 10),
            kept("code/1", "b", 3.0, 30),
            kept("biology", "c", 4.0, 5),
            kept("biology", "d", 8.0, 5),  # The dense run did not read it.
            row(View.served, "", "code/0", "a", 2.5, 10),
            row(View.served, "", "code/1", "b", 3.5, 30),
        ],
    )
    dense = [
        row(View.full, "", "code", "a", 1.0, 10),
        row(View.full, "", "code", "b", 2.5, 30),
        row(View.full, "", "biology", "c", 4.5, 5),
        row(View.full, "", "code", "z", 7.0, 99),
    ]
    found = with_taxes(found, ["code", "biology"], [], dense)
    assert found.losses[View.kept] == pytest.approx({"code": 2.75, "biology": 6.0})
    expected = {"code": (10 * 1.0 + 30 * 0.5) / 40, "biology": -0.5}
    assert found.taxes[View.kept] == pytest.approx(expected)
    assert found.losses[View.served] == pytest.approx({"code": 3.25})
    assert found.taxes[View.served] == pytest.approx({"code": expected["code"] + 0.5})


def test_label_of_several_domains_is_divided_by_document() -> None:
    """The first round of a nested partition has one expert for all of biology."""
    found = a_round(
        ("biology", "code"),
        [kept("biology", "a", 2.0, 10), kept("biology", "b", 4.0, 10), kept("code", "c", 1.0, 10)],
    )
    own = [
        row(View.full, "", "biology/cells", "a", 0, 10),
        row(View.full, "", "biology/virology", "b", 0, 10),
    ]
    found = with_taxes(found, ["biology/cells", "biology/virology", "code"], own, None)
    expected = {"biology/cells": 2.0, "biology/virology": 4.0, "code": 1.0}
    assert found.losses[View.kept] == expected
    assert not any(found.taxes.values())


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
    expected = [rounds.tax(View.served)(job, job.rounds[2]) or 0 for job in groups[1].jobs]
    assert thrice["y"][2] == pytest.approx(np.mean(expected))
    assert thrice["error_y"]["array"][2] > 0, "two seeds have an interval"


def test_table_has_a_row_for_each_group_and_round(read_alternating: Sweep) -> None:
    groups = rounds.groups(read_alternating)
    table = rounds.table(groups)
    assert table is not None and len(table.rows) == 7
    names = [column.name for column in table.columns[1:]]
    cells = dict(zip(names, table.rows[3].cells, strict=True))
    assert cells["jobs"].text == groups[1].name
    assert (cells["round"].text, cells["experts"].text) == ("3", "12")
    assert (cells["expert size"].text, cells["modularity"].text) == ("0.53", "0.79")
    assert cells["selectivity"].value == pytest.approx(0.4 / 3 + 0.01)
    for name, view in (("served tax", View.served), ("leaf tax", View.kept)):
        expected = [rounds.tax(view)(job, job.rounds[2]) or 0 for job in groups[1].jobs]
        assert cells[name].value == pytest.approx(np.mean(expected))
        assert " to " in cells[name].interval
    assert cells["served loss"].value == pytest.approx(cells["leaf loss"].value + 0.02)


def test_without_a_dense_run_there_is_only_the_loss_itself(tmp_path: Path) -> None:
    for seed in (0, 1):
        job = write_job(tmp_path, settings=ALTERNATE, seed=seed)
        write_rounds(job, rounds=2 - seed, seed=seed)
    [group] = rounds.groups(read_sweep(tmp_path))
    assert rounds.trade_off([group]) is None
    table = rounds.table([group])
    assert table is not None
    names = [column.name for column in table.columns]
    assert {"served loss", "leaf loss"} <= {*names} and not {"served tax", "leaf tax"} & {*names}
    last = group.over_seeds(2, lambda _, of: of.modularity)
    assert last is not None and last.interval is None, "the other seed has one round"
