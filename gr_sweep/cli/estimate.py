"""The verb `estimate`: what every job of a command line needs. Runs and writes nothing."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gr_sweep.arguments import Parser, count
from gr_sweep.cli.status import duration, output, short_count
from gr_sweep.errors import ConfigError
from gr_sweep.launch.resources import UTILISATION
from gr_sweep.metrics.cost import GPUS

if TYPE_CHECKING:
    from gr_sweep.cli.task import Job
    from gr_sweep.data.size import TextSize
    from gr_sweep.launch.estimate import Estimate, Target

    Rows = Sequence[tuple[Job, Estimate, str | None]]
    """Jobs with their estimates and with a warning for those that do not fit."""

_EPILOG = """examples:
  gr-sweep estimate -m edges=both,act,weight
  gr-sweep estimate model=7b train.micro_batch_sequences=3 --gpu h100 --gpus 8
  gr-sweep estimate model=mini --gflops 120      a CPU: `gr-sweep bench step` measures the rate
"""


def main(argv: Sequence[str]) -> int:
    """Prints a table, or JSON.

    Raises:
        GrSweepError: the same as for a run of the command line, before it starts.
    """
    parser = Parser(
        prog="gr-sweep estimate",
        description="Shows what each job of a command line needs: parameters, operations, memory "
        "of a device, hours of training. All other words are those of a run; no job is run.",
        epilog=_EPILOG,
    )
    device = parser.add_mutually_exclusive_group()
    device.add_argument("--gpu", choices=GPUS, default="h100", help="the GPU (default: h100)")
    device.add_argument(
        "--gflops", type=float, help="instead of a GPU: measured rate of a CPU, 1e9 a second"
    )
    parser.add_argument("--gpus", type=count, default=1, help="devices per job (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options, rest = parser.parse_known_args(list(argv))

    from gr_sweep.cli.app import compose_flags, parse_flags

    command = compose_flags(parse_flags(rest))

    from gr_sweep.launch.estimate import Target, estimate_job, what_would_help

    target = Target.gpu(options.gpu, utilisation=UTILISATION, world_size=options.gpus)
    if options.gflops is not None:
        if not 0 < options.gflops * 1e9 < math.inf:
            raise ConfigError(f"--gflops {options.gflops:g}: expected a positive number")
        target = Target("cpu", options.gflops * 1e9, None, False, options.gpus)
    rows = []
    for job in command.jobs:
        estimate = estimate_job(job.config, target)
        rows.append((job, estimate, what_would_help(estimate, job.config, target)))
    texts = _texts(rows)
    if options.json:
        print(json.dumps(_as_json(rows, target) | {"text": list(map(asdict, texts))}, indent=1))
    else:
        _print(rows, target)
        for text in texts:
            print(_line_of(text))
    return 0


def _texts(rows: "Rows") -> "list[TextSize]":
    """The different texts of the jobs that are not done, without those that need no preparation."""
    from gr_sweep.data.size import text_size

    configs = {
        job.identity.fingerprints["text"]: job.config for job, _, _ in rows if not job.is_done
    }
    sizes = [text_size(c.data, c.partition, c.model) for c in configs.values()]
    return [size for size in sizes if size is not None]


def _line_of(text: "TextSize") -> str:
    rate = f"{text.process_bytes_per_second / 1e6:.3g} MB/s each, measured"
    return (
        f"text to prepare first: {text.text_bytes / 1e9:.3g} GB, {short_count(text.tokens)} "
        f"tokens, {text.disk_bytes / 1e9:.3g} GB of disk, {duration(text.hours * 3600)} "
        f"in {text.processes} processes ({rate}, downloads aside)"
    )


def _total(rows: "Rows") -> dict[str, float]:
    """Of the jobs that are not done."""
    missing = [estimate for job, estimate, _ in rows if not job.is_done]
    return {
        "jobs": len(missing),
        "tokens": sum(estimate.tokens for estimate in missing),
        "flops": sum(estimate.flops for estimate in missing),
        "hours": sum(estimate.hours for estimate in missing),
    }


def _as_json(rows: "Rows", target: "Target") -> dict[str, Any]:
    return {
        "device": target.name,
        "devices_per_job": target.world_size,
        "flops_per_second": target.flops,
        "jobs": [
            {"title": job.title, "folder": str(job.folder), "is_done": job.is_done}
            | estimate.as_dict()
            | {"warning": warning}
            for job, estimate, warning in rows
        ],
        "total": _total(rows),
    }


def _print(rows: "Rows", target: "Target") -> None:
    from rich.table import Table
    from rich.text import Text

    from gr_sweep.launch.estimate import GIB

    rate = f"{target.flops / 1e12:.4g} TFLOP/s each"
    print(f"{target.world_size} x {target.name} per job, {rate}\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "params",
        "active",
        "kept",
        "tokens",
        "a param",
        "FLOPs",
        "of dense",
        "peak GiB",
        "time",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    # Last, as it may be long: the numbers stay in place.
    table.add_column("job", overflow="fold")
    for job, estimate, _ in rows:
        kept = sorted(estimate.kept_parameters.values())
        table.add_row(
            short_count(estimate.parameters),
            short_count(estimate.active_parameters),
            "-".join(dict.fromkeys(map(short_count, kept[:1] + kept[-1:]))) or "-",
            short_count(estimate.tokens),
            f"{estimate.tokens / estimate.dense_parameters:.3g}",
            f"{estimate.flops:.1e}",
            f"{estimate.flops / estimate.dense_flops:.2f}",
            f"{estimate.peak_bytes / GIB:.3g}",
            duration(estimate.hours * 3600),
            Text(job.title + (" (done)" if job.is_done else "")),
        )
    output().print(table)
    total = _total(rows)
    print(
        f"\nto run: {total['jobs']} of {len(rows)} jobs, {short_count(total['tokens'])} tokens, "
        f"{total['flops']:.1e} FLOPs, {duration(total['hours'] * 3600)} one after the other"
    )
    if rows:
        most = max(estimate.host_bytes for _, estimate, _ in rows)
        print(f"host memory per process: {most / GIB:.3g} GiB")
    for job, _, warning in rows:
        if warning is not None:
            print(f"warning: {job.title}: {warning}")
