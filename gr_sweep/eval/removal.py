"""Losses of the full model, without each domain, with each domain alone, without each block of a
lattice, and of the experts mixed: what the matrices are made of."""

import contextlib
import functools
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from gr_sweep.domains import expand
from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.metrics.losses import DocumentLoss, View
from gr_sweep.model.families import decoder_layers, family_of
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.routing.plan import ATTN, RoutePlan

WithoutDomain = Callable[[str], contextlib.AbstractContextManager[None]]
"""Makes the context in which what is switched off to remove a domain is the model without it."""

PlanView = tuple[View, str, tuple[int, ...]]
"""A view, its part, and the indices of the blocks that are off."""


def removal_losses(
    routed: RoutedModel,
    token_losses: TokenLosses,
    held_out: HeldoutBatches,
    full: list[DocumentLoss] | None = None,
    recovered: WithoutDomain | None = None,
) -> list[DocumentLoss]:
    """Rows of L(d), and for a plan with blocks of L[-e](d) and L[e](d) (DESIGN: metrics), for all
    d; of a lattice also without each block, and where each domain has an expert, of the experts
    mixed.

    A domain that owns no block of its own has no L[-e]; views in which the same blocks are off are
    computed once, and so is, for all views, what comes before the first units of the plan.

    Args:
        full: rows of the full model as it stands, where they are there already.
        recovered: each removed view is read inside this context, which may have trained the model
            after the removal.
    """
    plan = routed.plan
    removed, kept = domain_views(plan)
    views = kept if recovered is not None else [*removed, *kept]
    if is_lattice(plan):
        views += [
            (View.off, block.name, (index,))
            for index, block in enumerate(plan.blocks)
            if not block.is_core
        ]
    contexts: dict[tuple[int, ...], Callable[[], contextlib.AbstractContextManager[None]]] = {}
    if full is None:
        contexts[()] = contextlib.nullcontext
    for _, _, off in views:
        if off or full is None:
            contexts.setdefault(off, functools.partial(routed.blocks_off, off))
    shared = before_first_units(routed)
    routed.model.eval()
    found = held_out.losses_of_views(token_losses, list(contexts.values()), shared)
    rows_of = dict(zip(contexts, found, strict=True))
    if full is not None:
        rows_of[()] = full
    rows = list(rows_of[()])
    for view, part, off in views:
        rows += [row._replace(view=view, part=part) for row in rows_of[off]]
    if recovered is not None:
        for view, part, off in removed:
            with recovered(part):
                routed.model.eval()
                switched_off = [functools.partial(routed.blocks_off, off)]
                (of_part,) = held_out.losses_of_views(token_losses, switched_off)
            # What is kept where the same blocks are off is the same network, recovered.
            same = [(name, of) for name, of, off_there in views if off_there == off]
            rows = [row for row in rows if (row.view, row.part) not in same]
            for name, of in [(view, part), *same]:
                rows += [row._replace(view=name, part=of) for row in of_part]
    if has_experts(plan):
        rows += mixed_losses([rows_of[plan.kept_off([domain])] for domain in plan.domains])
    return rows


def domain_views(plan: RoutePlan) -> tuple[list[PlanView], list[PlanView]]:
    """The views in which a domain, or a node above some, is removed; and those in which one is
    kept alone."""
    removed = [(View.removed, node, plan.removed_by([node])) for node in plan.removable()]
    nodes = plan.nodes if len(plan.blocks) > 1 else ()
    return removed, [(View.kept, node, plan.kept_off([node])) for node in nodes]


def is_lattice(plan: RoutePlan) -> bool:
    """Whether a block beside the core is owned by several domains that are no branch of a tree."""
    branches = {frozenset(expand([node], plan.domains)) for node in plan.nodes}
    branches |= {frozenset([domain]) for domain in plan.domains}
    return any(not block.is_core and block.owners not in branches for block in plan.blocks)


def has_experts(plan: RoutePlan) -> bool:
    """Whether each of several domains, kept alone, leaves another network."""
    off = {plan.kept_off([domain]) for domain in plan.domains}
    # A label above others keeps all below it and is no expert beside theirs.
    are_leaves = all(len(expand([domain], plan.domains)) == 1 for domain in plan.domains)
    return len(plan.domains) > 1 and are_leaves and len(off) == len(plan.domains)


def mixed_losses(experts: Sequence[Sequence[DocumentLoss]]) -> list[DocumentLoss]:
    """Losses of the experts mixed by the posterior over them, for text of unknown domain.

    p(x_t | x_<t) = sum_j p(x_t | x_<t, expert j) p(j | x_<t), the posterior by Bayes' rule from a
    uniform prior (DEMix, Gururangan et al. 2021, arXiv 2108.05036, its mixing at inference). Over a
    document that telescopes to the mean of the experts' likelihoods, so their sums are enough. The
    posterior goes on over all windows of a document, though each window's tokens are predicted from
    that window alone.

    Args:
        experts: rows of each expert, of the same documents in the same order.
    """
    log_likelihoods = -np.array([[row.loss_nats for row in rows] for rows in experts])
    mean = np.logaddexp.reduce(log_likelihoods, axis=0) - np.log(len(experts))
    return [
        row._replace(view=View.mixed, part="", loss_nats=-float(log_likelihood))
        for row, log_likelihood in zip(experts[0], mean, strict=True)
    ]


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
