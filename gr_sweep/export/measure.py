"""What an extracted model costs beside the full one: parameters, operations and padding; speed and
memory of generation as measured here."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gr_sweep.metrics.cost import attention_flops_per_token
from gr_sweep.model.extract import KeptUnits, kept_units
from gr_sweep.model.families import decoder_layers, family_of
from gr_sweep.model.route import RoutedModel, route_model
from gr_sweep.routing.plan import ATTN, RoutePlan
from gr_sweep.train.cost import forward_flops_per_token
from gr_sweep.train.memory import AllocatedBytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT_TOKENS = 32
NEW_TOKENS = 64
REPEATS = 5
"""Generations that the median is of."""


@dataclass(frozen=True)
class Cost:
    """Of one model as it is, padding included."""

    parameters: int
    """A tied one counts once."""
    mlp_parameters: int
    flops_per_token: int
    """Of one forward pass."""
    weight_bytes: int


def cost_of(model: "PreTrainedModel", length: int) -> Cost:
    """From the shapes of a plain model, for sequences of `length` tokens."""
    family = family_of(model.config)
    mlp_parameters = sum(
        parameter.numel()
        for layer in decoder_layers(model, family)
        for name in (*family.mlp_in, family.mlp_out)
        for parameter in layer.get_submodule(name).parameters()
    )
    dense = route_model(model, RoutePlan.none(domains=["all"]), "none")
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        mlp_parameters=mlp_parameters,
        flops_per_token=forward_flops_per_token(dense, length),
        weight_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
    )


@dataclass(frozen=True)
class Padding:
    """Zero units of one kind, that make all layers equally wide or heads a number that the
    architecture takes."""

    units: KeptUnits
    num_units: int
    """Units that each layer of the full model has."""
    parameters: int
    """In the extracted model, of the padding."""
    share: float
    """Of the extracted model's parameters in the linears of this kind."""
    flops_per_token: int


def padding_of(routed: RoutedModel, off: tuple[int, ...], length: int) -> dict[str, Padding]:
    """By kind, of a model without the blocks `off`; a kind that the plan does not split is left
    out.

    Args:
        routed: the whole model, routed.
        length: tokens a sequence.
    """
    config: Any = routed.model.config
    found = {}
    for kind, units in kept_units(routed.plan, config, off).items():
        linears = {
            layer: [
                linear
                for linear in routed.unit_linears
                if linear.kind == kind and linear.split is split
            ]
            for (layer, split_kind), split in routed.plan.splits.items()
            if split_kind == kind
        }
        if not linears:
            continue
        [num_units] = {split.num_units for (_, k), split in routed.plan.splits.items() if k == kind}
        [first, *_] = linears.values()
        per_unit = sum(p.numel() for linear in first for p in linear.parameters) // num_units
        added = sum(units.padding)
        per_token = 2 * added * per_unit
        if kind == ATTN:
            heads = config.num_attention_heads
            head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
            width = added * heads // num_units * head_size
            per_token += attention_flops_per_token(width, 1, length)
        found[kind] = Padding(
            units=units,
            num_units=num_units,
            parameters=added * per_unit,
            share=added / (units.width * config.num_hidden_layers),
            flops_per_token=per_token,
        )
    return found


@dataclass(frozen=True)
class Generation:
    """Greedy generation at batch size 1, the prompt's pass included."""

    tokens_per_second: float
    """New tokens; the median of `REPEATS`."""
    peak_bytes: int
    """The most that tensors held at once, weights included."""


def generation_of(
    models: "Mapping[str, PreTrainedModel]", device: torch.device
) -> dict[str, Generation]:
    """Of several plain models by name, that take turns: a machine that slows down slows all."""
    for model in models.values():
        model.to(device)  # type: ignore[arg-type]
    [vocab_size] = {int(model.config.vocab_size) for model in models.values()}
    ids_NT = random_ids(vocab_size, 1, PROMPT_TOKENS).to(device)
    peaks = {name: _peak_bytes(model, ids_NT) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(REPEATS + 1):
        for name, model in models.items():
            _wait(device)
            start = time.perf_counter()
            _generate(model, ids_NT)
            _wait(device)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    return {
        name: Generation(NEW_TOKENS / statistics.median(taken), peaks[name])
        for name, taken in seconds.items()
    }


def random_ids(vocab_size: int, num_sequences: int, num_positions: int) -> Tensor:
    """Tokens [N, T], the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (num_sequences, num_positions), generator=generator)


def _peak_bytes(model: "PreTrainedModel", ids_NT: Tensor) -> int:
    """Of one generation; other models on the device are not counted."""
    held = {tensor.untyped_storage().data_ptr(): tensor for tensor in model.parameters()}
    weights = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    if ids_NT.device.type == "cuda":
        before = torch.cuda.memory_allocated(ids_NT.device)
        torch.cuda.reset_peak_memory_stats(ids_NT.device)
        _generate(model, ids_NT)
        return weights + torch.cuda.max_memory_allocated(ids_NT.device) - before
    with AllocatedBytes() as allocated:
        _generate(model, ids_NT)
    return weights + allocated.peak


def _generate(model: "PreTrainedModel", ids_NT: Tensor) -> None:
    from transformers import GenerationConfig

    eot_id = model.config.eos_token_id
    pad_id = eot_id[0] if isinstance(eot_id, list) else eot_id
    settings = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        pad_token_id=0 if pad_id is None else pad_id,
    )
    generator: Any = model
    out_NT = generator.generate(
        ids_NT, attention_mask=torch.ones_like(ids_NT), generation_config=settings
    )
    assert out_NT.shape[1] == PROMPT_TOKENS + NEW_TOKENS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
