"""Measures speed and memory by model size: `python -m gr_sweep.bench.scaling --largest mini`.

Goes from `--smallest` to `--largest`, and stops at the first size that does not fit by the estimate
or on the device. The estimated peak memory is shown next to the measured one.
"""

import argparse
import gc
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gr_sweep.bench import harness
from gr_sweep.bench.step import (
    DENSE,
    EDGES,
    PLANS,
    StepResult,
    bench_config,
    bench_step,
    step_parser,
    train_config,
)
from gr_sweep.launch.estimate import GIB, Target, estimate_job, what_would_help
from gr_sweep.metrics.cost import GPUS
from gr_sweep.model.sizes import SIZES

_COLUMNS = {
    "model": "5s", "plan": "7s", "edges": "6s", "parameters": "13,d", "seconds": "9.4f",
    "tokens_per_second": ".0f", "ratio": "6.3f", "flop_limit": ".3f", "gflops": "9.4g",
    "mfu": "5.2f", "peak_gib": "8.3f", "estimated_gib": ".3f",
}  # fmt: skip


def target_of(device: torch.device) -> Target:
    """The device and its free memory, for an estimate of memory alone."""
    if device.type != "cuda":
        return Target("cpu", 1.0, _free_bytes(device), False)
    is_hopper = torch.cuda.get_device_capability(device)[0] == 9
    workspace = GPUS["h100" if is_hopper else "a100"].workspace_bytes
    return Target("gpu", 1.0, _free_bytes(device), True, workspace_bytes=workspace)


def _free_bytes(device: torch.device) -> float | None:
    """Free memory of the device; None where the system does not say."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # frees what torch's allocator keeps of the size before
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    [available] = [line for line in lines if line.startswith("MemAvailable:")]
    return float(available.split()[1]) * 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or JSON.

    Raises:
        ConfigError: invalid settings.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    is_cuda = harness.this_device().type == "cuda"
    parser = step_parser("scaling", __doc__, sequence_length=2048 if is_cuda else 256, rounds=5)
    largest = "7b" if is_cuda else "mini"
    parser.add_argument("--smallest", default="nano", choices=SIZES, help="size (nano)")
    parser.add_argument("--largest", default=largest, choices=SIZES, help=f"size ({largest})")
    parser.add_argument(
        "--edges", nargs="*", default=["both"], choices=EDGES, help="settings to time (both)"
    )
    parser.add_argument("--plan", default="peers", choices=PLANS, help="plan (peers)")
    options = parser.parse_args(argv)
    sizes = list(SIZES)
    chosen = sizes[sizes.index(options.smallest) : sizes.index(options.largest) + 1]
    if not chosen:
        parser.error(f"--smallest {options.smallest} is larger than --largest {options.largest}")
    options.stopped = None  # JSON says it in any case
    harness.show("scaling", argv, options, _measured(options, chosen), _COLUMNS)
    if options.stopped is not None and not options.json:
        print(options.stopped)
    return 0


def _measured(options: argparse.Namespace, sizes: Sequence[str]) -> Iterator[StepResult]:
    """The results of the sizes that fit; `options.stopped` says why there are no more."""
    device = harness.this_device()
    common = {"train": train_config(options), "vocab_size": options.vocab_size}
    for model in sizes:
        configs = {DENSE: bench_config(model, **common)}
        for edges in options.edges:
            configs[edges] = bench_config(
                model, plan=options.plan, edges=edges, foreign_dropout=0.5, **common
            )
        target = target_of(device)
        # Nothing is evaluated here.
        estimates = [
            replace(estimate_job(config, target), evaluation_bytes=0) for config in configs.values()
        ]
        warnings = map(what_would_help, estimates, configs.values(), itertools.repeat(target))
        warning = next(filter(None, warnings), None)
        results: list[StepResult] = []
        if warning is None:
            try:
                results = bench_step(configs, rounds=options.rounds, device=device)
            except torch.OutOfMemoryError:
                warning = "the device ran out of memory"
        for result, estimate in zip(results, estimates, strict=False):
            yield replace(result, estimated_gib=estimate.step_peak_bytes / GIB)
        if warning is not None:
            options.stopped = f"{model} does not fit: {warning}"
            return


if __name__ == "__main__":
    raise SystemExit(main())
