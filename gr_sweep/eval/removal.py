"""Losses of the full model, without each domain, and with each domain alone: what the matrices are
made of."""

from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.metrics.losses import DocumentLoss, View
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel


def removal_losses(
    routed: RoutedModel,
    token_losses: TokenLosses,
    held_out: HeldoutBatches,
    full: list[DocumentLoss] | None = None,
) -> list[DocumentLoss]:
    """Rows of L(d), and for a plan with blocks of L[-e](d) and L[e](d) (DESIGN: metrics), for all
    d.

    A domain that owns no block of its own has no L[-e]; views in which the same blocks are off are
    computed once. What comes before the first layer that the plan splits is the same in all views
    and computed in each: in the plans of whole models that is the embedding and one attention, and
    Hugging Face models cannot be entered in the middle.

    Args:
        full: rows of the full model as it stands, where they are there already.
    """
    plan = routed.plan
    routed.model.eval()
    full = held_out.losses(token_losses) if full is None else full
    by_blocks_off: dict[tuple[int, ...], list[DocumentLoss]] = {(): full}
    rows = list(full)
    views = [(View.removed, domain, plan.removed_by([domain])) for domain in plan.removable()]
    if len(plan.blocks) > 1:
        views += [(View.kept, domain, plan.kept_off([domain])) for domain in plan.nodes]
    for view, domain, off in views:
        if off not in by_blocks_off:
            context = routed.remove([domain]) if view is View.removed else routed.keep([domain])
            with context:
                by_blocks_off[off] = held_out.losses(token_losses, view=view, part=domain)
        rows += [row._replace(view=view, part=domain) for row in by_blocks_off[off]]
    return rows
