"""Lays a route plan over a Hugging Face model, in place: `route_model`, and the model's routed life
after.

G = key-value groups of attention heads, F = MLP hidden units, D = residual width.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gr_sweep.errors import PlanError
from gr_sweep.model.extract import extract
from gr_sweep.model.families import (
    UnitLinear,
    check_plan,
    decoder_layers,
    family_of,
    gated_mlps,
    unit_linears,
)
from gr_sweep.routing.edges import RouteWeights, route_weights
from gr_sweep.routing.linears import (
    RoutedColumnLinear,
    RoutedGatedMlp,
    RoutedHeadNorm,
    RoutedModule,
    RoutedRest,
    RoutedRestLinear,
    RoutedRowLinear,
    Routing,
    RoutingState,
    RowRouting,
    TokenRouting,
    check_linear,
    swap_class,
    unswap_class,
)
from gr_sweep.routing.plan import ATTN, RoutePlan
from gr_sweep.routing.rows import RowGroup, row_groups, within

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RoutedModel:
    """A model and how it is routed; the model itself stays an ordinary Hugging Face module."""

    def __init__(
        self,
        model: "PreTrainedModel",
        plan: RoutePlan,
        edges: str,
        foreign_dropout: float,
        weights: RouteWeights,
    ) -> None:
        self.model = model
        self.plan = plan
        self.edges = edges
        self.foreign_dropout = foreign_dropout
        self.unit_linears = unit_linears(model, plan)
        self.route_weights = weights
        self._state = RoutingState()
        self._routings: dict[tuple[Any, ...], RowRouting] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model itself returns."""
        return self.model(*args, **kwargs)

    @property
    def active(self) -> Routing | None:
        """How what is computed now is routed: inside `batch`, `keep` or `remove`."""
        return self._state.active

    def row_groups(
        self, counts: Mapping[str, int], rows: slice | None = None
    ) -> tuple[RowGroup, ...]:
        """The row groups of a micro-batch with `counts` sequences a domain, in row order.

        Of those, where `rows` are given, what lies in them: the groups are the whole micro-batch's,
        whoever computes which part of it.
        """
        groups = row_groups(self.plan, counts, self.foreign_dropout)
        if rows is None:
            return groups
        there = within((group.count for group in groups), rows)
        return tuple(
            replace(group, count=count) for group, count in zip(groups, there, strict=True) if count
        )

    @contextlib.contextmanager
    def batch(
        self,
        counts: Mapping[str, int] | None = None,
        *,
        rows: slice | None = None,
        labels_NT: Tensor | None = None,
    ) -> Iterator[None]:
        """Routes forward and backward passes inside.

        Args:
            counts: sequences of each domain, sorted by domain in this order; "unlabelled" is a key
                too.
            rows: the rows of these that the model is given here, where several processes share
                them; None for all.
            labels_NT: instead of counts, int64 label of every token: index into `plan.domains`, -1
                for unlabelled.

        Raises:
            PlanError: an unknown domain; neither or both given; a model input with another number
                of rows.
        """
        if (counts is None) == (labels_NT is None):
            raise PlanError("batch needs either counts of sequences a domain or labels_NT")
        if labels_NT is not None:
            routing: RowRouting | TokenRouting = TokenRouting(
                self.plan, self.route_weights, labels_NT, self.foreign_dropout
            )
        else:
            assert counts is not None
            if not any(counts.values()):
                raise PlanError(f"batch({dict(counts)}) has no sequence; give a domain some")
            key = (*counts.items(), None if rows is None else (rows.start, rows.stop))
            if key not in self._routings:
                groups = self.row_groups(counts, rows)
                self._routings[key] = RowRouting.of_groups(self.plan, self.route_weights, groups)
            routing = self._routings[key]
        with self._state.routing(routing):
            yield

    @contextlib.contextmanager
    def keep(self, domains: Iterable[str]) -> Iterator[None]:
        """Switches off every block that none of `domains` owns; the core stays. Nothing is cut."""
        with self.blocks_off(self.plan.kept_off(domains)):
            yield

    @contextlib.contextmanager
    def remove(self, domains: Iterable[str]) -> Iterator[None]:
        """Switches off every block that nobody outside `domains` owns. Nothing is cut."""
        with self.blocks_off(self.plan.removed_by(domains)):
            yield

    @contextlib.contextmanager
    def blocks_off(self, blocks: Iterable[int]) -> Iterator[None]:
        """Switches off exactly the blocks with these indices in the plan. Nothing is cut."""
        off = tuple(blocks)
        with self._state.routing(RowRouting.of_blocks_off(self.plan, self.route_weights, off)):
            yield

    def extract(self, keep: Iterable[str]) -> "PreTrainedModel":
        """An ordinary model without the switched-off units; its logits are those of
        `keep(keep)`."""
        return extract(self.model, self.plan, self.unit_linears, keep)

    def owner_sets(self) -> dict[str, list[Tensor]]:
        """Views of all parameters, by the name of the block they belong to.

        The core's are its units and everything that is no unit; a tied parameter appears once. Of
        parameters that are spread over processes, the parts that are here.
        """
        return self._owner_views(lambda parameter: parameter)

    def _owner_views(self, whole_of: Callable[[Tensor], Tensor | None]) -> dict[str, list[Tensor]]:
        """Parts by block of what `whole_of` gives for each parameter; None has no parts."""
        sets: dict[str, list[Tensor]] = {block.name: [] for block in self.plan.blocks}
        in_units: set[int] = set()
        for linear in self.unit_linears:
            for parameter in linear.parameters:
                in_units.add(id(parameter))
                whole = whole_of(parameter)
                for block, part in zip(self.plan.blocks, linear.units, strict=True):
                    if whole is not None and part.stop > part.start:
                        sets[block.name].append(_units_here(whole, part, linear.is_row))
        for parameter in self.model.parameters():
            whole = whole_of(parameter)
            if id(parameter) not in in_units and whole is not None:
                sets[self.plan.core.name].append(_here(whole)[0])
        return sets

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float | None) -> dict[str, Tensor]:
        """Clips gradients to `max_norm` and returns the norms before, as scalars on the device.

        Per owner set under `weight` and `both` (by a global norm the forgotten domain would change
        the size of the core's steps), otherwise globally under the key "all" (DESIGN: what else
        couples domains). None measures and clips nothing. Gradients that are spread over processes
        have one norm over all of them; all must call this.
        """
        if self.edges in ("weight", "both"):
            sets = self._owner_views(lambda parameter: parameter.grad)
        else:
            # Whole: norms of views of columns take longer.
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            sets = {"all": [_here(grad)[0] for grad in grads]}
        norms: dict[str, Tensor] = {
            name: torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            for name, grads in sets.items()
            if grads
        }
        group = _process_group(parameter.grad for parameter in self.model.parameters())
        if group is not None:
            squares = torch.stack(list(norms.values())).square()
            torch.distributed.all_reduce(squares, group=group)
            norms = dict(zip(norms, squares.sqrt().unbind(), strict=True))
        if max_norm is not None:
            for name, norm in norms.items():
                torch._foreach_mul_(sets[name], torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return norms

    def lay(
        self, plan: RoutePlan, edges: Any = "both", *, foreign_dropout: float = 0.0, **weights: Any
    ) -> None:
        """Lays another plan over the same model, in place of the one that is there.

        Args and Raises as in `route_model`; where it raises for a plan or a setting that does not
        fit, the model is the plain one. An order of the new plan counts from where units lie now.
        """
        self.unroute()
        laid = route_model(self.model, plan, edges, foreign_dropout=foreign_dropout, **weights)
        # Everything there is of the other is taken over: its modules know its state.
        vars(self).update(vars(laid))

    @torch.no_grad()
    def reorder_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Puts the optimizer's state of every unit where the plan's order has put the unit.

        To be called once after a plan with an order was laid over a model in training: what follows
        is then what would have been without it, for units alone have changed places.
        """
        for linear in self.unit_linears:
            for parameter in linear.parameters:
                for moment in optimizer.state.get(parameter, {}).values():
                    if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                        _reorder_features(moment, linear)

    def unroute(self) -> "PreTrainedModel":
        """The plain model again; units stay where the plan put them."""
        for module in self.model.modules():
            unswap_class(module)
        self.unit_linears = []
        return self.model


def route_model(
    model: "PreTrainedModel",
    plan: RoutePlan,
    edges: Any = "both",
    *,
    foreign_dropout: float = 0.0,
    foreign_weight: float = 0.0,
    foreign_core_weight: float = 0.0,
    foreign_core_rest: float = 0.0,
    foreign_outputs: float | None = None,
) -> RoutedModel:
    """Makes the model route gradients by domain (Cloud et al. 2024, arXiv 2410.04332).

    Modules are changed in place: MLPs and attention projections of the layers that the plan splits;
    where the core is foreign to a domain also norms, embeddings and all other linears. state_dict
    keys and tying stay. Units are reordered as the plan says, which leaves the function as it was.
    Outside `batch`, `keep` and `remove` the model is the plain one.

    Args:
        model: a causal language model of a family in `gr_sweep.model.families`.
        plan: made for this model's config.
        edges: "none", "weight", "act" or "both" (or an enum with such a value).
        foreign_dropout: share in 0..1 of the cases in which another domain is off for a labelled
            sequence.
        foreign_weight: route weight of a foreign block.
        foreign_core_weight: route weight of the core's units where the core is foreign.
        foreign_core_rest: route weight of everything that is no unit where the core is foreign.
        foreign_outputs: route weight of the output columns (down, o) of a foreign block, the core's
            too; None: as the block's other parameters.

    Raises:
        PlanError: a plan that does not fit the model, unknown edges, a model that is routed
            already.
    """
    check_plan(plan, model.config)
    if any(isinstance(module, RoutedModule) for module in model.modules()):
        raise PlanError("this model is routed already; call unroute() first")
    if not 0.0 <= foreign_dropout <= 1.0:
        raise PlanError(f"foreign_dropout={foreign_dropout} is no share; give a number from 0 to 1")
    edges = getattr(edges, "value", edges)
    weights = route_weights(
        plan,
        edges,
        foreign_weight=foreign_weight,
        foreign_core_weight=foreign_core_weight,
        foreign_core_rest=foreign_core_rest,
        foreign_outputs=foreign_outputs,
    )
    routed = RoutedModel(model, plan, edges, foreign_dropout, weights)
    for linear in routed.unit_linears:
        check_linear(linear.module)
    for linear in routed.unit_linears:
        _reorder(linear)
    for mlp, split in gated_mlps(model, plan):
        swap_class(mlp, RoutedGatedMlp, routed._state, split.slices())
    for linear in routed.unit_linears:
        routed_class = RoutedRowLinear if linear.is_row else RoutedColumnLinear
        swap_class(linear.module, routed_class, routed._state, linear.units)
    if plan.splits:
        _swap_head_norms(routed)
    if any(not plan.owns(domain, plan.core) for domain in plan.domains):
        _swap_rest(routed)
    return routed


def _swap_head_norms(routed: RoutedModel) -> None:
    family = family_of(routed.model.config)
    layers = decoder_layers(routed.model, family)
    config: Any = routed.model.config
    for (layer, kind), split in routed.plan.splits.items():
        if kind == ATTN:
            for name in family.head_norms:
                heads = (
                    config.num_attention_heads
                    if name.endswith("q_norm")
                    else config.num_key_value_heads
                )
                units = split.slices(heads // split.num_units)
                swap_class(layers[layer].get_submodule(name), RoutedHeadNorm, routed._state, units)


def _swap_rest(routed: RoutedModel) -> None:
    for module in list(routed.model.modules()):
        if isinstance(module, RoutedModule) or not any(
            True for _ in module.parameters(recurse=False)
        ):
            continue
        if isinstance(module, nn.Linear):
            swap_class(module, RoutedRestLinear, routed._state, (slice(0, module.out_features),))
        else:
            swap_class(module, RoutedRest, routed._state)


def _here(whole: Tensor) -> tuple[Tensor, int]:
    """What this process holds of a tensor, and the row of the whole that it begins with.

    `fully_shard` gives each process a part of the rows, as `torch.chunk` divides them.
    """
    if not isinstance(whole, DTensor):
        return whole, 0
    mesh, num_rows = whole.device_mesh, whole.shape[0]
    each = -(-num_rows // mesh.size())
    return whole.to_local(), min(mesh.get_local_rank() * each, num_rows)


def _units_here(whole: Tensor, units: slice, are_columns: bool) -> Tensor:
    """A view of these rows or columns of the whole, as far as this process holds them."""
    local, first = _here(whole)
    if are_columns:
        return local[:, units]
    return local[max(0, units.start - first) : max(0, units.stop - first)]


def _process_group(tensors: Iterable[Tensor | None]) -> Any:
    """The processes that tensors are spread over; None where each is whole."""
    for tensor in tensors:
        if isinstance(tensor, DTensor):
            return tensor.device_mesh.get_group()
    return None


@torch.no_grad()
def _reorder(linear: UnitLinear) -> None:
    """Puts the linear's units in the plan's order, in place."""
    for parameter in linear.parameters:
        _reorder_features(parameter, linear)


def _reorder_features(tensor: Tensor, linear: UnitLinear) -> None:
    """Puts what a parameter of the linear, or something of its shape, has of each unit in the
    plan's order, in place."""
    order = linear.split.order
    if order is None:
        return
    features = torch.tensor(order)[:, None] * linear.width + torch.arange(linear.width)
    dim = 1 if linear.is_row else 0
    tensor.copy_(tensor.index_select(dim, features.flatten().to(tensor.device)))
