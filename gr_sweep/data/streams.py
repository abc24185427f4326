"""Windows of tokens from documents end to end, in an order that follows from a key.

T tokens that a window predicts.
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np

from gr_sweep.data.shards import Shard
from gr_sweep.data.synthetic import seeded

_LONGEST_CYCLE = 10_000
"""Turns of a mixture before it repeats."""
_FINEST_SHARE = 1000
"""Largest denominator of a stream's share of a mixture."""


class Stream:
    """Documents end to end, in a new random order each epoch, cut into windows of T + 1 tokens, of
    which the last is the next window's first. The rest at the end of an epoch is dropped.

    The windows are read in random order too: otherwise the rows of a step would be neighbours in
    one document.
    """

    def __init__(self, shard: Shard, sequence_length: int, key: tuple) -> None:
        """`key` seeds the orders."""
        self._shard, self._sequence_length, self._key = shard, sequence_length, key
        self.num_tokens = shard.num_tokens
        self.num_windows = max(0, (self.num_tokens - 1) // sequence_length)
        # The rows of one step touch at most two epochs, unless the stream is tiny.
        self._orders = lru_cache(2)(self._orders_of)

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """How often each token occurs in the documents, int64 [vocab_size]."""
        counts = np.zeros(vocab_size, np.int64)
        for index in range(self._shard.num_documents):
            np.add.at(counts, self._shard.document(index), 1)
        return counts

    def read(self, window: int, row_T1: np.ndarray) -> None:
        """Writes the T + 1 tokens of the window with this number, counted through all epochs, into
        the row."""
        epoch, number = divmod(window, self.num_windows)
        windows, order, ends = self._orders(epoch)
        position = int(windows[number]) * self._sequence_length
        index = int(np.searchsorted(ends, position, side="right"))
        filled = 0
        while left := len(row_T1) - filled:
            before_end = int(ends[index]) - position
            part = self._shard.document(int(order[index]))[-before_end:][:left]
            row_T1[filled : filled + len(part)] = part
            filled += len(part)
            position += len(part)
            index += 1

    def _orders_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The order of the windows, the order of the documents, and where the documents end."""
        random = seeded("epoch", *self._key, epoch)
        order = random.permutation(self._shard.num_documents)
        windows = random.permutation(self.num_windows)
        return windows, order, np.cumsum(self._shard.lengths[order])


class Mixture:
    """Windows of several streams in fixed shares, evenly interleaved, however long they are."""

    def __init__(
        self,
        streams: Sequence[Stream],
        shares: Sequence[Fraction],
        *,
        num_rows: int = 1,
        first_row: int = 0,
    ) -> None:
        """
        Args:
            num_rows: windows that a step takes. Row i of step m takes turn m + i, so that each
                step, and each row over the steps, reads every stream in its share.
            first_row: turn of the first row.
        """
        total = sum(shares)
        coarse = [(share / total).limit_denominator(_FINEST_SHARE) for share in shares]
        cycle = lcm(*(share.denominator for share in coarse))
        if cycle > _LONGEST_CYCLE:  # Without a common denominator: the nearest thousandths.
            coarse, cycle = [share / total for share in shares], _FINEST_SHARE
        self._counts = [max(1, round(share * cycle)) for share in coarse]
        # A cycle of turns in which stream i has counts[i], as evenly spaced as possible.
        turns = sorted(
            ((2 * turn + 1) * Fraction(1, 2 * count), number)
            for number, count in enumerate(self._counts)
            for turn in range(count)
        )
        self._turns = [number for _, number in turns]
        self._positions = [
            [turn for turn, chosen in enumerate(self._turns) if chosen == number]
            for number in range(len(streams))
        ]
        self._streams = streams
        self._num_rows, self._first_row = num_rows, first_row

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """As `Stream.token_counts`."""
        return np.sum([stream.token_counts(vocab_size) for stream in self._streams], axis=0)

    def read(self, window: int, row_T1: np.ndarray) -> None:
        """As `Stream.read`."""
        step, row = divmod(window, self._num_rows)
        begin = (self._first_row + row) % len(self._turns)
        cycle, turn = divmod(step + begin, len(self._turns))
        number = self._turns[turn]
        earlier = cycle * self._counts[number] + bisect_right(self._positions[number], turn) - 1
        # The rows share a stream's windows: row i takes every num_rows-th, starting at i.
        self._streams[number].read(earlier * self._num_rows + row, row_T1)
