"""Finds the units of a plan in a model, and the modules that become routed ones."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.activations import SiLUActivation
from transformers.pytorch_utils import Conv1D

from gr_sweep.model.adapters import adapted_modules
from gr_sweep.model.families import FAMILIES, family_of
from gr_sweep.routing.base import Units
from gr_sweep.routing.experts import RoutedMixture
from gr_sweep.routing.kinds import ADAPTERS, ATTN, EXPERT, MLP
from gr_sweep.routing.modules import (
    RoutedFeatures,
    RoutedGatedMlp,
    RoutedHeadsFirst,
    RoutedLinear,
    RoutedPositions,
    RoutedRest,
)
from gr_sweep.routing.plan import RoutePlan, Split
from gr_sweep.routing.swap import Swap, check_linear

LINEARS = (nn.Linear, Conv1D)
"""Linear maps that can be routed. The weight of a Conv1D, which GPT-2 has, is the transpose."""


def decoder_layers(model: nn.Module) -> Sequence[nn.Module]:
    """The model's decoder layers, first to last.

    Raises:
        PlanError: a family that is not in `FAMILIES`.
    """
    return list(model.get_submodule(family_of(model.config).layers).children())


def mixtures(model: nn.Module) -> list[tuple[int, Any]]:
    """The mixtures of experts of a model, and their layers."""
    config: Any = model.config
    family = FAMILIES.get(config.model_type)
    if family is None or family.mixture is None:
        return []
    layers = enumerate(decoder_layers(model))
    found = [(index, layer.get_submodule(family.mixture)) for index, layer in layers]
    return [(index, module) for index, module in found if hasattr(module, "experts")]


@dataclass(frozen=True)
class UnitLinear:
    """A linear map that holds the units of one layer and kind: a module, or part of one.

    Where gate and up, or q, k and v, are one matrix, each of them is a part of its outputs.
    """

    module: nn.Module
    """A `torch.nn.Linear`, or a `Conv1D` or an `Embedding`, whose weight is the transpose."""
    kind: str
    """One of `gr_sweep.routing.kinds.KINDS`."""
    split: Split
    width: int
    """Features of the map per unit."""
    is_row: bool
    """Whether units are inputs of the map (down, o) instead of outputs (gate, up, q, k, v)."""
    first: int = 0
    """The feature of the module that the part begins with."""

    @property
    def part(self) -> Units:
        """The features of each block, counted within the part."""
        return self.split.slices(self.width)

    @property
    def units(self) -> Units:
        """The features of each block, counted in the module."""
        return tuple(slice(u.start + self.first, u.stop + self.first) for u in self.part)

    @property
    def parameters(self) -> list[Tensor]:
        """Parameters that hold units; not the bias of a row map."""
        weight: Any = self.module.weight
        bias: Any = getattr(self.module, "bias", None)
        return [weight] if self.is_row or bias is None else [weight, bias]

    @property
    def ordered(self) -> Iterator[tuple[Tensor, int]]:
        """The parameters with a row or column for each unit, and the dimension of the units:
        adapters beside the map write its outputs, or read its inputs, in the same order."""
        for parameter in self.parameters:
            yield parameter, self.dim(parameter)
        adapters: Any = self.module._modules.get("adapter", {})
        for adapter in adapters.values():
            yield (adapter.A.weight, 1) if self.is_row else (adapter.B.weight, 0)

    def dim(self, like: Tensor) -> int:
        """The dimension of units in a parameter, or in a tensor of its shape."""
        return int(like.dim() == 2 and self.is_row == isinstance(self.module, nn.Linear))

    def size(self, parameter: Tensor) -> int:
        """Numbers per unit in a parameter."""
        return parameter.numel() // parameter.shape[self.dim(parameter)] * self.width


@dataclass(frozen=True, kw_only=True)
class UnitExperts(UnitLinear):
    """Stacked experts of a layer: the first dimension of both parameters counts them."""

    router: nn.Module
    """Its rows are in the order of the experts, but belong to the rest."""

    @property
    def parameters(self) -> list[Tensor]:
        module: Any = self.module
        return [module.gate_up_proj, module.down_proj]

    @property
    def ordered(self) -> Iterator[tuple[Tensor, int]]:
        router: Any = self.router
        yield from ((parameter, 0) for parameter in (*self.parameters, router.weight))

    def dim(self, like: Tensor) -> int:
        return 0


def unit_linears(model: nn.Module, plan: RoutePlan) -> list[UnitLinear]:
    """The linear maps, and stacked experts, of `model` that hold units of the plan; those of a
    module are neighbours, and adapters, which must be there, come last."""
    found: list[UnitLinear] = []
    if not plan.splits:
        return found  # of any family
    config: Any = model.config
    family, layers = family_of(config), decoder_layers(model)
    for (index, kind), split in plan.splits.items():
        if kind in ADAPTERS.values():
            continue
        if kind == EXPERT:
            mixture: Any = layers[index].get_submodule(str(family.mixture))
            experts, gate = mixture.experts, mixture.gate
            found.append(UnitExperts(experts, kind, split, 1, is_row=False, router=gate))
            continue
        names = family.linears[kind]
        for name in (*names.columns, names.row):
            module = layers[index].get_submodule(name)
            check_linear(model, module)
            linear = UnitLinear(module, kind, split, 1, is_row=name == names.row)
            weight: Any = module.weight
            features = weight.shape[linear.dim(weight)] // split.num_units
            # Of q, k and v in one matrix, q has more heads.
            queries = config.num_attention_heads // split.num_units if kind == ATTN else 1
            parts = [1] if linear.is_row else [queries, *[1] * (names.num_parts - 1)]
            first = 0
            for part in parts:
                width = features * part // sum(parts)
                found.append(replace(linear, width=width, first=first))
                first += width * split.num_units
    for kind, split, adapted in adapted_modules(model, plan):
        adapter: Any = adapted.get_submodule(f"adapter.{kind}")
        for each, is_row in ((adapter.A, False), (adapter.B, True)):
            if any(True for _ in each.parameters()):
                found.append(UnitLinear(each, kind, split, 1, is_row))
    return found


def swaps_of(
    model: Any, plan: RoutePlan, linears: Iterable[UnitLinear], *, core_learns: bool, is_cut: bool
) -> list[Swap]:
    """The swaps that route a model.

    Args:
        model: with the adapters that the plan adds.
        linears: `unit_linears` of the model.
        core_learns: whether modules without units learn.
        is_cut: whether they learn from some rows only.
    """
    swaps: list[Swap] = []
    if not plan.splits:
        return swaps
    config, family = model.config, family_of(model.config)
    for module, maps in itertools.groupby(linears, lambda linear: linear.module):
        first, *others = maps
        if not isinstance(first, UnitExperts) and not isinstance(module, nn.Embedding):
            parts = tuple(linear.part for linear in (first, *others))
            swaps.append(Swap(module, RoutedLinear, parts, "row" if first.is_row else "column"))
    of_heads = RoutedHeadsFirst if family.heads_first else RoutedRest
    norms = set()
    for index, layer in enumerate(decoder_layers(model)):
        mlp, attn = (plan.splits.get((index, kind)) for kind in (MLP, ATTN))
        if mlp is not None and family.gated_mlp is not None:
            gated = layer.get_submodule(family.gated_mlp)
            if any(isinstance(child, (nn.SiLU, SiLUActivation)) for child in gated.children()):
                swaps.append(Swap(gated, RoutedGatedMlp, (mlp.slices(),), "mlp"))
        heads = (config.num_attention_heads, getattr(config, "num_key_value_heads", 0))
        for name, number in zip(family.head_norms, heads, strict=False):  # perhaps no norms
            norms.add(norm := layer.get_submodule(name))
            if attn is not None and core_learns:
                swaps.append(Swap(norm, of_heads, (attn.slices(number // attn.num_units),)))
    in_mixtures = set()
    for index, mixture in mixtures(model):
        split = plan.splits.get((index, EXPERT))
        if split is not None or is_cut:
            units = () if split is None else (split.slices(),)
            swaps.append(Swap(mixture, RoutedMixture, units))
            in_mixtures |= {mixture.gate, mixture.experts}
    for kind, split, module in adapted_modules(model, plan):
        features = module.get_submodule(f"adapter.{kind}.A")
        if not isinstance(features, nn.Linear):
            swaps.append(Swap(features, RoutedFeatures, (split.slices(),)))
    swapped = {swap.module for swap in swaps} | in_mixtures
    for module in model.modules():
        has_parameters = any(True for _ in module.parameters(recurse=False))
        if module in swapped or not has_parameters or not (is_cut or "adapter" in module._modules):
            continue
        if isinstance(module, LINEARS):
            outputs = module.weight.shape[0 if isinstance(module, nn.Linear) else 1]
            role = "embedding" if module is model.get_output_embeddings() else "rest"
            swaps.append(Swap(module, RoutedLinear, ((slice(0, outputs),),), role))
        elif isinstance(module, nn.Embedding):
            is_input = module is model.get_input_embeddings()
            swaps.append(
                Swap(module, RoutedRest if is_input else RoutedPositions, role="embedding")
            )
        else:
            swaps.append(Swap(module, of_heads if module in norms else RoutedRest, role="rest"))
    return swaps


def keep_bfloat16(model: nn.Module, is_bfloat16: Callable[[str], bool] | None = None) -> None:
    """Puts frozen weights of linear maps in bfloat16, as their checkpoint has them, for products in
    bfloat16, which are the same then. Embeddings and norms stay: what they give is added.

    Args:
        is_bfloat16: for weights without data, whether the one of this name is from bfloat16; None
            looks for weights that lose nothing in it.
    """
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in model.named_modules():
        weight: Any = module.weight if isinstance(module, LINEARS) else None
        if weight is None or weight.requires_grad or weight in tables:
            continue
        narrow = weight.detach().bfloat16()
        if is_bfloat16 is None:
            is_same = torch.equal(narrow.to(weight.dtype), weight)
        else:
            is_same = is_bfloat16(f"{name}.weight")
        if is_same:
            weight.data = narrow


def local_part(whole: Tensor) -> tuple[Tensor, int]:
    """This process's part of a tensor, and the row of the whole that it begins with.

    `fully_shard` gives each process a part of the rows, as `torch.chunk` divides them.
    """
    if not isinstance(whole, DTensor):
        return whole, 0
    mesh, num_rows = whole.device_mesh, whole.shape[0]
    of_shards = mesh.ndim - 1  # the other dimension is that of copies
    each = -(-num_rows // mesh.size(of_shards))
    return whole.to_local(), min(mesh.get_local_rank(of_shards) * each, num_rows)


def local_units(whole: Tensor, units: slice, dim: int) -> Tensor:
    """A view of these rows (dim 0) or columns of the whole, as far as this process has them."""
    local, first = local_part(whole)
    if dim == 1:
        return local[:, units]
    return local[max(0, units.start - first) : max(0, units.stop - first)]


def reshard(root: nn.Module) -> None:
    """Makes parameters the parts that this process keeps; nothing to do for one process.

    A forward pass without a backward pass leaves those of the root gathered, as copies that nobody
    trains and that do not learn of a new `requires_grad`.
    """
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextlib.contextmanager
def unsharded(tensor: Tensor) -> Iterator[Tensor]:
    """The whole of a tensor, whose changes inside are kept.

    Processes that share it must all call this. Each has the whole in memory inside; what rank 0
    makes of it counts.
    """
    if not isinstance(tensor, DTensor):
        yield tensor
        return
    gathered = tensor.full_tensor()
    yield gathered
    own = distribute_tensor(gathered, tensor.device_mesh, tensor.placements)
    tensor.to_local().copy_(own.to_local())


def reorder(tensor: Tensor, linear: UnitLinear, dim: int) -> None:
    """Puts the units of a parameter of the linear, or of a tensor of its shape, in the plan's
    order, in place.

    Of a sharded tensor, columns are moved in each process's part; rows in the whole.
    """
    order = linear.split.order
    if order is None:
        return
    features = torch.tensor(order)[:, None] * linear.width + torch.arange(linear.width)
    with contextlib.nullcontext(local_part(tensor)[0]) if dim else unsharded(tensor) as found:
        part = found.narrow(dim, linear.first, features.numel())
        part.copy_(part.index_select(dim, features.flatten().to(tensor.device)))
