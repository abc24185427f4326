"""A whole training step, routed over dense: `python -m gr_sweep.bench.step --model mini`.

All settings of a size take turns in one process, so that a machine that slows down slows all of
them (compiled ones one after the other: each would be compiled anew in every turn); medians are
compared. Beside each ratio of times stands its limit, the operations that the
step must do over those of the dense step, and the peak memory over the dense step's.
"""

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from gr_sweep.arguments import Parser, count
from gr_sweep.bench.output import device_name, record
from gr_sweep.build import lay_plan, named_config
from gr_sweep.checks import validate
from gr_sweep.config import (
    DataConfig,
    DomainConfig,
    Edges,
    ModelConfig,
    PartitionConfig,
    PlanConfig,
    PlanKind,
    RouteConfig,
    RunConfig,
    TrainConfig,
    effective,
)
from gr_sweep.data.rows import micro_batch_rows
from gr_sweep.launch.estimate import GIB, JobStep, make_step
from gr_sweep.model.sizes import SIZES, random_model
from gr_sweep.train.cost import train_flops_per_token
from gr_sweep.train.memory import AllocatedBytes

DOMAINS = ("code", "biology", "creative")
PLANS = ("peers", "forget", "lattice")
DROPOUTS = (0.0, 0.5, 1.0)
DENSE = "dense"


@dataclass(frozen=True)
class Measured:
    """What steps of one job took."""

    seconds: float
    """Median of a step: forward, backward, clipping, optimizer."""
    peak_bytes: int
    """The most that tensors held at once in a step, weights and optimizer included."""
    flops_per_token: float
    """Operations that a step must do, a token; what routing skips is not counted."""


@dataclass(frozen=True)
class StepResult:
    """One setting against the dense step of its size."""

    model: str
    plan: str
    """`none` for the dense step."""
    mlp_shared: float
    """The core's share of the MLP units."""
    edges: str
    foreign_dropout: float
    seconds: float
    """Median of a step."""
    ratio: float
    """Of that to the dense step's."""
    flop_limit: float
    """Operations over the dense step's: what the ratio would be if only they cost time."""
    peak_gib: float
    memory_ratio: float
    """Of the peak to the dense step's."""


def bench_config(
    model: str,
    *,
    plan: str = "none",
    edges: str = "none",
    foreign_dropout: float = 0.0,
    mlp_shared: float = 0.5,
    vocab_size: int = 2048,
    train: TrainConfig,
) -> RunConfig:
    """A job with three domains; under `plan="forget"` biology is forgotten.

    Raises:
        ConfigError: settings that no job can have, rows that do not divide over the domains.
    """
    config = RunConfig(
        model=ModelConfig(size=model),
        partition=PartitionConfig(domains={domain: DomainConfig() for domain in DOMAINS}),
        edges=Edges(edges),
        plan=PlanConfig(kind=PlanKind(plan), forget=["biology"], mlp_shared=mlp_shared),
        route=RouteConfig(foreign_dropout=foreign_dropout),
        data=DataConfig(vocab_size=vocab_size),
        train=train,
    )
    validate(config)
    config = effective(config)
    micro_batch_rows(config)
    return config


def measure_steps(
    configs: Mapping[str, RunConfig], *, rounds: int, device: torch.device
) -> dict[str, Measured]:
    """Steps of jobs of one size, by name.

    Jobs take turns, unless steps are compiled: then each would be compiled anew in every turn.
    """
    compiles = any(config.train.compile for config in configs.values())
    turns = range(rounds + 1)
    visits = (
        [(turn, name) for name in configs for turn in turns]
        if compiles
        else [(turn, name) for turn in turns for name in configs]
    )
    [first, *_] = configs.values()
    shape = named_config(first, vocab_size=first.data.vocab_size, eot_id=0)
    model = random_model(shape, seed=0).to(device)  # type: ignore[arg-type]
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    peaks: dict[str, int] = {}
    flops: dict[str, float] = {}
    step: JobStep | None = None
    laid = ""
    for turn, name in visits:
        config = configs[name]
        counts = micro_batch_rows(config)
        if step is None or name != laid:
            optimizer = None if step is None else step.optimizer
            if step is not None:
                step.routed.unroute()
            # The plan changes how the step is computed; the model and its AdamW stay.
            routed = lay_plan(model, config)
            step = make_step(routed, config.train, counts, device, optimizer=optimizer)
            laid = name
        if turn == 0:
            step.run()  # warms up
            peaks[name] = _peak_bytes(step, device)
            flops[name] = train_flops_per_token(step.routed, counts, config.train.sequence_length)
        else:
            seconds[name].append(_seconds(step, device))
    return {
        name: Measured(statistics.median(times), peaks[name], flops[name])
        for name, times in seconds.items()
    }


def _seconds(step: JobStep, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    step.run()
    synchronize(device)
    return time.perf_counter() - start


def _peak_bytes(step: JobStep, device: torch.device) -> int:
    """Of one more step, which is not timed."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step.run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    memory = AllocatedBytes()
    memory.hold([*step.weights(), *step.optimizer_state()])
    with memory:
        step.run()
    return memory.peak


def synchronize(device: torch.device) -> None:
    """Waits for what a GPU has still to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bench_step(
    configs: Mapping[str, RunConfig], *, rounds: int, device: torch.device
) -> list[StepResult]:
    """Every job against the one called "dense", which is among them."""
    found = measure_steps(configs, rounds=rounds, device=device)
    dense = found[DENSE]
    return [
        StepResult(
            model=str(config.model.size),
            plan=config.plan.kind.value,
            mlp_shared=config.plan.mlp_shared,
            edges=config.edges.value,
            foreign_dropout=config.route.foreign_dropout,
            seconds=found[name].seconds,
            ratio=found[name].seconds / dense.seconds,
            flop_limit=found[name].flops_per_token / dense.flops_per_token,
            peak_gib=found[name].peak_bytes / GIB,
            memory_ratio=found[name].peak_bytes / dense.peak_bytes,
        )
        for name, config in configs.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or JSON.

    Raises:
        ConfigError: settings that no job can have.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    edge_choices = [choice.value for choice in Edges]
    parser = Parser(prog="gr-sweep bench step", description=__doc__)
    parser.add_argument(
        "--model", default=["nano"], nargs="+", choices=SIZES, help="sizes (default: nano)"
    )
    parser.add_argument(
        "--plan", default=["peers"], nargs="+", choices=PLANS, help="owner sets (default: peers)"
    )
    parser.add_argument(
        "--shared", default=[0.5], nargs="+", type=float, help="core shares (default: 0.5)"
    )
    parser.add_argument(
        "--edges", default=edge_choices, nargs="+", choices=edge_choices, help="default: all"
    )
    parser.add_argument(
        "--dropout", default=DROPOUTS, nargs="+", type=float, help="default: 0 0.5 1"
    )
    parser.add_argument("--rows", type=count, default=12, help="sequences a step (default: 12)")
    parser.add_argument("--sequence-length", type=count, default=256, help="tokens (default: 256)")
    parser.add_argument("--vocab-size", type=count, default=2048, help="default: 2048")
    parser.add_argument("--rounds", type=count, default=7, help="timed steps (default: 7)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the steps")
    parser.add_argument(
        "--activation-checkpointing", action="store_true", help="compute layers twice, hold less"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = TrainConfig(
        steps=1,
        batch_sequences=options.rows,
        sequence_length=options.sequence_length,
        compile=options.compile,
        activation_checkpointing=options.activation_checkpointing,
    )
    cases = [
        {"plan": plan, "mlp_shared": shared, "edges": edges, "foreign_dropout": p}
        for plan in options.plan
        for shared in options.shared
        for p in options.dropout
        for edges in options.edges
    ]
    if not options.json:
        tokens = options.rows * options.sequence_length
        print(f"{tokens} tokens a step, {device_name(device)}, {torch.get_num_threads()} threads")
        print(_HEADER)
    results: list[StepResult] = []
    for model in options.model:
        common = {"train": train, "vocab_size": options.vocab_size}
        configs = {DENSE: bench_config(model, **common)}
        configs |= {str(case): bench_config(model, **case, **common) for case in cases}
        found = bench_step(configs, rounds=options.rounds, device=device)
        results += found
        if not options.json:
            for result in found:
                print(_line(result), flush=True)
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        rows = [asdict(result) for result in results]
        print(json.dumps(record("step", argv, device, settings, rows), indent=1))
    return 0


_HEADER = (
    f"{'model':6} {'plan':7} {'core':>5} {'edges':6} {'dropout':>7} {'ms':>8} {'ratio':>6} "
    f"{'limit':>6} {'GiB':>7} {'memory':>6}"
)


def _line(r: StepResult) -> str:
    if r.plan == "none":
        setting = f"{'dense':7} {'':5} {'':6} {'':7}"
    else:
        setting = f"{r.plan:7} {r.mlp_shared:5.2f} {r.edges:6} {r.foreign_dropout:7.2f}"
    return (
        f"{r.model:6} {setting} {r.seconds * 1e3:8.0f} {r.ratio:6.3f} {r.flop_limit:6.3f} "
        f"{r.peak_gib:7.3f} {r.memory_ratio:6.3f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
