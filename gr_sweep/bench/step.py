"""Times whole training steps, routed over dense: `python -m gr_sweep.bench.step --model mini`.

Each ratio of times comes with its limit, the operations that the step needs over those of the dense
step, and the peak memory with its estimate. Sizes are measured in the order given, until one does
not fit. Beside what all benchmarks have, rows hold:

- gflops: operations that the step needs, 1e9 a second: the `--gflops` of `gr-sweep estimate`
- mfu: those over the GPU's bfloat16 peak; null where the peak is not known
- first_seconds: the first step, which compiles where that is asked for
- peak_gib: the most that tensors hold at once in a step, weights and optimizer included
- memory_ratio: `peak_gib` over the dense step's
- estimated_gib: `peak_gib` as `gr-sweep estimate` has it; null if no time was left
"""

import argparse
import copy
import functools
import gc
import itertools
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gr_sweep.arguments import count
from gr_sweep.bench import harness
from gr_sweep.bounds import invalid
from gr_sweep.checks import validate
from gr_sweep.components import lay_plan, named_config
from gr_sweep.config import (
    AdaptersConfig,
    Core,
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
from gr_sweep.train.step import JobStep

DOMAINS = ("code", "biology", "creative")
PLANS = ("peers", "forget", "lattice")
EDGES = tuple(choice.value for choice in Edges)
DENSE = "dense"

_COLUMNS = {
    "model": "5", "plan": "7", "mlp_shared": "4.2f", "edges": "6", "foreign_dropout": "4.2f",
    "seconds": "9.4f", "ratio": "6.3f", "flop_limit": "5.3f", "tokens_per_second": "6.0f",
    "gflops": "6.1f", "mfu": "5.2f", "peak_gib": "8.3f", "memory_ratio": "5.3f",
    "estimated_gib": "5.3f", "first_seconds": "5.1f", "adapters": "8",
}  # fmt: skip


def bench_config(
    model: str,
    *,
    plan: str = "none",
    edges: str = "none",
    foreign_dropout: float = 0.0,
    mlp_shared: float = 0.5,
    adapters: str = "none",
    num_domains: int = len(DOMAINS),
    core: Core = Core.trained,
    vocab_size: int = 2048,
    train: TrainConfig,
) -> RunConfig:
    """The config of a job; `plan="forget"` forgets biology; `adapters` is as in the option.

    Raises:
        ConfigError: invalid settings, such as rows that cannot be divided among the domains.
    """
    domains = [*DOMAINS, *(f"domain{number}" for number in range(4, num_domains + 1))]
    config = RunConfig(
        model=ModelConfig(size=model),
        partition=PartitionConfig(
            domains={domain: DomainConfig() for domain in domains[:num_domains]}
        ),
        edges=Edges(edges),
        plan=PlanConfig(
            kind=PlanKind(plan),
            forget=["biology"],
            mlp_shared=mlp_shared,
            adapters=_adapters(adapters),
            core=core,
        ),
        route=RouteConfig(foreign_dropout=foreign_dropout),
        data=DataConfig(vocab_size=vocab_size),
        train=train,
    )
    config = validate(config)
    step_rows(config)
    return config


def _adapters(text: str) -> AdaptersConfig:
    words = [] if text == "none" else text.split(",")
    try:
        given: dict[str, Any] = dict(word.split("=") for word in words)
        for name, value in given.items():
            given[name] = int(value) if value.isdecimal() else value == "true" or value
        return AdaptersConfig(**given)
    except (TypeError, ValueError) as error:
        expected = "none, or units by name, such as embed=full,mlp=8"
        raise invalid("--adapters", text, expected) from error


@dataclass
class _Case:
    """A setting, and what was measured before its steps are timed."""

    config: RunConfig
    step: JobStep
    flops: float
    """Operations of a step."""
    first_seconds: float = 0.0
    peak: int = 0


def bench_step(
    configs: Mapping[str, RunConfig],
    *,
    rounds: int,
    device: torch.device,
    deadline: float = math.inf,
) -> list[harness.Row]:
    """Times a step of every config, all of one model size; ratios are over the first one.

    The weights exist once: each setting has modules of its own around them, so that all stay
    compiled while they take turns. Adapters are each setting's own. A setting after the first that
    fails, or whose turn comes after `deadline` (`time.monotonic()`), is left out and reported.
    """
    first, *_ = configs.values()
    shape = named_config(first, vocab_size=first.data.vocab_size, eot_id=0)
    with device:
        model = random_model(shape, seed=0)
    # All are made before one runs: making a step discards what was compiled.
    cases = {name: _make_case(model, config, device) for name, config in configs.items()}
    reference = next(iter(cases))
    for name in list(cases):
        try:
            if time.monotonic() > deadline and name != reference:
                raise TimeoutError("no time was left")
            _warm_up(cases[name], cases[reference], device)
        except (RuntimeError, TimeoutError) as error:  # out of memory, or not compiled
            if name == reference:
                raise
            said = str(error).strip().partition("\n")[0]
            print(f"not measured: {name}: {type(error).__name__}: {said}", file=sys.stderr)
            del cases[name]
            model.zero_grad(set_to_none=True)
        gc.collect()  # a failed setting's memory, which an error's traceback may have held
        if device.type == "cuda":
            torch.cuda.empty_cache()

    runs = {
        name: functools.partial(harness.timed, case.step.run, device)
        for name, case in cases.items()
    }
    medians = harness.median_seconds(runs, rounds, deadline=deadline)
    target = Target(device.type, 1.0, None, device.type == "cuda")
    rows = []
    for name, case in cases.items():
        row = _row(case, cases[reference], medians[name], device)
        row["ratio"] = medians[name] / medians[reference]
        is_late = time.monotonic() > deadline
        peak = None if is_late else estimate_job(case.config, target).step_peak_bytes / GIB
        rows.append(row | {"estimated_gib": peak})
    return rows


def _make_case(model: Any, config: RunConfig, device: torch.device) -> _Case:
    counts, length = step_rows(config), config.train.sequence_length
    modules = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    step = JobStep(lay_plan(modules, config), config.train, counts, device)
    for tokens_NS in step.micro_batches:  # a GPU is faster on data that are all alike
        tokens_NS.random_(config.data.vocab_size)
    flops = train_flops_per_token(step.routed, counts, length) * sum(counts.values()) * length
    return _Case(config, step, flops)


def _warm_up(case: _Case, reference: _Case, device: torch.device) -> None:
    """Runs each list of foreign dropout once, which compiles it, and measures the peak memory."""
    optimizer = case.step.optimizer
    trained = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    known = reference.step.optimizer.state.items()  # AdamW's state of shared weights is shared
    optimizer.state.update({weight: state for weight, state in known if id(weight) in trained})
    case.first_seconds = harness.timed(case.step.run, device)
    for _ in case.step.routed.cycle(step_rows(case.config))[1:]:
        case.step.run()
    case.peak = _peak_bytes(case.step, device)


def _peak_bytes(step: JobStep, device: torch.device) -> int:
    """Peak memory of one step, which is not timed, without what other settings hold; on the CPU of
    one that is not compiled."""
    memory = AllocatedBytes()
    memory.hold([*step.weights(), *step.optimizer_state()])
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step.run()
        torch.cuda.synchronize(device)
        return memory.current + torch.cuda.max_memory_allocated(device) - before
    # Counting would keep the compiler from the steps to come.
    with torch.compiler.set_stance("force_eager"), memory:
        step.run()
    return memory.peak


def _row(case: _Case, reference: _Case, seconds: float, device: torch.device) -> harness.Row:
    plan, train = case.config.plan, case.config.train
    adapters = [f"{name}={units}" for name, units in asdict(plan.adapters).items() if units]
    peak_rate = peak_flops(harness.device_name(device))
    return {
        "model": str(case.config.model.size),
        "plan": plan.kind.value,
        "mlp_shared": plan.mlp_shared,
        "edges": case.config.edges.value,
        "foreign_dropout": case.config.route.foreign_dropout,
        "adapters": ",".join(adapters).lower() or "none",
        "parameters": num_parameters(case.step.routed),
        "seconds": seconds,
        "first_seconds": case.first_seconds,
        "tokens_per_second": train.batch_sequences * train.sequence_length / seconds,
        "flop_limit": case.flops / reference.flops,
        "gflops": case.flops / seconds / 1e9,
        "mfu": None if peak_rate is None else case.flops / seconds / peak_rate,
        "peak_gib": case.peak / GIB,
        "memory_ratio": case.peak / reference.peak,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or JSON.

    Raises:
        ConfigError: invalid settings.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = harness.bench_parser("step", __doc__, rows=12, sequence_length=256, rounds=7)
    add = parser.add_argument
    add("--model", default=["nano"], nargs="+", choices=SIZES, help="sizes (nano)")
    add("--plan", default=["peers"], nargs="+", choices=PLANS, help="plans (peers)")
    add("--shared", default=[0.5], nargs="+", type=float, help="core shares (0.5)")
    add("--edges", default=EDGES, nargs="+", choices=EDGES, help="edges (all)")
    dropouts = (0.0, 0.5, 1.0)
    add("--dropout", default=dropouts, nargs="+", type=float, help="foreign dropout (0 .5 1)")
    units = "adapters of each block: none, embed=full,unembed=full, mlp=8 (none)"
    add("--adapters", default=["none"], nargs="+", metavar="NAME=UNITS,...", help=units)
    add("--domains", type=count, default=len(DOMAINS), help="number of domains (3)")
    add("--vocab-size", type=count, default=2048, help="tokens (2048)")
    add("--compile", action="store_true", help="use torch.compile")
    add("--activation-checkpointing", action="store_true", help="recompute layers to save memory")
    add("--frozen-core", action="store_true", help="train blocks alone; compare with the first")
    add("--minutes", type=float, help="leave out what would begin after this time")
    options = parser.parse_args(argv)
    by_model = {model: _configs(model, options) for model in options.model}
    harness.show("step", argv, options, _measured(by_model, options), _COLUMNS)
    return 0


def _configs(model: str, options: argparse.Namespace) -> dict[str, RunConfig]:
    train = TrainConfig(
        steps=1,
        batch_sequences=options.rows,
        sequence_length=options.sequence_length,
        compile=options.compile,
        activation_checkpointing=options.activation_checkpointing,
    )
    make = functools.partial(
        bench_config,
        model,
        num_domains=options.domains,
        vocab_size=options.vocab_size,
        train=train,
    )
    names = ("plan", "mlp_shared", "adapters", "foreign_dropout", "edges")
    values = (options.plan, options.shared, options.adapters, options.dropout, options.edges)
    cases = [dict(zip(names, case, strict=True)) for case in itertools.product(*values)]
    core = Core.frozen if options.frozen_core else Core.trained
    configs = {str(case): make(**case, core=core) for case in cases}
    return configs if options.frozen_core else {DENSE: make()} | configs


def _measured(
    by_model: Mapping[str, Mapping[str, RunConfig]], options: argparse.Namespace
) -> Iterator[harness.Row]:
    device, deadline = harness.this_device(), time.monotonic() + 60 * (options.minutes or math.inf)
    for model, configs in by_model.items():
        try:
            yield from bench_step(configs, rounds=options.rounds, device=device, deadline=deadline)
        except torch.OutOfMemoryError:
            print(f"{model} does not fit into the memory of the device", file=sys.stderr)
            return


if __name__ == "__main__":
    raise SystemExit(main())
