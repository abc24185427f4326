"""Physically smaller models: the units that `keep` switches off, taken out.

The result is an ordinary Hugging Face model that needs no code of ours.
"""

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gr_sweep.model.families import UnitLinear, family_of
from gr_sweep.routing.plan import ATTN, MLP, RoutePlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def extract(
    model: "PreTrainedModel",
    plan: RoutePlan,
    unit_linears: Iterable[UnitLinear],
    keep: Iterable[str],
) -> "PreTrainedModel":
    """The network of the core and every block that a domain of `keep` owns.

    Hugging Face configs know one width for all layers: where layers keep different numbers of
    units, the narrower ones are padded with zero units, which change nothing. So are heads, up to a
    number that divides the residual width, where the family's config refuses any other (Llama's
    does).

    Args:
        model: a model that is routed by `plan`; it is left as it is.
        unit_linears: its linears that hold units of the plan.
        keep: domains, or nodes of their tree.

    Returns:
        A model of the same class, type and device whose logits equal those of `keep(keep)`.
    """
    off = plan.kept_off(keep)
    kept = [index for index in range(len(plan.blocks)) if index not in off]
    plain_config: Any = model.config
    config = copy.deepcopy(plain_config)
    num_groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    widths = {MLP: config.intermediate_size, ATTN: num_groups}
    for kind, units in list(widths.items()):
        sizes = [
            sum(split.sizes[block] for block in kept)
            for (_, split_kind), split in plan.splits.items()
            if split_kind == kind
        ]
        if sizes and len(sizes) == config.num_hidden_layers:
            widths[kind] = max(1, *sizes)
        else:
            widths[kind] = units  # a layer that is not split keeps all of its units
    config.intermediate_size = widths[MLP]
    if widths[ATTN] != num_groups:
        per_group = config.num_attention_heads // num_groups
        divides = family_of(config).heads_divide_width
        while divides and config.hidden_size % (widths[ATTN] * per_group):
            widths[ATTN] += 1
        config.head_dim = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        config.num_attention_heads = widths[ATTN] * per_group
        config.num_key_value_heads = widths[ATTN]

    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    names = {module: name for name, module in model.named_modules()}
    for linear in unit_linears:
        name = names[linear.module]
        width = widths[linear.kind] * linear.width
        dim = 1 if linear.is_row else 0
        state[f"{name}.weight"] = _kept(state[f"{name}.weight"], linear, kept, dim, width)
        if not linear.is_row and linear.module.bias is not None:
            state[f"{name}.bias"] = _kept(state[f"{name}.bias"], linear, kept, 0, width)
    plain_class: Any = type(model)
    with torch.random.fork_rng():
        small: PreTrainedModel = plain_class(config)
    first = next(model.parameters())
    small.to(device=first.device, dtype=first.dtype)  # type: ignore[call-arg]
    small.load_state_dict(state)
    small.tie_weights()
    small.train(model.training)
    return small


def _kept(tensor: Tensor, linear: UnitLinear, kept: Iterable[int], dim: int, width: int) -> Tensor:
    """The kept blocks' rows (dim 0) or columns (dim 1), padded with zeros to `width`."""
    parts = [
        tensor.narrow(dim, u.start, u.stop - u.start)
        for u in (linear.units[block] for block in kept)
    ]
    whole = torch.cat(parts, dim)
    shape = list(whole.shape)
    shape[dim] = width - whole.shape[dim]
    return torch.cat([whole, whole.new_zeros(shape)], dim)
