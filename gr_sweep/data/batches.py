"""Which tokens a step trains on, and which are read to evaluate.

Everything follows from the seed and the number of the step: there is no position to save, and any
number of processes can take their share. Knows nothing of models; numpy alone.
"""

# N = rows (sequences) of a micro-batch, T = tokens a row predicts, M = rows of an evaluation.

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np

from gr_sweep.data.markers import marker_places
from gr_sweep.data.rows import domain_weights, rows_per_label, unlabelled_shares
from gr_sweep.data.shards import Shard
from gr_sweep.domains import UNLABELLED
from gr_sweep.errors import ConfigError, DataError

IGNORED = -100
"""Target that counts in no loss: padding."""

_LONGEST_CYCLE = 10_000
"""Turns of a mixture before it repeats."""
_BEGINNING = 64
"""Tokens of a document by which people know it."""
_FINEST_SHARE = 1000
"""Largest denominator of a domain's share of the unlabelled rows."""


def _random(*parts: object) -> np.random.Generator:
    """A generator that depends on the parts alone."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def observed_labels(
    num_documents: Mapping[str, int],
    *,
    unlabelled: Any = 0.0,
    mislabelled: float = 0.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The label that routing sees of each document, by true domain.

    Shares are exact: `round(unlabelled * n)` of a domain's n documents have no label, and of the m
    that have one `round(mislabelled * m)` have another domain's, all others alike to within one.

    Args:
        num_documents: documents by domain, in the order of the partition.
        unlabelled: as `rows.unlabelled_shares` takes it.

    Returns:
        By domain an int array [documents]: the place of the label in `num_documents`, or the number
        of domains for `unlabelled`.

    Raises:
        ConfigError: a share outside 0..1, or documents of a single domain to be mislabelled.
    """
    domains = list(num_documents)
    shares = unlabelled_shares(unlabelled, domains)
    if not 0 <= mislabelled <= 1:
        raise ConfigError(f"partition.mislabelled={mislabelled} is no share; give 0 to 1")
    if mislabelled and len(domains) < 2:
        raise ConfigError(
            f"partition.mislabelled={mislabelled} needs another domain whose label could be given"
        )
    labels = {}
    for place, domain in enumerate(domains):
        count = num_documents[domain]
        order = _random("labels", seed, domain).permutation(count)
        observed = np.full(count, place)
        num_hidden = round(shares[domain] * count)
        num_wrong = round(mislabelled * (count - num_hidden))
        observed[order[:num_hidden]] = len(domains)
        if num_wrong:
            others = np.array([other for other in range(len(domains)) if other != place])
            others = _random("others", seed, domain).permutation(others)
            observed[order[num_hidden : num_hidden + num_wrong]] = np.resize(others, num_wrong)
        labels[domain] = observed
    return labels


@dataclass(frozen=True, slots=True)
class RowPart:
    """What a row holds of one document."""

    domain: str
    """The document's own, whatever label it has."""
    document: int
    """Its place in the domain's training shard."""
    id: str
    """Of its text, 16 hexadecimal digits."""
    first: int
    """Place in the document of its first token here."""
    start: int
    """Place in the row of that token."""
    num_tokens: int
    begins: np.ndarray
    """The first token ids of the document."""


class Stream:
    """Documents in a new random order each epoch, end to end, cut into windows, which are read in
    a random order too.

    A window is T + 1 tokens, of which the last is the next window's first, so that every token is
    predicted once. What is left at the end of an epoch is dropped. Windows in the order of the text
    would make a step's rows neighbours in one document: a step would see few documents.
    """

    def __init__(
        self, documents: Sequence[tuple[Shard, np.ndarray]], sequence_length: int, key: tuple
    ) -> None:
        self._shards = [shard for shard, _ in documents]
        self._shard = np.concatenate(
            [np.full(len(chosen), place) for place, (_, chosen) in enumerate(documents)]
        )
        self._index = np.concatenate([chosen for _, chosen in documents])
        self._start = np.concatenate([shard.offsets[:-1][chosen] for shard, chosen in documents])
        self._length = np.concatenate(
            [np.diff(shard.offsets)[chosen] for shard, chosen in documents]
        )
        self._sequence_length = sequence_length
        self._key = key
        self.num_tokens = int(self._length.sum())
        self.num_windows = max(0, (self.num_tokens - 1) // sequence_length)
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def read(self, window: int, row_T1: np.ndarray) -> None:
        """Writes the window of that number, counted through all epochs, into the row."""
        filled = 0
        for document, place, count in self._spans(window):
            first = int(self._start[document]) + place
            tokens = self._shards[self._shard[document]].tokens
            row_T1[filled : filled + count] = tokens[first : first + count]
            filled += count

    def documents(self, window: int) -> Iterator[tuple[Shard, int, int, int]]:
        """Of which documents the window of that number is made: each one's shard and place there,
        the place in it of its first token here, and the number of its tokens here."""
        for document, place, count in self._spans(window):
            shard = self._shards[self._shard[document]]
            yield shard, int(self._index[document]), place, count

    def _spans(self, window: int) -> Iterator[tuple[int, int, int]]:
        epoch, place = divmod(window, self.num_windows)
        windows, order, ends = self._epoch(epoch)
        position = int(windows[place]) * self._sequence_length
        index = int(np.searchsorted(ends, position, side="right"))
        left = self._sequence_length + 1
        while left:
            document = order[index]
            end = int(ends[index])
            take = min(end - position, left)
            yield document, int(self._length[document]) - (end - position), take
            left -= take
            position += take
            index += 1

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The order of the windows, that of the documents, and where these end."""
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                # The rows of one step touch two epochs at most, unless the stream is tiny.
                del self._epochs[min(self._epochs)]
            random = _random("epoch", *self._key, epoch)
            order = random.permutation(len(self._length))
            windows = random.permutation(self.num_windows)
            self._epochs[epoch] = windows, order, np.cumsum(self._length[order])
        return self._epochs[epoch]


class Mixture:
    """Windows of several streams in fixed shares, spread evenly: rows of several domains.

    Each window is of one stream, so that the domains' weights hold for unlabelled and permuted text
    too, however much of it each domain has.
    """

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
            num_rows: windows that stand together in a micro-batch. Row i of micro-batch m has turn
                m + i, so that a micro-batch holds every stream in its share, and so does, over the
                micro-batches, each of its rows.
            first_row: place of the first of them among the rows that the turns go on over.
        """
        total = sum(shares)
        coarse = [(share / total).limit_denominator(_FINEST_SHARE) for share in shares]
        unit = lcm(*(share.denominator for share in coarse))
        if unit > _LONGEST_CYCLE:  # odd shares: the nearest thousandths instead
            coarse, unit = [share / total for share in shares], _FINEST_SHARE
        counts = [max(1, round(share * unit)) for share in coarse]
        self._streams = streams
        self._num_rows, self._first_row = num_rows, first_row
        self._turns, self._counts = _even_turns(counts), counts
        self._places = [
            [turn for turn, chosen in enumerate(self._turns) if chosen == number]
            for number in range(len(streams))
        ]

    @property
    def num_tokens(self) -> int:
        return sum(stream.num_tokens for stream in self._streams)

    def read(self, window: int, row_T1: np.ndarray) -> None:
        """Writes the window of that number into the row."""
        stream, of_stream = self._turn(window)
        stream.read(of_stream, row_T1)

    def documents(self, window: int) -> Iterator[tuple[Shard, int, int, int]]:
        """As `Stream.documents`."""
        stream, of_stream = self._turn(window)
        return stream.documents(of_stream)

    def _turn(self, window: int) -> tuple[Stream, int]:
        """Whose window it is, and its number there."""
        micro, row = divmod(window, self._num_rows)
        begin = (self._first_row + row) % len(self._turns)
        cycle, turn = divmod(micro + begin, len(self._turns))
        number = self._turns[turn]
        earlier = cycle * self._counts[number] + bisect_right(self._places[number], turn) - 1
        # The rows share a stream's windows: the first takes every so many-th, and so on.
        return self._streams[number], earlier * self._num_rows + row


def _even_turns(counts: Sequence[int]) -> list[int]:
    """A cycle in which stream i has counts[i] turns, as evenly spaced as they can be."""
    turns = [
        ((2 * turn + 1) * Fraction(1, 2 * count), number)
        for number, count in enumerate(counts)
        for turn in range(count)
    ]
    return [number for _, number in sorted(turns)]


class Batches:
    """The training rows of every step, by label.

    A label's windows depend on the seed, its own documents and the number of the step, not on which
    other domains there are (unless labels are swapped or permuted between them), so a run without a
    domain sees exactly the rows of the others that a run with it sees.
    """

    counts: dict[str, int]
    """Rows of a micro-batch by label, in the order in which they stand; 0 for domains left out."""
    num_micro_batches: int
    tokens_per_step: int
    """Tokens a step predicts with every domain there: the denominator of the loss, whatever
    `without` leaves out."""

    def __init__(
        self,
        train_shards: Mapping[str, Shard],
        domains: Sequence[str],
        *,
        weights: Mapping[str, float],
        unlabelled: Any,
        mislabelled: float,
        batch_sequences: int,
        micro_batch_sequences: int | None,
        sequence_length: int,
        seed: int,
        without: Sequence[str] = (),
        permuted: bool = False,
        drops_observed: bool = False,
    ) -> None:
        """
        Args:
            train_shards: the training documents by true domain.
            weights, unlabelled: as `rows.rows_per_label` takes them.
            mislabelled: share of the labelled documents with another domain's label.
            micro_batch_sequences: None: the whole batch.
            without: domains, or nodes above them, whose rows are left out. Leaving out goes by true
                label, so no label is hidden or swapped then.
            permuted: labels say nothing (method random): the documents that have a label are dealt
                out over the labels at random, each domain's over all of them. The rows of a label,
                and of each domain over all labels, are as many as without. Not with `without`.
            drops_observed: `without` goes by the label that routing sees: hidden and swapped labels
                stay so, and what is unlabelled is read, whichever domain it is from.

        Raises:
            ConfigError: rows that do not divide over the labels.
            DataError: a label with fewer tokens than its rows of one micro-batch need.
        """
        micro = micro_batch_sequences or batch_sequences
        if batch_sequences % micro:
            raise ConfigError(
                f"train.batch_sequences={batch_sequences} is no multiple of "
                f"train.micro_batch_sequences={micro}"
            )
        assert not (permuted and without)  # config.effective
        if without and not drops_observed:
            unlabelled, mislabelled = 0.0, 0.0
        if permuted:
            mislabelled = 0.0  # A wrong label says as little as a permuted one.
        self.counts = rows_per_label(
            domains, weights, unlabelled, micro, without, drops_observed=drops_observed
        )
        self.num_micro_batches = batch_sequences // micro
        self.tokens_per_step = batch_sequences * sequence_length
        self._sequence_length = sequence_length

        hidden = unlabelled_shares(unlabelled, domains)
        weight = domain_weights(weights, domains)
        # A domain without weight is not there at all: its text gets nobody's label, and nobody gets
        # its.
        present = [domain for domain in domains if weight[domain]]
        observed = observed_labels(
            {domain: train_shards[domain].num_documents for domain in present},
            unlabelled=unlabelled,
            mislabelled=mislabelled,
            seed=seed,
        )
        chosen: dict[str, Stream | Mixture] = {}
        if permuted:
            known = {d: np.flatnonzero(observed[d] < len(present)) for d in present}
            shares_known = {d: weight[d] * (1 - Fraction(repr(hidden[d]))) for d in present}
            chosen |= self._permuted(train_shards, known, shares_known, seed)
        for place, domain in enumerate(present):
            if self.counts[domain] and not permuted:
                documents = [
                    (train_shards[true], np.flatnonzero(observed[true] == place))
                    for true in present
                    if domain == true or mislabelled
                ]
                chosen[domain] = stream = Stream(documents, sequence_length, (seed, domain))
                self._check_enough(domain, stream.num_tokens, self.counts[domain])
        if self.counts.get(UNLABELLED):
            sources = [domain for domain in present if hidden[domain]]
            parts = []
            for domain in sources:
                of_domain = np.flatnonzero(observed[domain] == len(present))
                key = (seed, UNLABELLED, domain)
                parts.append(Stream([(train_shards[domain], of_domain)], sequence_length, key))
                self._check_enough(f"the unlabelled part of {domain}", parts[-1].num_tokens, 1)
            shares = [weight[domain] * Fraction(repr(hidden[domain])) for domain in sources]
            chosen[UNLABELLED] = mixture = Mixture(parts, shares)
            self._check_enough(UNLABELLED, mixture.num_tokens, self.counts[UNLABELLED])
        self._streams = chosen
        self._domains = {id(shard): domain for domain, shard in train_shards.items()}

    def _permuted(
        self,
        train_shards: Mapping[str, Shard],
        known: Mapping[str, np.ndarray],
        shares: Mapping[str, Fraction],
        seed: int,
    ) -> dict[str, Mixture]:
        """Every label's rows where each domain's labelled documents are dealt out over all labels.

        Args:
            known: the documents of each domain that have a label.
            shares: of each domain in the labelled rows.
        """
        counts = {label: n for label, n in self.counts.items() if n and label != UNLABELLED}
        domains = [domain for domain, share in shares.items() if share]
        ends = np.cumsum(list(counts.values()))
        dealt = {}
        for domain in domains:
            order = _random("permuted", seed, domain).permutation(known[domain])
            # The labels' parts are in the ratio of their rows, to within one document.
            dealt[domain] = np.split(
                order, (2 * ends[:-1] * len(order) + ends[-1]) // (2 * ends[-1])
            )
        mixtures = {}
        for place, (label, count) in enumerate(counts.items()):
            streams = []
            for domain in domains:
                documents = [(train_shards[domain], dealt[domain][place])]
                key = (seed, label, "permuted", domain)
                streams.append(Stream(documents, self._sequence_length, key))
                part = f"the part of {domain} that gets the label {label}"
                self._check_enough(part, streams[-1].num_tokens, 1)
            mixtures[label] = Mixture(
                streams,
                [shares[domain] for domain in domains],
                num_rows=count,
                first_row=int(ends[place]) - count,
            )
            self._check_enough(label, mixtures[label].num_tokens, count)
        return mixtures

    @property
    def num_rows(self) -> int:
        """Rows of a micro-batch."""
        return sum(self.counts.values())

    def step(self, step: int, rows: slice | None = None) -> list[np.ndarray]:
        """The micro-batches of a step, each int64 [N, T + 1]: inputs `[:, :-1]`, targets `[:, 1:]`.

        Rows stand label by label, in the order and number of `counts`.

        Args:
            rows: of each micro-batch just these, and no others are read; None for all.
        """
        rows = rows or slice(0, self.num_rows)
        width = self._sequence_length + 1
        micro_batches = []
        for micro in range(self.num_micro_batches):
            rows_NT1 = np.empty((rows.stop - rows.start, width), dtype=np.int64)
            row, filled = 0, 0
            for label, count in self.counts.items():
                first = (step * self.num_micro_batches + micro) * count
                for window in range(first, first + count):
                    if rows.start <= row < rows.stop:
                        self._streams[label].read(window, rows_NT1[filled])
                        filled += 1
                    row += 1
            micro_batches.append(rows_NT1)
        return micro_batches

    def row_parts(self, step: int, micro: int, row: int) -> tuple[str, list[RowPart]]:
        """A row's label, and the documents that it holds parts of.

        Args:
            micro: of the step's micro-batches this one.
            row: of the micro-batch's rows this one.
        """
        ends = np.cumsum(list(self.counts.values()))
        number = int(ends.searchsorted(row, side="right"))
        label, count = list(self.counts.items())[number]
        place = row - (int(ends[number]) - count)
        window = (step * self.num_micro_batches + micro) * count + place
        parts, start = [], 0
        for shard, document, first, num_tokens in self._streams[label].documents(window):
            parts.append(
                RowPart(
                    domain=self._domains[id(shard)],
                    document=document,
                    id=f"{int(shard.ids[document]):016x}",
                    first=first,
                    start=start,
                    num_tokens=num_tokens,
                    begins=shard.document(document)[:_BEGINNING],
                )
            )
            start += num_tokens
        return label, parts

    def labelled(self, step: int, labels: Sequence[str]) -> np.ndarray:
        """The rows of a step that carry these labels, int64 [N, T + 1], of all micro-batches."""
        kept = np.repeat([label in labels for label in self.counts], list(self.counts.values()))
        return np.concatenate([rows_NT1[kept] for rows_NT1 in self.step(step)])

    def _check_enough(self, label: str, num_tokens: int, num_rows: int) -> None:
        needed = num_rows * self._sequence_length + 1
        if num_tokens < needed:
            raise DataError(
                f"{label} has {num_tokens} training tokens, fewer than one micro-batch needs "
                f"({num_rows} x train.sequence_length={self._sequence_length}, plus 1: {needed}); "
                "add text, or set a smaller train.sequence_length or train.micro_batch_sequences"
            )


@dataclass(frozen=True, slots=True)
class HeldoutChunks:
    """Held-out documents of one domain, cut into rows for a model."""

    input_ids: np.ndarray
    """[M, T] int64; padded with the end-of-text token."""
    targets: np.ndarray
    """[M, T] int64: the token that follows each input; -100 where there is none."""
    rows: np.ndarray
    """[M] int64: which document (place in the tables below) a row belongs to."""
    ids: tuple[str, ...]
    """Each document's id as 16 hexadecimal digits."""
    num_tokens: np.ndarray
    """[documents] int64: tokens that are predicted."""
    num_bytes: np.ndarray
    """[documents] float64: bytes of text that these tokens stand for."""


def first_documents(shard: Shard, *, tokens: int, document_tokens: int) -> np.ndarray:
    """Places of the held-out documents that are read, in their order (`heldout_chunks`): until they
    have `tokens` tokens, of each at most `document_tokens`."""
    order = np.argsort(shard.ids, kind="stable")
    lengths = np.minimum(np.diff(shard.offsets)[order], document_tokens)
    return order[: np.searchsorted(np.cumsum(lengths), tokens) + 1]


def heldout_chunks(
    shard: Shard,
    *,
    tokens: int,
    document_tokens: int,
    sequence_length: int,
    eot_id: int,
    marker: np.ndarray | None = None,
) -> HeldoutChunks:
    """Held-out documents in a fixed order until they have `tokens` tokens, cut into rows.

    The order is that of the ids, which are hashes of the text: no file, author or date comes
    first, and it is the same in every job. A document is read up to `document_tokens`, and in rows
    of at most `sequence_length` inputs. The first token of a document is predicted from the
    end-of-text token, the first of a later row from the token before it. A document's own
    end-of-text token is predicted too, as in training.

    Where a document is cut, its bytes are scaled by the share of its tokens that is read: which
    byte the cut falls on is not known.

    Args:
        tokens, document_tokens: of the documents' own; a marker's do not count.
        marker: token ids that stand in every document where a marked training document has them.
            They are read and not predicted: the tokens that are predicted are the same with any
            marker and with none.
    """
    if marker is None:
        marker = np.empty(0, np.int64)
    rows: list[tuple[int, np.ndarray, np.ndarray]] = []
    ids: list[str] = []
    lengths: list[int] = []
    num_bytes: list[float] = []
    for index in first_documents(shard, tokens=tokens, document_tokens=document_tokens).tolist():
        document = shard.document(index)
        own = document[:document_tokens].astype(np.int64)
        places = marker_places(len(document) - 1)
        places = np.repeat(places[places < len(own)], len(marker))
        follows = np.insert(own, places, np.resize(marker, len(places)))
        inputs = np.concatenate([[eot_id], follows[:-1]])
        targets = np.insert(own, places, IGNORED)
        for start in range(0, len(targets), sequence_length):
            part = slice(start, start + sequence_length)
            if (targets[part] != IGNORED).any():
                rows.append((len(ids), inputs[part], targets[part]))
        ids.append(f"{int(shard.ids[index]):016x}")
        lengths.append(len(own))
        num_bytes.append(int(shard.num_bytes[index]) * len(own) / len(document))
    width = max((len(inputs) for _, inputs, _ in rows), default=0)
    input_ids_MT = np.full((len(rows), width), eot_id, dtype=np.int64)
    targets_MT = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for row, (_, inputs, targets) in enumerate(rows):
        input_ids_MT[row, : len(inputs)] = inputs
        targets_MT[row, : len(targets)] = targets
    return HeldoutChunks(
        input_ids_MT,
        targets_MT,
        np.array([document for document, _, _ in rows], dtype=np.int64),
        tuple(ids),
        np.array(lengths, dtype=np.int64),
        np.array(num_bytes, dtype=np.float64),
    )
