"""Which label each document has in a round of `alternate`.

A round has its own labels: the domain tree cut at the round's depth, and clusters of documents
(`gr_sweep.assign.cluster`) where the tree ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gr_sweep.data.prepare import TokenData
from gr_sweep.data.shards import Shard, join
from gr_sweep.domains import is_under, metric_name
from gr_sweep.files import whole_file

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class RoundLabels:
    """The label of every document in one round."""

    names: tuple[str, ...]
    """Labels of the round."""
    places: Mapping[tuple[str, str], np.ndarray]
    """By ("train" or "heldout", domain of the partition): index in `names`, int64 [documents]."""

    @classmethod
    def first(cls, data: TokenData, names: Sequence[str]) -> "RoundLabels":
        """Labels of the first round: a document's label is its domain or the node above it."""
        places = {}
        for domain in data.domains:
            [place] = [i for i, name in enumerate(names) if is_under(domain, name)]
            for part, shards in _parts(data).items():
                places[part, domain] = np.full(shards[domain].num_documents, place)
        return cls(tuple(names), places)

    def next(
        self, names: Sequence[str], children: Mapping[tuple[str, str], np.ndarray]
    ) -> "RoundLabels":
        """Labels of the next round.

        Args:
            names: its labels.
            children: like `places`, for the domains whose documents are divided into clusters: the
                number of each document's cluster below its current label.
        """
        places = {}
        for (part, domain), old in self.places.items():
            found = np.empty_like(old)
            for place in np.unique(old):
                label, is_here = self.names[place], old == place
                below = [name for name in names if is_under(name, label)]
                if len(below) > 1:
                    in_tree = [name for name in below if is_under(domain, name)]
                    if not in_tree:
                        of_child = [names.index(f"{label}/{n}") for n in range(len(below))]
                        found[is_here] = np.array(of_child)[children[part, domain][is_here]]
                        continue
                    below = in_tree
                [name] = below
                found[is_here] = names.index(name)
            places[part, domain] = found
        return RoundLabels(tuple(names), places)

    def divided(self, data: TokenData) -> TokenData:
        """The same text by the labels of this round; tokens are not copied."""
        text = {
            part: {
                name: join(
                    [
                        shard.subset(np.flatnonzero(self.places[part, domain] == place))
                        for domain, shard in shards.items()
                    ]
                )
                for place, name in enumerate(self.names)
            }
            for part, shards in _parts(data).items()
        }
        return replace(data, domains=self.names, train=text[TRAIN], heldout=text[HELDOUT])

    def write(self, path: Path) -> None:
        """Writes the labels as a .npz file."""
        arrays: dict[str, Any] = {"names": np.array(self.names)}
        for (part, domain), places in self.places.items():
            arrays[f"{part}.{metric_name(domain)}"] = places
        with whole_file(path) as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def read(cls, path: Path, data: TokenData) -> "RoundLabels":
        """The labels of the same text that `write` wrote."""
        with np.load(path, allow_pickle=False) as content:
            places = {
                (part, domain): content[f"{part}.{metric_name(domain)}"]
                for part, shards in _parts(data).items()
                for domain in shards
            }
            return cls(tuple(map(str, content["names"])), places)


def _parts(data: TokenData) -> dict[str, dict[str, Shard]]:
    return {TRAIN: data.train, HELDOUT: data.heldout}
