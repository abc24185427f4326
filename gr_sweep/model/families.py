"""Where each family of models keeps its units: gate, up and down; q, k, v and o.

Names are those of the Hugging Face modules, relative to a decoder layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from gr_sweep.errors import PlanError
from gr_sweep.routing.linears import Units
from gr_sweep.routing.plan import ATTN, MLP, RoutePlan, Split


@dataclass(frozen=True)
class Family:
    """Names of the linears that hold units."""

    layers: str
    """The list of decoder layers, from the model."""
    mlp_in: tuple[str, ...]
    """Linears whose rows are MLP units: gate and up, or just one."""
    mlp_out: str
    """The linear whose columns are MLP units."""
    gated_mlp: str | None = None
    """The module that computes `down_proj(act(gate_proj(x)) * up_proj(x))`; None where there is
    none."""
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
    "mlp",
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


@dataclass(frozen=True)
class UnitLinear:
    """A linear that holds units of one layer and kind."""

    module: nn.Linear
    kind: str
    """"mlp" or "attn"."""
    split: Split
    width: int
    """Rows or columns of the weight that a unit has."""
    is_row: bool
    """Units are columns of the weight (down, o), not rows (gate, up, q, k, v)."""

    @property
    def units(self) -> Units:
        """The features of each block."""
        return self.split.slices(self.width)

    @property
    def parameters(self) -> list[Tensor]:
        """Those whose rows or columns are units; the bias of a row map is none of them."""
        weight, bias = self.module.weight, self.module.bias
        return [weight] if self.is_row or bias is None else [weight, bias]


def unit_linears(model: nn.Module, plan: RoutePlan) -> list[UnitLinear]:
    """The linears of `model` that hold units of the plan."""
    if not plan.splits:
        return []
    config: Any = model.config
    family = family_of(config)
    layers = decoder_layers(model, family)
    found: list[UnitLinear] = []
    for (layer, kind), split in plan.splits.items():
        if kind == MLP:
            names: tuple[str, ...] = family.mlp_in
            out_name = family.mlp_out
        else:
            assert family.heads_in is not None and family.heads_out is not None  # check_plan
            names, out_name = family.heads_in, family.heads_out
        for name in (*names, out_name):
            module = layers[layer].get_submodule(name)
            assert isinstance(module, nn.Linear)
            is_row = name == out_name
            features = module.in_features if is_row else module.out_features
            found.append(UnitLinear(module, kind, split, features // split.num_units, is_row))
    return found


def gated_mlps(model: nn.Module, plan: RoutePlan) -> list[tuple[nn.Module, Split]]:
    """The gated MLPs with SiLU that the plan splits: those that can be routed as a whole."""
    if not plan.splits:
        return []
    config: Any = model.config
    family = family_of(config)
    if family.gated_mlp is None or getattr(config, "hidden_act", None) not in ("silu", "swish"):
        return []
    layers = decoder_layers(model, family)
    return [
        (layers[layer].get_submodule(family.gated_mlp), split)
        for (layer, kind), split in plan.splits.items()
        if kind == MLP
    ]
