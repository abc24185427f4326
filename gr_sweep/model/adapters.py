"""Adapters: units that a plan adds beside linear maps, the embedding and the unembedding.

An adapter computes `B A x`, which is added to the output of its module; the features of `A x` are
units, which belong to blocks as all others do. B starts at zero, so a new adapter does not change
the model's function (LoRA, Hu et al. 2021, arXiv 2106.09685; there both matrices belong to one
task, and the product is scaled). Both are modules that `unit_linears` finds.

U units of all blocks, V vocabulary, D residual width, I and O inputs and outputs of a linear map.
"""

from collections.abc import Container, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gr_sweep.errors import PlanError
from gr_sweep.model.families import family_of
from gr_sweep.routing.kinds import ATTN, ATTN_ADAPTER, BIAS, EMBED, MLP, MLP_ADAPTER, UNEMBED
from gr_sweep.routing.plan import RoutePlan, Split


class _Fixed(nn.Module):
    """A map without parameters."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Copies(_Fixed):
    """A of a full-rank unembedding: the residual stream, once for each of `number` blocks."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(*[1] * (x.dim() - 1), self.number)


class Ones(_Fixed):
    """A of biases: a constant for each of `number` blocks."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones(*x.shape[:-1], self.number)


class BlockSum(_Fixed):
    """B of a full-rank embedding: the sum over blocks, each of `number` features."""

    def forward(self, h: Tensor) -> Tensor:
        return h.view(*h.shape[:-1], -1, self.number).sum(-2)


class Adapter(nn.Module):
    """`B A x` beside one module.

    Args:
        num_units: of all blocks.
        is_full: whether each block's map is of full rank, without a bottleneck.
    """

    def __init__(self, A: nn.Module, B: nn.Module, *, num_units: int, is_full: bool) -> None:
        super().__init__()
        self.A, self.B = A, B
        self.num_units, self.is_full = num_units, is_full

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.B(self.A(x))
        return added

    @torch.no_grad()
    def product(self, num_inputs: int, units: Iterable[slice]) -> Tensor:
        """What these units add to the output [I, O] for each input alone."""
        weight = next(self.parameters())
        inputs = torch.arange(num_inputs, device=weight.device)
        if not isinstance(self.A, nn.Embedding):
            inputs = torch.eye(num_inputs, dtype=weight.dtype, device=weight.device)
        features_IU: Tensor = self.A(inputs)
        is_kept_U = torch.zeros_like(features_IU[0])
        for part in units:
            is_kept_U[part] = 1.0
        product_IO: Tensor = self.B(features_IU * is_kept_U)
        return product_IO


def adapted_modules(model: nn.Module, plan: RoutePlan) -> Iterator[tuple[str, Split, nn.Module]]:
    """Kind, split and module of every adapter that the plan adds."""
    whole: Any = model
    for (layer, kind), split in plan.splits.items():
        if kind == EMBED:
            yield kind, split, whole.get_input_embeddings()
        elif kind in (UNEMBED, BIAS):
            yield kind, split, whole.get_output_embeddings()
        elif kind in (MLP_ADAPTER, ATTN_ADAPTER):
            family = family_of(whole.config)
            names = family.linears[MLP if kind == MLP_ADAPTER else ATTN]
            in_layer = list(model.get_submodule(family.layers).children())[layer]
            for name in (*names.columns, names.row):
                yield kind, split, in_layer.get_submodule(name)


def remove_adapters(model: nn.Module, but: Container[nn.Module] = ()) -> None:
    """Takes the adapters out of all modules of the model `but` these."""
    for module in model.modules():
        if module not in but:
            module._modules.pop("adapter", None)


def add_adapters(model: nn.Module, plan: RoutePlan, seed: int) -> None:
    """Gives the model the plan's adapters, and no others.

    Adapters that it has already, of as many units and the same kind of rank, stay as they are. The
    others are real even beside weights on the meta device: they are small.

    Args:
        seed: of the random weights of A.

    Raises:
        PlanError: the family has no such module, or the model is sharded already.
    """
    wanted: dict[nn.Module, dict[str, Split]] = {}
    for kind, split, module in adapted_modules(model, plan):
        wanted.setdefault(module, {})[kind] = split
    remove_adapters(model, wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module, splits in wanted.items():
            adapters: Any = module._modules.get("adapter", {})
            found = dict(adapters)
            made = {}
            for kind, split in splits.items():
                like: Any = {"num_units": split.num_units, "is_full": kind in plan.full_rank}
                old = found.get(kind)
                if old is None or {name: getattr(old, name) for name in like} != like:
                    old = _new(kind, module, **like)
                made[kind] = old
            module.adapter = nn.ModuleDict(made)


def _new(kind: str, module: nn.Module, *, num_units: int, is_full: bool) -> Adapter:
    weight: Any = module.weight
    if not isinstance(weight, nn.Parameter) or is_traceable_wrapper_subclass(weight):
        raise PlanError("adapters are added before a model is sharded or quantised")
    num_inputs, num_outputs = weight.shape  # of an embedding, or the Conv1D of GPT-2
    if isinstance(module, nn.Linear):
        num_outputs, num_inputs = weight.shape
    how: Any = {"dtype": torch.promote_types(weight.dtype, torch.float32)}
    A: nn.Module
    B: nn.Module = nn.Linear(num_units, num_outputs, bias=False, **how)
    zero = B
    if kind == BIAS:
        A = Ones(num_units)
    elif isinstance(module, nn.Embedding):
        A = nn.Embedding(num_inputs, num_units, **how)
        if is_full:
            B, zero = BlockSum(num_outputs), A
    elif is_full:
        A = Copies(num_units // num_inputs)
    else:
        A = nn.Linear(num_inputs, num_units, bias=False, **how)
        nn.init.normal_(A.weight, std=num_inputs**-0.5)
    nn.init.zeros_(zero.weight)  # type: ignore[arg-type]
    adapter = Adapter(A, B, num_units=num_units, is_full=is_full)
    # `to` refuses the fake tensors of an estimate, even where it has nothing to do.
    is_there = weight.is_meta or zero.weight.device == weight.device
    return adapter if is_there else adapter.to(weight.device)
