import json

import torch

from gr_sweep.bench import harness


def test_cases_take_turns_and_the_first_round_is_not_counted():
    visited, seconds = [], iter([9.0, 9.0, 1.0, 2.0, 3.0, 4.0])

    def run(name):
        visited.append(name)
        return next(seconds)

    medians = harness.median_seconds({name: lambda name=name: run(name) for name in "ab"}, 2)
    assert visited == ["a", "b"] * 3
    assert medians == {"a": 2.0, "b": 3.0}


def test_compiled_cases_run_one_after_another():
    visited = []
    runs = {name: lambda name=name: visited.append(name) or 1.0 for name in "ab"}
    harness.median_seconds(runs, 2, alternate=False)
    assert visited == ["a"] * 3 + ["b"] * 3


def test_json_says_what_was_run_and_where():
    settings = {"rows": 3, "json": True}
    made = harness.as_json(
        "step", ["--model", "a b"], torch.device("cpu"), settings, [{"seconds": 0.5}]
    )
    assert json.loads(made) == {
        "benchmark": "step",
        "command": "gr-sweep bench step --model 'a b'",
        "device": "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "settings": {"rows": 3},
        "rows": [{"seconds": 0.5}],
    }


def test_a_missing_value_is_a_dash():
    columns = {"mfu": "6.2f", "model": "5s"}
    assert harness.line({"mfu": None, "model": "tiny"}, columns).split() == ["-", "tiny"]
