"""The kinds of units that a plan divides or adds, and how many of each a layer of a model has."""

from collections.abc import Mapping
from typing import Any

from gr_sweep.errors import PlanError

MLP = "mlp"
EXPERT = "expert"
ATTN = "attn"
EMBED = "embed"
UNEMBED = "unembed"
BIAS = "bias"
MLP_ADAPTER = "mlp_adapter"
ATTN_ADAPTER = "attn_adapter"
ADAPTERS = {
    "embed": EMBED,
    "unembed": UNEMBED,
    "bias": BIAS,
    "attn": ATTN_ADAPTER,
    "mlp": MLP_ADAPTER,
}
"""The kinds of units that a plan adds to a model, by their settings: features of bottlenecks beside
the embedding, the unembedding, and every linear map of an MLP or of attention; and biases of the
output vocabulary. Layer 0 has those that no layer has."""
KINDS = {
    MLP: "hidden units",
    EXPERT: "experts",
    ATTN: "head groups",
    EMBED: "adapter units of the embedding",
    UNEMBED: "adapter units of the unembedding",
    BIAS: "output biases",
    MLP_ADAPTER: "adapter units of the MLP",
    ATTN_ADAPTER: "adapter units of attention",
}
"""Each kind of unit and its name in messages.

A new kind is also needed in `units_per_layer` and `RoutePlan._build` (how many, and the core's
share), `PlanConfig` and `planning.make_plan` (its setting), `divide.split_further` (later rounds),
`Family.linears` and `unit_linears` (its place in a model; `model/adapters.py` if the plan adds it),
`assign.attribution._sites` (attribution), `extract._resized` and `model/sizes.py` (other widths),
`planning.plan_of_round`, `units.swaps_of`, `cost.kept_flops_per_token`, `pretrained._SIZES`,
`export.write._UNITS`, and first in tests/reference.py. Units are rows or columns of a linear map:
others, such as stacked experts (`routing/experts.py`), need a routed class of their own too.
"""

FULL = "full"
"""Instead of a number of adapter units: as many as the model is wide, without a bottleneck."""

Place = tuple[int, str]
"""A layer and a kind of unit."""

ModelShape = Any
"""A Hugging Face config, or another shape of a model with its names of sizes."""


def units_per_layer(config: ModelShape) -> dict[str, int]:
    """Number of units of each kind in a layer: experts if the MLP is a mixture of them, else its
    hidden units.

    Raises:
        PlanError: a config without these numbers, which is of no family that can be split.
    """
    name = mlp_size_name(config)
    sizes: dict[str, Any] = {
        n: getattr(config, n, None) for n in (name, "num_attention_heads", "num_hidden_layers")
    }
    if sizes[name] is None and hasattr(config, name):
        sizes[name] = 4 * getattr(config, "hidden_size", 0)  # what GPT-2 and GPT-Neo mean
    for size, value in sizes.items():
        if not isinstance(value, int):
            raise PlanError(
                f"model type {getattr(config, 'model_type', None)!r} is not supported: expected a "
                f"whole number as {size} of the config, got {value}"
            )
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    num_experts: int = getattr(config, "num_experts", None) or 0
    return {EXPERT: num_experts, ATTN: groups} if num_experts else {MLP: sizes[name], ATTN: groups}


def mlp_size_name(config: ModelShape) -> str:
    """The attribute of a Hugging Face config with the number of MLP hidden units."""
    return "n_inner" if hasattr(config, "n_inner") else "intermediate_size"


def added_units(adapters: Mapping[str, int | str], config: ModelShape) -> dict[str, int]:
    """The number of units that each block gets, by kind; without those of 0.

    Args:
        adapters: by the name of the setting; "full" as many as the residual stream is wide.

    Raises:
        PlanError: an unknown name, or what is not a number of units.
    """
    found = {}
    for name, number in adapters.items():
        can_be_full = name in (EMBED, UNEMBED)
        if name not in ADAPTERS:
            raise PlanError(f"unknown adapter {name!r}; expected one of {', '.join(ADAPTERS)}")
        if number == FULL and can_be_full:
            number = config.hidden_size
        if not isinstance(number, int) or number < 0:
            expected = "a number of units" + (" or full" if can_be_full else "")
            raise PlanError(f"expected plan.adapters.{name} to be {expected}, got {number!r}")
        if number:
            found[ADAPTERS[name]] = int(number)
    return found
