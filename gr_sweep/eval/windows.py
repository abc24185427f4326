"""Windows of training text, for what is done to a model after its training: attacks, unlearning,
calibration, recovery. Knows no models; numpy alone.

N rows, T tokens that a row predicts.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from gr_sweep.data.shards import Shard
from gr_sweep.errors import DataError


class TextWindows:
    """Windows of the documents of some shards, which take turns row by row.

    Everything follows from the seed and the number of the step. A shard's documents stand end to
    end in a random order, which is a new one each epoch; a window is T + 1 tokens, of which the
    last is the next window's first.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        sequence_length: int,
        seed: int,
        documents: int | None = None,
        purpose: str = "",
    ) -> None:
        """
        Args:
            sequence_length: T; less where a shard has less text.
            documents: at most so many, drawn at random, divided over the shards, of each at least
                one; None: all.
            purpose: other windows for each.

        Raises:
            DataError: a shard without text.
        """
        seeds = [seed, zlib.crc32(purpose.encode())]
        self._seeds = seeds
        self._shards = list(shards)
        self._documents: list[np.ndarray] = []
        for place, shard in enumerate(self._shards):
            chosen = np.random.default_rng([*seeds, place]).permutation(shard.num_documents)
            if documents is not None:
                # The first shards have one more where they do not divide.
                count = documents // len(shards) + (place < documents % len(shards))
                chosen = chosen[: max(1, count)]
            self._documents.append(chosen)
        self.num_documents = sum(len(chosen) for chosen in self._documents)
        sizes = [
            int(np.diff(shard.offsets)[chosen].sum())
            for shard, chosen in zip(self._shards, self._documents, strict=True)
        ]
        if min(sizes, default=0) < 2:
            raise DataError("a domain has no training text to attack, calibrate or unlearn with")
        self.sequence_length = min(sequence_length, min(sizes) - 1)
        self._per_epoch = [(size - 1) // self.sequence_length for size in sizes]
        self.num_windows = sum(self._per_epoch)
        """Of one pass through the text."""
        self._epochs: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def rows(self, step: int, num_rows: int) -> np.ndarray:
        """Token ids int64 [N, T + 1] of a step: inputs `[:, :-1]`, targets `[:, 1:]`."""
        first = step * num_rows
        return np.stack([self._window(number) for number in range(first, first + num_rows)])

    def sample(self, num_rows: int) -> np.ndarray:
        """So many rows, or all there are, from all over the text and not from few documents."""
        chosen = np.random.default_rng(self._seeds).permutation(self.num_windows)[:num_rows]
        return np.stack([self._window(int(number)) for number in np.sort(chosen)])

    def _window(self, number: int) -> np.ndarray:
        turn, place = divmod(number, len(self._shards))
        epoch, window = divmod(turn, self._per_epoch[place])
        order, ends = self._epoch(place, epoch)
        shard, start = self._shards[place], window * self.sequence_length
        stop = start + self.sequence_length + 1
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        text = np.concatenate([shard.document(int(at)) for at in order[first : last + 1]])
        begin = int(ends[first - 1]) if first else 0
        return text[start - begin : stop - begin].astype(np.int64)

    def _epoch(self, place: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        key = (place, epoch)
        if key not in self._epochs:
            for old in [old for old in self._epochs if old[0] == place and old[1] < epoch - 1]:
                del self._epochs[old]
            chosen, shard = self._documents[place], self._shards[place]
            order = np.random.default_rng([*self._seeds, place, epoch + 1]).permutation(chosen)
            self._epochs[key] = order, np.cumsum(np.diff(shard.offsets)[order])
        return self._epochs[key]
