"""The answer at the top of the report: which setting, on which trade-off, and how sure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

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
    return " ".join(answer.sentences(answer.rankings(sweep)))


def noted(sweep: Sweep) -> str:
    return " ".join(answer.notes(sweep, answer.rankings(sweep)))


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
    assert "+0.29 nats served tax [0.29, 0.29] (interval excludes 0)" in text.replace(
        "0.290", "0.29"
    )
    assert (
        "frontier: `act`." in text and "Beaten on both axes, beyond the intervals: `both`." in text
    )
    assert "inconclusive" not in text
    assert ranks(sweep) == {"none": 1, "act": 1, "weight": 1, "both": 2}


def test_difference_within_its_interval_is_inconclusive(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {edges: CLEAR[edges] for edges in ("none", "act")})
    text = said(sweep)
    assert "`act`" in text and "`none`" in text
    assert text.startswith("No sure difference") and text.count("(inconclusive)") == 2
    assert set(ranks(sweep).values()) == {1}, "by means act is beaten in neither"
    pair = sweep.replicates
    for measure in (measures.SERVED_TAX, measures.SELECTIVITY):
        found = measure.difference(pair[1], pair[0])
        assert found is not None and found.interval is not None
        assert found.interval[0] < 0 < found.interval[1]


def test_best_in_both_is_compared_with_the_next_on_each_axis(tmp_path: Path) -> None:
    values = dict(CLEAR) | {"weight": [(0.0, 0.9), (0.01, 0.91), (0.02, 0.89)]}
    text = said(sweep_of(tmp_path, values))
    assert text.startswith("Take `weight`, the best on both axes: +0.")
    assert "(interval excludes 0) against `both`" in text and "(inconclusive) against `" not in text
    # The interval of the tax that act saves has 0.
    assert ranks(read_sweep(tmp_path)) == {"weight": 1, "none": 2, "act": 1, "both": 2}


def test_more_than_gone_is_no_reason_to_take_a_setting(tmp_path: Path) -> None:
    for edges, removal in (("none", 1.1), ("weight", 1.2)):
        folder = tmp_path / "sweep"
        sweep_of(folder, {edges: CLEAR[edges][:1]})
        [job] = [path for path in folder.iterdir() if f"={edges}" in path.name]
        edit(job, lambda found, of=removal: found["metrics"].update({"mean_served_removal": of}))
    text = said(read_sweep(folder))
    assert text.startswith("By value, take `none`, the best on both axes") and "removal" in text


def test_one_seed_is_compared_by_value_and_says_so(tmp_path: Path) -> None:
    values = {edges: of_seeds[:1] for edges, of_seeds in CLEAR.items()}
    sweep = sweep_of(tmp_path, values)
    text = said(sweep)
    assert text.startswith("By value, for separation take `weight`, for utility `none`")
    assert "frontier: `act`. Beaten on both axes: `both`." in text
    assert "one seed" in text and "[" not in text and "add `seed=0,1,2`" in text
    assert ranks(sweep) == {"none": 1, "act": 1, "weight": 1, "both": 2}


def test_setting_with_fewer_seeds_has_no_rank(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, dict(CLEAR) | {"both": CLEAR["both"][:1]})
    assert ranks(sweep)["both"] is None
    assert "`both` (without seed 1 or 2)" in noted(sweep) and "`both`" not in said(sweep)


def test_seeds_of_dense_runs_do_not_take_the_rank_of_others(tmp_path: Path) -> None:
    for seed in range(3):
        write_job(tmp_path, edges="dense", method="dense", seed=seed)
    for edges in ("act", "weight"):
        write_job(tmp_path, edges=edges)
    assert ranks(read_sweep(tmp_path)) == {"act": 1, "weight": 1, "dense": None}


def test_job_without_its_table_is_not_said_to_lack_baselines(tmp_path: Path) -> None:
    write_job(tmp_path, edges="dense", method="dense")
    job = write_job(tmp_path, edges="act")
    (job / "document_losses.csv").unlink()
    assert "no job has: its table of losses cannot be read." in noted(read_sweep(tmp_path))


def test_single_setting_is_not_compared(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, {"act": CLEAR["act"]})
    assert said(sweep).startswith("`act` has 0.03 nats served tax [")
    assert "no other setting" in said(sweep)


def test_missing_baselines_are_the_cause_that_is_named(tmp_path: Path) -> None:
    for edges in ("act", "both"):
        write_job(tmp_path, edges=edges)
    sweep = read_sweep(tmp_path)
    assert "Served loss stands in for served compute, which no job has: no dense run" in noted(
        sweep
    )
    assert "Selectivity stands in for served removal, which no job has: no filtered run" in noted(
        sweep
    )
    assert "nats served loss" in said(sweep) and "nats selectivity" in said(sweep)
    write_job(tmp_path, edges="dense", method="dense")
    assert "no dense run on fewer tokens" in noted(read_sweep(tmp_path))
    assert "`dense` (no domain to remove)" in noted(read_sweep(tmp_path))
    for part in ("code", "biology"):
        write_job(tmp_path, edges="dense", method="filtered", without=[part])
    assert "no filtered run without creative." in noted(read_sweep(tmp_path))


def test_sweep_without_routing_names_nobody(tmp_path: Path) -> None:
    write_job(tmp_path, edges="dense", method="dense")
    sweep = read_sweep(tmp_path)
    assert said(sweep).startswith("No setting can be ranked by")
    assert noted(sweep) == "Not ranked: `dense` (no domain to remove)."


def test_controls_bounds_and_other_removals_are_kept_apart(read_study: Sweep) -> None:
    first, second = answer.rankings(read_study)
    why = {place.name: place.why for place in first.places}
    assert why["random"] == "a control" and why["dense"] == "no domain to remove"
    assert why["both"] == "only a bound of served compute"
    assert second.name == "removing biology" and [p.name for p in second.places] == ["sgtm"]
    texts = answer.sentences([first, second])
    assert texts[0].startswith("Removing code, biology or creative: ")
    assert texts[1].startswith("Removing biology: `sgtm` has ")


def test_other_texts_are_not_compared(tmp_path: Path) -> None:
    for overlap, text in ((0.0, "a"), (1.0, "b")):
        for edges in ("act", "both"):
            job = write_job(tmp_path, edges=edges, settings={"data.overlap": overlap})
            edit(job, lambda summary, text=text: summary["fingerprints"].update(text=text))
    found = answer.rankings(read_sweep(tmp_path))
    assert [ranking.name for ranking in found] == ["data.overlap=0.0", "data.overlap=1.0"]
    assert [len(ranking.ranked) for ranking in found] == [2, 2]


def test_more_than_gone_is_not_better_than_gone(tmp_path: Path) -> None:
    removal = {"none": 1.0, "act": 1.3, "weight": 1.2, "both": 1.2}
    values = {name: [(tax, removal[name]) for tax, _ in of] for name, of in CLEAR.items()}
    sweep = sweep_of(tmp_path, values, separability="mean_served_removal")
    assert set(ranks(sweep).values()) == {1}


def test_answer_agrees_with_the_ranks_where_removal_is_above_1(tmp_path: Path) -> None:
    values = {"none": [(0.0, 1.0)], "act": [(0.5, 1.2)]}
    sweep = sweep_of(tmp_path, values, separability="mean_served_removal")
    assert ranks(sweep) == {"none": 1, "act": 2}
    text = said(sweep)
    assert text.startswith(
        "By value, take `none`, the best on both axes: no difference in served rem"
    )
    table = tables.settings(sweep, answer.rankings(sweep))
    delta = "\N{GREEK CAPITAL LETTER DELTA} served removal"
    at = [column.name for column in table.columns].index(delta)
    assert table.rows[1].cells[at - 1].value == 0, "the difference in the table is the same"
    alone = sweep_of(tmp_path / "alone", {"act": values["act"]}, separability="mean_served_removal")
    assert "1.20 served removal" in said(alone), "a value that is not compared is not capped"


def test_only_settings_with_the_same_seeds_are_compared(tmp_path: Path) -> None:
    values: Values = {
        "none": [(0.10, 0.50), (0.11, 0.51)],
        "act": [(0.90, 0.90), (0.05, 0.40), (0.06, 0.41)],
        "both": [(0.20, 0.70), (0.10, 0.35), (0.09, 0.38)],
    }
    sweep = sweep_of(tmp_path, values, seeds={"none": (1, 2)})
    assert ranks(sweep) == {"act": 1, "both": 1, "none": None}
    assert "`none` (without seed 0)" in noted(sweep)
    assert "`none`" not in said(sweep)


def test_settings_without_a_common_seed_are_not_compared(tmp_path: Path) -> None:
    values: Values = {of: [(0.1, 0.5)] for of in ("none", "act", "both")}
    sweep = sweep_of(tmp_path, values, seeds={"none": (1,)})
    assert ranks(sweep) == {"act": 1, "both": 1, "none": None}
    assert "`none` (without seed 0)" in noted(sweep)


def test_equal_settings_are_said_not_to_differ(tmp_path: Path) -> None:
    tie: Values = {"none": [(0.1, 0.5)] * 2, "act": [(0.1, 0.5001)] * 2}
    text = said(sweep_of(tmp_path / "tie", tie))
    assert "do not differ in served tax or selectivity" in text
    assert "0.00" not in text and "take" not in text
    beaten: Values = tie | {"both": [(0.3, 0.2), (0.31, 0.22)]}
    text = said(sweep_of(tmp_path / "beaten", beaten))
    assert "ake `none` or `act`, the best on both axes: +" in text or "ake `act` or `none`" in text
    assert "Also on the frontier" not in text, "they are named"
    cost: Values = {"none": [(0.1, 0.5)], "act": [(0.1, 0.9)]}
    text = said(sweep_of(tmp_path / "cost", cost))
    assert "take `act`, the best on both axes: +0.40" in text
    assert "no difference in served tax against `none`" in text
    gain: Values = {"none": [(0.1, 0.9)], "act": [(0.2, 0.9)]}
    text = said(sweep_of(tmp_path / "gain", gain))
    assert "take `none`, the best on both axes: no difference in selectivity against `act`" in text


def test_uncertain_difference_of_0_keeps_its_interval(tmp_path: Path) -> None:
    values: Values = {"none": [(0.1, 0.5), (0.2, 0.5)], "act": [(0.2, 0.9), (0.1, 0.91)]}
    text = said(sweep_of(tmp_path, values))
    assert "no difference in served tax [" in text and "(inconclusive) against `none`" in text


def test_settings_with_different_values_have_different_names(tmp_path: Path) -> None:
    for weight, unlabelled in ((1.0, 0.5), (0.5, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 2.0)):
        settings = {
            "data.weights": {"code": weight},
            "partition.unlabelled": {"code": unlabelled},
        }
        write_job(tmp_path, edges="act", settings=settings)
    names = {place.name for of in answer.rankings(read_sweep(tmp_path)) for place in of.places}
    dot = "\N{MIDDLE DOT}"
    assert {f"act {dot} data.weights.code=0.5", f"act {dot} partition.unlabelled.code=0.5"} < names
    assert len(names) == 5


def test_empty_value_is_named_where_another_is_usual(tmp_path: Path) -> None:
    for limit, dropout in ((2000, 0.5), (2000, 1.0), (None, 0.5)):
        settings = {"data.limit_tokens": limit}
        write_job(tmp_path, edges="act", foreign_dropout=dropout, settings=settings)
    names = [place.name for of in answer.rankings(read_sweep(tmp_path)) for place in of.places]
    assert len(set(names)) == len(names)


def test_jobs_on_other_text_are_no_seeds_of_a_setting(tmp_path: Path) -> None:
    for seed, text in enumerate("ab"):
        for edges in ("act", "both"):
            job = write_job(tmp_path, edges=edges, seed=seed)
            edit(job, lambda summary, text=text: summary["fingerprints"].update(text=text))
    found = answer.rankings(read_sweep(tmp_path))
    assert [of.name for of in found] == ["text a", "text b"]
    places = [place for of in found for place in of.places]
    assert [len(place.jobs) for place in places] == [1] * 4
    assert len({place.name for place in places}) == 4


@pytest.mark.parametrize("missing", ["mean_served_tax", "mean_selectivity"])
def test_setting_that_lacks_an_axis_on_one_seed_has_no_rank(tmp_path: Path, missing: str) -> None:
    sweep_of(tmp_path, CLEAR)
    [job] = [of for of in tmp_path.iterdir() if "edges=act" in of.name and "seed=1" in of.name]
    edit(job, lambda summary: summary["metrics"].pop(missing))
    sweep = read_sweep(tmp_path)
    if missing == "mean_served_tax":
        assert ranks(sweep)["act"] is None and "`act` (without served tax" in noted(sweep)
    assert ranks(sweep)["both"] == 2
