"""Losses of held-out documents, one sum a document."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gr_sweep.data.heldout import HeldoutChunks
from gr_sweep.metrics.losses import DocumentLoss, Text, View
from gr_sweep.model.loss import IGNORED

Losses = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Token ids and targets [M, T] to the sum and the loss of each position, as `TokenLosses`."""


class HeldoutBatches:
    """Held-out text of all domains as batches on the device, to be read in every view of a model.

    Windows of like length stand together, whatever their domain, and a batch is as wide as its
    longest window: hardly any padding is computed. M windows of a batch, T positions.
    """

    def __init__(
        self,
        held_out: Mapping[str, HeldoutChunks],
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
            rank, world_size: which process this is of how many that share the windows.
            text: which version of the documents this is.
        """
        self._held_out = dict(held_out)
        self._options: dict[str, Any] = {
            "batch_sequences": batch_sequences,
            "device": device,
            "rank": rank,
            "world_size": world_size,
            "text": text,
        }
        self._are_shared = world_size > 1
        self._documents: list[DocumentLoss] = []
        windows = []
        for domain, texts in held_out.items():
            first = len(self._documents)
            for document, num_tokens, num_bytes in zip(
                texts.ids, texts.num_tokens, texts.num_bytes, strict=True
            ):
                self._documents.append(
                    DocumentLoss(
                        View.full,
                        "",
                        domain,
                        text,
                        document,
                        0.0,
                        int(num_tokens),
                        round(float(num_bytes)),
                    )
                )
            for row, document in enumerate(texts.rows.tolist()):
                # Padding stands at the end; what is not predicted may stand before it.
                length = int(np.max(np.flatnonzero(texts.targets[row] != IGNORED), initial=-1)) + 1
                ids, targets = texts.input_ids[row, :length], texts.targets[row, :length]
                windows.append((first + document, ids, targets))
        # The longest first: what needs most memory is allocated first.
        windows.sort(key=lambda window: len(window[1]), reverse=True)
        self._document_of_window: list[int] = []
        self._batches = []
        for start in range(0, len(windows), batch_sequences * world_size):
            # In turn: processes get as many batches, of windows of like length.
            own = windows[start + rank : start + batch_sequences * world_size : world_size]
            if not own:
                document, ids, targets = windows[start]
                own = [(document, ids, np.full_like(targets, IGNORED))]
            self._document_of_window += [document for document, _, _ in own]
            self._batches.append(_padded(own, device))

    def only(self, domains: Iterable[str]) -> "HeldoutBatches":
        """The same text of these domains alone; those that are not there have none."""
        chosen = {domain: self._held_out[domain] for domain in domains if domain in self._held_out}
        return HeldoutBatches(chosen, **self._options)

    @property
    def documents(self) -> set[tuple[str, str]]:
        """Domain and id of each document."""
        return {(row.domain, row.document) for row in self._documents}

    def losses(self, token_losses: Losses) -> list[DocumentLoss]:
        """A row for each document with its loss in the full model.

        Processes that share the windows all call this, and all get every row.
        """
        return self.losses_of_views(token_losses, [contextlib.nullcontext])[0]

    @torch.no_grad()
    def losses_of_views(
        self,
        token_losses: Losses,
        views: Sequence[Callable[[], contextlib.AbstractContextManager[None]]],
        shared: Sequence[Sequence[nn.Module]] = (),
    ) -> list[list[DocumentLoss]]:
        """`losses` inside each of the contexts.

        Args:
            views: each makes the context that routes its view.
            shared: as `computed_once` takes it: computed once a batch.
        """
        of_views: list[list[torch.Tensor]] = [[] for _ in views]
        # Layers that are compiled for training would be compiled anew for every view and width.
        with torch.compiler.set_stance("force_eager"):
            for ids_MT, targets_MT in self._batches:
                with computed_once(shared):
                    for of_batches, view in zip(of_views, views, strict=True):
                        with view():
                            _, losses_MT = token_losses(ids_MT, targets_MT)
                        of_batches.append(losses_MT.double().sum(1))
        return [self._rows(of_batches) for of_batches in of_views]

    def _rows(self, of_batches: Sequence[torch.Tensor]) -> list[DocumentLoss]:
        """From the sums of the windows; here the host waits for the device."""
        sums = np.zeros(len(self._documents))
        if of_batches:
            of_windows = torch.cat(list(of_batches))
            np.add.at(sums, self._document_of_window, of_windows.cpu().numpy())
            if self._are_shared:
                of_documents = torch.from_numpy(sums).to(of_windows.device)
                torch.distributed.all_reduce(of_documents)
                sums = of_documents.cpu().numpy()
        return [
            row._replace(loss_nats=float(loss))
            for row, loss in zip(self._documents, sums, strict=True)
        ]


@contextlib.contextmanager
def computed_once(chains: Sequence[Sequence[nn.Module]]) -> Iterator[None]:
    """Inside, chains of modules that see the same each time are computed the first time alone.

    Args:
        chains: modules of which each is fed by the one before it, and by nothing that changes. Of a
            chain only the last result is kept: the others are computed for its sake.
    """
    for chain in chains:
        found: list[Any] = []
        for module in chain:
            module.forward = _once(module.forward, found, keeps=module is chain[-1])
    try:
        yield
    finally:
        for module in (module for chain in chains for module in chain):
            del module.forward  # and the class's stands again


def _once(compute: Callable[..., Any], found: list[Any], *, keeps: bool) -> Callable[..., Any]:
    def result(*args: Any, **kwargs: Any) -> Any:
        if found:
            return found[0]
        computed = compute(*args, **kwargs)
        if keeps:
            found.append(computed)
        return computed

    return result


def _padded(
    windows: list[tuple[int, np.ndarray, np.ndarray]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and targets [M, T], T being the length of the first and longest window."""
    width = len(windows[0][1])
    ids_MT = np.zeros((len(windows), width), dtype=np.int64)
    targets_MT = np.full((len(windows), width), IGNORED, dtype=np.int64)
    for row, (_, ids, targets) in enumerate(windows):
        ids_MT[row, : len(ids)], targets_MT[row, : len(ids)] = ids, targets
    return torch.from_numpy(ids_MT).to(device), torch.from_numpy(targets_MT).to(device)
