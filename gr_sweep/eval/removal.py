"""Losses of the full model and of its parts, from which the matrices of losses are made."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gr_sweep.domains import expand
from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.metrics.losses import DocumentLoss, View
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel
from gr_sweep.routing.plan import RoutePlan

WithoutDomain = Callable[[str], contextlib.AbstractContextManager[None]]
"""Makes the context in which the model, with a domain's blocks off, is the model without it."""

Off = tuple[int, ...]
"""Indices of the blocks that are off."""


def views_of(plan: RoutePlan) -> list[tuple[View, str, Off]]:
    """The views in which nothing is off, a domain or a node above several is removed, and one is
    kept alone, with their parts; on a lattice also without each block."""
    found: list[tuple[View, str, Off]] = [(View.full, "", ())]
    found += [(View.removed, node, plan.removed_by([node])) for node in plan.removable()]
    if len(plan.blocks) > 1:
        found += [(View.kept, node, plan.kept_off([node])) for node in plan.nodes]
    if is_lattice(plan):
        blocks = [(index, block) for index, block in enumerate(plan.blocks) if not block.is_core]
        found += [(View.off, block.name, (index,)) for index, block in blocks]
    return found


@dataclass(frozen=True)
class Network:
    """A network of the plan: the model with some blocks off, maybe after a recovery."""

    off: Off
    recovered: str = ""
    """The part that was removed before the recovery; empty without one."""

    @contextlib.contextmanager
    def active(self, routed: RoutedModel, recover: WithoutDomain | None = None) -> Iterator[None]:
        """Inside, the model is this network, for evaluation."""
        with contextlib.ExitStack() as stack:
            if self.recovered:
                assert recover is not None
                stack.enter_context(recover(self.recovered))
            if self.off:
                stack.enter_context(routed.blocks_off(self.off))
            routed.model.eval()
            yield


def networks_of(plan: RoutePlan, *, recovers: bool) -> dict[Network, list[tuple[View, str]]]:
    """The distinct networks that the views show, and which views are which.

    With `recovers` a removed view is that of the recovered model, and so is a kept one in which the
    same blocks are off.
    """
    views = views_of(plan)
    removed = {off: part for view, part, off in views if recovers and view is View.removed}
    found: dict[Network, list[tuple[View, str]]] = {}
    for view, part, off in views:
        recovered = part if recovers and view is View.removed else removed.get(off, "")
        found.setdefault(Network(off, recovered), []).append((view, part))
    return found


def removal_losses(
    routed: RoutedModel,
    token_losses: TokenLosses,
    held_out: HeldoutBatches,
    full: list[DocumentLoss] | None = None,
    recovered: WithoutDomain | None = None,
) -> list[DocumentLoss]:
    """Rows of all held-out documents in every view of the model, and of the served model, whole and
    without each domain that owns a block of its own.

    Args:
        full: rows of the full model, if they have been computed.
        recovered: each removed view is read inside this context, which may train the model after
            the removal. The served model is that before any removal: none of its networks is
            recovered. Without a domain it is the recovered network alone, however many networks
            the other domains have: it is the one that has been trained.
    """
    plan = routed.plan
    rows_of: dict[Network, list[DocumentLoss]] = {} if full is None else {Network(()): full}

    def read(network: Network) -> list[DocumentLoss]:
        if network not in rows_of:
            with network.active(routed, recovered):
                rows_of[network] = held_out.losses(token_losses)
        return rows_of[network]

    networks = networks_of(plan, recovers=recovered is not None)
    network_of = {view: network for network, views in networks.items() for view in views}
    found = []
    for view, part, _ in views_of(plan):
        rows = read(network_of[view, part])
        found += [row._replace(view=view, part=part) for row in rows]
    found += served_losses([read(Network(off)) for off in served_networks(plan)])
    for part in plan.removable():
        if left := [Network(off) for off in served_networks(plan, [part])]:
            if recovered is not None:
                left = [network_of[View.removed, part]]
            rows = served_losses([read(network) for network in left])
            found += [row._replace(view=View.served_removed, part=part) for row in rows]
    return found


def served_networks(plan: RoutePlan, removed: Sequence[str] = ()) -> list[Off]:
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
