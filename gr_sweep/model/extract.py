"""Smaller models: the units that `keep` switches off, physically removed.

The result is an ordinary Hugging Face model that needs none of our code.
"""

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gr_sweep.errors import PlanError
from gr_sweep.model.adapters import adapted_modules
from gr_sweep.model.families import family_of, has_experts
from gr_sweep.model.units import UnitLinear
from gr_sweep.routing.kinds import (
    ATTN,
    BIAS,
    EMBED,
    EXPERT,
    MLP,
    UNEMBED,
    mlp_size_name,
    units_per_layer,
)
from gr_sweep.routing.plan import RoutePlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class KeptUnits(NamedTuple):
    """Numbers of units of one kind in a model without the blocks that are off."""

    full: int
    """In each layer of the whole model."""
    kept: tuple[int, ...]
    """That each layer keeps; of experts, each that has them."""
    extracted: int
    """In each layer of the extracted model, which are equally wide: others are zero."""


def kept_units(plan: RoutePlan, config: Any, off: Collection[int]) -> dict[str, KeptUnits]:
    """The units of each kind that are kept without the blocks `off`, and the width that they give
    every layer of a model with this Hugging Face config.

    Raises:
        PlanError: layers keep different numbers of experts.
    """
    found = {}
    for kind, units in units_per_layer(config).items():
        by_layer = plan.units_left(kind, units, config.num_hidden_layers, off)
        if kind == EXPERT:
            by_layer = tuple(n for layer, n in enumerate(by_layer) if has_experts(config, layer))
        width = max(1, *by_layer)
        if kind == EXPERT and not {*by_layer} <= {0, width}:
            raise PlanError(
                f"layers keep {', '.join(map(str, by_layer))} experts, but a checkpoint of "
                f"{config.model_type} has one number for all, and a router would choose those that "
                "pad it; split all layers alike"
            )
        if kind == ATTN and width != units:
            family, per_group = family_of(config), config.num_attention_heads // units
            if family.keeps_heads:
                width = units
            while family.heads_divide_width and config.hidden_size % (width * per_group):
                width += 1
        found[kind] = KeptUnits(units, by_layer, width)
    return found


def extract(
    model: "PreTrainedModel",
    plan: RoutePlan,
    unit_linears: Iterable[UnitLinear],
    keep: Iterable[str],
) -> "PreTrainedModel":
    """The network of the core and every block that a domain of `keep` owns.

    A Hugging Face config has one width for all layers: those that keep fewer units are padded with
    zero units, which change nothing. So are heads, up to a number that divides the residual width
    if the family's config requires it (Llama), or to all of them (GPT-2). Adapters are added to the
    matrices that they are beside; embeddings that were tied are two matrices if one has adapters.

    Args:
        model: a model that is routed by `plan`; it is not changed.
        unit_linears: those of the model.
        keep: domains, or nodes of their tree.

    Returns:
        A model of the same class, type and device whose logits equal those of `keep(keep)`. With
        biases of the output vocabulary it has one more parameter than its config says.
    """
    off = plan.kept_off(keep)
    kept = [index for index in range(len(plan.blocks)) if index not in off]
    plain_config: Any = model.config
    widths = {kind: units.extracted for kind, units in kept_units(plan, plain_config, off).items()}
    dtype = next(model.parameters()).dtype  # a frozen matrix may be narrower
    state = {name: tensor.to(dtype, copy=True) for name, tensor in model.state_dict().items()}
    bias_V = _merge_adapters(model, plan, kept, state)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    pieces: dict[tuple[str, int], list[Tensor]] = {}
    for linear in unit_linears:
        for parameter, dim in linear.ordered:
            if (name := names[id(parameter)]) in state:
                found = _kept(state[name], dim, linear, kept, widths[linear.kind])
                pieces.setdefault((name, dim), []).append(found)
    state |= {name: torch.cat(found, dim) for (name, dim), found in pieces.items()}
    plain_class: Any = type(model)
    config = _resized(plain_config, widths)
    config.tie_word_embeddings = is_tied(plan, plain_config, off)
    with torch.random.fork_rng():
        small: PreTrainedModel = plain_class(config)
    small.to(device=next(model.parameters()).device, dtype=dtype)
    if bias_V is not None:
        small.get_output_embeddings().bias = torch.nn.Parameter(bias_V)
    small.load_state_dict(state)
    small.tie_weights()
    small.train(model.training)
    return small


def _merge_adapters(
    model: "PreTrainedModel", plan: RoutePlan, kept: Iterable[int], state: dict[str, Tensor]
) -> Tensor | None:
    """Adds the kept blocks' adapters to the matrices in `state`, and takes theirs out of it; the
    bias [V] of the output, if there is one."""
    names = {module: name for name, module in model.named_modules()}
    bias_V = None
    for kind, split, module in adapted_modules(model, plan):
        adapter: Any = module.get_submodule(f"adapter.{kind}")
        units = [split.slices()[block] for block in kept if split.sizes[block]]
        if not units:
            continue
        name = f"{names[module]}.weight"
        is_linear = isinstance(module, torch.nn.Linear)  # else [I, O]: a table, or GPT-2's Conv1D
        product_IO = adapter.product(state[name].shape[int(is_linear)], units)
        if kind == BIAS:
            state[f"{names[module]}.bias"] = bias_V = product_IO[0]
        else:
            state[name] += (product_IO.t() if is_linear else product_IO).to(state[name])
    for name in [name for name in state if ".adapter." in name]:
        del state[name]
    return bias_V


def is_tied(plan: RoutePlan, config: Any, off: Collection[int]) -> bool:
    """Whether embedding and unembedding are one matrix in the model without the blocks `off`."""
    sizes = [split.sizes for (_, kind), split in plan.splits.items() if kind in (EMBED, UNEMBED)]
    has_adapters = any(size for of in sizes for block, size in enumerate(of) if block not in off)
    return config.tie_word_embeddings and not has_adapters


def _resized(plain_config: Any, widths: Mapping[str, int]) -> Any:
    """The config with these numbers of units per layer."""
    config = copy.deepcopy(plain_config)
    if EXPERT in widths:
        config.num_experts = widths[EXPERT]
        config.num_experts_per_tok = min(config.num_experts_per_tok, widths[EXPERT])
    else:
        setattr(config, mlp_size_name(config), widths[MLP])
    num_groups = units_per_layer(config)[ATTN]
    if widths[ATTN] != num_groups:
        per_group = config.num_attention_heads // num_groups
        config.head_dim = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        config.num_attention_heads = widths[ATTN] * per_group
        config.num_key_value_heads = widths[ATTN]
    return config


def _kept(
    tensor: Tensor, dim: int, linear: UnitLinear, kept: Iterable[int], num_units: int
) -> Tensor:
    """The kept blocks' rows or columns, padded with zeros to `num_units`."""
    parts = [linear.units[block] for block in kept]
    whole = torch.cat([tensor.narrow(dim, u.start, u.stop - u.start) for u in parts], dim)
    shape = list(whole.shape)
    shape[dim] = num_units * linear.width - whole.shape[dim]
    return torch.cat([whole, whole.new_zeros(shape)], dim)
