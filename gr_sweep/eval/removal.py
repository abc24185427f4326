"""Losses of the full model, without each domain, and with each domain alone: what the matrices are
made of."""

from collections.abc import Mapping

import torch

from gr_sweep.data.batches import HeldoutChunks
from gr_sweep.eval.loss import loss_table
from gr_sweep.metrics.losses import DocumentLoss, View
from gr_sweep.model.route import RoutedModel


def removal_losses(
    routed: RoutedModel,
    held_out: Mapping[str, HeldoutChunks],
    *,
    batch_sequences: int,
    device: torch.device,
) -> list[DocumentLoss]:
    """Rows of L(d), and for a plan with blocks of L[-e](d) and L[e](d) (DESIGN: metrics), for all
    d.

    A domain that owns no block of its own has no L[-e]; views in which the same blocks are off are
    computed once.
    """
    plan = routed.plan
    routed.model.eval()
    full = loss_table(
        routed, held_out, view=View.full, part="", batch_sequences=batch_sequences, device=device
    )
    by_blocks_off: dict[tuple[int, ...], list[DocumentLoss]] = {(): full}
    rows = list(full)
    views = [(View.removed, domain, plan.removed_by([domain])) for domain in plan.removable()]
    if len(plan.blocks) > 1:
        views += [(View.kept, domain, plan.kept_off([domain])) for domain in plan.nodes]
    for view, domain, off in views:
        if off not in by_blocks_off:
            context = routed.remove([domain]) if view is View.removed else routed.keep([domain])
            with context:
                by_blocks_off[off] = loss_table(
                    routed,
                    held_out,
                    view=view,
                    part=domain,
                    batch_sequences=batch_sequences,
                    device=device,
                )
        rows += [row._replace(view=view, part=domain) for row in by_blocks_off[off]]
    return rows
