"""Rounds of `procedure=alternate`: numbers from hand-made rows, the trade-off, and the pictures."""

from pathlib import Path

import numpy as np
import pytest

from gr_sweep.metrics.losses import DocumentLoss, Text, View
from gr_sweep.report import read_sweep, round_figures, rounds
from gr_sweep.report.round_files import Block, Round, with_leaf_tax
from gr_sweep.report.sweep import Sweep
from tests.report.conftest import ALTERNATE, write_job, write_rounds


def row(
    view: View, part: str, domain: str, document: str, loss: float, tokens: int
) -> DocumentLoss:
    """A document with that loss per token."""
    return DocumentLoss(view, part, domain, Text.plain, document, loss * tokens, tokens, 1)


def a_round(labels: tuple[str, ...], rows: list[DocumentLoss]) -> Round:
    core = Block(name="core", owners=labels, units={"mlp": 4}, is_core=True)
    blocks = [Block(name=of, owners=(of,), units={"mlp": 2}, is_core=False) for of in labels]
    return Round(
        number=1, tokens=10, labels=labels, blocks=(core, *blocks), parameters_kept={},
        modularity_assigned=None, modularity=None, stability={}, metrics={}, rows=tuple(rows),
    )  # fmt: skip


def test_leaf_tax_is_weighted_by_tokens_and_paired_by_document() -> None:
    found = a_round(
        ("code/0", "code/1", "biology"),
        [
            row(View.kept, "code/0", "code/0", "a", 2.0, 10),
            row(View.kept, "code/1", "code/1", "b", 3.0, 30),
            row(View.kept, "code/1", "code/0", "a", 9.0, 10),  # Not its own expert.
            row(View.full, "", "code/0", "a", 9.0, 10),
            row(View.kept, "biology", "biology", "c", 4.0, 5),
            row(View.kept, "biology", "biology", "d", 8.0, 5),  # The dense run did not read it.
        ],
    )
    dense = [
        row(View.full, "", "code", "a", 1.0, 10),
        row(View.full, "", "code", "b", 2.5, 30),
        row(View.full, "", "biology", "c", 4.5, 5),
        row(View.full, "", "code", "z", 7.0, 99),
    ]
    found = with_leaf_tax(found, ["code", "biology"], [], dense)
    assert found.leaf_loss == pytest.approx({"code": 2.75, "biology": 6.0})
    assert found.leaf_tax == pytest.approx({"code": (10 * 1.0 + 30 * 0.5) / 40, "biology": -0.5})


def test_label_of_several_domains_is_divided_by_document() -> None:
    """The first round of a nested partition has one expert for all of biology."""
    found = a_round(
        ("biology", "code"),
        [
            row(View.kept, "biology", "biology", "a", 2.0, 10),
            row(View.kept, "biology", "biology", "b", 4.0, 10),
            row(View.kept, "code", "code", "c", 1.0, 10),
        ],
    )
    own = [
        row(View.full, "", "biology/cells", "a", 0, 10),
        row(View.full, "", "biology/virology", "b", 0, 10),
    ]
    found = with_leaf_tax(found, ["biology/cells", "biology/virology", "code"], own, None)
    assert found.leaf_loss == {"biology/cells": 2.0, "biology/virology": 4.0, "code": 1.0}
    assert not found.leaf_tax


def test_losses_of_a_block_are_those_of_its_documents() -> None:
    labels = ("code/0", "code/1")
    rows = [
        row(View.full, "", "code/0", "a", 3.0, 10),
        row(View.full, "", "code/1", "b", 5.0, 10),
        row(View.kept, "code/0", "code/0", "a", 2.0, 10),
        row(View.kept, "code/1", "code/1", "b", 4.5, 10),
        row(View.kept, "code", "code/0", "a", 2.5, 10),
        row(View.kept, "code", "code/1", "b", 4.0, 10),
    ]
    found = a_round(labels, rows)
    inner = Block(name="code", owners=labels, units={}, is_core=False)
    assert found.losses(found.blocks[1]) == (2.0, 3.0)
    assert found.losses(inner) == (3.25, 4.0), "all of code in code's expert"
    assert found.losses(found.blocks[0]) == (3.25, 4.0), "each in its own label's"
    assert a_round(labels, []).losses(inner) == (None, None)


def test_trade_off_has_a_line_for_each_group(read_alternating: Sweep) -> None:
    groups = rounds.groups(read_alternating)
    assert [group.name for group in groups] == [
        "rounds=1 attribution=act_grad", "rounds=3 attribution=act_grad",
        "rounds=3 attribution=random",
    ]  # fmt: skip
    assert [group.dash for group in groups] == ["solid", "solid", "dash"]
    (_, figure), *_ = rounds.panels(groups)
    lines = {trace["name"]: trace for trace in figure["data"]}
    once, thrice = (lines[f"rounds={n} attribution=act_grad"] for n in (1, 3))
    assert once["x"] == [1, 3] and once["y"][0] == 0, "it saw all its tokens: joined to dense"
    assert thrice["x"] == [3, 6, 12]
    assert thrice["marker"]["symbol"] == ["circle-open", "circle-open", "circle"]
    expected = [rounds.leaf_tax(job, job.rounds[2]) or 0 for job in groups[1].jobs]
    assert thrice["y"][2] == pytest.approx(np.mean(expected))
    assert thrice["error_y"]["array"][2] > 0, "two seeds have an interval"


def test_panels_are_size_selectivity_and_modularity(read_alternating: Sweep) -> None:
    size, selectivity, modularity = (
        [trace["y"] for trace in figure["data"] if trace["mode"] == "lines+markers"]
        for _, figure in rounds.panels(rounds.groups(read_alternating))[1:]
    )
    assert size[-1] == pytest.approx([0.8, 0.6, 0.4 + 0.4 / 3])
    assert selectivity[-1] == pytest.approx([0.41, 0.21, 0.4 / 3 + 0.01])
    assert modularity[-1] == pytest.approx([0.735, 0.765, 0.795])


def test_table_has_a_row_for_each_group_and_round(read_alternating: Sweep) -> None:
    groups = rounds.groups(read_alternating)
    table = rounds.table(groups)
    assert table is not None and len(table.rows) == 7
    names = [column.name for column in table.columns[1:]]
    assert "leaf loss" not in names, "all have a dense baseline"
    cells = dict(zip(names, table.rows[3].cells, strict=True))
    assert cells["jobs"].text == "rounds=3 attribution=act_grad"
    assert (cells["round"].text, cells["experts"].text, cells["seeds"].text) == ("3", "12", "2")
    assert cells["expert size"].text == "53 %" and not cells["expert size"].interval
    assert (cells["assigned"].text, cells["trained"].text) == ("0.66", "0.79")
    expected = [rounds.leaf_tax(job, job.rounds[2]) or 0 for job in groups[1].jobs]
    assert cells["leaf tax"].value == pytest.approx(np.mean(expected))
    assert " to " in cells["leaf tax"].interval


def test_without_a_dense_run_the_loss_itself_is_drawn(tmp_path: Path) -> None:
    write_rounds(write_job(tmp_path, settings=ALTERNATE, num_documents=6), rounds=2)
    groups = rounds.groups(read_sweep(tmp_path))
    (_, figure), *_ = rounds.panels(groups)
    assert not rounds.has_tax(groups)
    assert "no dense baseline" in figure["layout"]["yaxis"]["title"]["text"]
    table = rounds.table(groups)
    assert table is not None
    names = [column.name for column in table.columns]
    assert "leaf loss" in names and "leaf tax" not in names


def test_seed_whose_round_is_missing_is_not_part_of_the_mean(tmp_path: Path) -> None:
    for seed in (0, 1):
        job = write_job(tmp_path, settings=ALTERNATE, seed=seed)
        write_rounds(job, rounds=2 - seed, seed=seed)
    [group] = rounds.groups(read_sweep(tmp_path))
    assert [len(group.rounds(number)) for number in group.numbers()] == [2, 1]
    last = group.over_seeds(2, lambda _, of: of.modularity)
    assert last is not None and last.interval is None


def test_pictures_show_blocks_units_and_who_uses_them(read_alternating: Sweep) -> None:
    [job, *_] = [job for job in read_alternating.compared if len(job.rounds) == 3]
    found, domains = job.rounds[1], job.domains
    [trace] = round_figures.blocks(found, domains, 0)["data"]
    assert trace["ids"][:3] == ["core", "code", "code/0"]
    assert trace["parents"][:3] == ["", "core", "code"]
    assert len(trace["meta"]["table"]) == 1 + len(found.blocks)
    [(name, figure)] = round_figures.units(found, domains, 0)
    [trace] = figure["data"]
    assert name == "units" and len(trace["z"]) == 2 * 4 and trace["dx"] > 1, "units are joined"
    assert trace["z"][0][0] < 1 <= trace["z"][0][-1], "the core comes first"
    header, first, *_ = trace["meta"]["table"]
    assert header == ["row"] and len(first) == 1 + len(trace["z"][0])
    assert (first[0], first[1], first[-1]) == ("layer 0 owner", "core", domains[-1])
    owners, users = (np.array(row[1:]) for row in trace["meta"]["table"][1:3])
    own = owners != "core"
    assert (owners[own] == users[own]).mean() > 0.8, "domains use the units that they own"


def test_leading_domain_leads_by_what_others_do_not_use() -> None:
    shares = np.array([[0.6, 0.0, 0.2], [0.3, 0.0, 0.2], [0.0, 0.0, 0.0]])
    first, lead = round_figures.leading(shares, [0, 1, 2])
    assert first.tolist() == [0, -1, 0] and lead.tolist() == [0.5, 0.0, 0.0]
    first, _ = round_figures.leading(shares, [0, 1, 2], num_columns=1)
    assert first.tolist() == [0]
