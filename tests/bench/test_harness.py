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
