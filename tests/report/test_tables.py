"""Tables of the report: columns that jobs have, means over seeds, references and bounds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gr_sweep.config import TrainConfig
from gr_sweep.metrics import registry
from gr_sweep.report import measures, read_sweep, tables
from gr_sweep.report.collect import Sweep
from gr_sweep.report.tables import Cell, Row, Table

MakeJob = Callable[..., Path]


def column(table: Table, group: str, name: str) -> int:
    """The place of a column."""
    [at] = [
        at for at, found in enumerate(table.columns) if (found.group, found.name) == (group, name)
    ]
    return at


def cell(table: Table, row: Row, group: str, name: str) -> Cell:
    """What stands in a row; the first column has no cell of its own."""
    return row.cells[column(table, group, name) - 1]


def test_best_values_are_marked_and_missing_ones_are_dashes(sweep: Path) -> None:
    table = tables.comparison(read_sweep(sweep))
    assert table.columns[0].name == "edges"
    rows = {row.jobs[0].edges: row for row in table.rows}
    best = {
        group: [edges for edges, row in rows.items() if cell(table, row, group, "mean").best]
        for group in ("loss L(d)", "selectivity")
    }
    assert best == {"loss L(d)": ["dense"], "selectivity": ["weight"]}
    missing = cell(table, rows["dense"], "selectivity", "mean")
    assert (missing.text, missing.value) == ("\N{EN DASH}", None)


def test_every_row_has_a_cell_a_column(read_study: Sweep) -> None:
    for table in (
        tables.comparison(read_study),
        tables.over_seeds(read_study),
        tables.robustness(read_study),
        tables.dense_curve(read_study),
    ):
        assert table is not None
        assert {len(row.cells) + 1 for row in table.rows} == {len(table.columns)}


def test_measures_that_no_job_has_are_no_columns(sweep: Path, read_study: Sweep) -> None:
    few = {found.group for found in tables.comparison(read_sweep(sweep)).columns}
    many = {found.group for found in tables.comparison(read_study).columns}
    assert not few & {"compute-equivalent", "removal", "mixed tax", "removed tax"}
    assert {"compute-equivalent", "removal", "mixed tax", "removed tax"} <= many


def test_measure_of_one_part_has_no_mean_beside_it(tmp_path: Path, make_job: MakeJob) -> None:
    for edges in ("act", "weight"):
        make_job(
            tmp_path, edges=edges, plan="forget", forget=["biology"], num_documents=2, resamples=0
        )
    columns = tables.comparison(read_sweep(tmp_path)).columns
    assert [found.name for found in columns if found.group == "selectivity"] == ["biology"]


def test_domains_are_details_beside_their_mean(sweep: Path) -> None:
    columns = tables.comparison(read_sweep(sweep)).columns
    found = [(item.name, item.is_detail) for item in columns if item.group == "loss L(d)"]
    assert found == [("mean", False), ("code", True), ("biology", True), ("creative", True)]


def test_method_has_a_column_where_methods_differ(sweep: Path, read_study: Sweep) -> None:
    assert "method" not in [found.name for found in tables.comparison(read_sweep(sweep)).columns]
    table = tables.comparison(read_study)
    kinds = {cell(table, row, "", "method").text for row in table.rows}
    assert kinds == {"dense", "filtered", "peers", "lattice", "sgtm", "demix", "random"}


def test_settings_of_routing_are_dashes_for_jobs_without_blocks(read_study: Sweep) -> None:
    table = tables.comparison(read_study)
    dropouts = {
        row.jobs[0].kind: cell(table, row, "", "route.foreign_dropout").text for row in table.rows
    }
    assert dropouts["dense"] == dropouts["filtered"] == "\N{EN DASH}"
    assert dropouts["sgtm"] == "1.0"


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
    table = tables.comparison(read_sweep(tmp_path))
    assert [found.name for found in table.columns[:2]] == ["edges", "settings"]
    assert "train.lr=1" in table.rows[1].cells[0].text


def test_missing_compute_equivalent_is_told_as_a_bound(read_study: Sweep) -> None:
    table = tables.comparison(read_study)
    [row, *_] = [row for row in table.rows if row.jobs[0].edges == "both"]
    job = row.jobs[0]
    assert job.mean_compute_equivalent is None and job.smallest_share == 1 / 8
    for name in ("mean", "code"):
        found = cell(table, row, "compute-equivalent", name)
        assert (found.text, found.value, found.best) == ("<1/8", None, False)


@pytest.mark.parametrize(
    ("bound", "text"), [(0.125, "<1/8"), (0.25, "<1/4"), (0.1875, "<0.19"), (51 / 400, "<0.13")]
)
def test_bounds_are_fractions_where_these_are_simple(bound: float, text: str) -> None:
    assert measures.below(bound) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "+0.50"), (-0.25, "\N{MINUS SIGN}0.25"), (-0.001, "0.00"), (12.0, "+12.00")],
)
def test_differences_are_shown_with_their_sign(value: float, text: str) -> None:
    assert measures.signed(value) == text


def test_seeds_become_means_and_paired_differences(read_study: Sweep) -> None:
    table = tables.over_seeds(read_study)
    assert table is not None
    by_label = {row.label: row for row in table.rows}
    act = by_label["edges=act plan=peers route.foreign_dropout=0.5"]
    none = by_label["edges=none plan=peers route.foreign_dropout=0.5"]
    assert [cell(table, row, "", "seeds").text for row in (act, none)] == ["2", "2"]
    assert cell(table, none, "loss L(d)", "difference").text == "reference"
    losses = {
        row.label: [job.mean_loss.value for job in row.jobs if job.mean_loss is not None]
        for row in (act, none)
    }
    mean = cell(table, act, "loss L(d)", "mean")
    assert mean.value == pytest.approx(sum(losses[act.label]) / 2)
    first, second = (a - b for a, b in zip(losses[act.label], losses[none.label], strict=True))
    difference = cell(table, act, "loss L(d)", "difference")
    assert difference.value == pytest.approx((first + second) / 2)
    half = 12.7062 * abs(first - second) / 2
    low = measures.unsigned((first + second) / 2 - half)
    assert difference.interval.startswith(f"{low} to ")


def test_mean_that_a_seed_lacks_is_a_bound_without_a_difference(read_study: Sweep) -> None:
    table = tables.over_seeds(read_study)
    assert table is not None
    [row] = [row for row in table.rows if row.label.startswith("edges=weight plan=peers")]
    means = [job.mean_compute_equivalent for job in row.jobs]
    assert None in means
    mean = cell(table, row, "compute-equivalent", "mean")
    assert mean.text.startswith("<0.") and mean.value is None
    assert cell(table, row, "compute-equivalent", "difference").text == "\N{EN DASH}"


def test_reference_without_a_measure_is_a_dash(tmp_path: Path, make_job: MakeJob) -> None:
    for seed in range(2):
        make_job(tmp_path, edges="dense", seed=seed, num_documents=2, resamples=0)
        make_job(tmp_path, edges="act", seed=seed, num_documents=2, resamples=0)
    table = tables.over_seeds(read_sweep(tmp_path))
    assert table is not None
    dense, act = table.rows
    assert cell(table, dense, "loss L(d)", "difference").text == "reference"
    assert cell(table, dense, "selectivity", "difference").text == "\N{EN DASH}"
    assert cell(table, act, "selectivity", "difference").text == "\N{EN DASH}"


def test_one_seed_alone_has_no_table_over_seeds(sweep: Path) -> None:
    assert tables.over_seeds(read_sweep(sweep)) is None


def references(read: Sweep) -> dict[str, str | None]:
    """Label of the reference of each group."""
    found = {}
    for group in read.replicates:
        reference = tables.reference_of(read, group)
        label = read.label(reference[0], seed=False) if reference else None
        found[read.label(group[0], seed=False)] = label
    return found


def test_reference_is_the_uncut_group_that_agrees_most(tmp_path: Path, make_job: MakeJob) -> None:
    for edges in ("none", "act"):
        for overlap in (0.0, 1.0):
            make_job(
                tmp_path, edges=edges, settings={"data.overlap": overlap},
                num_documents=2, resamples=0,
            )  # fmt: skip
    found = references(read_sweep(tmp_path))
    assert found["edges=act data.overlap=0.0"] == "edges=none data.overlap=0.0"
    assert found["edges=act data.overlap=1.0"] == "edges=none data.overlap=1.0"


def test_reference_without_an_uncut_group_is_the_dense_one_of_the_same_text(
    tmp_path: Path, make_job: MakeJob
) -> None:
    for overlap in (0.0, 1.0):
        for seed in range(2):
            for edges in ("dense", "act", "both") if overlap else ("act", "both"):
                make_job(
                    tmp_path, edges=edges, seed=seed, settings={"data.overlap": overlap},
                    num_documents=2, resamples=0,
                )  # fmt: skip
    read = read_sweep(tmp_path)
    found = references(read)
    assert found["edges=act data.overlap=1.0"].startswith("dense")
    assert found["edges=act data.overlap=0.0"] is None
    table = tables.over_seeds(read)
    assert table is not None
    for row in table.rows:
        difference = cell(table, row, "loss L(d)", "difference")
        is_measured = "1.0" in row.label and "edges" in row.label
        assert (difference.value is not None) == is_measured


def test_other_training_length_is_no_reference(tmp_path: Path, make_job: MakeJob) -> None:
    make_job(tmp_path, edges="none", num_documents=2, resamples=0)
    make_job(tmp_path, edges="act", settings={"train.steps": 77}, num_documents=2, resamples=0)
    found = references(read_sweep(tmp_path))
    assert found["edges=act train.steps=77"] is None


def test_robustness_is_of_attacked_jobs_beside_their_filtered_models(read_study: Sweep) -> None:
    table = tables.robustness(read_study)
    assert table is not None
    assert {row.jobs[0].kind for row in table.rows} == {"peers", "sgtm"}
    [row, *_] = [row for row in table.rows if row.jobs[0].kind == "sgtm"]
    job = row.jobs[0]
    assert job.metrics[registry.RELEARN_CENSORED("biology")] == 1
    assert cell(table, row, "relearning steps", "biology").text == "\N{GREATER-THAN OR EQUAL TO} 40"
    expected = f"{job.metrics[registry.RELEARN_FILTERED_LOSS('biology')]:.3f}"
    assert cell(table, row, "filtered: loss", "biology").text == expected


def test_mean_is_of_the_domains_and_not_of_the_nodes_above_them(
    tmp_path: Path, make_job: MakeJob
) -> None:
    domains = ["code", "biology/cells", "biology/virology"]
    job = make_job(tmp_path, domains=domains, plan="tree", num_documents=2, resamples=0)
    path = job / "summary.json"
    summary = json.loads(path.read_text())
    losses = {"code": 5.0, "biology/cells": 6.0, "biology/virology": 7.0, "biology": 100.0}
    summary["metrics"] |= {registry.RELEARN_LOSS(part): loss for part, loss in losses.items()}
    path.write_text(json.dumps(summary))
    (job / "document_losses.csv").unlink()
    [found] = read_sweep(tmp_path).jobs
    [measure] = [item for item in measures.ROBUST if item.name == "relearned loss"]
    mean = measure.mean(found)
    assert mean is not None and mean.value == 6.0


def test_jobs_without_attacks_have_no_table_of_robustness(sweep: Path) -> None:
    assert tables.robustness(read_sweep(sweep)) is None


def test_spurious_gap_is_there_for_every_method(tmp_path: Path, make_job: MakeJob) -> None:
    make_job(tmp_path, edges="act", spurious=1.0, num_documents=3, resamples=0)
    make_job(tmp_path, edges="dense", method="dense", spurious=1.0, num_documents=3, resamples=0)
    table = tables.robustness(read_sweep(tmp_path))
    assert table is not None and len(table.rows) == 2
    gaps = [cell(table, row, "spurious gap", "mean").value for row in table.rows]
    assert gaps == [pytest.approx(0.5), pytest.approx(0.5)]


def test_dense_runs_are_listed_by_their_share_of_the_tokens(read_study: Sweep) -> None:
    table = tables.dense_curve(read_study)
    assert table is not None
    shares = [cell(table, row, "", "tokens").text for row in table.rows]
    assert shares == ["1/8", "1/4", "1/2", "1"]
    losses = [cell(table, row, "loss L(d)", "code").value for row in table.rows]
    assert all(loss is not None for loss in losses)
    assert losses == sorted(losses, key=lambda loss: -(loss or 0))


def test_length_in_tokens_is_that_of_its_whole_steps(tmp_path: Path, make_job: MakeJob) -> None:
    make_job(tmp_path, edges="act", num_documents=2, resamples=0)
    steps = TrainConfig().steps
    assert steps is not None
    a_step = TrainConfig().batch_sequences * TrainConfig().sequence_length
    for name, length in (
        ("steps", {"train.steps": steps}),
        ("tokens", {"train.steps": None, "train.tokens": steps * a_step - 1}),
        ("half", {"train.steps": steps // 2}),
    ):
        make_job(
            tmp_path, edges="dense", settings=length, overrides=[name],
            num_documents=2, resamples=0,
        )  # fmt: skip
    table = tables.dense_curve(read_sweep(tmp_path))
    assert table is not None
    rows = [[cell(table, row, "", name).text for name in ("tokens", "seeds")] for row in table.rows]
    assert rows == [["1/2", "1"], ["1", "1"]], "the two whole ones are of one seed"


def test_without_shorter_dense_runs_there_is_no_curve(sweep: Path) -> None:
    assert tables.dense_curve(read_sweep(sweep)) is None
