"""Training text as rows, for what happens to a model after its training.

That is recovery, calibration, relearning and unlearning. N rows, T tokens that a row predicts.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from gr_sweep.config import EvalConfig
from gr_sweep.data.shards import Shard
from gr_sweep.data.streams import Mixture, Stream
from gr_sweep.domains import expand
from gr_sweep.errors import DataError

Rows = Callable[[int], np.ndarray]
"""From the number of a step to its token ids, int64 [N, T + 1]."""


class TextWindows:
    """Windows of the documents of some shards, which take turns row by row.

    Everything follows from the seed and the number of the step. The windows of a shard are those of
    a `Stream`.
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
            sequence_length: T; less if a shard has less text.
            documents: at most this many, drawn at random and divided evenly over the shards, at
                least one of each; None: all.
            purpose: the windows differ between purposes.

        Raises:
            DataError: a shard without text.
        """
        self._seeds = [seed, zlib.crc32(purpose.encode())]
        random = np.random.default_rng(self._seeds)
        chosen = []
        for number, shard in enumerate(shards):
            order = random.permutation(shard.num_documents)
            if documents is not None:
                # The first shards get one more if they do not divide.
                count = documents // len(shards) + (number < documents % len(shards))
                order = order[: max(1, count)]
            chosen.append(shard.subset(order))
        sizes = [shard.num_tokens for shard in chosen]
        if min(sizes, default=0) < 2:
            raise DataError("a domain has no training text to attack, calibrate or unlearn with")
        self.sequence_length = min(sequence_length, min(sizes) - 1)
        streams = [
            Stream(shard, self.sequence_length, (seed, purpose, number))
            for number, shard in enumerate(chosen)
        ]
        self._windows = Mixture(streams, [Fraction(1)] * len(streams))
        self.num_windows = sum(stream.num_windows for stream in streams)
        """Of one pass through the text."""

    def rows(self, step: int, num_rows: int) -> np.ndarray:
        """Token ids int64 [N, T + 1] of a step: inputs `[:, :-1]`, targets `[:, 1:]`."""
        return self._read(range(step * num_rows, (step + 1) * num_rows))

    def sample(self, num_rows: int) -> np.ndarray:
        """At most this many rows, drawn from the whole text and not from few documents."""
        chosen = np.random.default_rng(self._seeds).permutation(self.num_windows)[:num_rows]
        return self._read(np.sort(chosen).tolist())

    def _read(self, windows: Sequence[int]) -> np.ndarray:
        rows_NT1 = np.empty((len(windows), self.sequence_length + 1), dtype=np.int64)
        for window, row_T1 in zip(windows, rows_NT1, strict=True):
            self._windows.read(window, row_T1)
        return rows_NT1


@dataclass(frozen=True)
class TrainingText:
    """The training text of a job by true domain."""

    shards: Mapping[str, Shard]
    sequence_length: int
    batch_sequences: int
    """Rows of a step of recovery and unlearning."""
    seed: int
    weights: Mapping[str, float] = field(default_factory=dict)
    """`data.weights`; 1 by default."""

    def others(self, part: str) -> list[str]:
        """The domains outside `part` that the model was trained on."""
        gone = expand([part], list(self.shards))
        return [d for d in self.shards if d not in gone and self.weights.get(d, 1.0) > 0]

    def rows(self, purpose: str, domains: Sequence[str]) -> Rows:
        """The rows of each step, from all text of these domains."""
        return functools.partial(
            self._windows(purpose, domains).rows, num_rows=self.batch_sequences
        )

    def attack_rows(self, domains: Sequence[str], config: EvalConfig) -> Rows:
        """The rows of each step of the attack, from few documents that are drawn at random."""
        windows = self._windows("relearn", domains, config.relearn_documents)
        return functools.partial(windows.rows, num_rows=config.relearn_batch_sequences)

    def sample(self, purpose: str, domains: Sequence[str], num_tokens: int) -> np.ndarray:
        """Windows [N, T + 1] of about this many tokens, or of all text if it is less."""
        windows = self._windows(purpose, domains)
        return windows.sample(max(1, num_tokens // windows.sequence_length))

    def _windows(
        self, purpose: str, domains: Sequence[str], documents: int | None = None
    ) -> TextWindows:
        return TextWindows(
            [self.shards[domain] for domain in domains],
            sequence_length=self.sequence_length,
            seed=self.seed,
            documents=documents,
            purpose=purpose,
        )
