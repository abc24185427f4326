import pytest
import torch

from gr_sweep.bench.mlp import DROPOUTS, SHARES, bench_mlp

SMALL = dict(width=8, hidden=32, rows=3, sequence_length=4, rounds=1)


def test_every_setting_is_timed_with_its_limit():
    rows = bench_mlp(**SMALL, device=torch.device("cpu"))
    assert len(rows) == 1 + len(SHARES) * (1 + 4 * len(DROPOUTS))
    limits = {(r["edges"], r["mlp_shared"], r["foreign_dropout"]): r["flop_limit"] for r in rows}
    # The domain of a row owns a third of the units outside the core. By hand, for a third of the
    # rows each:
    foreign = (1 - 0.5) * 2 / 3
    assert limits["dense", 1.0, 0.0] == limits["masked", 0.5, 0.0] == 1.0
    assert limits["none", 0.5, 0.0] == pytest.approx(1.0)
    # Of the 9 products 3 are for weights, 2 for the input of gate and up, 1 for the hidden units.
    assert limits["weight", 0.5, 0.0] == pytest.approx(1 - foreign * 3 / 9, abs=0.02)
    assert limits["act", 0.5, 0.0] == pytest.approx(1 - foreign * 2 / 9, abs=0.02)
    assert limits["both", 0.5, 0.0] == pytest.approx(1 - foreign * 6 / 9, abs=0.02)
    assert limits["both", 0.5, 1.0] == pytest.approx(1 - foreign, abs=0.02)
    assert rows[0]["ratio"] == 1.0 and all(row["seconds"] > 0 for row in rows)
