"""Where each family of models keeps its units: gate, up and down; q, k, v and o.

Names are those of the Hugging Face modules, relative to a decoder layer. To support another family,
add it to `FAMILIES`; for another kind of unit, see `gr_sweep.routing.plan.KINDS` and
`Family.linears`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers.activations import SiLUActivation

from gr_sweep.errors import PlanError
from gr_sweep.routing.plan import ATTN, MLP, RoutePlan, Split, units_per_layer
from gr_sweep.routing.row_routing import Units
from gr_sweep.routing.swap import check_linear


@dataclass(frozen=True)
class LinearNames:
    """Names of the linears of a decoder layer that hold the units of one kind."""

    columns: tuple[str, ...]
    """Column maps, whose weight has the units as rows: gate and up; q, k and v."""
    row: str
    """The row map, whose weight has the units as columns: down; o."""


@dataclass(frozen=True)
class Family:
    """What routing knows of a family of models."""

    layers: str
    """Name of the list of decoder layers in the model."""
    linears: Mapping[str, LinearNames]
    """The linears by kind of unit. A kind that is missing cannot be split."""
    gated_mlp: str | None = None
    """Module that computes `down_proj(act(gate_proj(x)) * up_proj(x))`, if there is one."""
    head_norms: tuple[str, ...] = ()
    """Norms over the features of each head of q and k."""
    heads_first: bool = False
    """Whether the input of `head_norms` has heads before positions."""
    heads_divide_width: bool = False
    """Whether the config refuses a number of heads that does not divide the residual width."""
    why_whole: str = ""
    """Why attention cannot be split, if it cannot."""


_GATED_MLP = LinearNames(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
_HEADS = LinearNames(
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"
)
_GATED = Family("model.layers", {MLP: _GATED_MLP, ATTN: _HEADS}, gated_mlp="mlp")
_NORMED_HEADS = replace(_GATED, head_norms=("self_attn.q_norm", "self_attn.k_norm"))
_WHOLE_NORM = replace(
    _GATED, linears={MLP: _GATED_MLP}, why_whole="it normalises q and k across all heads"
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
    "gpt_neox": Family(
        "gpt_neox.layers",
        {MLP: LinearNames(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h")},
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
            f"model type {config.model_type!r} is not supported; expected one of "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[config.model_type]


def check_plan(plan: RoutePlan, config: Any) -> None:
    """Raises PlanError if the model's family or shape does not allow the plan."""
    if not plan.splits:
        return
    family, units = family_of(config), units_per_layer(config)
    for (layer, kind), split in plan.splits.items():
        if kind not in family.linears:
            raise PlanError(
                f"attention of model type {config.model_type!r} cannot be split: "
                f"{family.why_whole}; set plan.attn_shared=1"
            )
        if layer >= config.num_hidden_layers or split.num_units != units[kind]:
            raise PlanError(
                f"the plan gives layer {layer} {split.num_units} {kind} units, but the model has "
                f"{config.num_hidden_layers} layers of {units[kind]}"
            )


def decoder_layers(model: nn.Module, family: Family) -> Sequence[nn.Module]:
    """The model's decoder layers, first to last."""
    return list(_submodule(model, family.layers).children())


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise PlanError(
            f"expected {name} in {type(module).__name__}, and there is none; a model to route has "
            f"its head (LlamaForCausalLM, not LlamaModel), and adapters are merged"
        ) from error


@dataclass(frozen=True)
class UnitLinear:
    """A linear that holds the units of one layer and kind."""

    module: nn.Linear
    kind: str
    """"mlp" or "attn"."""
    split: Split
    width: int
    """Rows or columns of the weight per unit."""
    is_row: bool
    """Whether units are columns of the weight (down, o) instead of rows (gate, up, q, k, v)."""

    @property
    def units(self) -> Units:
        """The features of each block."""
        return self.split.slices(self.width)

    @property
    def parameters(self) -> list[Tensor]:
        """Parameters whose rows or columns are units; not the bias of a row map."""
        weight, bias = self.module.weight, self.module.bias
        return [weight] if self.is_row or bias is None else [weight, bias]


def unit_linears(model: nn.Module, plan: RoutePlan) -> list[UnitLinear]:
    """The linears of `model` that hold units of the plan."""
    found: list[UnitLinear] = []
    for family, layer, kind, split in _splits(model, plan):
        names = family.linears[kind]
        for name in (*names.columns, names.row):
            module = _submodule(layer, name)
            check_linear(model, module)
            assert isinstance(module, nn.Linear)
            is_row = name == names.row
            features = module.in_features if is_row else module.out_features
            found.append(UnitLinear(module, kind, split, features // split.num_units, is_row))
    return found


def gated_mlps(model: nn.Module, plan: RoutePlan) -> list[tuple[nn.Module, Split]]:
    """The gated MLPs with SiLU that the plan splits: those that can be routed as a whole."""
    found = []
    for family, layer, kind, split in _splits(model, plan):
        if kind == MLP and family.gated_mlp is not None:
            mlp = _submodule(layer, family.gated_mlp)
            if isinstance(getattr(mlp, "act_fn", None), (nn.SiLU, SiLUActivation)):
                found.append((mlp, split))
    return found


def head_norms(model: nn.Module, plan: RoutePlan) -> list[tuple[nn.Module, Units]]:
    """Norms over the features of each head inside split attention, and the heads of each block."""
    config: Any = model.config
    found = []
    for family, layer, kind, split in _splits(model, plan):
        for name in family.head_norms if kind == ATTN else ():
            is_query = name.endswith("q_norm")
            heads = config.num_attention_heads if is_query else config.num_key_value_heads
            found.append((layer.get_submodule(name), split.slices(heads // split.num_units)))
    return found


def heads_first_norms(model: nn.Module) -> set[nn.Module]:
    """Norms of single heads, in all layers, whose input has heads before positions."""
    config: Any = model.config
    family = FAMILIES.get(config.model_type)
    if family is None or not family.heads_first:
        return set()
    layers = decoder_layers(model, family)
    return {layer.get_submodule(name) for layer in layers for name in family.head_norms}


def _splits(model: nn.Module, plan: RoutePlan) -> Iterator[tuple[Family, nn.Module, str, Split]]:
    """Family, decoder layer and kind of unit of each split; a dense plan allows any family."""
    if plan.splits:
        family = family_of(model.config)
        layers = decoder_layers(model, family)
        for (layer, kind), split in plan.splits.items():
            yield family, layers[layer], kind, split
