"""Training text as rows, for what happens to a model after its training.

That is recovery, calibration, relearning and unlearning. N rows, T tokens that a row predicts.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from gr_sweep.data.shards import Shard
from gr_sweep.data.streams import Mixture, Stream
from gr_sweep.domains import expand
from gr_sweep.errors import DataError

Rows = Callable[[int], np.ndarray]
"""From the number of a step to its token ids, int64 [N, T + 1]: inputs `[:, :-1]`, targets
`[:, 1:]`."""


@dataclass(frozen=True)
class TrainingText:
    """The training text of a job by true domain.

    It is read in windows, of which the domains asked for take turns. Everything follows from the
    seed, the purpose and the number of the step.
    """

    shards: Mapping[str, Shard]
    sequence_length: int
    """T; less if a domain has less text."""
    batch_sequences: int
    """Rows of a step of recovery and unlearning."""
    seed: int
    weights: Mapping[str, float] = field(default_factory=dict)
    """`data.weights`; 1 by default."""

    def others(self, part: str) -> list[str]:
        """The domains outside `part` that the model was trained on."""
        gone = expand([part], list(self.shards))
        return [d for d in self.shards if d not in gone and self.weights.get(d, 1.0) > 0]

    def rows(
        self,
        purpose: str,
        domains: Sequence[str],
        *,
        documents: int | None = None,
        num_rows: int | None = None,
    ) -> Rows:
        """The rows of each step.

        Args:
            documents: at most this many are read, drawn at random and divided evenly over the
                domains, at least one of each; None: all.
            num_rows: N; None: `batch_sequences`.
        """
        windows = _Windows(self, purpose, domains, documents)
        count = num_rows or self.batch_sequences
        return lambda step: windows.read(range(step * count, (step + 1) * count))

    def sample(self, purpose: str, domains: Sequence[str], num_tokens: int) -> np.ndarray:
        """Windows [N, T + 1] of about this many tokens, drawn from the whole text and not from few
        documents; all of it if it is less."""
        windows = _Windows(self, purpose, domains)
        order = np.random.default_rng(windows.seeds).permutation(windows.num_windows)
        return windows.read(np.sort(order[: max(1, num_tokens // windows.length)]).tolist())


class _Windows:
    """The windows of some domains, numbered through all passes over the text."""

    def __init__(
        self,
        text: TrainingText,
        purpose: str,
        domains: Sequence[str],
        documents: int | None = None,
    ) -> None:
        self.seeds = [text.seed, zlib.crc32(purpose.encode())]
        random = np.random.default_rng(self.seeds)
        chosen = []
        for number, domain in enumerate(domains):
            shard = text.shards[domain]
            if shard.num_tokens < 2:
                raise DataError(f"{domain} has no text to train on")
            order = random.permutation(shard.num_documents)
            if documents is not None:
                # The first domains get one more if they do not divide.
                count = documents // len(domains) + (number < documents % len(domains))
                order = order[: max(1, count)]
            chosen.append(shard.subset(order))
        self.length = min(text.sequence_length, *(shard.num_tokens - 1 for shard in chosen))
        streams = [
            Stream(shard, self.length, (text.seed, purpose, number))
            for number, shard in enumerate(chosen)
        ]
        self._mixture = Mixture(streams, [Fraction(1)] * len(streams))
        self.num_windows = sum(stream.num_windows for stream in streams)
        """Of one pass through the text."""

    def read(self, numbers: Sequence[int]) -> np.ndarray:
        rows_NT1 = np.empty((len(numbers), self.length + 1), dtype=np.int64)
        for number, row_T1 in zip(numbers, rows_NT1, strict=True):
            self._mixture.read(number, row_T1)
        return rows_NT1
