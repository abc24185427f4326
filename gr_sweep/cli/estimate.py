"""The verb `estimate`: what every job of a command would need. Nothing is submitted or written."""

import argparse
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gr_sweep.arguments import Parser, count
from gr_sweep.errors import ConfigError
from gr_sweep.metrics.cost import GPUS

if TYPE_CHECKING:
    from gr_sweep.cli.compose import Job
    from gr_sweep.launch.estimate import Estimate, Target

_COLUMNS = (
    "\nparams",
    "\nactive",
    "\nkept",
    "\ntokens",
    "\nFLOPs",
    "of\ndense",
    "peak\nGiB",
    "\ntime",
)
_UNCUT_COLUMNS = 400
"""Width where the output is no terminal."""

_EPILOG = """examples:
  gr-sweep estimate -m edges=both,act,weight
  gr-sweep estimate model=7b train.micro_batch_sequences=3 --gpu h100 --gpus 8
  gr-sweep estimate model=mini --gflops 120      a CPU: `gr-sweep bench scaling` measures the rate
"""


def main(argv: Sequence[str]) -> int:
    """Prints a table, or JSON.

    Raises:
        GrSweepError: as a run of the same command line, before it starts.
    """
    parser = Parser(
        prog="gr-sweep estimate",
        description="Says what each job of a command line needs: parameters, operations, memory a "
        "device, hours of training. Every other word is as for a run; no job is run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--gpu", choices=GPUS, help="the GPU (default: h100)")
    parser.add_argument("--mfu", type=float, help="share of the GPU's bfloat16 peak (default: 0.4)")
    parser.add_argument(
        "--gflops", type=float, help="instead of a GPU: measured rate of a CPU, 10^9 a second"
    )
    parser.add_argument("--gpus", type=count, default=1, help="devices a job (default: 1)")
    parser.add_argument(
        "--vocab-size",
        type=count,
        help="tokens of a tokenizer that is not on this machine; a checkpoint has its own",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options, rest = parser.parse_known_args(list(argv))

    from gr_sweep.cli.app import parse_flags
    from gr_sweep.cli.compose import compose

    flags = parse_flags(rest)
    command = compose(
        flags.overrides,
        multirun=flags.multirun,
        config_name=flags.config_name or "config",
        config_path=flags.config_path,
        config_dir=flags.config_dir,
    )
    target = _target(options)

    from gr_sweep.launch.estimate import cost_key, estimate_job

    known: dict[str, Estimate] = {}
    rows = []
    for job in command.jobs:
        key = cost_key(job.config)
        if key not in known:
            known[key] = estimate_job(job.config, target, vocab_size=options.vocab_size)
        rows.append((job, known[key]))
    if options.json:
        print(json.dumps(_as_json(rows, target, options), indent=1))
    else:
        _print(rows, target, options)
    return 0


def _target(options: argparse.Namespace) -> "Target":
    """
    Raises:
        ConfigError: numbers that make no sense, or a GPU beside --gflops.
    """
    if options.gflops is not None and options.mfu is not None:
        raise ConfigError(
            f"--mfu {options.mfu} and --gflops exclude each other; a measured rate needs no share"
        )
    if options.mfu is None:
        options.mfu = 0.4
    if not 0 < options.mfu <= 1:
        raise ConfigError(f"--mfu {options.mfu} is no share; give a number above 0, at most 1")

    from gr_sweep.launch.estimate import Target

    if options.gflops is None:
        return Target.gpu(options.gpu or "h100", utilisation=options.mfu, world_size=options.gpus)
    if options.gpu is not None:
        raise ConfigError(f"--gpu {options.gpu} and --gflops exclude each other; give one of them")
    if not 0 < options.gflops < math.inf:
        raise ConfigError(f"--gflops {options.gflops} is no finite number above 0")
    return Target("cpu", options.gflops * 1e9, None, False, options.gpus)


def _as_json(
    rows: "Sequence[tuple[Job, Estimate]]", target: "Target", options: argparse.Namespace
) -> dict[str, Any]:
    from gr_sweep.launch.estimate import what_would_help

    return {
        "device": target.name,
        "devices_per_job": target.world_size,
        "flops_per_second": target.flops,
        "jobs": [
            {
                "title": job.title,
                "folder": str(job.folder),
                "is_done": job.is_done,
                **estimate.as_dict(),
                "warning": what_would_help(estimate, job.config, target),
            }
            for job, estimate in rows
        ],
        "total": _total(rows, target),
    }


def _total(rows: "Sequence[tuple[Job, Estimate]]", target: "Target") -> dict[str, float]:
    """Of the jobs that are not done yet."""
    missing = [estimate for job, estimate in rows if not job.is_done]
    hours = sum(estimate.hours for estimate in missing)
    return {
        "jobs": len(missing),
        "tokens": sum(estimate.tokens for estimate in missing),
        "flops": sum(estimate.flops for estimate in missing),
        "hours": hours,
        "device_hours": hours * target.world_size,
    }


def _print(
    rows: "Sequence[tuple[Job, Estimate]]", target: "Target", options: argparse.Namespace
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gr_sweep.launch.estimate import GIB, what_would_help

    console = Console()
    if not console.is_terminal:
        console = Console(width=_UNCUT_COLUMNS)
    share = f"{options.mfu:g} of its bfloat16 peak" if target.is_gpu else "float32"
    console.print(
        Text(f"{target.world_size} x {target.name} a job, {target.flops / 1e12:.4g} TFLOP/s each")
        + Text(f" ({share})\n")
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        table.add_column(Text(name), justify="right", no_wrap=True)
    # Last, as it may be long: the numbers stay where the eye finds them.
    table.add_column("\njob", overflow="fold")
    for job, estimate in rows:
        table.add_row(
            _short(estimate.parameters),
            _short(estimate.active_parameters),
            _span(estimate.kept_parameters),
            _short(estimate.tokens),
            f"{estimate.flops:.1e}",
            f"{estimate.flops / estimate.dense_flops:.2f}",
            f"{estimate.peak_bytes / GIB:.3g}",
            _duration(estimate.hours),
            Text(job.title + (" (done)" if job.is_done else "")),
        )
    console.print(table)
    total = _total(rows, target)
    on_all = f", {total['device_hours']:.3g} device hours" if target.world_size > 1 else ""
    console.print(
        Text(
            f"\nto run: {total['jobs']} of {len(rows)} jobs, {_short(total['tokens'])} tokens, "
            f"{total['flops']:.1e} FLOPs, {_duration(total['hours'])} one after the other{on_all}"
        )
    )
    for job, estimate in rows:
        warning = what_would_help(estimate, job.config, target)
        if warning is not None:
            console.print(Text(f"warning: {job.title}: {warning}", style="yellow"), soft_wrap=True)


def _short(count: float) -> str:
    """1234567 -> 1.23M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def _span(counts: dict[str, int]) -> str:
    """The smallest and the largest, or the one that all are."""
    if not counts:
        return "-"
    low, high = _short(min(counts.values())), _short(max(counts.values()))
    return low if low == high else f"{low}-{high}"


def _duration(hours: float) -> str:
    seconds = hours * 3600
    if seconds < 90:
        return f"{max(seconds, 0.1):.2g} s"
    if seconds < 5400:
        return f"{seconds / 60:.2g} min"
    return f"{hours:.3g} h"
