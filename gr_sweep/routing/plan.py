"""Route plans: which units every layer splits off, and which domains own them.

A plan knows counts and labels, not tensors: `gr_sweep.model.route` lays it over a network. Owner
sets are the one idea behind every shape (DESIGN: terms).
"""

import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol, TypeVar

from gr_sweep.domains import ancestors, check_domains, expand, is_under
from gr_sweep.errors import ConfigError, PlanError

MLP = "mlp"
ATTN = "attn"
CORE = "core"

_Value = TypeVar("_Value")


class ModelShape(Protocol):
    """What a plan reads of a Hugging Face config; `num_key_value_heads` is optional."""

    @property
    def num_hidden_layers(self) -> int:
        """Decoder layers."""

    @property
    def intermediate_size(self) -> int:
        """MLP hidden units a layer."""

    @property
    def num_attention_heads(self) -> int:
        """Query heads a layer."""


@dataclass(frozen=True)
class Block:
    """All units, over layers and kinds, that the same domains own."""

    name: str
    owners: frozenset[str]
    """Labels whose tokens may change the block."""
    is_core: bool = False
    """The core also holds everything that is no unit, and is never switched off."""


@dataclass(frozen=True)
class Split:
    """How one layer's units of one kind are shared out."""

    sizes: tuple[int, ...]
    """Units of each block, in the plan's order of blocks; blocks lie one after the other."""
    order: tuple[int, ...] | None = None
    """Old index of the unit at each new position; None leaves the units where they are."""

    @property
    def num_units(self) -> int:
        """Units of the layer, over all blocks."""
        return sum(self.sizes)

    def slices(self, width: int = 1) -> tuple[slice, ...]:
        """Rows or columns of each block in a matrix with `width` of them a unit."""
        stops = list(itertools.accumulate(self.sizes))
        return tuple(
            slice((stop - size) * width, stop * width)
            for size, stop in zip(self.sizes, stops, strict=True)
        )


@dataclass(frozen=True)
class RoutePlan:
    """The blocks, and the units of every layer and kind that they take."""

    domains: tuple[str, ...]
    """Labels, in the order that every matrix of metrics has."""
    blocks: tuple[Block, ...]
    """The core first; no two have the same owners."""
    splits: Mapping[tuple[int, str], Split]
    """(layer, "mlp" or "attn") to its split; what is absent belongs to the core, as "the rest"."""
    apart: tuple[frozenset[str], ...] = ()
    """Groups of labels, each label in one, whose experts `prune` fixed: for a labelled sequence
    everything that is of another group's alone is off, whatever the foreign dropout. Empty: no
    label is apart from another."""

    @classmethod
    def none(cls, config: ModelShape | None = None, *, domains: Sequence[str]) -> "RoutePlan":
        """The core alone: a dense model."""
        labels = _checked(domains)
        return cls(labels, (Block(CORE, frozenset(labels), is_core=True),), {})

    @classmethod
    def peers(cls, config: ModelShape, *, domains: Sequence[str], **shares: Any) -> "RoutePlan":
        """A core owned by all and a block a domain.

        Args:
            config: shape of the model, a Hugging Face config.
            domains: labels.
            shares: `mlp_shared` (0.5) and `attn_shared` (1.0), the core's share of the units in
                0..1; `layers` that are split (None: as `layer_share` says); `layer_share` (1.0),
                the share of the layers, counted from the first, that are split, at least one;
                `orders`, (layer, kind) to an order of its units; `weights`, by name of a block
                beside the core its size relative to theirs (None: equal).

        Raises:
            PlanError: a share outside 0..1, a layer that the model lacks, `layers` and a
                `layer_share` at once, more blocks than units.
        """
        labels = _checked(domains)
        return cls._build(config, labels, labels, [(d, {d}) for d in labels], **shares)

    @classmethod
    def forget(
        cls, config: ModelShape, *, domains: Sequence[str], forget: Sequence[str], **shares: Any
    ) -> "RoutePlan":
        """A core owned by all but `forget`, and a block for each forgotten domain.

        Args and Raises as in `peers`; also PlanError where `forget` is empty, unknown, or
        everything.
        """
        labels = _checked(domains)
        if not forget:
            raise PlanError("plan=forget needs plan.forget, for example plan.forget=[biology]")
        forgotten = _expanded(forget, labels)
        core_owners = [d for d in labels if d not in forgotten]
        if not core_owners:
            raise PlanError(
                f"plan.forget={list(forget)} leaves no domain to the core; keep one out"
            )
        blocks = [(node, set(_expanded([node], labels))) for node in forget]
        return cls._build(config, labels, core_owners, blocks, **shares)

    @classmethod
    def tree(cls, config: ModelShape, *, domains: Sequence[str], **shares: Any) -> "RoutePlan":
        """A block for every node of the domain tree, owned by every label at or below it.

        A label on an inner node is a leaf of its own, called `<label>/.`. Args and Raises as in
        `peers`.
        """
        labels = _checked(domains)
        blocks: list[tuple[str, set[str]]] = []
        for node in dict.fromkeys(node for label in labels for node in ancestors(label)):
            owners = {label for label in labels if is_under(label, node)}
            blocks.append((node, owners))
            if node in labels and len(owners) > 1:
                blocks.append((node + "/.", {node}))
        return cls._build(config, labels, labels, blocks, **shares)

    @classmethod
    def lattice(cls, config: ModelShape, *, domains: Sequence[str], **shares: Any) -> "RoutePlan":
        """A block for every set of domains; the set of all is the core. Args and Raises as in
        `peers`."""
        labels = _checked(domains)
        blocks = [
            ("+".join(subset), set(subset))
            for size in range(1, len(labels))
            for subset in itertools.combinations(labels, size)
        ]
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
        """The plan of the named shape: none, peers, forget, tree or lattice. Raises as they do."""
        if kind == "none":
            return cls.none(domains=domains)
        if kind == "forget":
            return cls.forget(config, domains=domains, forget=forget, **shares)
        makers = {"peers": cls.peers, "tree": cls.tree, "lattice": cls.lattice}
        if kind not in makers:
            raise PlanError(
                f"plan={kind!r} is unknown; choose one of none, forget, {', '.join(makers)}"
            )
        return makers[kind](config, domains=domains, **shares)

    @classmethod
    def _build(
        cls,
        config: ModelShape,
        domains: tuple[str, ...],
        core_owners: Iterable[str],
        blocks: Sequence[tuple[str, set[str]]],
        *,
        mlp_shared: float = 0.5,
        attn_shared: float = 1.0,
        layers: Sequence[int] | None = None,
        layer_share: float = 1.0,
        orders: Mapping[tuple[int, str], Sequence[int]] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> "RoutePlan":
        core = Block(CORE, frozenset(core_owners), is_core=True)
        by_owners = {core.owners: core}
        for name, owners in blocks:
            by_owners.setdefault(frozenset(owners), Block(name, frozenset(owners)))
        merged = tuple(by_owners.values())
        chosen = _chosen_layers(layers, layer_share, config.num_hidden_layers)
        shares = {MLP: mlp_shared, ATTN: attn_shared}
        units = {
            MLP: config.intermediate_size,
            ATTN: getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        }
        splits = {}
        for kind, shared in shares.items():
            if not 0.0 <= shared <= 1.0:
                raise PlanError(
                    f"plan.{kind}_shared={shared} is no share; give a number from 0 to 1"
                )
            if shared == 1.0 or len(merged) == 1:
                continue
            sizes = _share_out(units[kind], shared, _relative(merged[1:], weights), kind)
            for layer in chosen:
                order = None if orders is None else orders.get((layer, kind))
                splits[layer, kind] = Split(sizes, None if order is None else tuple(order))
        if len(merged) > 1 and not splits:
            raise PlanError(
                "plan.mlp_shared=1 and plan.attn_shared=1 leave the blocks without units; "
                "lower one of them, or use plan=none"
            )
        plan = cls(domains, merged, splits)
        plan.check_orders()
        return plan

    def split_further(
        self,
        labels: Sequence[str],
        *,
        mlp_shared: float,
        attn_shared: float = 1.0,
        weights: Mapping[str, float] | None = None,
    ) -> "RoutePlan":
        """The plan after the next round of `alternate`: a block of one label that has become
        several is divided into one that they own together and one for each, a tree.

        Blocks lie where the one that they come from lay, so what is not divided stays in its place;
        experts that are apart stay so, with all that they are divided into.

        Args:
            labels: of the new plan, each equal to or below one of the old.
            mlp_shared: share in 0..1 of a block's MLP units that its labels own together.
            attn_shared: of its head groups.
            weights: size of each label's block relative to the others of the same origin.

        Raises:
            PlanError: a block with too few units.
        """
        new = _checked(labels)
        below = {d: tuple(label for label in new if is_under(label, d)) for d in self.domains}
        blocks: list[Block] = []
        parts: list[tuple[int, tuple[str, ...]]] = []  # of each old block: labels it is divided for
        for index, block in enumerate(self.blocks):
            owners = frozenset(label for d in block.owners for label in below[d])
            children: tuple[str, ...] = ()
            if not block.is_core and len(block.owners) == 1:
                [label] = block.owners
                children = below[label] if len(below[label]) > 1 else ()
            blocks.append(replace(block, owners=owners))
            blocks += [Block(child, frozenset([child])) for child in children]
            parts.append((index, children))
        shares = {MLP: mlp_shared, ATTN: attn_shared}
        splits = {}
        for (layer, kind), split in self.splits.items():
            sizes: list[int] = []
            for index, children in parts:
                size = split.sizes[index]
                if not children:
                    sizes.append(size)
                    continue
                relative = [1.0 if weights is None else weights[child] for child in children]
                # Of layers that differ one may have no unit for a block; all together have one.
                sizes += _share_out(size, shares[kind], relative, kind, may_be_empty=True)
            splits[layer, kind] = Split(tuple(sizes))
        for kind in {kind for _, kind in splits}:
            of_kind = [split.sizes for (_, k), split in splits.items() if k == kind]
            totals = map(sum, zip(*of_kind, strict=True))
            for block, total in zip(blocks, totals, strict=True):
                if not total and block.name not in {old.name for old in self.blocks}:
                    what = "head groups" if kind == ATTN else "hidden units"
                    raise PlanError(
                        f"{block.name.rpartition('/')[0]} has too few {what} to be divided: "
                        f"{block.name} gets none in any layer, and each needs one; lower "
                        f"plan.{kind}_shared, or have fewer rounds or children"
                    )
        apart = tuple(
            frozenset(label for d in self.domains if d in group for label in below[d])
            for group in self.apart
        )
        return RoutePlan(new, tuple(blocks), splits, apart)

    def origins(self, before: "RoutePlan") -> tuple[int, ...]:
        """Of each block the one of `before` that it was divided from (`split_further`): the core,
        where that had all units."""
        place = {block.name: index for index, block in enumerate(before.blocks)}
        # The nearest name above: of a node with a single label below it the block has the node's.
        above = ([n for n in reversed(ancestors(b.name)) if n in place] for b in self.blocks)
        return tuple(place[names[0]] if names else 0 for names in above)

    def check_orders(self) -> None:
        """Raise PlanError where an order is no permutation of its layer's units."""
        for (layer, kind), split in self.splits.items():
            if split.order is not None and sorted(split.order) != list(range(split.num_units)):
                raise PlanError(
                    f"the order of layer {layer}, {kind} is no permutation "
                    f"of its {split.num_units} units"
                )

    @property
    def core(self) -> Block:
        """The block that is never switched off."""
        return self.blocks[0]

    def owns(self, domain: str, block: Block) -> bool:
        """Whether tokens of the domain may change the block."""
        return domain in block.owners

    def off_blocks(self, off_labels: Iterable[str]) -> tuple[int, ...]:
        """Indices of the blocks that nobody outside `off_labels` owns; never the core's."""
        off = frozenset(off_labels)
        return tuple(
            index
            for index, block in enumerate(self.blocks)
            if not block.is_core and block.owners <= off
        )

    def removed_by(self, nodes: Iterable[str]) -> tuple[int, ...]:
        """Indices of the blocks that remove(nodes) switches off; a node stands for all under it."""
        return self.off_blocks(_expanded(nodes, self.domains))

    def kept_off(self, nodes: Iterable[str]) -> tuple[int, ...]:
        """Indices of the blocks that keep(nodes) switches off."""
        kept = _expanded(nodes, self.domains)
        return self.off_blocks(label for label in self.domains if label not in kept)

    def units_left(
        self, kind: str, num_units: int, num_layers: int, off: Collection[int]
    ) -> tuple[int, ...]:
        """Units of a kind that every layer keeps without the blocks `off`; one that is not split
        keeps all of its `num_units`."""
        by_layer = [num_units] * num_layers
        for (layer, split_kind), split in self.splits.items():
            if split_kind == kind:
                by_layer[layer] = num_units - sum(split.sizes[block] for block in off)
        return tuple(by_layer)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node of the domain tree, labels among them; without nesting just the labels."""
        return tuple(dict.fromkeys(node for label in self.domains for node in ancestors(label)))

    def removable(self) -> tuple[str, ...]:
        """Nodes that own a block that nobody outside them owns: those with a separability.

        Each label of a node must own one of these: switching off virology's alone is no removal of
        biology, though virology lies below it.
        """
        return tuple(
            node
            for node in self.nodes
            if (off := self.removed_by([node]))
            and all(
                any(label in self.blocks[block].owners for block in off)
                for label in expand([node], self.domains)
            )
        )

    def strangers(self, domain: str) -> frozenset[str]:
        """Labels that are always off for the domain's sequences, as `apart` says."""
        for group in self.apart:
            if domain in group:
                return frozenset(self.domains) - group
        return frozenset()

    def in_place(self) -> "RoutePlan":
        """The same for a model whose units lie in the plan's order already."""
        splits = {place: replace(split, order=None) for place, split in self.splits.items()}
        return replace(self, splits=splits)

    def to_json(self) -> str:
        """The plan as text, the content of plan.json."""
        content = {
            "domains": list(self.domains),
            "apart": [[d for d in self.domains if d in group] for group in self.apart],
            "blocks": [
                {
                    "name": b.name,
                    "owners": [d for d in self.domains if d in b.owners],
                    "is_core": b.is_core,
                }
                for b in self.blocks
            ],
            "splits": [
                {
                    "layer": layer,
                    "kind": kind,
                    "sizes": list(split.sizes),
                    "order": None if split.order is None else list(split.order),
                }
                for (layer, kind), split in sorted(self.splits.items())
            ],
        }
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "RoutePlan":
        """The plan that `to_json` wrote.

        Raises:
            PlanError: text that is no plan; names what is missing or off.
        """
        try:
            content = json.loads(text)
            domains = _checked(_list_of(str, content["domains"]))
            blocks = tuple(
                Block(
                    _of(str, b["name"]),
                    frozenset(_list_of(str, b["owners"])),
                    _of(bool, b["is_core"]),
                )
                for b in _list_of(dict, content["blocks"])
            )
            splits = {
                (_of(int, s["layer"]), _of(str, s["kind"])): Split(
                    tuple(_list_of(int, s["sizes"])),
                    None if s["order"] is None else tuple(_list_of(int, s["order"])),
                )
                for s in _list_of(dict, content["splits"])
            }
            apart = tuple(
                frozenset(_list_of(str, group))
                for group in _list_of(list, content.get("apart", []))
            )
            plan = cls(domains, blocks, splits, apart)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise PlanError(f"this is no plan.json: {type(error).__name__}: {error}") from error
        if (
            not blocks
            or not blocks[0].is_core
            or any(len(s.sizes) != len(blocks) for s in splits.values())
        ):
            raise PlanError(
                "this is no plan.json: the core must come first and every split size each block"
            )
        if [b for b in blocks[1:] if b.is_core] or len({b.name for b in blocks}) < len(blocks):
            raise PlanError(
                "this is no plan.json: one block is the core, and each has its own name"
            )
        for block in blocks:
            if not block.owners or not block.owners <= set(domains):
                raise PlanError(
                    f"this is no plan.json: block {block.name} is owned by "
                    f"{', '.join(sorted(block.owners)) or 'nobody'}, and the domains are "
                    f"{', '.join(domains)}"
                )
        if len(splits) < len(content["splits"]):
            raise PlanError("this is no plan.json: it splits the units of a place twice")
        for (layer, kind), split in splits.items():
            if layer < 0 or kind not in (MLP, ATTN) or min(split.sizes) < 0:
                raise PlanError(
                    f"this is no plan.json: layer {layer}, {kind} is no place with units of which "
                    "every block has some or none"
                )
        if apart and sorted(label for group in apart for label in group) != sorted(plan.domains):
            raise PlanError("this is no plan.json: apart must name every domain once")
        plan.check_orders()
        return plan


def _of(kind: type[_Value], value: Any) -> _Value:
    """The value, of this very type: True is no number here, and 1.5 no whole one."""
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _list_of(kind: type[_Value], values: Any) -> list[_Value]:
    return [_of(kind, value) for value in _of(list, values)]


def _checked(domains: Sequence[str]) -> tuple[str, ...]:
    try:
        return check_domains(domains)
    except ConfigError as error:
        raise PlanError(str(error)) from error


def _expanded(nodes: Iterable[str], domains: Sequence[str]) -> tuple[str, ...]:
    try:
        return expand(nodes, domains)
    except ConfigError as error:
        raise PlanError(str(error)) from error


def _chosen_layers(layers: Sequence[int] | None, layer_share: float, num_layers: int) -> list[int]:
    if not 0.0 < layer_share <= 1.0:
        raise PlanError(
            f"plan.layer_share={layer_share} is no share of the layers; "
            "give a number above 0, up to 1"
        )
    if layers is None:
        return list(range(max(1, round(layer_share * num_layers))))
    if layer_share != 1.0:
        raise PlanError(
            f"plan.layers={list(layers)} and plan.layer_share={layer_share} both say which layers "
            "are split; set one of them"
        )
    wrong = [layer for layer in layers if not 0 <= layer < num_layers]
    if wrong or not layers or len(set(layers)) != len(layers):
        raise PlanError(
            f"plan.layers={list(layers)} does not fit; "
            f"name each layer once, from 0 to {num_layers - 1}"
        )
    return sorted(layers)


def _relative(blocks: Sequence[Block], weights: Mapping[str, float] | None) -> list[float]:
    """Size of each block relative to the others."""
    return [1.0 if weights is None else weights[block.name] for block in blocks]


def _share_out(
    num_units: int,
    shared: float,
    weights: Sequence[float],
    kind: str,
    *,
    may_be_empty: bool = False,
) -> tuple[int, ...]:
    """Units of the shared block, and those of the others in the ratio of their weights.

    By largest remainder, ties to the earlier: with equal weights as equal as can be.
    """
    left = num_units - round(shared * num_units)
    quotas = [left * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    sizes = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(sizes)), key=lambda index: sizes[index] - quotas[index])
    for index in by_remainder[: left - sum(sizes)]:
        sizes[index] += 1
    if 0 in sizes and not may_be_empty:
        what = "head groups" if kind == ATTN else "hidden units"
        raise PlanError(
            f"plan.{kind}_shared={shared} leaves {left} of {num_units} {what} to "
            f"{len(sizes)} blocks; each needs one: lower plan.{kind}_shared or have fewer domains"
        )
    return (num_units - left, *sizes)
