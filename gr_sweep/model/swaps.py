"""Which modules of a model become routed ones, and with which class."""

import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import nn

from gr_sweep.model.adapters import adapted_modules
from gr_sweep.model.units import (
    LINEARS,
    UnitExperts,
    UnitLinear,
    gated_mlps,
    head_norms,
    heads_first_norms,
    mixtures,
)
from gr_sweep.routing.experts import RoutedMixture, RoutedPart
from gr_sweep.routing.kinds import EXPERT
from gr_sweep.routing.modules import (
    RoutedFeatures,
    RoutedGatedMlp,
    RoutedHeadNorm,
    RoutedHeadNormHeadsFirst,
    RoutedLinear,
    RoutedLookup,
    RoutedPositions,
    RoutedRest,
    RoutedRestHeadsFirst,
)
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.swap import Swap


def swaps_of(
    model: Any, plan: RoutePlan, linears: Iterable[UnitLinear], *, core_learns: bool, is_cut: bool
) -> list[Swap]:
    """The swaps that route a model.

    Args:
        model: with the adapters that the plan adds.
        linears: those of the model that hold units.
        core_learns: whether modules without units learn.
        is_cut: whether they learn from some rows only.
    """
    swaps = [*_unit_swaps(model, plan, linears), *_adapter_swaps(model, plan)]
    swaps += _mixture_swaps(model, plan, is_cut)
    if not core_learns:
        swaps = [swap for swap in swaps if not issubclass(swap.routed, RoutedHeadNorm)]
    return [*swaps, *_other_swaps(model, {swap.module for swap in swaps}, is_cut)]


def _unit_swaps(model: nn.Module, plan: RoutePlan, linears: Iterable[UnitLinear]) -> Iterator[Swap]:
    for mlp, split in gated_mlps(model, plan):
        yield Swap(mlp, RoutedGatedMlp, (split.slices(),), "mlp")
    for module, maps in itertools.groupby(linears, lambda linear: linear.module):
        first, *others = maps
        if isinstance(first, UnitExperts) or isinstance(module, nn.Embedding):
            continue  # the A of an adapter, or part of a mixture
        parts = tuple(linear.part for linear in (first, *others))
        yield Swap(module, RoutedLinear, parts, "row" if first.is_row else "column")
    heads_first = heads_first_norms(model)
    for norm, units in head_norms(model, plan):
        yield Swap(
            norm, RoutedHeadNormHeadsFirst if norm in heads_first else RoutedHeadNorm, (units,)
        )


def _mixture_swaps(model: nn.Module, plan: RoutePlan, is_cut: bool) -> Iterator[Swap]:
    for layer, module in mixtures(model):
        split = plan.splits.get((layer, EXPERT))
        if split is not None or is_cut:
            yield Swap(module, RoutedMixture, () if split is None else (split.slices(),))
            yield from (Swap(child, RoutedPart) for child in (module.gate, module.experts))


def _adapter_swaps(model: Any, plan: RoutePlan) -> Iterator[Swap]:
    """The modules of adapters that are not linear maps."""
    for kind, split, module in adapted_modules(model, plan):
        features = module.get_submodule(f"adapter.{kind}.A")
        if not isinstance(features, nn.Linear):
            is_table = isinstance(features, nn.Embedding)
            yield Swap(features, RoutedLookup if is_table else RoutedFeatures, (split.slices(),))


def _other_swaps(model: Any, units: Collection[nn.Module], is_cut: bool) -> Iterator[Swap]:
    """Modules that hold no units, but have adapters; or all that have parameters of their own."""
    heads_first = heads_first_norms(model)
    for module in model.modules():
        if module in units or not any(True for _ in module.parameters(recurse=False)):
            continue
        if not is_cut and "adapter" not in module._modules:
            continue
        if isinstance(module, LINEARS):
            outputs = module.weight.shape[0 if isinstance(module, nn.Linear) else 1]
            role = "embedding" if module is model.get_output_embeddings() else "rest"
            yield Swap(module, RoutedLinear, ((slice(0, outputs),),), role)
        elif isinstance(module, nn.Embedding):
            routed = RoutedRest if module is model.get_input_embeddings() else RoutedPositions
            yield Swap(module, routed, role="embedding")
        else:
            routed = RoutedRestHeadsFirst if module in heads_first else RoutedRest
            yield Swap(module, routed, role="rest")
