"""Rounds of `procedure=alternate`: numbers against hand-made rows, the trade-off, and what happens
where files are missing or broken."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gr_sweep.config import ProcedureKind
from gr_sweep.metrics.losses import DocumentLoss, Text, View, read_losses, write_losses
from gr_sweep.report import print_table, read_sweep, rounds, write_report
from gr_sweep.report.collect import Sweep
from gr_sweep.report.round_files import Block, Round, read_rounds, with_leaf_tax

Make = Callable[..., Path]
MakeRounds = Callable[..., None]

ALTERNATE = {"procedure.name": ProcedureKind.alternate}


def row(
    view: View, part: str, domain: str, document: str, loss: float, tokens: int
) -> DocumentLoss:
    """A document with that loss a token."""
    return DocumentLoss(view, part, domain, Text.plain, document, loss * tokens, tokens, 1)


def a_round(labels: tuple[str, ...], rows: list[DocumentLoss]) -> Round:
    core = Block(name="core", owners=labels, units={"mlp": 4}, is_core=True)
    blocks = [Block(name=of, owners=(of,), units={"mlp": 2}, is_core=False) for of in labels]
    return Round(
        number=1, tokens=10, labels=labels, blocks=(core, *blocks), parameters_kept={},
        modularity_assigned=None, modularity=None, stability={}, metrics={}, rows=tuple(rows),
    )  # fmt: skip


def test_leaf_tax_is_weighted_by_tokens_within_a_domain_and_paired_by_document() -> None:
    found = a_round(
        ("code/0", "code/1", "biology"),
        [
            row(View.kept, "code/0", "code/0", "a", 2.0, 10),
            row(View.kept, "code/1", "code/1", "b", 3.0, 30),
            row(View.kept, "code/1", "code/0", "a", 9.0, 10),  # not its own expert
            row(View.full, "", "code/0", "a", 9.0, 10),
            row(View.kept, "biology", "biology", "c", 4.0, 5),
            row(View.kept, "biology", "biology", "d", 8.0, 5),  # that the dense run did not read
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


def test_label_of_several_domains_is_told_apart_by_document() -> None:
    """The first round of a nested partition: one expert for all of biology."""
    found = a_round(
        ("biology", "code"),
        [
            row(View.kept, "biology", "biology", "a", 2.0, 10),
            row(View.kept, "biology", "biology", "b", 4.0, 10),
            row(View.kept, "code", "code", "c", 1.0, 10),
        ],
    )
    domains = ["biology/cells", "biology/virology", "code"]
    own = [
        row(View.full, "", "biology/cells", "a", 0, 10),
        row(View.full, "", "biology/virology", "b", 0, 10),
    ]
    found = with_leaf_tax(found, domains, own, None)
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


def test_last_round_agrees_with_the_metric_of_the_job(alternating: Path) -> None:
    sweep = read_sweep(alternating)
    with_rounds = [job for job in sweep.compared if job.rounds]
    assert sorted(len(job.rounds) for job in with_rounds) == [1, 1, 3, 3, 3, 3]
    for job in with_rounds:
        # The fixture's job has no view of its own for it: made here as `alternate` does.
        last = job.rounds[-1]
        rows = read_losses(alternating / job.name / "document_losses.csv")
        of_round = read_losses(alternating / job.name / f"rounds/{last.number}/document_losses.csv")
        dense = next(j for j in sweep.compared if j.kind == "dense" and j.seed == job.seed)
        base = read_losses(alternating / dense.name / "document_losses.csv")
        for domain in job.domains:
            own = {r.document for r in rows if r.view is View.full and r.domain == domain}
            kept = [
                r
                for r in of_round
                if r.view is View.kept and r.part == r.domain and r.document in own
            ]
            full = [r for r in base if r.view is View.full and r.domain == domain]
            tax = sum(r.loss_nats for r in kept) / sum(r.tokens for r in kept)
            tax -= sum(r.loss_nats for r in full) / sum(r.tokens for r in full)
            assert last.leaf_tax[domain] == pytest.approx(tax)


@pytest.fixture(scope="module")
def read_alternating(alternating: Path) -> Sweep:
    return read_sweep(alternating)


def test_jobs_in_rounds_have_the_dense_run_beside_them(read_alternating: Sweep) -> None:
    """Its settings of the procedure are not theirs."""
    jobs = [job for job in read_alternating.compared if job.rounds]
    assert all("mean_tax" in job.metrics for job in jobs)
    assert rounds.has_tax(rounds.groups(read_alternating))


def test_trade_off_has_a_line_a_group_over_seeds(read_alternating: Sweep) -> None:
    groups = rounds.groups(read_alternating)
    assert [group.name for group in groups] == [
        "rounds=1 attribution=act_grad", "rounds=3 attribution=act_grad",
        "rounds=3 attribution=random",
    ]  # fmt: skip
    assert [group.dash for group in groups] == ["solid", "solid", "dash"]
    panel = rounds.trade_off(groups)
    assert panel is not None
    lines = {trace.get("name"): trace for trace in panel.figure["data"] if trace.get("name")}
    once, thrice = (lines[f"rounds={n} attribution=act_grad"] for n in (1, 3))
    assert once["x"] == [1, 3] and once["y"][0] == 0, "all its tokens: joined to dense"
    assert thrice["x"] == [3, 6, 12]
    assert thrice["marker"]["symbol"] == ["circle-open", "circle-open", "circle"]
    assert lines["last rounds"]["x"] == [1, 3, 12]
    expected = np.mean([
        rounds.leaf_tax(job, job.rounds[2]) for job in groups[1].jobs
    ])  # fmt: skip
    assert thrice["y"][2] == pytest.approx(expected)
    assert thrice["error_y"]["array"][2] > 0, "two seeds have an interval"
    assert panel.figure["layout"]["xaxis"]["tickvals"] == [1, 3, 6, 12]


def test_panels_are_size_selectivity_and_modularity(read_alternating: Sweep) -> None:
    groups = rounds.groups(read_alternating)
    size, selectivity, modularity = (panel.figure for panel in rounds.panels(groups))

    def line(figure: dict, name: str) -> list[float]:
        return next(t["y"] for t in figure["data"] if name in str(t.get("hovertext")) and t["x"])

    name = "rounds=3 attribution=random</b>"
    assert line(size, name) == pytest.approx([0.8, 0.6, 0.4 + 0.4 / 3])
    assert line(selectivity, name) == pytest.approx([0.41, 0.21, 0.4 / 3 + 0.01])
    assert line(modularity, name) == pytest.approx([0.735, 0.765, 0.795])
    assert line(modularity, "as assigned") == pytest.approx([0.625])


def test_table_has_a_row_a_group_and_round(read_alternating: Sweep) -> None:
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
    expected = np.mean([rounds.leaf_tax(job, job.rounds[2]) for job in groups[1].jobs])
    assert cells["leaf tax"].value == pytest.approx(expected)
    assert " to " in cells["leaf tax"].interval


def test_without_a_dense_run_the_loss_itself_is_drawn(
    tmp_path: Path, make_job: Make, make_rounds: MakeRounds
) -> None:
    make_rounds(make_job(tmp_path, settings=ALTERNATE, num_documents=6, resamples=0), rounds=2)
    groups = rounds.groups(read_sweep(tmp_path))
    panel = rounds.trade_off(groups)
    assert panel is not None and not rounds.has_tax(groups)
    assert "no dense baseline" in panel.figure["layout"]["yaxis"]["title"]["text"]
    assert all(1 not in trace["x"] for trace in panel.figure["data"])
    table = rounds.table(groups)
    assert table is not None
    names = [column.name for column in table.columns]
    assert "leaf loss" in names and "leaf tax" not in names


def test_mean_over_some_of_the_labels_says_so(
    tmp_path: Path, make_job: Make, make_rounds: MakeRounds
) -> None:
    job = make_job(tmp_path, settings=ALTERNATE, num_documents=6, resamples=0)
    make_rounds(job, rounds=1)
    path = job / "rounds/1/round.json"
    content = json.loads(path.read_text())
    del content["metrics"]["separability/selectivity/code"]
    path.write_text(json.dumps(content))
    table = rounds.table(rounds.groups(read_sweep(tmp_path)))
    assert table is not None
    assert "+0.40 (2/3)" in [cell.text for cell in table.rows[0].cells]


@pytest.mark.parametrize(
    "name", ["plan.json", "scores.npz", "document_losses.csv", "round.json"]
)  # fmt: skip
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "other"])
def test_what_a_round_lacks_is_left_out_of_the_report(
    tmp_path: Path, make_job: Make, make_rounds: MakeRounds, name: str, how: str
) -> None:
    job = make_job(tmp_path, settings=ALTERNATE, num_documents=3, resamples=0, steps=40)
    make_rounds(job, rounds=2, layers=1, units=96)
    path = job / "rounds/2" / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"empty": b"", "cut": content[: len(content) // 2], "other": b'{"a": [1]}'}[how]
        )
    found = read_rounds(job)
    assert [of.number for of in found] == ([1] if name == "round.json" else [1, 2])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "round 1: 3 experts, 4 blocks" in page
    assert ("round 2: 6 experts, 10 blocks" in page) == (name != "round.json")
    pictures = sorted(
        path.name.rpartition("1f3a9c-")[2] for path in tmp_path.glob("*/rounds/*.svg")
    )
    assert "round-1-blocks.svg" in pictures and "round-1-units.svg" in pictures
    assert ("round-2-units.svg" in pictures) == (name == "document_losses.csv")


def test_job_copied_without_its_rounds_is_reported_without_them(
    tmp_path: Path, make_job: Make
) -> None:
    job = make_job(tmp_path, settings=ALTERNATE, num_documents=3, resamples=0)
    (job / "rounds/1").mkdir(parents=True)
    sweep = read_sweep(tmp_path)
    assert rounds.groups(sweep) == [] and rounds.table([]) is None
    page = write_report(sweep)
    assert '<section id="rounds">' not in page.read_text(encoding="utf-8")
    assert not (page.parent / "rounds").exists()


def test_seed_whose_round_is_missing_is_no_part_of_the_mean(
    tmp_path: Path, make_job: Make, make_rounds: MakeRounds
) -> None:
    for seed in (0, 1):
        job = make_job(tmp_path, settings=ALTERNATE, num_documents=6, resamples=0, seed=seed)
        make_rounds(job, rounds=2 - seed, seed=seed)
    [group] = rounds.groups(read_sweep(tmp_path))
    assert [len(group.rounds(number)) for number in group.numbers()] == [2, 1]
    last = group.over_seeds(2, lambda job, of: of.modularity)
    assert last is not None and last.interval is None


def test_page_has_the_rounds_and_their_pictures(alternating: Path, tmp_path: Path) -> None:
    sweep = read_sweep(alternating)
    page = write_report(sweep)
    text = page.read_text(encoding="utf-8")
    section = text.split('<section id="rounds">')[1].split("</section>")[0]
    assert section.count("<svg ") == 2 * (2 * 1 + 4 * 3)
    assert section.count('data-plot="') == 4
    assert "code/0/1" in section and "(33 % by chance)" in section
    assert len(list((page.parent / "rounds").glob("*.svg"))) == 28
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", section)
    asked = re.findall(r'data-plot="([^"]+)"', text)
    [plots] = re.findall(r'<script type="application/json" id="plots">(.*)</script>', text)
    assert sorted(asked) == sorted(json.loads(plots))


@pytest.mark.parametrize("width", [100, 160])
def test_terminal_has_a_short_table_of_rounds(read_alternating: Sweep, width: int) -> None:
    out = io.StringIO()
    print_table(read_alternating, Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    after = text.split("rounds of procedure=alternate")[1]
    assert "leaf tax" in after and "53 %" in after
    assert ("stability" in after) == (width == 160)


def test_rows_of_other_texts_do_not_count(
    tmp_path: Path, make_job: Make, make_rounds: MakeRounds
) -> None:
    job = make_job(tmp_path, settings=ALTERNATE, num_documents=3, resamples=0)
    make_rounds(job, rounds=1)
    path = job / "rounds/1/document_losses.csv"
    rows = read_losses(path)
    before = read_rounds(job)[0].rows
    write_losses(path, [*rows, *(r._replace(text=Text.swapped, loss_nats=1e6) for r in rows)])
    assert read_rounds(job)[0].rows == before
