"""Times one gated MLP, forward and backward, routed over dense: `python -m gr_sweep.bench.mlp`.

The rivals are the stock MLP (three `nn.Linear` under plain autograd) and the published formula
`mask * h + (1 - mask) * h.detach()` on the hidden activation (Cloud et al. 2024, arXiv 2410.04332),
which computes every product of the dense MLP and then cuts. Each ratio comes with its FLOP limit:
the multiply-adds that the setting needs over those of the dense MLP.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gr_sweep.arguments import count
from gr_sweep.bench import harness
from gr_sweep.bench.step import DOMAINS
from gr_sweep.model.route import RoutedModel, route_model
from gr_sweep.model.sizes import Size, llama_config, random_model
from gr_sweep.routing.edges import EDGE_CHOICES
from gr_sweep.routing.kinds import MLP
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.cost import multiply_adds

SHARES = (0.25, 0.5, 0.75)
DROPOUTS = (0.0, 0.5, 1.0)

_COLUMNS = {
    "edges": "7", "mlp_shared": "4.2f", "foreign_dropout": "4.2f", "seconds": "9.5f",
    "ratio": "7.3f", "flop_limit": "5.3f",
}  # fmt: skip


def bench_mlp(
    *,
    width: int,
    hidden: int,
    rows: int,
    sequence_length: int,
    rounds: int,
    device: torch.device,
) -> list[harness.Row]:
    """Medians over `rounds` alternating rounds, the dense MLP first.

    Args:
        width, hidden: d_model and d_ff.
        rows: sequences, divided as evenly as possible among three domains.
        sequence_length: tokens of a sequence.
    """
    shape = Size(width, hidden, 1, 1, 1)
    config = llama_config(shape, vocab_size=8, eot_id=0, sequence_length=sequence_length)
    model: Any = random_model(config, seed=0).to(device)
    mlp = model.model.layers[0].mlp
    each, extra = divmod(rows, len(DOMAINS))
    counts = {domain: each + (index < extra) for index, domain in enumerate(DOMAINS)}
    x_NTD, dy_NTD = torch.randn(2, rows, sequence_length, width, device=device)
    x_NTD.requires_grad_()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    plans = {share: RoutePlan.peers(config, domains=DOMAINS, mlp_shared=share) for share in SHARES}
    dense = ("dense", 1.0, 0.0)
    cases = [dense]
    for share in SHARES:
        cases.append(("masked", share, 0.0))
        cases += [(edges, share, p) for p in DROPOUTS for edges in EDGE_CHOICES]
    limits = dict.fromkeys(cases, 1.0)

    def seconds_of(forward: Callable[[Tensor], Tensor]) -> float:
        def step() -> None:
            with autocast:
                y = forward(x_NTD)
            y.backward(dy_NTD.to(y.dtype))

        with torch.no_grad(), autocast:
            forward(x_NTD)  # prepares the row groups of a routed MLP, which are then cached
        seconds = harness.timed(step, device)
        x_NTD.grad = None
        model.zero_grad(set_to_none=True)
        return seconds

    def run(case: tuple[str, float, float]) -> float:
        edges, share, foreign_dropout = case
        if edges == "dense":
            return seconds_of(mlp)
        if edges == "masked":
            return seconds_of(_masked(mlp, plans[share], counts, device))
        routed = route_model(model, plans[share], edges, foreign_dropout=foreign_dropout)
        limits[case] = _flop_limit(routed, counts)
        with routed.batch(counts, step=0):
            seconds = seconds_of(mlp)
        routed.unroute()
        return seconds

    runs = {case: functools.partial(run, case) for case in cases}
    medians = harness.median_seconds(runs, rounds)
    return [
        {
            "edges": case[0],
            "mlp_shared": case[1],
            "foreign_dropout": case[2],
            "seconds": medians[case],
            "ratio": medians[case] / medians[dense],
            "flop_limit": limits[case],
        }
        for case in cases
    ]


def _masked(
    mlp: Any, plan: RoutePlan, counts: dict[str, int], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """The published formula; the mask is 1 where the sequence's domain owns the hidden unit."""
    owned = [[float(plan.owns(domain, block)) for block in plan.blocks] for domain in plan.domains]
    by_unit = torch.tensor(owned).repeat_interleave(torch.tensor(plan.splits[0, MLP].sizes), dim=1)
    mask_NF = by_unit.repeat_interleave(torch.tensor(list(counts.values())), dim=0).to(device)

    def forward(x: Tensor) -> Tensor:
        h = torch.nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
        mask = mask_NF[:, None].to(h.dtype)
        return mlp.down_proj(mask * h + (1 - mask) * h.detach())

    return forward


def _flop_limit(routed: RoutedModel, counts: dict[str, int]) -> float:
    """Multiply-adds of the routed MLP over the dense one's; other modules cost the same in both."""
    own = sum(linear.parameters[0].numel() for linear in routed.unit_linears)
    linears = [m for m in routed.model.modules() if isinstance(m, torch.nn.Linear)]
    others = sum(m.weight.numel() for m in linears) - own
    return (multiply_adds(routed, counts) - 3 * others) / (3 * own)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table, or JSON."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = harness.bench_parser("mlp", __doc__, rows=16, sequence_length=256, rounds=7)
    parser.add_argument("--width", type=count, default=1024, help="d_model (1024)")
    parser.add_argument("--hidden", type=count, default=4096, help="d_ff (4096)")
    options = parser.parse_args(argv)
    if options.rows < len(DOMAINS):
        parser.error(f"--rows: expected at least {len(DOMAINS)}, one a domain, got {options.rows}")
    shape = {key: value for key, value in vars(options).items() if key != "json"}
    rows = bench_mlp(**shape, device=harness.this_device())
    harness.show("mlp", argv, options, rows, _COLUMNS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
