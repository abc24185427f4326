"""A whole training step, routed over dense: `python -m gr_sweep.bench.step --model nano`.

All settings take turns in one process, so that a machine that slows down slows all of them; medians
are compared. Beside each ratio stands the limit that the operations set: multiply-adds of the
routed step's matrix products over those of the dense step.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from gr_sweep.config import TrainConfig
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel, route_model
from gr_sweep.model.sizes import SIZES, llama_config, random_model, shape_of
from gr_sweep.routing.edges import EDGE_CHOICES
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.cost import multiply_adds
from gr_sweep.train.loop import train_step
from gr_sweep.train.optim import make_optimizer

DOMAINS = ("code", "biology", "creative")
PLANS = ("peers", "forget", "lattice")


@dataclass(frozen=True)
class StepResult:
    """One setting against the dense step."""

    edges: str
    foreign_dropout: float
    seconds: float
    """Median of a step: forward, backward, clipping, optimizer."""
    ratio: float
    """Of that to the dense step's."""
    flop_limit: float
    """Multiply-adds of all matrix products over the dense step's: what the ratio could be."""


def bench_step(
    model: str,
    *,
    rows: int,
    sequence_length: int,
    vocab_size: int,
    rounds: int,
    device: torch.device,
    plan: str = "peers",
) -> list[StepResult]:
    """Medians over `rounds` alternating rounds, the dense step first.

    Under `plan="forget"` biology is forgotten.
    """
    shape = shape_of(model)
    config = llama_config(shape, vocab_size=vocab_size, eot_id=0, sequence_length=sequence_length)
    settings = [("dense", 0.0)] + [(edges, p) for p in (0.0, 0.5, 1.0) for edges in EDGE_CHOICES]
    counts = dict.fromkeys(DOMAINS, rows // len(DOMAINS))
    tokens = torch.randint(0, vocab_size, (sum(counts.values()), sequence_length + 1)).to(device)
    seconds: list[list[float]] = [[] for _ in settings]
    limits: list[float] = []
    routed_model = random_model(config, seed=0).to(device)  # type: ignore[arg-type]
    optimizer = make_optimizer(routed_model, TrainConfig())

    def step(routed: RoutedModel) -> None:
        train_step(
            routed,
            TokenLosses(routed),
            optimizer,
            [tokens],
            counts,
            tokens_per_step=len(tokens) * sequence_length,
            config=TrainConfig(),
        )
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for turn in range(rounds + 1):
        for index, (edges, foreign_dropout) in enumerate(settings):
            is_dense = edges == "dense"
            kind = "none" if is_dense else plan
            routed = route_model(
                routed_model,
                RoutePlan.make(kind, shape, domains=DOMAINS, forget=["biology"]),
                "none" if is_dense else edges,
                foreign_dropout=foreign_dropout,
            )
            if turn == 0:
                limits.append(multiply_adds(routed, counts))
            start = time.perf_counter()
            step(routed)
            if turn > 0:  # the first round warms up
                seconds[index].append(time.perf_counter() - start)
            routed.unroute()
    medians = [statistics.median(times) for times in seconds]
    return [
        StepResult(edges, p, median, median / medians[0], limit / limits[0])
        for (edges, p), median, limit in zip(settings, medians, limits, strict=True)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m gr_sweep.bench.step", description=__doc__)
    parser.add_argument("--model", default="nano", choices=SIZES, help="size (default: nano)")
    parser.add_argument(
        "--plan", default="peers", choices=PLANS, help="shape of the owner sets (default: peers)"
    )
    parser.add_argument("--rows", type=int, default=12, help="sequences a step (default: 12)")
    parser.add_argument("--sequence-length", type=int, default=256, help="tokens (default: 256)")
    parser.add_argument("--vocab-size", type=int, default=2048, help="default: 2048")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds (default: 7)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    if options.rows < len(DOMAINS) or options.rows % len(DOMAINS):
        parser.error(f"--rows {options.rows} is no multiple of the {len(DOMAINS)} domains")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = bench_step(
        options.model,
        rows=options.rows,
        sequence_length=options.sequence_length,
        vocab_size=options.vocab_size,
        rounds=options.rounds,
        device=device,
        plan=options.plan,
    )
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return 0
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{options.model}, plan={options.plan}, {name}, {torch.get_num_threads()} threads")
    print(f"{'edges':8} {'dropout':>8} {'ms':>8} {'ratio':>7} {'FLOP limit':>11}")
    for r in results:
        numbers = f"{r.seconds * 1e3:8.0f} {r.ratio:7.3f} {r.flop_limit:11.3f}"
        print(f"{r.edges:8} {r.foreign_dropout:8.2f} {numbers}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
