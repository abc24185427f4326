"""Where each family of models keeps its units: gate, up and down; q, k, v and o.

Names are those of the Hugging Face modules, relative to a decoder layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from gr_sweep.errors import PlanError
from gr_sweep.routing.plan import ATTN, MLP, RoutePlan


@dataclass(frozen=True)
class Family:
    """Names of the linears that hold units."""

    layers: str
    """The list of decoder layers, from the model."""
    mlp_in: tuple[str, ...]
    """Linears whose rows are MLP units: gate and up, or just one."""
    mlp_out: str
    """The linear whose columns are MLP units."""
    heads_in: tuple[str, str, str] | None = None
    """q, k, v; None where they cannot be taken apart."""
    heads_out: str | None = None
    """o."""
    head_norms: tuple[str, ...] = ()
    """Norms over the features of each head of q and k."""
    heads_divide_width: bool = False
    """Whether the config refuses a number of heads that does not divide the residual width."""
    why_whole: str = ""
    """Why attention cannot be split, where it cannot."""


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = Family(
    "model.layers",
    ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj",
    _QKV,
    "self_attn.o_proj",
)
_WHOLE_NORM = replace(
    _GATED, heads_in=None, heads_out=None, why_whole="it normalises q and k across all heads"
)

FAMILIES = {
    "llama": replace(_GATED, heads_divide_width=True),
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": replace(_GATED, head_norms=("self_attn.q_norm", "self_attn.k_norm")),
    "olmo": _GATED,
    "olmo2": _WHOLE_NORM,
    "olmo3": _WHOLE_NORM,
    "gpt_neox": Family(
        "gpt_neox.layers",
        ("mlp.dense_h_to_4h",),
        "mlp.dense_4h_to_h",
        why_whole="its head size follows from the number of heads, and q, k and v are one matrix",
    ),
}
"""By `config.model_type`."""


def family_of(config: Any) -> Family:
    """The family of a Hugging Face config.

    Raises:
        PlanError: a family that is not in `FAMILIES`.
    """
    if config.model_type not in FAMILIES:
        raise PlanError(
            f"model type {config.model_type!r} cannot be routed; known are {', '.join(FAMILIES)}"
        )
    return FAMILIES[config.model_type]


def check_plan(plan: RoutePlan, config: Any) -> None:
    """Raises PlanError where the plan asks of a model what its family or shape cannot give."""
    if not plan.splits:
        return
    family = family_of(config)
    num_groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    units = {MLP: config.intermediate_size, ATTN: num_groups}
    for (layer, kind), split in plan.splits.items():
        if kind == ATTN and family.heads_in is None:
            raise PlanError(
                f"attention of model type {config.model_type!r} cannot be split: "
                f"{family.why_whole}; set plan.attn_shared=1"
            )
        if layer >= config.num_hidden_layers or split.num_units != units[kind]:
            raise PlanError(
                f"the plan gives layer {layer} {split.num_units} {kind} units; the model has "
                f"{config.num_hidden_layers} layers of {units[kind]}"
            )


def decoder_layers(model: nn.Module, family: Family) -> Sequence[nn.Module]:
    """The model's decoder layers, first to last."""
    return list(model.get_submodule(family.layers).children())
