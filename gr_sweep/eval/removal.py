"""Losses of the full model, without each domain, and with each domain alone: what the matrices are
made of."""

import contextlib
import functools
from collections.abc import Callable

from torch import nn

from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.metrics.losses import DocumentLoss, View
from gr_sweep.model.families import decoder_layers, family_of
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.routing.plan import ATTN


def removal_losses(
    routed: RoutedModel,
    token_losses: TokenLosses,
    held_out: HeldoutBatches,
    full: list[DocumentLoss] | None = None,
) -> list[DocumentLoss]:
    """Rows of L(d), and for a plan with blocks of L[-e](d) and L[e](d) (DESIGN: metrics), for all
    d.

    A domain that owns no block of its own has no L[-e]; views in which the same blocks are off are
    computed once, and so is, for all views, what comes before the first units of the plan.

    Args:
        full: rows of the full model as it stands, where they are there already.
    """
    plan = routed.plan
    views = [(View.removed, domain, plan.removed_by([domain])) for domain in plan.removable()]
    if len(plan.blocks) > 1:
        views += [(View.kept, domain, plan.kept_off([domain])) for domain in plan.nodes]
    contexts: dict[tuple[int, ...], Callable[[], contextlib.AbstractContextManager[None]]] = {}
    if full is None:
        contexts[()] = contextlib.nullcontext
    for view, domain, off in views:
        if off or full is None:
            routing = routed.remove if view is View.removed else routed.keep
            contexts.setdefault(off, functools.partial(routing, [domain]))
    routed.model.eval()
    found = held_out.losses_of_views(
        token_losses, list(contexts.values()), before_first_units(routed)
    )
    rows_of = dict(zip(contexts, found, strict=True))
    if full is not None:
        rows_of[()] = full
    rows = list(rows_of[()])
    for view, domain, off in views:
        rows += [row._replace(view=view, part=domain) for row in rows_of[off]]
    return rows


def before_first_units(routed: RoutedModel) -> list[list[nn.Module]]:
    """Layers, and the attention of the next one, that no view changes nor reaches with a change.

    Two chains for `computed_once`.
    """
    if not routed.plan.splits:
        return []
    family = family_of(routed.model.config)
    layers = decoder_layers(routed.model, family)
    first = min(layer for layer, _ in routed.plan.splits)
    chains = [list(layers[:first])]
    if (first, ATTN) not in routed.plan.splits and family.heads_out is not None:
        chains.append([layers[first].get_submodule(family.heads_out.rpartition(".")[0])])
    return [chain for chain in chains if chain]
