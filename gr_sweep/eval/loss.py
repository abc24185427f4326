"""Losses of held-out documents, one sum a document."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from gr_sweep.data.batches import HeldoutChunks
from gr_sweep.metrics.losses import DocumentLoss, View


@torch.no_grad()
def document_losses(
    logits_of: Callable[..., Any],
    held_out: HeldoutChunks,
    *,
    batch_sequences: int,
    device: torch.device,
) -> np.ndarray:
    """Summed negative log likelihood in nats of each document, float64 [documents].

    M windows of held-out text, T positions.
    """
    sums = np.zeros(len(held_out.ids))
    for start in range(0, len(held_out.input_ids), batch_sequences):
        part = slice(start, start + batch_sequences)
        ids_MT = torch.from_numpy(held_out.input_ids[part]).to(device)
        targets_MT = torch.from_numpy(held_out.targets[part]).to(device)
        logits = logits_of(input_ids=ids_MT, use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets_MT.flatten(), reduction="none", ignore_index=-100
        )
        of_window = losses.view(ids_MT.shape).double().sum(1).cpu().numpy()
        np.add.at(sums, held_out.rows[part], of_window)
    return sums


def loss_table(
    logits_of: Callable[..., Any],
    held_out: Mapping[str, HeldoutChunks],
    *,
    view: View,
    part: str,
    batch_sequences: int,
    device: torch.device,
) -> list[DocumentLoss]:
    """A row for each held-out document of each domain."""
    rows = []
    for domain, texts in held_out.items():
        sums = document_losses(logits_of, texts, batch_sequences=batch_sequences, device=device)
        for index, loss in enumerate(sums):
            rows.append(
                DocumentLoss(
                    view,
                    part,
                    domain,
                    texts.ids[index],
                    float(loss),
                    int(texts.num_tokens[index]),
                    round(float(texts.num_bytes[index])),
                )
            )
    return rows
