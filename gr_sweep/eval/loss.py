"""Losses of held-out documents, one sum for each document.

M windows of a batch, T positions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gr_sweep.data.heldout import HeldoutDocument
from gr_sweep.metrics.losses import DocumentLoss, Text, View
from gr_sweep.model.loss import IGNORED

Losses = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From token ids and targets [M, T] to the sum and the loss of each position, as `TokenLosses`."""


class HeldoutBatches:
    """Held-out text of all domains as batches on the device, to be read in every view of a model.
    Windows are sorted by length, across domains, so hardly any padding is computed."""

    def __init__(
        self,
        held_out: Mapping[str, Sequence[HeldoutDocument]],
        *,
        batch_sequences: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        text: Text = Text.plain,
    ) -> None:
        """
        Args:
            batch_sequences: windows of a batch at most.
            rank, world_size: this process, of those that share the windows.
            text: which version of the documents this is.
        """
        self._held_out, self._are_shared = dict(held_out), world_size > 1
        self._how: dict[str, Any] = {"batch_sequences": batch_sequences, "device": device}
        self._how |= {"rank": rank, "world_size": world_size, "text": text}
        self._documents: list[DocumentLoss] = []
        windows = []
        for domain, documents in held_out.items():
            for document in documents:
                windows += [(len(self._documents), *window) for window in document.windows]
                size = document.num_tokens, round(document.num_bytes)
                row = DocumentLoss(View.full, "", domain, text, document.id, 0.0, *size)
                self._documents.append(row)
        # The longest first, so that the most memory is allocated first.
        windows.sort(key=lambda window: len(window[1]), reverse=True)
        self._document_of_window: list[int] = []
        self._batches: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(windows), batch_sequences * world_size):
            # Processes take turns: all get as many batches, of windows of similar length.
            own = windows[start + rank : start + batch_sequences * world_size : world_size]
            if not own:
                number, ids, targets = windows[start]
                own = [(number, ids, np.full_like(targets, IGNORED))]
            numbers, *pairs = zip(*own, strict=True)
            self._document_of_window += numbers
            ids_MT, targets_MT = (
                pad_sequence([*map(torch.from_numpy, of)], batch_first=True, padding_value=padding)
                for of, padding in zip(pairs, (0, IGNORED), strict=True)
            )
            self._batches.append((ids_MT.to(device), targets_MT.to(device)))

    def only(self, domains: Iterable[str]) -> "HeldoutBatches":
        """The same text of only these domains."""
        chosen = {domain: self._held_out[domain] for domain in domains if domain in self._held_out}
        return HeldoutBatches(chosen, **self._how)

    @property
    def documents(self) -> set[tuple[str, str]]:
        """Domain and id of each document."""
        return {(row.domain, row.document) for row in self._documents}

    @torch.no_grad()
    def losses(self, token_losses: Losses) -> list[DocumentLoss]:
        """A row for each document with its loss, labelled as that of the full model.

        Processes that share the windows must all call this, and all get every row.
        """
        of_batches = []
        # Layers that are compiled for training would be compiled again for every view and width.
        with torch.compiler.set_stance("force_eager"):
            for ids_MT, targets_MT in self._batches:
                _, losses_MT = token_losses(ids_MT, targets_MT)
                of_batches.append(losses_MT.double().sum(1))
        sums = np.zeros(len(self._documents))
        if of_batches:
            of_windows = torch.cat(of_batches)
            np.add.at(sums, self._document_of_window, of_windows.cpu().numpy())
            if self._are_shared:
                of_documents = torch.from_numpy(sums).to(of_windows.device)
                torch.distributed.all_reduce(of_documents)
                sums = of_documents.cpu().numpy()
        return [
            row._replace(loss_nats=float(loss))
            for row, loss in zip(self._documents, sums, strict=True)
        ]
