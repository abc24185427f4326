"""Where each family of models keeps its units: gate, up and down; q, k, v and o.

Names are those of the Hugging Face modules, relative to a decoder layer. To support another family,
add it to `FAMILIES`; for another kind of unit, see `gr_sweep.routing.kinds.KINDS` and
`Family.linears`. Does not import torch; `gr_sweep.model.units` finds the units in a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gr_sweep.errors import PlanError
from gr_sweep.routing.kinds import ADAPTERS, ATTN, EXPERT, KINDS, MLP, MLP_ADAPTER, units_per_layer
from gr_sweep.routing.plan import RoutePlan


@dataclass(frozen=True)
class LinearNames:
    """Names of the linears of a decoder layer that hold the units of one kind."""

    columns: tuple[str, ...]
    """Column maps, whose weight has the units as rows: gate and up; q, k and v."""
    row: str
    """The row map, whose weight has the units as columns: down; o."""
    num_parts: int = 1
    """Column maps in each matrix, one after the other: 2 for gate and up, 3 for q, k and v."""


@dataclass(frozen=True)
class Family:
    """What routing knows of a family of models."""

    layers: str
    """Name of the list of decoder layers in the model."""
    linears: Mapping[str, LinearNames]
    """The linears by kind of unit: of the MLP and of attention."""
    mixture: str | None = None
    """Module whose `experts` are units, as stacked matrices, and whose `gate` is their router; it
    takes the place of linears of an MLP."""
    gated_mlp: str | None = None
    """Module that computes `down_proj(act(gate_proj(x)) * up_proj(x))`, if there is one; with
    `gate_up_proj` if gate and up are one matrix. It is routed as a whole if `act` is SiLU."""
    head_norms: tuple[str, ...] = ()
    """Norms over the features of each head: that of q, then that of k."""
    heads_first: bool = False
    """Whether the input of `head_norms` has heads before positions."""
    heads_divide_width: bool = False
    """Whether the config refuses a number of heads that does not divide the residual width."""
    keeps_heads: bool = False
    """Whether a smaller model has as many heads, since the config derives their size from their
    number. Heads that are removed are then zeros."""
    learned_positions: bool = False
    """Whether there are no more positions than the config says."""
    why_whole: str = ""
    """Why attention cannot be split; "" if it can."""


_GATED_MLP = LinearNames(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
_PLAIN_MLP = LinearNames(("mlp.c_fc",), "mlp.c_proj")
_QKV = ("q_proj", "k_proj", "v_proj")
_HEADS = LinearNames(tuple(f"self_attn.{name}" for name in _QKV), "self_attn.o_proj")
_NEO_HEADS = LinearNames(
    tuple(f"attn.attention.{name}" for name in _QKV), "attn.attention.out_proj"
)
_GATED = Family("model.layers", {MLP: _GATED_MLP, ATTN: _HEADS}, gated_mlp="mlp")
_NORMED_HEADS = replace(_GATED, head_norms=("self_attn.q_norm", "self_attn.k_norm"))
_WHOLE_NORM = replace(_GATED, why_whole="it normalises q and k across all heads")
_MIXTURE = Family("model.layers", {ATTN: _HEADS}, mixture="mlp")
_GPT2 = Family(
    "transformer.h",
    {MLP: _PLAIN_MLP, ATTN: LinearNames(("attn.c_attn",), "attn.c_proj", num_parts=3)},
    keeps_heads=True,
    learned_positions=True,
)

FAMILIES = {
    "llama": replace(_GATED, heads_divide_width=True),
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": _NORMED_HEADS,
    "olmo": _GATED,
    "gemma": _GATED,
    "gemma2": _GATED,
    "gemma3_text": replace(_NORMED_HEADS, heads_first=True),
    "granite": _GATED,
    "olmo2": _WHOLE_NORM,
    "olmo3": _WHOLE_NORM,
    "mixtral": _MIXTURE,
    "qwen3_moe": replace(_MIXTURE, head_norms=_NORMED_HEADS.head_norms),
    "olmoe": replace(_MIXTURE, why_whole=_WHOLE_NORM.why_whole),
    "phi3": Family(
        "model.layers",
        {
            MLP: LinearNames(("mlp.gate_up_proj",), "mlp.down_proj", num_parts=2),
            ATTN: LinearNames(("self_attn.qkv_proj",), "self_attn.o_proj", num_parts=3),
        },
        gated_mlp="mlp",
        keeps_heads=True,
    ),
    "gpt2": _GPT2,
    "gpt_neo": replace(_GPT2, linears={MLP: _PLAIN_MLP, ATTN: _NEO_HEADS}),
    "gpt_neox": Family(
        "gpt_neox.layers",
        {
            MLP: LinearNames(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
            # q, k and v of a head are neighbours: rows of one unit.
            ATTN: LinearNames(("attention.query_key_value",), "attention.dense"),
        },
        keeps_heads=True,
    ),
}
"""By `config.model_type`. If a family's config has other names for sizes, they are also needed in
`pretrained._SIZES`, `kinds.units_per_layer` and `extract._resized`."""


def family_of(config: Any) -> Family:
    """The family of a Hugging Face config.

    Raises:
        PlanError: a family that is not in `FAMILIES`.
    """
    if config.model_type not in FAMILIES:
        raise PlanError(
            f"model type {config.model_type!r} is not supported; expected one of "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[config.model_type]


def check_kinds(plan: RoutePlan, model_type: str) -> None:
    """Raises PlanError if the plan splits, or adds, a kind that the family cannot have."""
    family = FAMILIES[model_type]
    if family.mixture and any(kind == MLP_ADAPTER for _, kind in plan.splits):
        raise PlanError(
            f"model type {model_type!r} has experts, beside which there are no adapters; set "
            "plan.adapters.mlp=0"
        )
    if family.why_whole and any(kind == ATTN for _, kind in plan.splits):
        raise PlanError(
            f"attention of model type {model_type!r} cannot be split: {family.why_whole}; set "
            "plan.attn_shared=1"
        )


def has_experts(config: Any, layer: int) -> bool:
    """Whether a layer of a model with experts has them; Qwen 3 MoE may have dense ones between."""
    dense, every = getattr(config, "mlp_only_layers", ()), getattr(config, "decoder_sparse_step", 1)
    return layer not in dense and (layer + 1) % every == 0


def check_plan(plan: RoutePlan, config: Any) -> None:
    """Raises PlanError if the model's family or shape does not allow the plan."""
    if not plan.splits:
        return
    family_of(config)
    check_kinds(plan, config.model_type)
    units = units_per_layer(config)
    for name in ("output_router_logits", "router_jitter_noise") if EXPERT in units else ():
        if value := getattr(config, name, None):
            raise PlanError(
                f"{name}={value} of the model's config: routing has no auxiliary loss of the "
                f"router, and no noise; set {name} to 0 in config.json"
            )
    for (layer, kind), split in plan.splits.items():
        number = split.num_units if kind in ADAPTERS.values() else units.get(kind, 0)
        if kind == EXPERT and not has_experts(config, layer):
            number = 0
        if layer >= config.num_hidden_layers or split.num_units != number:
            raise PlanError(
                f"the plan gives layer {layer} {split.num_units} {KINDS[kind]}, but the model has "
                f"{config.num_hidden_layers} layers, and {number} in this one"
            )
