"""document_losses.csv and relearn.csv: written and read back, and what a broken line says."""

from pathlib import Path

import pytest

from gr_sweep.errors import DataError
from gr_sweep.metrics.losses import (
    DocumentLoss,
    RelearnLoss,
    Text,
    View,
    read_losses,
    write_losses,
)

HEADER = "view,part,domain,text,document,loss_nats,tokens,bytes\n"


def test_rows_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        DocumentLoss(View.removed, "code", "code", Text.marked, "c0", 20.0, 10, 40),
        DocumentLoss(View.full, "", "biology/cells, old", Text.plain, "q", 0.1 + 0.2, 3, 12),
    ]
    path = tmp_path / "document_losses.csv"
    write_losses(path, rows)
    assert path.read_text().startswith(HEADER)
    assert read_losses(path) == rows
    attacks = [
        RelearnLoss(View.removed, "biology", 3e-4, 10, "biology", "b0", 0.1 + 0.2, 3, 12),
        RelearnLoss(View.full, "a/b", 1 / 3, 0, "a/b", "b0", 1e-17, 3, 12),
    ]
    path = tmp_path / "relearn.csv"
    write_losses(path, attacks, RelearnLoss)
    header = "view,part,lr,trained_tokens,domain,document,loss_nats,tokens,bytes\n"
    assert path.read_text().startswith(header)
    assert read_losses(path, RelearnLoss) == attacks


@pytest.mark.parametrize(
    "text",
    [
        "view,part\n",
        f"{HEADER}full,,code,plain,c,1.0,x,3\n",
        f"{HEADER}full,,code\n",
        None,
    ],
)
def test_a_broken_or_missing_table_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "document_losses.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=r"document_losses\.csv"):
        read_losses(path)
