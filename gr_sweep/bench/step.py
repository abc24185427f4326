"""Times whole training steps, routed over dense: `python -m gr_sweep.bench.step --model mini`.

Each ratio of times comes with its limit, the operations that the step needs over those of the dense
step, and the peak memory with its estimate. Sizes are measured in the order given, until one does
not fit.
"""

import argparse
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from gr_sweep.arguments import count
from gr_sweep.bench import harness
from gr_sweep.bench.harness import Result
from gr_sweep.bounds import invalid
from gr_sweep.checks import validate
from gr_sweep.components import lay_plan, named_config
from gr_sweep.config import (
    AdaptersConfig,
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
)
from gr_sweep.data.rows import step_rows
from gr_sweep.launch.estimate import GIB, Target, estimate_job
from gr_sweep.metrics.cost import peak_flops
from gr_sweep.model.sizes import SIZES, random_model
from gr_sweep.train.cost import num_parameters, train_flops_per_token
from gr_sweep.train.memory import AllocatedBytes
from gr_sweep.train.step import JobStep, make_step

DOMAINS = ("code", "biology", "creative")
PLANS = ("peers", "forget", "lattice")
EDGES = tuple(choice.value for choice in Edges)
DENSE = "dense"

_COLUMNS = {
    "model": "5s", "plan": "7s", "mlp_shared": ".2f", "edges": "6s", "foreign_dropout": ".2f",
    "seconds": "9.4f", "ratio": "6.3f", "flop_limit": ".3f", "tokens_per_second": ".0f",
    "gflops": ".1f", "mfu": "5.2f", "peak_gib": "8.3f", "memory_ratio": ".3f",
    "estimated_gib": ".3f", "adapters": "s",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepResult(Result):
    """The cost of a training step; the dense step has the plan and the edges "none"."""

    model: str
    plan: str
    adapters: str
    """As in the option."""
    parameters: int
    tokens_per_second: float
    gflops: float
    """Operations that the step needs, 1e9 a second: the `--gflops` of `gr-sweep estimate`."""
    mfu: float | None
    """Those over the GPU's bfloat16 peak; None where the peak is not known."""
    peak_gib: float
    """The most that tensors hold at once in a step, weights and optimizer included."""
    memory_ratio: float
    """`peak_gib` over the dense step's."""
    estimated_gib: float
    """`peak_gib` as `gr-sweep estimate` would have it."""


def bench_config(
    model: str,
    *,
    plan: str = "none",
    edges: str = "none",
    foreign_dropout: float = 0.0,
    mlp_shared: float = 0.5,
    adapters: str = "none",
    vocab_size: int = 2048,
    train: TrainConfig,
) -> RunConfig:
    """The config of a job with three domains; `plan="forget"` forgets biology; `adapters` is
    as in the option.

    Raises:
        ConfigError: invalid settings, such as rows that cannot be divided among the domains.
    """
    config = RunConfig(
        model=ModelConfig(size=model),
        partition=PartitionConfig(domains={domain: DomainConfig() for domain in DOMAINS}),
        edges=Edges(edges),
        plan=PlanConfig(
            kind=PlanKind(plan),
            forget=["biology"],
            mlp_shared=mlp_shared,
            adapters=_adapters(adapters),
        ),
        route=RouteConfig(foreign_dropout=foreign_dropout),
        data=DataConfig(vocab_size=vocab_size),
        train=train,
    )
    config = validate(config)
    step_rows(config)
    return config


def bench_step(
    configs: Mapping[str, RunConfig], *, rounds: int, device: torch.device
) -> list[StepResult]:
    """Times a step of every config, all of one model size; one of them is named "dense"."""
    dense = configs[DENSE]
    shape = named_config(dense, vocab_size=dense.data.vocab_size, eot_id=0)
    model = random_model(shape, seed=0).to(device)
    peaks: dict[str, int] = {}
    flops: dict[str, float] = {}
    parameters: dict[str, int] = {}
    step: JobStep | None = None
    step_name = ""

    def run(name: str) -> float:
        nonlocal step, step_name
        config = configs[name]
        counts = step_rows(config)
        if step is None or name != step_name:
            # Only the routing of the step changes: the model and its AdamW state are kept.
            before = {} if step is None else step.optimizer.state
            if step is not None:
                step.routed.unroute()
            step = make_step(lay_plan(model, config), config.train, counts, device)
            learning = set(model.parameters())
            step.optimizer.state.update({p: s for p, s in before.items() if p in learning})
            if config.plan.adapters != dense.plan.adapters:
                step.run()  # adapters are new each time, and so is their state
            step_name = name
        if name not in peaks:
            step.run()
            peaks[name] = _peak_bytes(step, device)
            parameters[name] = num_parameters(step.routed)
            flops[name] = train_flops_per_token(step.routed, counts, config.train.sequence_length)
        return harness.timed(step.run, device)

    runs = {name: functools.partial(run, name) for name in configs}
    medians = harness.median_seconds(runs, rounds, alternate=not dense.train.compile)

    tokens = sum(step_rows(dense).values()) * dense.train.sequence_length
    peak_rate = peak_flops(harness.device_name(device))
    target = Target(device.type, 1.0, None, device.type == "cuda")
    results = []
    for name, config in configs.items():
        rate = flops[name] * tokens / medians[name]
        results.append(
            StepResult(
                model=str(config.model.size),
                plan=config.plan.kind.value,
                mlp_shared=config.plan.mlp_shared,
                edges=config.edges.value,
                foreign_dropout=config.route.foreign_dropout,
                adapters=_as_option(config.plan.adapters),
                parameters=parameters[name],
                seconds=medians[name],
                tokens_per_second=tokens / medians[name],
                ratio=medians[name] / medians[DENSE],
                flop_limit=flops[name] / flops[DENSE],
                gflops=rate / 1e9,
                mfu=None if peak_rate is None else rate / peak_rate,
                peak_gib=peaks[name] / GIB,
                memory_ratio=peaks[name] / peaks[DENSE],
                estimated_gib=estimate_job(config, target).step_peak_bytes / GIB,
            )
        )
    return results


def _adapters(text: str) -> AdaptersConfig:
    words = [] if text == "none" else text.split(",")
    try:
        given = dict(word.split("=") for word in words)
        found: dict[str, Any] = {
            name: int(value) if value.isdecimal() else value == "true" or value
            for name, value in given.items()
        }
        return AdaptersConfig(**found)
    except (TypeError, ValueError) as error:
        expected = "none, or units by name, such as embed=full,mlp=8"
        raise invalid("--adapters", text, expected) from error


def _as_option(config: AdaptersConfig) -> str:
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    return ",".join(f"{name}={value}" for name, value in values.items() if value).lower() or "none"


def _peak_bytes(step: JobStep, device: torch.device) -> int:
    """Peak memory of one step, which is not timed."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or JSON.

    Raises:
        ConfigError: invalid settings.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = harness.bench_parser("step", __doc__, rows=12, sequence_length=256, rounds=7)
    parser.add_argument("--model", default=["nano"], nargs="+", choices=SIZES, help="sizes (nano)")
    parser.add_argument("--plan", default=["peers"], nargs="+", choices=PLANS, help="plans (peers)")
    parser.add_argument("--shared", default=[0.5], nargs="+", type=float, help="core shares (0.5)")
    parser.add_argument("--edges", default=EDGES, nargs="+", choices=EDGES, help="edges (all)")
    parser.add_argument(
        "--dropout", default=(0.0, 0.5, 1.0), nargs="+", type=float, help="foreign dropout (0 .5 1)"
    )
    parser.add_argument(
        "--adapters", default=["none"], nargs="+", metavar="NAME=UNITS,...",
        help="adapters of each block: none, embed=full,unembed=full, mlp=8 (none)",
    )  # fmt: skip
    parser.add_argument("--vocab-size", type=count, default=2048, help="tokens (2048)")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument(
        "--activation-checkpointing", action="store_true", help="recompute layers to save memory"
    )
    options = parser.parse_args(argv)
    by_model = {model: _configs(model, options) for model in options.model}
    harness.show("step", argv, options, _measured(by_model, options.rounds), _COLUMNS)
    return 0


def _configs(model: str, options: argparse.Namespace) -> dict[str, RunConfig]:
    train = TrainConfig(
        steps=1,
        batch_sequences=options.rows,
        sequence_length=options.sequence_length,
        compile=options.compile,
        activation_checkpointing=options.activation_checkpointing,
    )
    common = {"train": train, "vocab_size": options.vocab_size}
    cases = [
        {"plan": plan, "mlp_shared": shared, "adapters": a, "edges": edges, "foreign_dropout": p}
        for plan in options.plan
        for shared in options.shared
        for a in options.adapters
        for p in options.dropout
        for edges in options.edges
    ]
    configs = {DENSE: bench_config(model, **common)}
    return configs | {str(case): bench_config(model, **case, **common) for case in cases}


def _measured(by_model: Mapping[str, Mapping[str, RunConfig]], rounds: int) -> Iterator[StepResult]:
    for model, configs in by_model.items():
        try:
            yield from bench_step(configs, rounds=rounds, device=harness.this_device())
        except torch.OutOfMemoryError:
            print(f"{model} does not fit into the memory of the device", file=sys.stderr)
            return


if __name__ == "__main__":
    raise SystemExit(main())
