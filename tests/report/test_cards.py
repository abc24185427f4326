"""Matrices of the page: what they hold and how strongly it is painted."""

from collections.abc import Callable
from pathlib import Path

from gr_sweep.report import cards, read_sweep
from gr_sweep.report.collect import Estimate, Sweep

MakeJob = Callable[..., Path]


def test_strength_goes_with_the_square_root() -> None:
    scale = cards.Scale([Estimate(value=-4.0), None, Estimate(value=1.0)])
    assert [scale.strength(value) for value in (-4.0, 1.0, 0.0)] == [100, 50, 0]
    assert [tick["text"] for tick in scale.ticks()] == [
        "\N{MINUS SIGN}4.00", "\N{MINUS SIGN}1.00", "0.00", "+1.00", "+4.00",
    ]  # fmt: skip


def test_small_values_do_not_get_the_full_colour() -> None:
    scale = cards.Scale([Estimate(value=0.05)], least=0.2)
    assert scale.strength(0.05) == 50
    assert cards.Scale([], least=0.2).strength(0.0) == 0


def test_transfer_is_one_matrix_for_jobs_of_the_same_baselines(read_study: Sweep) -> None:
    [card] = cards.transfer(read_study)
    assert card["seeds"] == 2
    texts = {row["part"]: [cell["text"] for cell in row["cells"]] for row in card["matrix"]}
    assert texts == {
        "code": ["\N{EN DASH}", "+0.05", "+0.05"],
        "biology": ["+0.05", "\N{EN DASH}", "+0.05"],
        "creative": ["+0.05", "+0.05", "\N{EN DASH}"],
    }


def test_transfer_of_other_text_is_another_matrix(tmp_path: Path, make_job: MakeJob) -> None:
    for overlap in (0.0, 1.0):
        for without in ([], ["code"]):
            make_job(
                tmp_path, edges="dense", method="filtered" if without else "dense",
                without=without, settings={"data.overlap": overlap}, shift=0.0,
                num_documents=3, resamples=0,
            )  # fmt: skip
    found = cards.transfer(read_sweep(tmp_path))
    assert [card["label"] for card in found] == ["data.overlap=0.0", "data.overlap=1.0"]
    assert [[row["part"] for row in card["matrix"]] for card in found] == [["code"], ["code"]]


def test_without_filtered_runs_there_is_no_transfer(sweep: Path) -> None:
    assert cards.transfer(read_sweep(sweep)) == []
