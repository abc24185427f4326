"""The answer at the top of the report: which setting, on which trade-off, and how sure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gr_sweep.metrics import registry
from gr_sweep.report import answer, measures, read_sweep, tables
from gr_sweep.report.sweep import Sweep
from tests.report.conftest import edit, write_job

Values = Mapping[str, Sequence[tuple[float, float]]]
"""Served tax and selectivity of each seed, by edges."""


def sweep_of(
    folder: Path,
    values: Values,
    *,
    seeds: Mapping[str, Sequence[int]] | None = None,
    separability: str = "mean_selectivity",
) -> Sweep:
    """Jobs without tables, so that their metrics are those given. Seeds are 0, 1, ... without
    `seeds`, which has those of edges."""
    for edges, of_seeds in values.items():
        numbers = (seeds or {}).get(edges, range(len(of_seeds)))
        for seed, (tax, other) in zip(numbers, of_seeds, strict=True):
            job = write_job(folder, edges=edges, seed=seed)
            (job / "document_losses.csv").unlink()
            found = {"mean_served_tax": tax, separability: other}
            edit(job, lambda summary, found=found: summary["metrics"].update(found))
    return read_sweep(folder)


def said(sweep: Sweep) -> str:
    return " ".join(answer.sentences(sweep))


def noted(sweep: Sweep) -> str:
    return " ".join(answer.notes(sweep))


def ranks(sweep: Sweep) -> dict[str, int | None]:
    [ranking] = answer.rankings(sweep)
    return {place.name: place.rank for place in ranking.places}


CLEAR: Values = {
    "none": [(0.01, 0.20), (0.02, 0.21), (0.03, 0.22)],
    "act": [(0.02, 0.21), (0.01, 0.19), (0.05, 0.24)],
    "weight": [(0.30, 0.60), (0.31, 0.62), (0.32, 0.61)],
    "both": [(0.60, 0.40), (0.61, 0.42), (0.62, 0.41)],
}


def test_trade_off_beyond_its_intervals(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, CLEAR)
    text = said(sweep)
    assert text.startswith("For separation take `weight`, for utility `none`: the first has +0.40")
    assert "nats served tax [0.290, 0.290] (interval excludes 0)" in text
    assert "frontier: `act`. Beaten: `both`." in text and "inconclusive" not in text
    assert ranks(sweep) == {"none": 1, "act": 1, "weight": 1, "both": 2}


@pytest.mark.parametrize(
    ("other", "is_beaten"),
    [
        ([(0.30, 0.20), (0.31, 0.21), (0.32, 0.22)], True),  # surely worse tax, no more selective
        ([(0.30, 0.20), (0.31, 0.21), (0.32, 0.23)], False),  # a little more selective by its mean
        ([(0.01, 0.19), (0.04, 0.21), (0.02, 0.20)], False),  # worse on both, but on none surely
    ],
)
def test_a_setting_is_beaten_surely_on_one_axis_and_by_the_mean_on_the_other(
    tmp_path: Path, other: list[tuple[float, float]], is_beaten: bool
) -> None:
    sweep = sweep_of(tmp_path, {"none": CLEAR["none"], "act": other})
    assert ranks(sweep) == {"none": 1, "act": 2 if is_beaten else 1}


def test_difference_within_its_interval_is_inconclusive(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {edges: CLEAR[edges] for edges in ("none", "act")})
    text = said(sweep)
    assert text.startswith("No sure difference") and text.count("(inconclusive)") == 2
    pair = sweep.replicates
    for metric in (registry.SERVED_TAX, registry.SELECTIVITY):
        found = measures.BY_METRIC[metric].difference(pair[1], pair[0])
        assert found is not None and found.interval is not None
        assert found.interval[0] < 0 < found.interval[1]


def test_best_in_both_is_compared_with_the_next_on_each_axis(tmp_path: Path) -> None:
    values = dict(CLEAR) | {"weight": [(0.0, 0.9), (0.01, 0.91), (0.02, 0.89)]}
    sweep = sweep_of(tmp_path, values)
    text = said(sweep)
    assert text.startswith("Take `weight`, the best on both axes: +0.")
    assert "(interval excludes 0) against `both`" in text and "against `none`" in text
    assert ranks(sweep) == {"weight": 1, "none": 2, "act": 2, "both": 2}


def test_one_seed_is_compared_by_value_and_says_so(tmp_path: Path) -> None:
    values = {edges: of_seeds[:1] for edges, of_seeds in CLEAR.items()}
    sweep = sweep_of(tmp_path, values)
    text = said(sweep)
    assert text.startswith("By value, for separation take `weight`, for utility `none`")
    assert "frontier: `act`. Beaten: `both`." in text
    assert "one seed" in text and "[" not in text and "add `seed=0,1,2`" in text
    assert ranks(sweep) == {"none": 1, "act": 1, "weight": 1, "both": 2}


def test_more_than_gone_is_not_better_than_gone(tmp_path: Path) -> None:
    values: Values = {"none": [(0.0, 1.0)], "act": [(0.5, 1.2)]}
    sweep = sweep_of(tmp_path, values, separability="mean_served_removal")
    assert ranks(sweep) == {"none": 1, "act": 2}
    assert said(sweep).startswith("By value, take `none`, the best on both axes: 0.00 served rem")
    table = tables.settings(sweep)
    delta = "\N{GREEK CAPITAL LETTER DELTA} served removal"
    at = [column.name for column in table.columns].index(delta)
    assert table.rows[1].cells[at - 1].value == 0, "the difference in the table is the same"
    alone = sweep_of(tmp_path / "alone", {"act": values["act"]}, separability="mean_served_removal")
    assert "1.20 served removal" in said(alone) and "no other setting" in said(alone)


@pytest.mark.parametrize(
    "seeds",
    [
        # The most seeds count, and of those sets the one that most settings have.
        {"none": (1, 2), "act": (0, 1, 2), "both": (0, 1, 2)},
        {"none": (1,), "act": (0,), "both": (0,)},
    ],
)
def test_only_settings_with_the_same_seeds_are_compared(
    tmp_path: Path, seeds: dict[str, Sequence[int]]
) -> None:
    for seed in range(4):  # of jobs without a rank
        write_job(tmp_path, edges="dense", method="dense", seed=seed)
    values = {edges: [(0.1, 0.5)] * len(numbers) for edges, numbers in seeds.items()}
    sweep = sweep_of(tmp_path, values, seeds=seeds)
    assert ranks(sweep) == {"act": 1, "both": 1, "none": None, "dense": None}
    assert "`none` (without seed 0)" in noted(sweep) and "`none`" not in said(sweep)


@pytest.mark.parametrize("is_table_there", [True, False])
def test_missing_baselines_are_the_cause_that_is_named(
    tmp_path: Path, is_table_there: bool
) -> None:
    for edges in ("act", "both"):
        job = write_job(tmp_path, edges=edges)
    text = noted(read_sweep(tmp_path))
    assert "Served loss stands in for served compute, which 2 of 2 jobs lack: no dense run" in text
    assert (
        "Selectivity stands in for served removal, which 2 of 2 jobs lack: no filtered run" in text
    )
    write_job(tmp_path, edges="dense", method="dense")
    assert "no dense run on fewer tokens" in noted(read_sweep(tmp_path))
    assert "`dense` (no domain to remove)" in noted(read_sweep(tmp_path))
    for part in ("code", "biology"):
        write_job(tmp_path, edges="dense", method="filtered", without=[part])
    assert "no filtered run without creative." in noted(read_sweep(tmp_path))
    if not is_table_there:
        for job in tmp_path.iterdir():
            (job / "document_losses.csv").unlink()
        assert "2 of 2 jobs lack: its table of losses cannot be read." in noted(
            read_sweep(tmp_path)
        )


def test_sweep_without_routing_names_nobody(tmp_path: Path) -> None:
    write_job(tmp_path, edges="dense", method="dense")
    sweep = read_sweep(tmp_path)
    assert said(sweep).startswith("No setting can be ranked by")
    assert noted(sweep).endswith("Not ranked: `dense` (no domain to remove).")


def test_controls_bounds_and_other_removals_are_kept_apart(read_study: Sweep) -> None:
    first, second = answer.rankings(read_study)
    why = {place.name: place.why for place in first.places}
    assert why["random · act"] == "a control" and why["dense"] == "no domain to remove"
    assert why["both"] == "only a bound of served compute"
    assert second.name == "removing biology" and [p.jobs[0].kind for p in second.places] == ["sgtm"]
    texts = answer.sentences(read_study)
    assert texts[0].startswith("Removing code, biology or creative: ")
    assert texts[1].startswith("Removing biology: `sgtm · weight")
    assert "remove other domains" in noted(read_study)
    table = tables.settings(read_study)
    assert [row.group for row in table.rows] == [first.name] * len(why) + [second.name]


@pytest.mark.parametrize("is_setting", [True, False])
def test_other_texts_are_not_compared(tmp_path: Path, is_setting: bool) -> None:
    for seed, text in enumerate("ab"):
        for edges in ("act", "both"):
            settings = {"data.overlap": float(seed)} if is_setting else {}
            job = write_job(tmp_path, edges=edges, seed=seed, settings=settings)
            edit(job, lambda summary, text=text: summary["fingerprints"].update(text=text))
    found = answer.rankings(read_sweep(tmp_path))
    names = ["data.overlap=0.0", "data.overlap=1.0"] if is_setting else ["text a", "text b"]
    assert [ranking.name for ranking in found] == names
    places = [place for ranking in found for place in ranking.ranked]
    assert [len(place.jobs) for place in places] == [1] * 4
    assert len({place.name for place in places}) == 4


def test_settings_have_short_names_and_never_the_same(tmp_path: Path) -> None:
    for value in (0.5, 1.0):
        settings = {"data.overlap": value}
        write_job(tmp_path, edges="act", foreign_dropout=value, settings=settings)
    for title in ("method=routed edges=both seed=0", "seed=0"):
        settings = {"train.lr": 0.1 / len(title)}
        job = write_job(tmp_path, edges="both", settings=settings)
        edit(job, lambda summary, title=title: summary.update(title=title))
    names = {place.name for of in answer.rankings(read_sweep(tmp_path)) for place in of.places}
    assert {"act · overlap=0.5", "act · overlap=1.0 · foreign_dropout=1.0"} < names
    assert len(names) == 4 and sum(name.startswith("both (edges=both") for name in names) == 2


def test_setting_that_lacks_an_axis_on_one_seed_has_no_rank(tmp_path: Path) -> None:
    sweep_of(tmp_path, CLEAR)
    [job] = [of for of in tmp_path.iterdir() if "edges=act" in of.name and "seed=1" in of.name]
    edit(job, lambda summary: summary["metrics"].pop("mean_served_tax"))
    sweep = read_sweep(tmp_path)
    assert ranks(sweep) == {"none": 1, "act": None, "weight": 1, "both": 2}
    assert "`act` (without served tax" in noted(sweep)


def test_small_differences_of_one_seed_are_not_written_as_zero(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"weight": [(0.1, 0.604)], "none": [(0.103, 0.6)]})
    assert "+0.004" in said(sweep) and "\N{MINUS SIGN}0.003" in said(sweep)
    cells = [cell.text for row in tables.settings(sweep).rows for cell in row.cells]
    assert "+0.003" in cells and "\N{MINUS SIGN}0.004" in cells
