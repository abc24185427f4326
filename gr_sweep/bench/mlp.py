"""One gated MLP, forward and backward, routed over dense: `python -m gr_sweep.bench.mlp`.

Everything takes turns in one process, so that a machine that slows down slows all of it; medians
are compared. Two rivals are in it: the stock MLP (three `nn.Linear` under plain autograd), and the
formula that gradient routing is published with, `mask * h + (1 - mask) * h.detach()` on the hidden
activation (Cloud et al. 2024, arXiv 2410.04332), which computes every product of the dense MLP and
then cuts. Beside each ratio stands its FLOP limit: the multiply-adds that the setting must do over
the dense MLP's.
"""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gr_sweep.arguments import Parser, count
from gr_sweep.bench.output import device_name, record
from gr_sweep.bench.step import DOMAINS, synchronize
from gr_sweep.model.route import RoutedModel, route_model
from gr_sweep.model.sizes import Size, llama_config, random_model
from gr_sweep.routing.edges import EDGE_CHOICES
from gr_sweep.routing.plan import MLP, RoutePlan
from gr_sweep.train.cost import multiply_adds

SHARES = (0.25, 0.5, 0.75)
DROPOUTS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class MlpResult:
    """One setting."""

    kind: str
    """An edge choice of the routed MLP; `dense`: stock modules; `masked`: the published formula for
    `both`."""
    mlp_shared: float
    """The core's share of the hidden units."""
    foreign_dropout: float
    seconds: float
    """Median of a forward and backward pass."""
    ratio: float
    """Of that to the dense MLP's."""
    flop_limit: float
    """What the ratio could be: multiply-adds over the dense MLP's."""


def bench_mlp(
    *,
    width: int,
    hidden: int,
    rows: int,
    sequence_length: int,
    rounds: int,
    shares: Sequence[float] = SHARES,
    dropouts: Sequence[float] = DROPOUTS,
    device: torch.device,
) -> list[MlpResult]:
    """Medians over `rounds` alternating rounds, dense first.

    Args:
        width, hidden: d_model and d_ff.
        rows: sequences, shared out over three domains as evenly as they divide.
        sequence_length: tokens of each.
    """
    shape = Size(width, hidden, 1, 1, 1)
    config = llama_config(shape, vocab_size=8, eot_id=0, sequence_length=sequence_length)
    model: Any = random_model(config, seed=0).to(device)  # type: ignore[arg-type]
    mlp = model.model.layers[0].mlp
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    each, extra = divmod(rows, len(DOMAINS))
    counts = {domain: each + (index < extra) for index, domain in enumerate(DOMAINS)}
    x_NTD, dy_NTD = torch.randn(2, rows, sequence_length, width, device=device)

    def run(
        forward: Callable[[Tensor], Tensor], context: contextlib.AbstractContextManager
    ) -> float:
        x = x_NTD.requires_grad_()
        with context, torch.autocast(device.type, dtype, enabled=device.type == "cuda"):
            with torch.no_grad():
                forward(x)  # a routing is worked out when it is first used
            synchronize(device)
            start = time.perf_counter()
            y = forward(x)
        y.backward(dy_NTD.to(y.dtype))
        synchronize(device)
        seconds = time.perf_counter() - start
        x.grad = None
        model.zero_grad(set_to_none=True)
        return seconds

    plans = {share: RoutePlan.peers(config, domains=DOMAINS, mlp_shared=share) for share in shares}
    cases: list[tuple[str, float, float]] = [("dense", 1.0, 0.0)]
    for share in shares:
        cases.append(("masked", share, 0.0))
        cases += [(edges, share, p) for p in dropouts for edges in EDGE_CHOICES]
    seconds: dict[tuple[str, float, float], list[float]] = {case: [] for case in cases}
    limits: dict[tuple[str, float, float], float] = {}
    for turn in range(rounds + 1):
        for case in cases:
            kind, share, foreign_dropout = case
            limits.setdefault(case, 1.0)
            if kind == "dense":
                taken = run(mlp, contextlib.nullcontext())
            elif kind == "masked":
                taken = run(
                    _masked(mlp, _mask(plans[share], counts, device)), contextlib.nullcontext()
                )
            else:
                routed = route_model(model, plans[share], kind, foreign_dropout=foreign_dropout)
                limits[case] = _flop_limit(routed, counts)
                taken = run(mlp, routed.batch(counts))
                routed.unroute()
            if turn > 0:  # the first round warms up
                seconds[case].append(taken)
    medians = {case: statistics.median(times) for case, times in seconds.items()}
    dense = medians[cases[0]]
    return [MlpResult(*case, medians[case], medians[case] / dense, limits[case]) for case in cases]


def _mask(plan: RoutePlan, counts: dict[str, int], device: torch.device) -> Tensor:
    """[N, 1, F]: 1 where the sequence's domain owns the hidden unit."""
    owned = [[float(plan.owns(domain, block)) for block in plan.blocks] for domain in plan.domains]
    by_unit = torch.tensor(owned).repeat_interleave(torch.tensor(plan.splits[0, MLP].sizes), dim=1)
    return by_unit.repeat_interleave(torch.tensor(list(counts.values())), dim=0)[:, None].to(device)


def _masked(mlp: Any, mask_N1F: Tensor) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        h = torch.nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
        mask = mask_N1F.to(h.dtype)
        return mlp.down_proj(mask * h + (1 - mask) * h.detach())

    return forward


def _flop_limit(routed: RoutedModel, counts: dict[str, int]) -> float:
    """Of the MLP alone: what is not its own costs the same routed and dense."""
    plan, own = routed.plan, sum(linear.module.weight.numel() for linear in routed.unit_linears)
    uses = multiply_adds(routed, counts)
    linears = [m for m in routed.model.modules() if isinstance(m, torch.nn.Linear)]
    others = sum(m.weight.numel() for m in linears) - own
    assert len(plan.domains) == len(counts)
    return (uses - 3 * others) / (3 * own)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or JSON."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="gr-sweep bench mlp", description=__doc__)
    parser.add_argument("--width", type=count, default=1024, help="d_model (default: 1024)")
    parser.add_argument("--hidden", type=count, default=4096, help="d_ff (default: 4096)")
    parser.add_argument("--rows", type=count, default=16, help="sequences (default: 16)")
    parser.add_argument("--sequence-length", type=count, default=256, help="tokens (default: 256)")
    parser.add_argument("--rounds", type=count, default=7, help="alternating rounds (default: 7)")
    parser.add_argument("--shared", type=float, nargs="+", default=SHARES, help="core shares")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(argv)
    if options.rows < len(DOMAINS):
        parser.error(f"--rows {options.rows} is fewer than the {len(DOMAINS)} domains")
    if not all(0 <= share < 1 for share in options.shared):
        parser.error("--shared takes shares from 0 to below 1")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = {
        "width": options.width,
        "hidden": options.hidden,
        "rows": options.rows,
        "sequence_length": options.sequence_length,
        "rounds": options.rounds,
    }
    results = bench_mlp(**shape, shares=options.shared, device=device)
    if options.json:
        rows = [asdict(result) for result in results]
        print(json.dumps(record("mlp", argv, device, shape, rows), indent=1))
        return 0
    print(
        f"gated MLP {options.width} x {options.hidden}, {options.rows * options.sequence_length} "
        f"tokens, {device_name(device)}, {torch.get_num_threads()} threads"
    )
    print(
        f"{'':8} {'core':>5} {'dropout':>8} {'ms':>8} {'ratio':>7} {'FLOP limit':>11} {'above':>7}"
    )
    for r in results:
        numbers = f"{r.seconds * 1e3:8.1f} {r.ratio:7.3f} {r.flop_limit:11.3f}"
        above = f"{r.ratio - r.flop_limit:7.3f}"
        print(f"{r.kind:8} {r.mlp_shared:5.2f} {r.foreign_dropout:8.2f} {numbers} {above}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
