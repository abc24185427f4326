"""Measures speed and memory by model size: `python -m gr_sweep.bench.scaling --largest mini`.

Goes from `--smallest` to `--largest`, or to the first size that does not fit, which the estimate is
asked before the device. The estimated peak memory stands next to the measured one.
"""

import gc
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from gr_sweep.bench import harness
from gr_sweep.bench.step import (
    DENSE,
    EDGES,
    PLANS,
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
    """The device with its free memory; its speed does not matter here."""
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
    device = harness.this_device()
    is_cuda = device.type == "cuda"
    parser = step_parser("scaling", __doc__, sequence_length=2048 if is_cuda else 256, rounds=5)
    largest = "7b" if is_cuda else "mini"
    parser.add_argument("--smallest", default="nano", choices=SIZES, help="size (nano)")
    parser.add_argument("--largest", default=largest, choices=SIZES, help=f"size ({largest})")
    parser.add_argument(
        "--edges", nargs="*", default=["both"], choices=EDGES, help="settings to time (both)"
    )
    parser.add_argument("--plan", default="peers", choices=PLANS, help="plan (peers)")
    parser.add_argument("--mlp-shared", type=float, default=0.5, help="core share (0.5)")
    parser.add_argument("--foreign-dropout", type=float, default=0.5, help="foreign dropout (0.5)")
    options = parser.parse_args(argv)
    sizes = list(SIZES)
    chosen = sizes[sizes.index(options.smallest) : sizes.index(options.largest) + 1]
    if not chosen:
        parser.error(f"--smallest {options.smallest} is larger than --largest {options.largest}")
    common = {"train": train_config(options), "vocab_size": options.vocab_size}
    setting = {
        "plan": options.plan,
        "mlp_shared": options.mlp_shared,
        "foreign_dropout": options.foreign_dropout,
    }
    if not options.json:
        print(f"{harness.device_name(device)}, {torch.get_num_threads()} threads")
        print(harness.heading(_COLUMNS))
    rows = []
    stopped = None
    for model in chosen:
        configs = {DENSE: bench_config(model, **common)}
        configs |= {
            edges: bench_config(model, edges=edges, **setting, **common) for edges in options.edges
        }
        target = target_of(device)
        # Nothing is evaluated here.
        estimates = {
            name: replace(estimate_job(config, target), evaluation_bytes=0)
            for name, config in configs.items()
        }
        warnings = [what_would_help(estimates[name], configs[name], target) for name in configs]
        stopped = next((warning for warning in warnings if warning is not None), None)
        results = []
        if stopped is None:
            try:
                results = bench_step(configs, rounds=options.rounds, device=device)
            except torch.OutOfMemoryError:
                stopped = "the device ran out of memory"
        for name, result in zip(configs, results, strict=False):
            estimated_gib = estimates[name].step_peak_bytes / GIB
            rows.append(asdict(result) | {"estimated_gib": estimated_gib})
            if not options.json:
                print(harness.line(rows[-1], _COLUMNS), flush=True)
        if stopped is not None:
            stopped = f"{model} does not fit: {stopped}"
            break
    if options.json:
        settings = vars(options) | {"stopped": stopped}
        print(harness.as_json("scaling", argv, device, settings, rows))
    elif stopped is not None:
        print(stopped)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
