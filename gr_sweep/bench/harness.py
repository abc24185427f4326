"""Shared by all benchmarks: timing in alternating rounds, options, and output."""

import argparse
import json
import math
import shlex
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from gr_sweep.arguments import Parser, count

Case = TypeVar("Case", bound=Hashable)
Row = dict[str, Any]
"""What was measured of one setting. All benchmarks have:

- edges: an edge choice, or "dense"; of an MLP also "masked", the published formula
- mlp_shared: the core's share of the MLP units
- foreign_dropout
- seconds: median of a forward and backward pass; of a step, with clipping and the optimizer
- ratio: `seconds` over those of the dense setting
- flop_limit: operations over those of the dense setting, the ratio if nothing else cost time
"""


def median_seconds(
    runs: Mapping[Case, Callable[[], float]], rounds: int, *, deadline: float = math.inf
) -> dict[Case, float]:
    """Median time of each case over `rounds` rounds, after a first round that warms up.

    In every round the cases take turns, so that a machine that slows down slows all of them and
    ratios stay comparable.

    Args:
        runs: for each case, a function that runs it once and returns the seconds it took.
        deadline: value of `time.monotonic()` after which no round begins, apart from the first two.
    """
    seconds: dict[Case, list[float]] = {case: [] for case in runs}
    for number in range(rounds + 1):
        if number < 2 or time.monotonic() < deadline:
            for case, run in runs.items():
                seconds[case].append(run())
    return {case: statistics.median(times[1:]) for case, times in seconds.items()}


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that one call takes, until the device has finished it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


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


def show(
    name: str,
    argv: Sequence[str],
    options: argparse.Namespace,
    rows: Iterable[Row],
    columns: Mapping[str, str],
) -> None:
    """Prints rows: a table that grows with each of them, or JSON at the end (`--json`).

    Args:
        argv: the words after the benchmark's name.
        options: what was parsed from them.
        rows: one at a time, each measured when it is asked for.
        columns: format specifications, with a width, by name of a column.
    """
    device, threads = device_name(this_device()), torch.get_num_threads()
    if options.json:
        content = {
            "benchmark": name,
            "command": shlex.join(["gr-sweep", "bench", name, *argv]),
            "device": device,
            "torch": torch.__version__,
            "threads": threads,
            "settings": {key: value for key, value in vars(options).items() if key != "json"},
            "rows": list(rows),
        }
        print(json.dumps(content, indent=1))
        return
    print(f"{options.rows * options.sequence_length} tokens, {device}, {threads} threads")
    widths = {key: max(len(key), int(form.split(".")[0])) for key, form in columns.items()}
    print("  ".join(f"{key.replace('_', ' '):>{width}}" for key, width in widths.items()))
    for row in rows:
        cells = ("-" if row[key] is None else format(row[key], columns[key]) for key in columns)
        print("  ".join(f"{cell:>{widths[key]}}" for key, cell in zip(columns, cells, strict=True)))
