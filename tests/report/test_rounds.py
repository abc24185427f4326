"""Rounds of `procedure=alternate`: the trade-off, and the table."""

import numpy as np
import pytest

from gr_sweep.metrics.losses import View
from gr_sweep.report import rounds
from gr_sweep.report.sweep import Sweep


def test_trade_off_has_a_line_for_each_group(read_alternating: Sweep) -> None:
    figure = rounds.trade_off(read_alternating)
    assert figure is not None
    lines = {trace["name"]: trace for trace in figure["data"]}
    once, thrice, control = (lines[stages[0].setting] for stages in rounds.stages(read_alternating))
    assert once["x"] == [1, 3] and once["y"][0] == 0, "it saw all its tokens: joined to dense"
    assert thrice["x"] == [3, 6, 12]
    assert thrice["marker"]["symbol"] == ["circle-open", "circle-open", "circle"]
    assert [line["line"]["dash"] for line in (once, thrice, control)] == ["solid", "solid", "dash"]
    dense = {job.seed: job.metrics["mean_loss"] for job in read_alternating.jobs[:2]}
    taxes = [
        np.mean([*job.rounds[2].losses[View.served].values()]) - dense[job.seed]
        for job in rounds.stages(read_alternating)[1][0].jobs
    ]
    assert thrice["y"][2] == pytest.approx(np.mean(taxes))
    assert thrice["error_y"]["array"][2] > 0, "two seeds have an interval"
