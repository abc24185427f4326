"""Plans of later rounds of `alternate`, in which each expert is divided further."""

from collections.abc import Sequence
from dataclasses import replace

from gr_sweep.domains import ancestors, check_domains, is_under
from gr_sweep.errors import PlanError
from gr_sweep.routing.kinds import ATTN, EXPERT, KINDS, MLP
from gr_sweep.routing.plan import Block, RoutePlan, Split, divide_units


def split_further(
    plan: RoutePlan, labels: Sequence[str], *, mlp_shared: float, attn_shared: float = 1.0
) -> RoutePlan:
    """The plan of the next round.

    A block whose one label has become several is divided into a block that they own together and
    one block per label. New blocks take the place of the block they come from; all other blocks
    stay where they are. Isolated experts stay isolated, with everything they are divided into. Of
    adapter units the labels own none together, as the core has none.

    Args:
        plan: plan of the round before.
        labels: labels of the new plan, each equal to or below one of the old labels.
        mlp_shared: fraction in 0..1 of a block's MLP units or experts that its labels own together.
        attn_shared: the same fraction of its head groups.

    Raises:
        PlanError: a block has too few units.
    """
    new = check_domains(labels)
    below = {d: tuple(label for label in new if is_under(label, d)) for d in plan.domains}
    blocks: list[Block] = []
    children_of: list[tuple[str, ...]] = []  # of each old block, the labels that divide it
    for block in plan.blocks:
        owners = [label for d in block.owners for label in below[d]]
        is_divided = not block.is_core and len(block.owners) == 1 and len(owners) > 1
        children_of.append(tuple(owners) if is_divided else ())
        blocks.append(replace(block, owners=frozenset(owners)))
        blocks += [Block(child, frozenset([child])) for child in children_of[-1]]
    shares = dict.fromkeys(KINDS, 0.0) | {MLP: mlp_shared, EXPERT: mlp_shared, ATTN: attn_shared}
    splits = {}
    for (layer, kind), split in plan.splits.items():
        sizes: list[int] = []
        for size, children in zip(split.sizes, children_of, strict=True):
            sizes += divide_units(size, shares[kind], len(children)) if children else (size,)
        splits[layer, kind] = Split(tuple(sizes))
    old = {block.name for block in plan.blocks}
    # Layers may differ: a block may have no unit in one of them, but not in all.
    for kind in {kind for _, kind in splits}:
        of_kind = [split.sizes for (_, k), split in splits.items() if k == kind]
        for block, *in_layers in zip(blocks, *of_kind, strict=True):
            if block.name not in old and not any(in_layers):
                raise PlanError(
                    f"{block.name} gets no {KINDS[kind]} in any layer: the block that it divides "
                    "has too few; lower plan.mlp_shared or plan.attn_shared, raise plan.adapters, "
                    "or use fewer rounds or children"
                )
    isolated = tuple(
        frozenset(label for d in group for label in below[d]) for group in plan.isolated_domains
    )
    return RoutePlan(new, tuple(blocks), splits, isolated)


def origins(plan: RoutePlan, before: RoutePlan) -> tuple[int, ...]:
    """For each block, the index of the block of `before` that `split_further` divided it from: the
    core if that held all units."""
    index_of = {block.name: index for index, block in enumerate(before.blocks)}
    # The nearest name above: a node with a single label below it has that label's block.
    above = ([n for n in reversed(ancestors(b.name)) if n in index_of] for b in plan.blocks)
    return tuple(index_of[names[0]] if names else 0 for names in above)
