"""The verb `estimate`: what every job of a command line needs. Runs and writes nothing."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gr_sweep.arguments import Parser, count
from gr_sweep.cli.status import duration, new_table, output, short_count
from gr_sweep.errors import ConfigError
from gr_sweep.launch.resources import UTILISATION
from gr_sweep.metrics.cost import GPUS

if TYPE_CHECKING:
    from gr_sweep.cli.task import Job
    from gr_sweep.data.size import TextSize

_EPILOG = """examples:
  gr-sweep estimate -m edges=both,act,weight
  gr-sweep estimate model=7b train.micro_batch_sequences=3 --gpu h100 --gpus 8
  gr-sweep estimate model=mini --gflops 120      a CPU: `gr-sweep bench step` measures the rate
"""

_COLUMNS = (
    "params",
    "active",
    "kept",
    "tokens",
    "a param",
    "FLOPs",
    "of dense",
    "peak GiB",
    "time",
)


def main(argv: Sequence[str]) -> int:
    """Prints a table, or JSON. Raises what a run of the command line raises before it starts."""
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
    if options.gflops is not None and not 0 < options.gflops * 1e9 < math.inf:
        raise ConfigError(f"--gflops {options.gflops:g}: expected a positive number")

    from gr_sweep.cli.app import compose_flags, parse_flags

    command = compose_flags(parse_flags(rest))

    from gr_sweep.launch.estimate import Target, estimate_job, what_would_help

    target = Target.gpu(options.gpu, utilisation=UTILISATION, world_size=options.gpus)
    if options.gflops is not None:
        target = Target("cpu", options.gflops * 1e9, None, False, options.gpus)
    rows: list[dict[str, Any]] = []
    for job in command.jobs:
        estimate = estimate_job(job.config, target)
        row = {"title": job.title, "folder": str(job.folder), "is_done": job.is_done}
        warning = what_would_help(estimate, job.config, target)
        rows.append(row | estimate.as_dict() | {"warning": warning})
    missing = [row for row in rows if not row["is_done"]]
    total = {name: sum(row[name] for row in missing) for name in ("tokens", "flops", "hours")}
    content: dict[str, Any] = {
        "device": target.name,
        "devices_per_job": target.world_size,
        "flops_per_second": target.flops,
        "jobs": rows,
        "total": {"jobs": len(missing), **total},
        "text": [asdict(text) for text in _texts(command.jobs)],
    }
    if options.json:
        print(json.dumps(content, indent=1))
    else:
        _print(content)
    return 0


def _texts(jobs: "Sequence[Job]") -> "list[TextSize]":
    """The different texts of the jobs that are not done, without those that need no preparation."""
    from gr_sweep.data.size import text_size

    configs = {job.identity.fingerprints["text"]: job.config for job in jobs if not job.is_done}
    sizes = [text_size(c.data, c.partition, c.model) for c in configs.values()]
    return [size for size in sizes if size is not None]


def _print(content: Mapping[str, Any]) -> None:
    """Prints the content of the JSON as a table."""
    from rich.text import Text

    from gr_sweep.launch.estimate import GIB

    jobs, total = content["jobs"], content["total"]
    rate = f"{content['flops_per_second'] / 1e12:.4g} TFLOP/s each"
    print(f"{content['devices_per_job']} x {content['device']} per job, {rate}\n")
    table = new_table(*_COLUMNS)
    for job in jobs:
        kept = sorted(job["kept_parameters"].values())
        table.add_row(
            short_count(job["parameters"]),
            short_count(job["active_parameters"]),
            "-".join(dict.fromkeys(map(short_count, kept[:1] + kept[-1:]))) or "-",
            short_count(job["tokens"]),
            f"{job['tokens'] / job['dense_parameters']:.3g}",
            f"{job['flops']:.1e}",
            f"{job['flops'] / job['dense_flops']:.2f}",
            f"{job['peak_bytes'] / GIB:.3g}",
            duration(job["hours"] * 3600),
            Text(f"{job['title']} (done)" if job["is_done"] else job["title"]),
        )
    output().print(table)
    print(
        f"\nto run: {total['jobs']} of {len(jobs)} jobs, {short_count(total['tokens'])} tokens, "
        f"{total['flops']:.1e} FLOPs, {duration(total['hours'] * 3600)} one after the other"
    )
    if jobs:
        host_bytes = max(job["host_bytes"] for job in jobs)
        print(f"host memory per process: {host_bytes / GIB:.3g} GiB")
    for job in jobs:
        if job["warning"] is not None:
            print(f"warning: {job['title']}: {job['warning']}")
    for size in content["text"]:
        print(
            f"text to prepare first: {size['text_bytes'] / 1e9:.3g} GB, "
            f"{short_count(size['tokens'])} tokens, {size['disk_bytes'] / 1e9:.3g} GB of disk, "
            f"{duration(size['hours'] * 3600)} in {size['processes']} processes "
            f"({size['process_bytes_per_second'] / 1e6:.3g} MB/s each, measured, downloads aside)"
        )
