import json

import pytest
import torch

from gr_sweep.bench import scaling
from gr_sweep.errors import ConfigError

SMALL = ["--rows", "3", "--sequence-length", "16", "--vocab-size", "300", "--rounds", "1"]


def measured(capsys, *argv: str) -> dict:
    assert scaling.main([*SMALL, *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_size_and_setting_is_measured(capsys):
    words = ("--smallest", "tiny", "--largest", "nano", "--edges", "both", "act")
    made = measured(capsys, *words)
    assert made["benchmark"] == "scaling" and made["settings"]["stopped"] is None
    rows = made["rows"]
    expected = [(m, e) for m in ("tiny", "nano") for e in ("dense", "both", "act")]
    assert [(row["model"], row["edges"]) for row in rows] == expected
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(3 * 16 / row["seconds"])
        assert row["mfu"] is None, "no GPU"
        # The estimate takes what was measured from fake tensors.
        assert row["estimated_gib"] == pytest.approx(row["peak_gib"], rel=0.01)
        assert 0 < row["flop_limit"] <= 1
    assert rows[0]["ratio"] == rows[3]["ratio"] == 1.0


def test_it_stops_at_the_size_that_does_not_fit(capsys, monkeypatch):
    monkeypatch.setattr(scaling, "_free_bytes", lambda device: 20e6)
    made = measured(capsys, "--smallest", "tiny", "--largest", "7b", "--edges")
    assert [row["model"] for row in made["rows"]] == ["tiny"]
    assert made["settings"]["stopped"].startswith("nano does not fit: ")


def test_a_device_that_has_less_than_was_thought_ends_it_too(capsys, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scaling, "bench_size", full)
    assert scaling.main([*SMALL, "--smallest", "tiny"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "tiny does not fit: the device has no memory left"
    )


@pytest.mark.parametrize("words", [["--compile"], ["--activation-checkpointing"]])
def test_steps_can_be_compiled_or_recomputed(words, capsys, monkeypatch):
    compiled = []

    def stand_in(module, **_):
        compiled.append(type(module).__name__)
        return module

    monkeypatch.setattr(torch, "compile", stand_in)
    made = measured(capsys, "--smallest", "tiny", "--largest", "tiny", *words)
    assert len(made["rows"]) == 2
    # Once a setting, however many rounds there are.
    assert len(compiled) == (2 if words == ["--compile"] else 0)


def test_sizes_in_the_wrong_order_are_refused():
    with pytest.raises(ConfigError, match="--smallest mini is larger than --largest nano"):
        scaling.main(["--smallest", "mini", "--largest", "nano"])
