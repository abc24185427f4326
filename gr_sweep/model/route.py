"""Routes a Hugging Face model by a plan, in place: `route_model` returns a `RoutedModel`.

G = key-value groups of attention heads, F = MLP hidden units, D = residual width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gr_sweep.domains import expand
from gr_sweep.errors import PlanError
from gr_sweep.model.adapters import add_adapters, remove_adapters
from gr_sweep.model.extract import extract
from gr_sweep.model.families import check_plan
from gr_sweep.model.units import (
    local_part,
    local_units,
    reorder,
    swaps_of,
    unit_linears,
)
from gr_sweep.routing.edges import RouteWeights
from gr_sweep.routing.modules import RoutedModule, Routing, RoutingState
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.routing.row_routing import RowRouting
from gr_sweep.routing.rows import RowGroup, row_groups, within
from gr_sweep.routing.swap import InPlace, check_swaps, swap_class, unswap
from gr_sweep.routing.token_routing import TokenRouting

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RoutedModel:
    """A model and how it is routed. The model itself stays an ordinary Hugging Face module."""

    def __init__(self, model: "PreTrainedModel", plan: RoutePlan, edges: Any, **how: Any) -> None:
        """Args and Raises as in `route_model`."""
        self.model = model
        self._state = RoutingState()
        self._in_place: InPlace | None = None
        self._frozen: list[str] = []
        """Names of the parameters that `core_frozen` has frozen."""
        self.token_cuts: Mapping[str, Tensor] = {}
        """By domain a number from 0 to 1 for each token of the vocabulary, float [V] on the model's
        device: in `batch` a position whose next token has s is cut by the route weights
        1 + s (w - 1). Not empty: tokens are routed one by one, which is slower."""
        self.lay(plan, edges, **how)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model."""
        return self.model(*args, **kwargs)

    def lay(
        self,
        plan: RoutePlan,
        edges: Any = "both",
        *,
        foreign_dropout: float = 0.0,
        foreign_core_share: float = 0.0,
        one_block: bool = False,
        always_off: Iterable[str] = (),
        seed: int = 0,
        **weights: Any,
    ) -> None:
        """Routes the same model by another plan instead.

        Args and Raises as in `route_model`. Arguments that are refused change nothing; after any
        other error the model is the plain one, without adapters. An order of the new plan counts
        from where units are now. Adapters stay as they are where the new plan has as many units;
        others are new, or gone.
        """
        check_plan(plan, self.model.config)
        for share in (foreign_dropout, foreign_core_share):
            if not isinstance(share, (int, float)) or not 0.0 <= share <= 1.0:
                raise PlanError(
                    f"expected foreign_dropout and foreign_core_share from 0 to 1, got {share}"
                )
        rows = {
            "foreign_core_share": foreign_core_share,
            "one_block": one_block,
            "always_off": expand(always_off, plan.domains),
        }
        route_weights = RouteWeights(getattr(edges, "value", edges), **weights)
        core_frozen = route_weights.core_frozen
        is_cut = not core_frozen and any(not plan.owns(d, plan.core) for d in plan.domains)
        self._unswap()
        try:
            add_adapters(self.model, plan, seed)
            found = unit_linears(self.model, plan)
            swaps = swaps_of(self.model, plan, found, core_learns=not core_frozen, is_cut=is_cut)
            check_swaps(self.model, swaps)
            # The core's units come first.
            of_blocks = [linear for linear in found if linear.units[-1].stop > linear.units[0].stop]
            learning = {id(p) for linear in of_blocks for p in linear.parameters}
            if core_frozen and not learning:
                raise PlanError(
                    "core_frozen=True leaves nothing to learn: the plan gives blocks no units"
                )
        except PlanError:
            remove_adapters(self.model)
            raise
        # Nothing fails from here on: the model is routed, or as it was.
        self.plan, self.route_weights, self.foreign_dropout = plan, route_weights, foreign_dropout
        self.unit_linears, self._state = found, RoutingState()
        self._rows: dict[str, Any] = rows
        # Bounded, for callers whose every batch has other counts.
        remembered = lru_cache(maxsize=256)
        self._cycle_of = remembered(
            lambda of: row_groups(plan, dict(of), foreign_dropout, **self._rows)
        )
        self._routing_of = remembered(partial(RowRouting.of_groups, plan, route_weights))
        self._reorder(lambda parameter: [parameter])
        for swap in swaps:
            swap_class(swap, self._state)
        for name, parameter in self.model.named_parameters() if core_frozen else ():
            if parameter.requires_grad and id(parameter) not in learning:
                parameter.requires_grad_(False)
                self._frozen.append(name)
        self._in_place = InPlace(self.model, swaps)
        self._state.record(self.model)

    @property
    def active(self) -> Routing | None:
        """The current routing; None outside `batch`, `keep` and `remove`."""
        return self._state.active

    @property
    def resting(self) -> frozenset[str]:
        """Names of the blocks that no sequence trains: a frozen core, and those always off."""
        blocks = [self.plan.blocks[i] for i in self.plan.off_blocks(self._rows["always_off"])]
        blocks += [self.plan.core] * self.route_weights.core_frozen
        return frozenset(block.name for block in blocks)

    def cycle(self, counts: Mapping[str, int]) -> tuple[tuple[RowGroup, ...], ...]:
        """The row groups of steps with `counts` sequences per domain, after which they repeat.

        Raises:
            PlanError: as `batch`.
        """
        return self._cycle_of(tuple(counts.items()))

    def row_groups(
        self, counts: Mapping[str, int], *, step: int | None = None, rows: slice | None = None
    ) -> tuple[RowGroup, ...]:
        """The row groups of `batch` with the same arguments, in row order."""
        cycle = self.cycle(counts)
        if step is None and len(cycle) > 1:
            raise PlanError(
                f"the shares of {dict(counts)} sequences that are routed alike take {len(cycle)} "
                "steps in turn; give the number of the step: batch(counts, step=step)"
            )
        groups = cycle[(step or 0) % len(cycle)]
        return groups if rows is None else within(groups, range(sum(counts.values()))[rows])

    @contextmanager
    def batch(
        self,
        counts: Mapping[str, int] | None = None,
        *,
        step: int | None = None,
        rows: slice | None = None,
        labels_NT: Tensor | None = None,
        next_NT: Tensor | None = None,
    ) -> Iterator[None]:
        """Routes forward and backward passes inside.

        Args:
            counts: number of sequences of each domain in a step, sorted by domain in this order;
                "unlabelled" is allowed as a key.
            step: number of the step, which says which sequences have which domains off; needed
                where foreign dropout times a count is not a whole number.
            rows: those of the step's rows that the model is given here, if micro-batches or
                processes share them; None for all.
            labels_NT: instead of `counts`, the int64 label of every token: an index into
                `plan.domains`, or -1 for unlabelled. A position has the label of its own token;
                in the code of Cloud et al. it has that of the next, which it predicts.
            next_NT: int64, the token that each position predicts; needed with `token_cuts`.

        Raises:
            PlanError: an unknown domain, neither or both of `counts` and `labels_NT`, a foreign
                dropout that these counts cannot reach or that needs `step`, a model input with
                another number of rows, or a model that has changed since it was routed.
        """
        if (counts is None) == (labels_NT is None):
            raise PlanError("expected either counts of sequences per domain or labels_NT")
        routing: Routing
        if labels_NT is not None:
            if any(self._rows.values()):
                raise PlanError(
                    "foreign_core_share, one_block and always_off apply to whole sequences; leave "
                    "them out with labels_NT"
                )
            routing = TokenRouting.of_labels(
                self.plan, self.route_weights, labels_NT, self.foreign_dropout
            )
        else:
            assert counts is not None
            groups = self.row_groups(counts, step=step, rows=rows)
            if not self.token_cuts:
                routing = self._routing_of(groups)
            else:
                routing = TokenRouting.of_groups(
                    self.plan, self.route_weights, groups, next_NT, self.token_cuts
                )
        with self._routed_by(routing):
            yield

    def keep(self, domains: Iterable[str]) -> AbstractContextManager[None]:
        """Switches off every block that none of `domains` owns; the core stays. Nothing is cut."""
        return self.blocks_off(self.plan.kept_off(domains))

    def remove(self, domains: Iterable[str]) -> AbstractContextManager[None]:
        """Switches off every block that nobody outside `domains` owns. Nothing is cut."""
        return self.blocks_off(self.plan.removed_by(domains))

    def blocks_off(self, blocks: Iterable[int]) -> AbstractContextManager[None]:
        """Switches off exactly the blocks with these indices in the plan. Nothing is cut."""
        return self._routed_by(RowRouting.without(self.plan, blocks))

    @contextmanager
    def _routed_by(self, routing: Routing) -> Iterator[None]:
        self._check()
        self._state.record(self.model)
        with self._state.routing(routing):
            yield

    def _check(self) -> None:
        """Raises PlanError if the modules that were routed no longer are."""
        if self._in_place is None:
            raise PlanError("the model is the plain one: after unroute() or a lay() that failed")
        self._in_place.check()

    def extract(self, keep: Iterable[str]) -> "PreTrainedModel":
        """An ordinary model without the units that `keep(keep)` switches off, and with the same
        logits."""
        self._check()
        # Adapters are merged by calling their modules, which contexts route.
        return self._state.run(None, extract, self.model, self.plan, self.unit_linears, keep)

    def owner_sets(self, *, gradients: bool = False) -> dict[str, list[Tensor]]:
        """Views of all parameters that learn, or of those gradients that there are, by the name of
        their block.

        The core has its units and every parameter that belongs to no unit; a tied parameter appears
        once. For sharded parameters, the parts on this process.
        """
        self._check()
        wholes = {
            id(parameter): parameter.grad if gradients else parameter
            for parameter in self.model.parameters()
            if (parameter.grad is not None if gradients else parameter.requires_grad)
        }
        sets: dict[str, list[Tensor]] = {block.name: [] for block in self.plan.blocks}
        in_units: set[int] = set()
        for linear in self.unit_linears:
            for parameter in linear.parameters:
                in_units.add(id(parameter))
                whole = wholes.get(id(parameter))
                for block, part in zip(self.plan.blocks, linear.units, strict=True):
                    if whole is not None and part.stop > part.start:
                        sets[block.name].append(local_units(whole, part, linear.dim(whole)))
        rest = [whole for parameter, whole in wholes.items() if parameter not in in_units]
        sets[self.plan.core.name] += [local_part(whole)[0] for whole in rest]
        return sets

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float | None) -> dict[str, Tensor]:
        """Clips gradients to `max_norm` and returns the norms before, as scalars on the device.

        Under `weight` and `both` each owner set is clipped by itself: with a global norm the
        forgotten domain would change the size of the core's steps. Otherwise there is one global
        norm, under the key "all" (docs/routing.md, "What else couples domains"). None measures and
        clips nothing. Sharded gradients have one norm over all processes, which must all call this.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.route_weights.cuts_weights:
            sets = self.owner_sets(gradients=True)
            if self.route_weights.core_frozen:
                del sets[self.plan.core.name]  # zeros
        else:
            # Whole gradients: norms of views of columns take longer.
            sets = {"all": [local_part(gradient)[0] for gradient in gradients]}
        norms: dict[str, Tensor] = {
            name: torch.linalg.vector_norm(torch.stack(torch._foreach_norm(parts)))
            for name, parts in sets.items()
            if parts
        }
        sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
        if sharded:
            mesh = sharded[0].device_mesh
            squares = torch.stack(list(norms.values())).square()
            torch.distributed.all_reduce(squares, group=mesh.get_group(mesh.ndim - 1))
            norms = dict(zip(norms, squares.sqrt().unbind(), strict=True))
        if max_norm is not None:
            for name, norm in norms.items():
                torch._foreach_mul_(sets[name], torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return norms

    def reorder_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves the optimizer's state of every unit to where the plan's order has put the unit.

        Call it once after laying a plan with an order over a model in training. Training then
        continues as it would have without the order, since only units have changed places.
        """
        self._reorder(lambda parameter: optimizer.state.get(parameter, {}).values())

    @torch.no_grad()
    def _reorder(self, tensors_of: Callable[[Tensor], Iterable[Any]]) -> None:
        """Puts the units in the plan's order, in all tensors that have the shape of their
        parameter."""
        for linear in self.unit_linears:
            for parameter, dim in linear.ordered:
                for tensor in tensors_of(parameter):
                    if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                        reorder(tensor, linear, dim)

    def unroute(self) -> "PreTrainedModel":
        """The plain model again, without adapters; units stay where the plan put them.

        Raises:
            PlanError: inside `batch`, `keep` or `remove`.
        """
        self._unswap()
        remove_adapters(self.model)
        return self.model

    def _unswap(self) -> None:
        if self._state.active is not None:
            raise PlanError("leave batch, keep or remove before the model changes")
        unswap(self.model)
        for name, parameter in self.model.named_parameters():
            if name in self._frozen:
                parameter.requires_grad_()
        self._frozen = []
        self.unit_linears, self._in_place = [], None


def route_model(
    model: "PreTrainedModel", plan: RoutePlan, edges: Any = "both", **how: Any
) -> RoutedModel:
    """Makes the model route gradients by domain (Cloud et al. 2024, arXiv 2410.04332).

    Changes modules in place: MLPs, mixtures of experts and attention projections of the layers that
    the plan splits; also all others with parameters if the core is foreign to a domain. state_dict
    keys and tying stay, beside those of adapters. Units are put in the plan's order, which does not
    change the function; nor do new adapters. Outside `batch`, `keep` and `remove` the model is the
    plain one.

    Args:
        model: a causal language model of a family in `gr_sweep.model.families`.
        plan: a plan made for this model's config.
        edges: "none", "weight", "act" or "both" (or an enum with such a value).
        foreign_dropout: fraction in 0..1 (0) of the labelled sequences for which another domain is
            off. Reached to 0.01 or refused (see `RoutedModel.batch`).
        foreign_core_share, one_block, always_off: as in `gr_sweep.routing.rows.row_groups`.
        seed: of the random weights of adapters that the plan adds (0).
        how: also `foreign_weight`, `foreign_core_weight`, `foreign_core_rest` (0),
            `foreign_core_embeddings` and `foreign_outputs` (None), and `core_frozen` (False), as in
            `gr_sweep.routing.edges.RouteWeights`.

    Raises:
        PlanError: a plan that does not fit the model, unknown edges, or a model that is already
            routed.
    """
    if any(isinstance(module, RoutedModule) for module in model.modules()):
        raise PlanError("the model is already routed; call unroute() first")
    return RoutedModel(model, plan, edges, **how)
