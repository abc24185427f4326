"""Losses of the full model and of its parts, from which the matrices of losses are made."""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np

from gr_sweep.domains import expand
from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.metrics.losses import DocumentLoss, View
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.routing.plan import RoutePlan

WithoutDomain = Callable[[str], contextlib.AbstractContextManager[None]]
"""Makes the context in which the model, with a domain's blocks off, is the model without it."""

PlanView = tuple[View, str, tuple[int, ...]]
"""A view, its part, and the indices of the blocks that are off."""


def removal_losses(
    routed: RoutedModel,
    token_losses: TokenLosses,
    held_out: HeldoutBatches,
    full: list[DocumentLoss] | None = None,
    recovered: WithoutDomain | None = None,
) -> list[DocumentLoss]:
    """Rows of all held-out documents in every view of the model.

    The views are the full model; without each domain that owns a block of its own; each domain
    alone; for a lattice also without each block; and the served model, whole and without each of
    these domains. Views in which the same blocks are off are computed once.

    Args:
        full: rows of the full model, if they have been computed.
        recovered: each removed view is read inside this context, which may train the model after
            the removal. The served model is that before any removal: none of its networks is
            recovered. Without a domain it is the recovered network alone, however many networks
            the other domains have: it is the one that has been trained.
    """
    plan = routed.plan
    removed, kept = domain_views(plan)
    views = [(View.full, "", ()), *removed, *kept]
    if is_lattice(plan):
        views += [
            (View.off, block.name, (index,))
            for index, block in enumerate(plan.blocks)
            if not block.is_core
        ]
    of_blocks: dict[tuple[int, ...], list[DocumentLoss]] = {} if full is None else {(): full}
    of_recovered: dict[tuple[int, ...], list[DocumentLoss]] = {}

    def read(off: tuple[int, ...]) -> list[DocumentLoss]:
        routed.model.eval()
        with routed.blocks_off(off) if off else contextlib.nullcontext():
            return held_out.losses(token_losses)

    def read_once(off: tuple[int, ...]) -> list[DocumentLoss]:
        if off not in of_blocks:
            of_blocks[off] = read(off)
        return of_blocks[off]

    found = []
    for view, part, off in views:
        if view is View.removed and recovered is not None:
            with recovered(part):
                of_recovered[off] = read(off)
        # If keeping a domain switches off the same blocks, reuse the recovered rows.
        rows = of_recovered[off] if off in of_recovered else read_once(off)
        found += [row._replace(view=view, part=part) for row in rows]
    found += served_losses([read_once(off) for off in served_networks(plan)])
    for _, part, off in removed:
        if networks := served_networks(plan, [part]):
            one = of_recovered.get(off)
            rows = served_losses([one] if one else [read_once(left) for left in networks])
            found += [row._replace(view=View.served_removed, part=part) for row in rows]
    return found


def domain_views(plan: RoutePlan) -> tuple[list[PlanView], list[PlanView]]:
    """The views in which a domain, or a node above several, is removed, and those in which one is
    kept alone."""
    removed = [(View.removed, node, plan.removed_by([node])) for node in plan.removable()]
    nodes = plan.nodes if len(plan.blocks) > 1 else ()
    return removed, [(View.kept, node, plan.kept_off([node])) for node in nodes]


def served_networks(plan: RoutePlan, removed: Sequence[str] = ()) -> list[tuple[int, ...]]:
    """The blocks that are off in each distinct network of a label kept alone.

    Args:
        removed: nodes whose labels have no network; those above them keep nothing of theirs.
    """
    labels, gone = set(plan.domains), set(expand(removed, plan.domains))
    kept = [{*expand([d], plan.domains)} - gone for d in plan.domains if d not in gone]
    return list(dict.fromkeys(plan.off_blocks(labels - of_network) for of_network in kept))


def is_lattice(plan: RoutePlan) -> bool:
    """Whether several domains that are not a branch of the tree own a block other than the core."""
    branches = {frozenset(expand([node], plan.domains)) for node in plan.nodes}
    branches |= {frozenset([domain]) for domain in plan.domains}
    return any(not block.is_core and block.owners not in branches for block in plan.blocks)


def served_losses(networks: Sequence[Sequence[DocumentLoss]]) -> list[DocumentLoss]:
    """Losses of the served model on text whose label nobody says: the networks, mixed by the
    posterior over them. One network alone is served as it is.

    p(x_t | x_<t) = sum_j p(x_t | x_<t, network j) p(j | x_<t), with the posterior by Bayes' rule
    from a uniform prior, as DEMix mixes at inference (Gururangan et al. 2021, arXiv 2108.05036).
    Over a document this telescopes to the mean of the networks' likelihoods, so their sums are
    enough. The posterior continues over all windows of a document, although each window's tokens
    are predicted from that window alone.

    Args:
        networks: rows of each network, for the same documents in the same order.
    """
    log_likelihoods = -np.array([[row.loss_nats for row in rows] for rows in networks])
    mean = np.logaddexp.reduce(log_likelihoods, axis=0) - np.log(len(networks))
    return [
        row._replace(view=View.served, part="", loss_nats=-float(log_likelihood))
        for row, log_likelihood in zip(networks[0], mean, strict=True)
    ]
