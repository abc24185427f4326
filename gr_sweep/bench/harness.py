"""Shared by all benchmarks: timing in alternating rounds, options, and output."""

import argparse
import json
import math
import shlex
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch

from gr_sweep.arguments import Parser, count

Case = TypeVar("Case", bound=Hashable)


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

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    run()
    return now() - start


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


@dataclass(frozen=True, kw_only=True)
class Result:
    """The time of one setting, compared with the dense one."""

    edges: str
    """An edge choice, or "dense"; of an MLP also "masked", the published formula."""
    mlp_shared: float
    """The core's share of the MLP units."""
    foreign_dropout: float
    seconds: float
    """Median of a forward and backward pass; of a step, with clipping and the optimizer."""
    ratio: float
    """`seconds` over those of the dense setting."""
    flop_limit: float
    """Operations over those of the dense setting: the ratio if nothing else cost time."""


def show(
    name: str,
    argv: Sequence[str],
    options: argparse.Namespace,
    results: Iterable[Result],
    columns: Mapping[str, str],
) -> None:
    """Prints results: a table that grows with each of them, or JSON at the end (`--json`).

    Args:
        argv: the words after the benchmark's name.
        options: what was parsed from them.
        results: one at a time, each measured when it is asked for.
        columns: format specifications by name of a field.
    """
    device, threads = device_name(this_device()), torch.get_num_threads()
    if options.json:
        rows = [asdict(result) for result in results]
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        content = {
            "benchmark": name,
            "command": shlex.join(["gr-sweep", "bench", name, *argv]),
            "device": device,
            "torch": torch.__version__,
            "threads": threads,
            "settings": settings,
            "rows": rows,
        }
        print(json.dumps(content, indent=1))
        return
    print(f"{options.rows * options.sequence_length} tokens, {device}, {threads} threads")
    print(
        "  ".join(f"{key.replace('_', ' '):>{_width(key, form)}}" for key, form in columns.items())
    )
    for result in results:
        values = asdict(result)
        cells = (
            f"{'-' if values[key] is None else format(values[key], form):>{_width(key, form)}}"
            for key, form in columns.items()
        )
        print("  ".join(cells), flush=True)


def _width(key: str, form: str) -> int:
    return max(len(key), int(form.split(".")[0].rstrip("sd,") or 0))
