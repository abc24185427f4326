"""Tokens a second and memory by size: `python -m gr_sweep.bench.scaling --largest mini`.

Sizes from `--smallest` to `--largest`, or to the first that does not fit: the estimate is asked
first, then the device itself. Dense and routed steps take turns in one process; medians are
compared. Beside the measured peak stands the estimated one.
"""

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from gr_sweep.arguments import Parser, count
from gr_sweep.bench.output import device_name, record
from gr_sweep.bench.step import DENSE, PLANS, bench_config, measure_steps
from gr_sweep.config import Edges, RunConfig, TrainConfig
from gr_sweep.data.rows import micro_batch_rows
from gr_sweep.launch.estimate import GIB, Estimate, Target, estimate_job, what_would_help
from gr_sweep.metrics.cost import GPUS, peak_flops
from gr_sweep.model.sizes import SIZES


@dataclass(frozen=True)
class ScalingResult:
    """One size and setting."""

    model: str
    edges: str
    """"dense" where there is no plan."""
    parameters: int
    seconds: float
    """Median of a step: forward, backward, clipping, optimizer."""
    tokens_per_second: float
    ratio: float
    """Of `seconds` to the dense step's of the same size."""
    flop_limit: float
    """Operations that the step must do, over the dense step's: what the ratio could be."""
    gflops: float
    """Operations that the step must do, 10^9 a second: what `gr-sweep estimate --gflops` takes."""
    mfu: float | None
    """Those over the GPU's bfloat16 peak; None where that is not known."""
    peak_gib: float
    """The most that tensors held at once in a step."""
    estimated_gib: float
    """What `gr-sweep estimate` says of it."""


def bench_size(
    configs: dict[str, RunConfig],
    estimates: dict[str, Estimate],
    *,
    rounds: int,
    device: torch.device,
) -> list[ScalingResult]:
    """Medians over `rounds` steps of jobs of one size, of which the first is dense."""
    found = measure_steps(configs, rounds=rounds, device=device)
    [dense, *_] = configs.values()
    tokens = sum(micro_batch_rows(dense).values()) * dense.train.sequence_length
    peak = peak_flops(device_name(device))
    results = []
    for name, config in configs.items():
        one, reference = found[name], found[DENSE]
        rate = one.flops_per_token * tokens / one.seconds
        results.append(
            ScalingResult(
                model=str(config.model.size),
                edges=name,
                parameters=estimates[name].parameters,
                seconds=one.seconds,
                tokens_per_second=tokens / one.seconds,
                ratio=one.seconds / reference.seconds,
                flop_limit=one.flops_per_token / reference.flops_per_token,
                gflops=rate / 1e9,
                mfu=None if peak is None else rate / peak,
                peak_gib=one.peak_bytes / GIB,
                estimated_gib=estimates[name].step_peak_bytes / GIB,
            )
        )
    return results


def target_of(device: torch.device) -> Target:
    """The device as the estimate wants it; how fast it is does not matter here."""
    if device.type != "cuda":
        return Target("cpu", 1.0, _free_bytes(device), False)
    is_hopper = torch.cuda.get_device_capability(device)[0] == 9
    workspace = GPUS["h100" if is_hopper else "a100"].workspace_bytes
    return Target("gpu", 1.0, _free_bytes(device), True, workspace_bytes=workspace)


def _free_bytes(device: torch.device) -> float | None:
    """Memory that can be had now; None where the system does not say."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # what torch keeps of the size before can be had
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    [available] = [line for line in lines if line.startswith("MemAvailable:")]
    return float(available.split()[1]) * 1024


def make_configs(
    model: str, edges: Sequence[str], options: argparse.Namespace
) -> dict[str, RunConfig]:
    """The dense job and one for each of `edges`, by name.

    Raises:
        ConfigError: rows that do not divide over the domains.
    """
    train = TrainConfig(
        steps=1,
        batch_sequences=options.rows,
        sequence_length=options.sequence_length,
        compile=options.compile,
        activation_checkpointing=options.activation_checkpointing,
    )
    common = {"train": train, "vocab_size": options.vocab_size}
    setting = {
        "plan": options.plan,
        "mlp_shared": options.mlp_shared,
        "foreign_dropout": options.foreign_dropout,
    }
    return {DENSE: bench_config(model, **common)} | {
        name: bench_config(model, edges=name, **setting, **common) for name in edges
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or JSON.

    Raises:
        ConfigError: settings that no job can have.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_cuda = device.type == "cuda"
    parser = Parser(prog="gr-sweep bench scaling", description=__doc__)
    parser.add_argument("--smallest", default="nano", choices=SIZES, help="size (default: nano)")
    parser.add_argument(
        "--largest",
        default="7b" if is_cuda else "mini",
        choices=SIZES,
        help="size (default: 7b on a GPU, else mini)",
    )
    parser.add_argument(
        "--edges",
        nargs="*",
        default=["both"],
        choices=[choice.value for choice in Edges],
        help="settings beside the dense step (default: both)",
    )
    parser.add_argument(
        "--plan",
        default="peers",
        choices=PLANS,
        help="shape of the owner sets (default: peers)",
    )
    parser.add_argument("--mlp-shared", type=float, default=0.5, help="core share (default: 0.5)")
    parser.add_argument("--foreign-dropout", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--rows", type=count, default=12, help="sequences a step (default: 12)")
    length = 2048 if is_cuda else 256
    parser.add_argument(
        "--sequence-length", type=count, default=length, help="default: 2048 on a GPU, else 256"
    )
    parser.add_argument("--vocab-size", type=count, default=2048, help="default: 2048")
    parser.add_argument("--rounds", type=count, default=5, help="timed steps (default: 5)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the steps")
    parser.add_argument(
        "--activation-checkpointing", action="store_true", help="compute layers twice, hold less"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)

    names = list(SIZES)
    chosen = names[names.index(options.smallest) : names.index(options.largest) + 1]
    if not chosen:
        parser.error(f"--smallest {options.smallest} is larger than --largest {options.largest}")
    results: list[ScalingResult] = []
    stopped = None
    if not options.json:
        print(f"{device_name(device)}, {torch.get_num_threads()} threads, plan={options.plan}")
        print(_HEADER)
    for model in chosen:
        configs = make_configs(model, options.edges, options)
        target = target_of(device)
        # Nothing is evaluated here.
        estimates = {
            name: replace(estimate_job(config, target), evaluation_bytes=0)
            for name, config in configs.items()
        }
        warnings = (
            what_would_help(estimates[name], config, target) for name, config in configs.items()
        )
        stopped = next((warning for warning in warnings if warning is not None), None)
        if stopped is None:
            try:
                found = bench_size(configs, estimates, rounds=options.rounds, device=device)
            except torch.OutOfMemoryError:
                stopped = "the device has no memory left"
        if stopped is not None:
            stopped = f"{model} does not fit: {stopped}"
            break
        results += found
        if not options.json:
            for result in found:
                print(_line(result), flush=True)
    if options.json:
        settings = {
            **{name: value for name, value in vars(options).items() if name != "json"},
            "stopped": stopped,
        }
        rows = [asdict(result) for result in results]
        print(json.dumps(record("scaling", argv, device, settings, rows), indent=1))
    elif stopped is not None:
        print(stopped)
    return 0


_HEADER = (
    f"{'model':6} {'edges':7} {'params':>7} {'ms':>8} {'tokens/s':>9} {'ratio':>6} {'limit':>6} "
    f"{'GFLOP/s':>8} {'MFU':>5} {'GiB':>7} {'estimate':>8}"
)


def _line(r: ScalingResult) -> str:
    mfu = "-" if r.mfu is None else f"{r.mfu:.2f}"
    return (
        f"{r.model:6} {r.edges:7} {r.parameters / 1e6:6.4g}M {r.seconds * 1e3:8.0f} "
        f"{r.tokens_per_second:9.0f} {r.ratio:6.3f} {r.flop_limit:6.3f} "
        f"{r.gflops:8.4g} {mfu:>5} {r.peak_gib:7.3f} {r.estimated_gib:8.3f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
