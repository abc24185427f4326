"""Windows of training text, for what is done to a model after its training: attacks, unlearning,
calibration, recovery. Knows no models; numpy alone.

N rows, T tokens that a row predicts.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from gr_sweep.data.shards import Shard
from gr_sweep.data.streams import Stream, read_window
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
        self._seeds = [seed, zlib.crc32(purpose.encode())]
        random = np.random.default_rng(self._seeds)
        chosen = []
        for place, shard in enumerate(shards):
            order = random.permutation(shard.num_documents)
            if documents is not None:
                # The first shards have one more where they do not divide.
                count = documents // len(shards) + (place < documents % len(shards))
                order = order[: max(1, count)]
            chosen.append((shard, order))
        self.num_documents = sum(len(order) for _, order in chosen)
        sizes = [int(shard.lengths[order].sum()) for shard, order in chosen]
        if min(sizes, default=0) < 2:
            raise DataError("a domain has no training text to attack, calibrate or unlearn with")
        self.sequence_length = min(sequence_length, min(sizes) - 1)
        self._streams = [
            Stream([part], self.sequence_length, (seed, purpose, place))
            for place, part in enumerate(chosen)
        ]
        self.num_windows = sum(stream.num_windows for stream in self._streams)
        """Of one pass through the text."""

    def rows(self, step: int, num_rows: int) -> np.ndarray:
        """Token ids int64 [N, T + 1] of a step: inputs `[:, :-1]`, targets `[:, 1:]`."""
        first = step * num_rows
        return np.stack([self._window(number) for number in range(first, first + num_rows)])

    def sample(self, num_rows: int) -> np.ndarray:
        """So many rows, or all there are, from all over the text and not from few documents."""
        chosen = np.random.default_rng(self._seeds).permutation(self.num_windows)[:num_rows]
        return np.stack([self._window(int(number)) for number in np.sort(chosen)])

    def _window(self, number: int) -> np.ndarray:
        turn, place = divmod(number, len(self._streams))
        row_T1 = np.empty(self.sequence_length + 1, dtype=np.int64)
        read_window(self._streams[place], turn, row_T1)
        return row_T1
