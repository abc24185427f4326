"""What all benchmarks share: timing in alternating rounds, and one form of output."""

import json
import shlex
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from gr_sweep.arguments import Parser, count

Case = TypeVar("Case", bound=Hashable)


def median_seconds(
    runs: Mapping[Case, Callable[[], float]], rounds: int, *, alternate: bool = True
) -> dict[Case, float]:
    """Median time of each case over `rounds` rounds, after a first round that warms up.

    In every round the cases take turns, so that a machine that slows down slows all of them and
    ratios stay comparable.

    Args:
        runs: for each case, a function that runs it once and returns the seconds it took.
        alternate: False runs all rounds of a case before the next one, for compiled code that
            would otherwise be compiled again in every round.
    """
    turns = range(rounds + 1)
    if alternate:
        visits = [(turn, case) for turn in turns for case in runs]
    else:
        visits = [(turn, case) for case in runs for turn in turns]
    seconds: dict[Case, list[float]] = {case: [] for case in runs}
    for turn, case in visits:
        taken = runs[case]()
        if turn > 0:
            seconds[case].append(taken)
    return {case: statistics.median(times) for case, times in seconds.items()}


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes, until the device has finished it."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def this_device() -> torch.device:
    """The GPU where there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The name that torch gives a GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def bench_parser(
    name: str, description: str | None, *, rows: int, sequence_length: int, rounds: int
) -> Parser:
    """A parser with the options of every benchmark; the numbers are their defaults."""
    parser = Parser(prog=f"gr-sweep bench {name}", description=description)
    for option, default, meaning in (
        ("--rows", rows, "sequences"),
        ("--sequence-length", sequence_length, "tokens of a sequence"),
        ("--rounds", rounds, "timed rounds"),
    ):
        parser.add_argument(option, type=count, default=default, help=f"{meaning} ({default})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def as_json(
    name: str,
    argv: Sequence[str],
    device: torch.device,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> str:
    """The result of a benchmark with what is needed to repeat and to compare it.

    Args:
        argv: the words after the benchmark's name.
        settings: what all rows share.
        rows: one measurement each.
    """
    content = {
        "benchmark": name,
        "command": shlex.join(["gr-sweep", "bench", name, *argv]),
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "settings": {key: value for key, value in settings.items() if key != "json"},
        "rows": list(rows),
    }
    return json.dumps(content, indent=1)


def heading(columns: Mapping[str, str]) -> str:
    """The first line of a table; `columns` maps keys of its rows to format specifications."""
    return "  ".join(f"{key:>{_width(key, form)}}" for key, form in columns.items())


def line(row: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """One row of a table, with "-" where it has no value."""
    cells = [
        f"{'-' if row[key] is None else format(row[key], form):>{_width(key, form)}}"
        for key, form in columns.items()
    ]
    return "  ".join(cells)


def _width(key: str, form: str) -> int:
    digits = form.lstrip(">").split(".")[0].rstrip("sdfg,")
    return max(len(key), int(digits or 0))
