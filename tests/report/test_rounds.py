"""Rounds of `procedure=alternate`: the trade-off, and the table."""

from pathlib import Path

import numpy as np
import pytest

from gr_sweep.config import Attribution, ProcedureKind
from gr_sweep.report import read_sweep, rounds
from tests.report.conftest import write_job, write_rounds


def test_trade_off_has_a_line_for_each_setting(tmp_path: Path) -> None:
    for seed in range(2):
        shift = 0.02 * seed
        write_job(tmp_path, edges="dense", method="dense", seed=seed, shift=shift)
        for attribution, number in (("act_grad", 1), ("act_grad", 3), ("random", 3)):
            settings = {
                "procedure.name": ProcedureKind.alternate,
                "procedure.attribution": Attribution(attribution),
                "procedure.rounds": number,
            }
            job = write_job(tmp_path, edges="act", seed=seed, shift=0.1 + shift, settings=settings)
            write_rounds(job, rounds=number)
    sweep = read_sweep(tmp_path)
    figure, stages = rounds.trade_off(sweep), rounds.stages(sweep)
    assert figure is not None
    lines = {trace["name"]: trace for trace in figure["data"]}
    once, thrice, control = (lines[of_setting[0].setting] for of_setting in stages)
    assert once["x"] == [1, 3] and once["y"][0] == 0, "it saw all its tokens: joined to dense"
    assert thrice["x"] == [3, 6, 12]
    assert thrice["marker"]["symbol"] == ["circle-open", "circle-open", "circle"]
    assert [line["line"]["dash"] for line in (once, thrice, control)] == ["solid", "solid", "dash"]
    dense = {job.seed: job.metrics["mean_loss"] for job in sweep.jobs[:2]}
    taxes = [
        np.mean([*job.rounds[2]["served_loss"].values()]) - dense[job.seed]
        for job, _ in stages[1][0].seeds
    ]
    assert thrice["y"][2] == pytest.approx(np.mean(taxes))
    assert thrice["error_y"]["array"][2] > 0, "two seeds have an interval"
    table = rounds.table(sweep)
    assert table is not None and [row.cells[1].value for row in table.rows] == [3, *[3, 6, 12] * 2]
    values = {
        at.name: of.value for at, of in zip(table.columns[1:], table.rows[3].cells, strict=True)
    }
    assert values["served tax"] == pytest.approx(np.mean(taxes))
    assert values["expert size"] == pytest.approx(0.4 + 0.4 / 3)
    assert (values["selectivity"], values["modularity"]) == pytest.approx((0.4 / 3, 0.79))
