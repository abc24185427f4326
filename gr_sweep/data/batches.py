"""The tokens that a step trains on.

Everything follows from the seed and the number of the step: there is no position to save, and any
number of processes can divide the rows.

N rows (sequences) of a step, T tokens that a row predicts.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from gr_sweep.config import unlabelled_shares
from gr_sweep.data.rows import domain_weights, rows_per_label
from gr_sweep.data.shards import Shard, join
from gr_sweep.data.streams import Mixture, Stream
from gr_sweep.data.synthetic import seeded
from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import ConfigError, DataError


def observed_labels(
    num_documents: Mapping[str, int],
    *,
    unlabelled: Any = 0.0,
    mislabelled: float = 0.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The label that routing sees for each document, by true domain: int arrays [documents] of its
    index in `num_documents`, or the number of domains for `unlabelled`.

    Shares are exact: `round(unlabelled * n)` of a domain's n documents have no label, and of the m
    that have one `round(mislabelled * m)` have another domain's, spread evenly over the others.

    Args:
        num_documents: documents by domain, in the order of the partition.
        unlabelled: as `unlabelled_shares` takes it.
    """
    domains = list(num_documents)
    shares = unlabelled_shares(unlabelled, domains)
    labels = {}
    for number, domain in enumerate(domains):
        count = num_documents[domain]
        order = seeded("labels", seed, domain).permutation(count)
        observed = np.full(count, number)
        num_hidden = round(shares[domain] * count)
        num_wrong = round(mislabelled * (count - num_hidden))
        observed[order[:num_hidden]] = len(domains)
        if num_wrong:
            others = np.array([other for other in range(len(domains)) if other != number])
            others = seeded("others", seed, domain).permutation(others)
            observed[order[num_hidden : num_hidden + num_wrong]] = np.resize(others, num_wrong)
        labels[domain] = observed
    return labels


class _Part(NamedTuple):
    """Text that is read in a share of a label's rows, in an order that follows from the key."""

    key: tuple[str, ...]
    documents: Mapping[str, np.ndarray]
    share: Fraction


class Batches:
    """The training rows of every step, by label.

    A label's windows depend on the seed, its own documents and the number of the step, but not on
    the other domains (unless labels are swapped or permuted between them). So a run without a
    domain reads exactly the rows of the others that a run with it reads.
    """

    counts: dict[str, int]
    """Rows of a step by label, in their order; 0 for domains that are left out."""
    tokens_per_step: int
    """Tokens that a step of all domains predicts: the denominator of the loss, also for a run
    `without` some of them."""

    def __init__(
        self,
        train_shards: Mapping[str, Shard],
        domains: Sequence[str],
        *,
        weights: Mapping[str, float],
        unlabelled: Any,
        mislabelled: float,
        batch_sequences: int,
        sequence_length: int,
        seed: int,
        without: Sequence[str] = (),
        permuted: bool = False,
        drops_observed: bool = False,
        only: Sequence[str] | None = None,
        first_step: int = 0,
        rehearsed: Sequence[str] = (),
        rehearsal: float = 0.0,
    ) -> None:
        """
        Args:
            train_shards: the training documents by true domain.
            weights, unlabelled, only: as `rows.rows_per_label` takes them.
            mislabelled: share of the labelled documents with another domain's label.
            without: domains, or nodes above them, whose rows are left out, by true label; no label
                is hidden or swapped then.
            permuted: whether the documents that have a label are dealt out over the labels at
                random, each domain's over all of them (method random). Not with `without`.
            drops_observed: `without` goes by the label that routing sees: hidden and swapped labels
                stay so, and all unlabelled text is read.
            first_step: the step that reads the first windows.
            rehearsed: labels whose text is read in a share `rehearsal` of the rows of each other
                label. Not with `permuted`.

        Raises:
            ConfigError: rows that do not divide over the labels.
            DataError: a label with fewer tokens than its rows of one step need.
        """
        assert not (permuted and (without or rehearsed))
        if without and not drops_observed:
            unlabelled = 0.0
        if permuted or (without and not drops_observed):
            mislabelled = 0.0  # Of permuted labels, a wrong one says as little.
        how = (without, drops_observed, only)
        self.counts = rows_per_label(domains, weights, unlabelled, batch_sequences, *how)
        self.tokens_per_step = batch_sequences * sequence_length
        self._sequence_length = sequence_length
        self._train_shards = train_shards
        self._seed = seed
        self._first_step = first_step

        weight = domain_weights(weights, domains)
        # The text of a domain without weight gets no label, and nobody gets its label.
        present = [domain for domain in domains if weight[domain]]
        observed = observed_labels(
            {domain: train_shards[domain].num_documents for domain in present},
            unlabelled=unlabelled,
            mislabelled=mislabelled,
            seed=seed,
        )
        shares = unlabelled_shares(unlabelled, domains)
        hidden = {domain: weight[domain] * Fraction(repr(shares[domain])) for domain in present}
        self._streams: dict[str, Mixture] = {}
        if permuted:
            known = {d: np.flatnonzero(observed[d] < len(present)) for d in present}
            self._add_permuted(known, {d: weight[d] - hidden[d] for d in present})
        else:
            texts = {
                label: {true: np.flatnonzero(observed[true] == number) for true in present}
                for number, label in enumerate(present)
            }
            others = {d: weight[d] for d in present if d in rehearsed}
            self._add_labelled(texts, others, Fraction(repr(rehearsal)))
        if self.counts.get(UNLABELLED):
            parts = [
                _Part((UNLABELLED, d), {d: np.flatnonzero(observed[d] == len(present))}, hidden[d])
                for d in present
                if hidden[d]
            ]
            self._add(UNLABELLED, parts)

    def _add_labelled(
        self,
        texts: Mapping[str, Mapping[str, np.ndarray]],
        rehearsed: Mapping[str, Fraction],
        rehearsal: Fraction,
    ) -> None:
        """Gives each label its text, and in the share `rehearsal` of its rows that of the labels
        `rehearsed`, by their weights. `texts`: the documents by label and true domain."""
        for label in texts:
            if count := self.counts[label]:
                others = {other: weight for other, weight in rehearsed.items() if other != label}
                if rehearsed and not others:
                    raise ConfigError(f"procedure.rehearsal finds no other text than {label}'s")
                shares = {label: 1 - rehearsal}
                for other, weight in others.items():
                    shares[other] = rehearsal * weight / sum(others.values())
                parts = [_Part((name,), texts[name], share) for name, share in shares.items()]
                self._add(label, parts, num_rows=count)

    def _add_permuted(
        self, known: Mapping[str, np.ndarray], shares: Mapping[str, Fraction]
    ) -> None:
        """Deals the documents that have a label out over all labels; `shares`: of each domain in
        the labelled rows."""
        counts = {label: n for label, n in self.counts.items() if n and label != UNLABELLED}
        ends = np.cumsum(list(counts.values()))
        parts: dict[str, list[_Part]] = {label: [] for label in counts}
        for domain in known:
            if shares[domain]:
                order = seeded("permuted", self._seed, domain).permutation(known[domain])
                # The labels' parts have the ratio of their rows, to within one document.
                cuts = (2 * ends[:-1] * len(order) + ends[-1]) // (2 * ends[-1])
                for label, dealt in zip(counts, np.split(order, cuts), strict=True):
                    key = (label, "permuted", domain)
                    parts[label].append(_Part(key, {domain: dealt}, shares[domain]))
        for end, (label, count) in zip(ends.tolist(), counts.items(), strict=True):
            self._add(label, parts[label], num_rows=count, first_row=end - count)

    def _add(self, label: str, parts: Sequence[_Part], **rows: int) -> None:
        """Gives a label its text; `rows` as `Mixture` takes them."""
        streams = []
        for part in parts:
            chosen = [self._train_shards[d].subset(found) for d, found in part.documents.items()]
            streams.append(Stream(join(chosen), self._sequence_length, (self._seed, *part.key)))
            self._check_enough(" ".join(part.key), streams[-1].num_tokens, 1)
        num_tokens = sum(stream.num_tokens for stream in streams)
        self._check_enough(label, num_tokens, self.counts[label])
        self._streams[label] = Mixture(streams, [part.share for part in parts], **rows)

    def token_cuts(
        self, owners: Sequence[str], vocab_size: int, bias: float
    ) -> dict[str, np.ndarray]:
        """How far each next token cuts text of labels outside `owners`, float32 [vocab_size].

        s = sigmoid(r - 1/r + bias), r being the ratio of the token's frequencies in training text
        with the label and with the owners' labels (Cloud et al. 2024, arXiv 2410.04332; its code,
        `get_token_freq_masking_rule` of factored_representations/masklib.py, counts 25,000 stories
        of each). As there, each token first counts once, and 20 times in the owners' text. If no
        text has an owner's label, the unlabelled text is the owners'.
        """
        if not self._streams.keys() & {*owners}:
            owners = [UNLABELLED]

        def frequencies(labels: Sequence[str], more: int) -> np.ndarray:
            streams = [self._streams[label] for label in labels if label in self._streams]
            counts_V = np.full(vocab_size, more, np.int64)
            for stream in streams:
                counts_V += stream.token_counts(vocab_size)
            return counts_V / counts_V.sum()

        retained_V, cuts = frequencies(owners, 20), {}
        for label in self._streams.keys() - {*owners, UNLABELLED}:
            ratio_V = frequencies([label], 1) / retained_V
            # A sigmoid that does not overflow.
            cut_V = (1 + np.tanh((ratio_V - 1 / ratio_V + bias) / 2)) / 2
            cuts[label] = cut_V.astype(np.float32)
        return cuts

    @property
    def num_rows(self) -> int:
        """Rows of a step."""
        return sum(self.counts.values())

    def step(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        """The rows of a step, int64 [N, T + 1]: inputs `[:, :-1]`, targets `[:, 1:]`, sorted by
        label in the order and number of `counts`; only those of the slice are read."""
        windows = [
            (label, (step - self._first_step) * count + row)
            for label, count in self.counts.items()
            for row in range(count)
        ][rows]
        rows_NT1 = np.empty((len(windows), self._sequence_length + 1), dtype=np.int64)
        for (label, window), row_T1 in zip(windows, rows_NT1, strict=True):
            self._streams[label].read(window, row_T1)
        return rows_NT1

    def labelled(self, step: int, labels: Sequence[str]) -> np.ndarray:
        """The rows of a step that carry these labels, int64 [N, T + 1]."""
        kept = np.repeat([label in labels for label in self.counts], list(self.counts.values()))
        return self.step(step)[kept]

    def _check_enough(self, name: str, num_tokens: int, num_rows: int) -> None:
        needed = num_rows * self._sequence_length + 1
        if num_tokens < needed:
            raise DataError(
                f"{name} has {num_tokens} training tokens, but one step needs {needed} "
                f"({num_rows} x train.sequence_length={self._sequence_length}, plus 1); add text, "
                "or reduce train.sequence_length or train.batch_sequences"
            )
