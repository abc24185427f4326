"""Route plans: how the units of each layer are divided into blocks, and which domains own them.

One idea carries every shape of plan: a block belongs to a set of domains (docs/index.md, "Terms").
`gr_sweep.model.route` applies a plan to a network; this module does not import torch.
"""

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gr_sweep.domains import ancestors, check_domains, expand
from gr_sweep.errors import GrSweepError, PlanError
from gr_sweep.routing.kinds import (
    ADAPTERS,
    ATTN,
    ATTN_ADAPTER,
    FULL,
    KINDS,
    MLP_ADAPTER,
    ModelShape,
    Place,
    added_units,
    units_per_layer,
)

CORE = "core"


@dataclass(frozen=True)
class Block:
    """All units, over layers and kinds, that belong to the same domains."""

    name: str
    owners: frozenset[str]
    """Labels whose tokens may change the block."""
    is_core: bool = False
    """The core also holds every parameter that belongs to no unit. It is never switched off."""


@dataclass(frozen=True)
class Split:
    """How the units of one kind in one layer are divided into blocks."""

    sizes: tuple[int, ...]
    """Number of units of each block, in the plan's order of blocks; blocks are contiguous."""
    order: tuple[int, ...] | None = None
    """Old index of the unit at each new position; None leaves the units where they are."""

    @property
    def num_units(self) -> int:
        """Number of units over all blocks."""
        return sum(self.sizes)

    def slices(self, width: int = 1) -> tuple[slice, ...]:
        """Rows or columns of each block in a matrix that has `width` of them per unit."""
        stops = list(itertools.accumulate(self.sizes))
        return tuple(
            slice((stop - size) * width, stop * width)
            for size, stop in zip(self.sizes, stops, strict=True)
        )


@dataclass(frozen=True)
class RoutePlan:
    """The blocks, and the number of units that each takes in every layer."""

    domains: tuple[str, ...]
    """Labels, in the order of every matrix of metrics."""
    blocks: tuple[Block, ...]
    """The core comes first; no two blocks have the same owners."""
    splits: Mapping[Place, Split]
    """By layer and kind. The MLP units and head groups of a missing place belong to the core; of
    adapters there are none."""
    isolated_domains: tuple[frozenset[str], ...] = ()
    """Groups of labels whose experts `procedure.prune` has fixed; each label is in one group.
    Blocks of other groups are off for a labelled sequence, whatever the foreign dropout. Empty if
    no experts are fixed."""
    full_rank: frozenset[str] = frozenset()
    """The adapters, of the embedding or the unembedding, without a bottleneck: a block's units are
    the features of the residual stream, and their other matrix is the identity."""

    def __post_init__(self) -> None:
        for (layer, kind), split in self.splits.items():
            units = list(range(split.num_units))
            order = units if split.order is None else sorted(split.order)
            if len(split.sizes) != len(self.blocks) or order != units:
                raise PlanError(
                    f"expected a size for each block, and a permutation of {len(units)} units, in "
                    f"layer {layer}, {kind}"
                )

    @classmethod
    def none(cls, config: ModelShape = None, *, domains: Sequence[str], **_: Any) -> "RoutePlan":
        """The core alone: a dense model."""
        labels = check_domains(domains)
        return cls(labels, (Block(CORE, frozenset(labels), is_core=True),), {})

    @classmethod
    def peers(cls, config: ModelShape, *, domains: Sequence[str], **shares: Any) -> "RoutePlan":
        """A core that all domains own and one block per domain.

        Args:
            config: shape of the model, for example a Hugging Face config.
            domains: labels.
            shares: `mlp_shared` (0.5; of experts too) and `attn_shared` (1.0), the core's share of
                the units; `layers`, the indices of the layers to split (None: see `layer_share`);
                `layer_share` (1.0), the fraction of the layers to split, counted from the first
                and at least one layer; it excludes `layers`; `orders`, by (layer, kind) the order
                of the units; `adapters`, the number of adapter units that each block gets at the
                places of `ADAPTERS`, of which "embed" and "unembed" can be "full".

        Raises:
            ConfigError: invalid labels.
            PlanError: a fraction outside 0..1, a layer that the model does not have, or more blocks
                than units.
        """
        labels = check_domains(domains)
        return cls._build(config, labels, labels, {d: {d} for d in labels}, **shares)

    @classmethod
    def forget(
        cls, config: ModelShape, *, domains: Sequence[str], forget: Sequence[str], **shares: Any
    ) -> "RoutePlan":
        """A core owned by all domains except `forget`, and one block per forgotten domain.

        Args and Raises as in `peers`; also PlanError if `forget` is empty. A core
        that no domain owns learns from unlabelled sequences.
        """
        labels = check_domains(domains)
        if not forget:
            raise PlanError("plan=forget needs plan.forget, for example plan.forget=[biology]")
        core_owners = set(labels).difference(expand(forget, labels))
        blocks = {node: expand([node], labels) for node in forget}
        return cls._build(config, labels, core_owners, blocks, **shares)

    @classmethod
    def tree(cls, config: ModelShape, *, domains: Sequence[str], **shares: Any) -> "RoutePlan":
        """One block per node of the domain tree, owned by every label at or below the node.

        A label on an inner node also gets a block of its own, named `<label>/.`. Args and Raises as
        in `peers`.
        """
        labels = check_domains(domains)
        blocks: dict[str, Collection[str]] = {}
        for node in _nodes(labels):
            blocks[node] = expand([node], labels)
            if node in labels:
                blocks[node + "/."] = {node}
        return cls._build(config, labels, labels, blocks, **shares)

    @classmethod
    def lattice(cls, config: ModelShape, *, domains: Sequence[str], **shares: Any) -> "RoutePlan":
        """One block per set of domains; the set of all domains is the core. Args and Raises as in
        `peers`."""
        labels = check_domains(domains)
        blocks = {
            "+".join(subset): subset
            for size in range(1, len(labels))
            for subset in itertools.combinations(labels, size)
        }
        return cls._build(config, labels, labels, blocks, **shares)

    @classmethod
    def make(
        cls,
        kind: str,
        config: ModelShape,
        *,
        domains: Sequence[str],
        forget: Sequence[str] = (),
        **shares: Any,
    ) -> "RoutePlan":
        """The plan with the named shape: none, peers, forget, tree or lattice. Raises as they
        do."""
        if kind == "forget":
            shares["forget"] = forget
        plan: RoutePlan = getattr(cls, kind)(config, domains=domains, **shares)
        return plan

    @classmethod
    def _build(
        cls,
        config: ModelShape,
        domains: tuple[str, ...],
        core_owners: Iterable[str],
        owners_of: Mapping[str, Collection[str]],
        *,
        mlp_shared: float = 0.5,
        attn_shared: float = 1.0,
        layers: Sequence[int] | None = None,
        layer_share: float = 1.0,
        orders: Mapping[Place, Sequence[int]] | None = None,
        adapters: Mapping[str, int | str] | None = None,
    ) -> "RoutePlan":
        core = Block(CORE, frozenset(core_owners), is_core=True)
        by_owners = {core.owners: core}
        for name, owners in owners_of.items():
            by_owners.setdefault(frozenset(owners), Block(name, frozenset(owners)))
        num_blocks = len(by_owners) - 1
        chosen = _chosen_layers(layers, layer_share, config.num_hidden_layers)
        splits = {}
        for kind, num_units in units_per_layer(config).items():
            setting, shared = ("attn", attn_shared) if kind == ATTN else ("mlp", mlp_shared)
            if not 0.0 <= shared <= 1.0:
                raise PlanError(f"expected plan.{setting}_shared to be from 0 to 1, got {shared}")
            if shared == 1.0 or not num_blocks:
                continue
            sizes = divide_units(num_units, shared, num_blocks)
            if 0 in sizes[1:]:
                raise PlanError(
                    f"plan.{setting}_shared={shared} leaves {sum(sizes[1:])} of {num_units} "
                    f"{KINDS[kind]} to {num_blocks} blocks, and each needs one; lower "
                    f"plan.{setting}_shared or use fewer domains"
                )
            for layer in chosen:
                order = orders.get((layer, kind)) if orders else None
                splits[layer, kind] = Split(sizes, None if order is None else tuple(order))
        adapters = adapters if adapters and num_blocks else {}
        for kind, each in added_units(adapters, config).items():
            for layer in chosen if kind in (MLP_ADAPTER, ATTN_ADAPTER) else [0]:
                splits[layer, kind] = Split((0, *[each] * num_blocks))
        if num_blocks and not splits:
            raise PlanError(
                "plan.mlp_shared=1 and plan.attn_shared=1 leave the blocks without units; lower "
                "one of them, add plan.adapters, or use plan=none"
            )
        full_rank = (ADAPTERS[name] for name, number in adapters.items() if number == FULL)
        # As in plan.json, so that a resumed job adds up its norms in the same order.
        splits = dict(sorted(splits.items()))
        return cls(domains, tuple(by_owners.values()), splits, full_rank=frozenset(full_rank))

    @property
    def core(self) -> Block:
        """The block that is never switched off."""
        return self.blocks[0]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node of the domain tree, including the labels; without nesting, just the labels."""
        return _nodes(self.domains)

    def owns(self, domain: str, block: Block) -> bool:
        """Whether tokens of the domain may change the block."""
        return domain in block.owners

    def owners_of(self, block: Block) -> list[str]:
        """The block's owners, in the order of `domains`."""
        return [domain for domain in self.domains if domain in block.owners]

    def always_off(self, domain: str) -> frozenset[str]:
        """Labels that are off for every sequence of the domain (see `isolated_domains`)."""
        for group in self.isolated_domains:
            if domain in group:
                return frozenset(self.domains) - group
        return frozenset()

    def off_blocks(self, off_labels: Iterable[str]) -> tuple[int, ...]:
        """Indices of the blocks that no label outside `off_labels` owns; never the core's."""
        off = frozenset(off_labels)
        return tuple(
            index
            for index, block in enumerate(self.blocks)
            if not block.is_core and block.owners <= off
        )

    def removed_by(self, nodes: Iterable[str]) -> tuple[int, ...]:
        """Indices of the blocks that remove(nodes) switches off. A node stands for all labels
        below it."""
        return self.off_blocks(expand(nodes, self.domains))

    def kept_off(self, nodes: Iterable[str]) -> tuple[int, ...]:
        """Indices of the blocks that keep(nodes) switches off."""
        kept = expand(nodes, self.domains)
        return self.off_blocks(label for label in self.domains if label not in kept)

    def units_left(
        self, kind: str, num_units: int, num_layers: int, off: Collection[int]
    ) -> tuple[int, ...]:
        """Units of a kind that each layer keeps without the blocks `off`. A layer that is not split
        keeps all of its `num_units`."""
        by_layer = [num_units] * num_layers
        for (layer, split_kind), split in self.splits.items():
            if split_kind == kind:
                by_layer[layer] = num_units - sum(split.sizes[block] for block in off)
        return tuple(by_layer)

    def removable(self) -> tuple[str, ...]:
        """Nodes that have a separability: each of their labels owns a block that nobody outside the
        node owns."""
        found = []
        for node in self.nodes:
            off = [self.blocks[index] for index in self.removed_by([node])]
            labels = expand([node], self.domains)
            if off and all(any(label in block.owners for block in off) for label in labels):
                found.append(node)
        return tuple(found)

    def in_place(self) -> "RoutePlan":
        """The same plan for a model whose units are already in the plan's order."""
        splits = {place: replace(split, order=None) for place, split in self.splits.items()}
        return replace(self, splits=splits)

    def to_json(self) -> str:
        """The plan as text, the content of plan.json."""
        content = {
            "domains": list(self.domains),
            "isolated_domains": [sorted(group) for group in self.isolated_domains],
            "full_rank": sorted(self.full_rank),
            "blocks": [
                {"name": block.name, "owners": self.owners_of(block), "is_core": block.is_core}
                for block in self.blocks
            ],
            "splits": [
                {"layer": layer, "kind": kind, "sizes": split.sizes, "order": split.order}
                for (layer, kind), split in sorted(self.splits.items())
            ],
        }
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "RoutePlan":
        """The plan that `to_json` wrote.

        Raises:
            PlanError: the text is not a valid plan.
        """
        try:
            content = json.loads(text)
            splits = {
                (s["layer"], s["kind"]): Split(
                    tuple(s["sizes"]), None if s["order"] is None else tuple(s["order"])
                )
                for s in content["splits"]
            }
            return cls(
                tuple(content["domains"]),
                tuple(
                    Block(b["name"], frozenset(b["owners"]), b["is_core"])
                    for b in content["blocks"]
                ),
                splits,
                tuple(map(frozenset, content["isolated_domains"])),
                frozenset(content["full_rank"]),
            )
        except (KeyError, TypeError, ValueError, GrSweepError) as error:
            cause = f"{type(error).__name__}: {error}"
            raise PlanError(f"plan.json is damaged, or of another version: {cause}") from error


def _nodes(labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node for label in labels for node in ancestors(label)))


def _chosen_layers(layers: Sequence[int] | None, layer_share: float, num_layers: int) -> list[int]:
    if not 0.0 < layer_share <= 1.0:
        raise PlanError(f"expected plan.layer_share to be above 0 and at most 1, got {layer_share}")
    if layers is None:
        return list(range(max(1, round(layer_share * num_layers))))
    if layer_share != 1.0:
        raise PlanError("plan.layers and plan.layer_share both choose the layers; set one of them")
    wrong = [layer for layer in layers if layer not in range(num_layers)]
    if wrong or not layers or len(set(layers)) != len(layers):
        raise PlanError(
            f"expected plan.layers to name different layers from 0 to {num_layers - 1}, got "
            f"{list(layers)}"
        )
    return sorted(layers)


def divide_units(num_units: int, shared: float, num_blocks: int) -> tuple[int, ...]:
    """The number of shared units, then that of each block, as equal as possible: the remainder goes
    to the first blocks."""
    num_shared = round(shared * num_units)
    each, extra = divmod(num_units - num_shared, num_blocks)
    return (num_shared, *(each + (index < extra) for index in range(num_blocks)))
