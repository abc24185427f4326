"""Finds the units of a plan in a model: its layers, linear maps and norms."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.activations import SiLUActivation
from transformers.pytorch_utils import Conv1D

from gr_sweep.errors import PlanError
from gr_sweep.model.adapters import adapted_modules
from gr_sweep.model.families import FAMILIES, Family, family_of
from gr_sweep.routing.kinds import ATTN, EXPERT, MLP
from gr_sweep.routing.plan import RoutePlan, Split
from gr_sweep.routing.row_routing import Units
from gr_sweep.routing.swap import check_linear

LINEARS = (nn.Linear, Conv1D)
"""Linear maps that can be routed. The weight of a Conv1D, which GPT-2 has, is the transpose."""


def decoder_layers(model: nn.Module) -> Sequence[nn.Module]:
    """The model's decoder layers, first to last.

    Raises:
        PlanError: a family that is not in `FAMILIES`.
    """
    return list(_submodule(model, family_of(model.config).layers).children())


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
    module are neighbours.

    The adapters that the plan adds must be there.
    """
    found: list[UnitLinear] = []
    config: Any = model.config
    for family, layer, kind, split in _splits(model, plan):
        if kind == EXPERT and family.mixture:
            mixture = family.mixture
            experts, router = (_submodule(layer, f"{mixture}.{n}") for n in ("experts", "gate"))
            found.append(UnitExperts(experts, kind, split, 1, is_row=False, router=router))
        if kind not in family.linears:
            continue
        names = family.linears[kind]
        for name in (*names.columns, names.row):
            module = _submodule(layer, name)
            check_linear(model, module)
            linear = UnitLinear(module, kind, split, 1, is_row=name == names.row)
            weight: Any = module.weight
            whole = weight.shape[linear.dim(weight)] // split.num_units
            parts = [1]
            if not linear.is_row and names.num_parts > 1:
                queries = config.num_attention_heads // split.num_units if kind == ATTN else 1
                parts = [queries, *[1] * (names.num_parts - 1)]
            first = 0
            for part in parts:
                width = whole * part // sum(parts)
                found.append(replace(linear, width=width, first=first))
                first += width * split.num_units
    for kind, split, adapted in adapted_modules(model, plan):
        adapter: Any = adapted.get_submodule(f"adapter.{kind}")
        for each, is_row in ((adapter.A, False), (adapter.B, True)):
            if any(True for _ in each.parameters()):
                found.append(UnitLinear(each, kind, split, 1, is_row))
    return found


def learning_parameters(
    model: nn.Module, linears: Iterable[UnitLinear], *, core_frozen: bool
) -> set[int]:
    """Ids of the parameters that learn: all, or with a frozen core those that hold a block's units.

    Raises:
        PlanError: no block has units beside a frozen core.
    """
    if not core_frozen:
        return set(map(id, model.parameters()))
    # The core's units come first.
    of_blocks = (linear for linear in linears if linear.units[-1].stop > linear.units[0].stop)
    found = {id(parameter) for linear in of_blocks for parameter in linear.parameters}
    if not found:
        raise PlanError("core_frozen=True leaves nothing to learn: the plan gives blocks no units")
    return found


def keep_bfloat16(model: nn.Module, is_bfloat16: Callable[[str], bool] | None = None) -> None:
    """Puts frozen weights of linear maps in bfloat16, as their checkpoint has them, for products in
    bfloat16, which are the same then. Embeddings and norms stay: what they give is added.

    Args:
        is_bfloat16: for weights without data, whether the one of this name loses nothing in
            bfloat16; those that do are left alone.
    """
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in model.named_modules():
        weight: Any = module.weight if isinstance(module, LINEARS) else None
        if weight is None or weight.requires_grad or weight in tables:
            continue
        narrow = weight.detach().bfloat16()
        if is_bfloat16 is not None:
            is_same = is_bfloat16(f"{name}.weight")
        else:
            is_same = torch.equal(narrow.to(weight.dtype), weight)
        if is_same:
            weight.data = narrow


def gated_mlps(model: nn.Module, plan: RoutePlan) -> list[tuple[nn.Module, Split]]:
    """The gated MLPs with SiLU that the plan splits: those that can be routed as a whole."""
    found = []
    for family, layer, kind, split in _splits(model, plan):
        if kind == MLP and family.gated_mlp is not None:
            mlp = _submodule(layer, family.gated_mlp)
            if any(isinstance(child, (nn.SiLU, SiLUActivation)) for child in mlp.children()):
                found.append((mlp, split))
    return found


def mixtures(model: nn.Module) -> list[tuple[int, Any]]:
    """The mixtures of experts of a model, and their layers."""
    config: Any = model.config
    family = FAMILIES.get(config.model_type)
    if family is None or family.mixture is None:
        return []
    layers = enumerate(decoder_layers(model))
    found = [(index, layer.get_submodule(family.mixture)) for index, layer in layers]
    return [(index, module) for index, module in found if hasattr(module, "experts")]


def head_norms(model: nn.Module, plan: RoutePlan) -> list[tuple[nn.Module, Units]]:
    """Norms over the features of each head inside split attention, and the heads of each block."""
    config: Any = model.config
    found = []
    for family, layer, kind, split in _splits(model, plan):
        if kind == ATTN and family.head_norms:
            heads = (config.num_attention_heads, config.num_key_value_heads)
            for name, number in zip(family.head_norms, heads, strict=True):
                found.append((layer.get_submodule(name), split.slices(number // split.num_units)))
    return found


def heads_first_norms(model: nn.Module) -> set[nn.Module]:
    """Norms of single heads, in all layers, whose input has heads before positions."""
    config: Any = model.config
    family = FAMILIES.get(config.model_type)
    if family is None or not family.heads_first:
        return set()
    return {
        layer.get_submodule(name) for layer in decoder_layers(model) for name in family.head_norms
    }


def _splits(model: nn.Module, plan: RoutePlan) -> Iterator[tuple[Family, nn.Module, str, Split]]:
    """Family, decoder layer and kind of unit of each split; a dense plan allows any family."""
    if plan.splits:
        family = family_of(model.config)
        layers = decoder_layers(model)
        for (layer, kind), split in plan.splits.items():
            yield family, layers[layer], kind, split


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
