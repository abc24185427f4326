"""Names the step and the documents whose loss or gradient is not finite."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gr_sweep.data.batches import Batches
from gr_sweep.files import write_whole

BAD_BATCH = "bad_batch.json"

_MAX_NAMED = 6
"""Documents of a domain that the error names."""
_MAX_CHARACTERS = 100
"""Length of a document's text in the file."""


def describe_bad_batch(
    batches: Batches, step: int, loss: float, grad_norms: Mapping[str, float], rows_MN: Tensor
) -> tuple[str, dict[str, Any]]:
    """What the error says of a step that is not finite, and what `dump_bad_batch` writes.

    Args:
        step: number of the step, from 0.
        loss: sum over the step.
        grad_norms: by owner set, before clipping.
        rows_MN: whether a row of a micro-batch has a loss that is not finite, in all processes.
    """
    found = rows_MN.nonzero().tolist()
    is_loss = bool(found)
    if not is_loss:
        found = torch.ones_like(rows_MN).nonzero().tolist()  # any row may have caused the gradient
    rows = []
    for micro, row in found:
        label, documents = batches.row_parts(step, micro, row)
        rows.append({"micro_batch": micro, "row": row, "label": label, "documents": documents})
    what = "loss" if is_loss else f"gradient norm of {', '.join(_not_finite(grad_norms))}"
    where = _documents(document for row in rows for document in row["documents"])
    if is_loss and len(found) == rows_MN.numel():
        where = "in all rows, so the weights are the cause, not the text"
    batch = {
        "step": step + 1,
        "loss": repr(loss),
        "gradient_norms": {name: repr(norm) for name, norm in grad_norms.items()},
        "rows": rows,
    }
    return f"{what} is not finite in step {step + 1} ({where})", batch


def _not_finite(norms: Mapping[str, float]) -> list[str]:
    return [name for name, norm in norms.items() if not abs(norm) < float("inf")]


def _documents(documents: Iterable[Mapping[str, Any]]) -> str:
    """`code: documents 12, 77; biology: document 3`."""
    by_domain: dict[str, set[int]] = {}
    for document in documents:
        by_domain.setdefault(document["domain"], set()).add(document["document"])
    said = []
    for domain, numbers in by_domain.items():
        shown = ", ".join(map(str, sorted(numbers)[:_MAX_NAMED]))
        more = f" and {len(numbers) - _MAX_NAMED} more" if len(numbers) > _MAX_NAMED else ""
        said.append(f"{domain}: document{'s' if len(numbers) > 1 else ''} {shown}{more}")
    return "; ".join(said)


def dump_bad_batch(batch: Mapping[str, Any], folder: Path, tokenizer_dir: Path) -> Path:
    """Writes `bad_batch.json` into a job's folder, with the beginning of each document as text.

    Raises:
        OSError: the file cannot be written.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, trust_remote_code=False)
    except (OSError, ValueError):
        tokenizer = None  # the token ids stay
    for document in (document for row in batch["rows"] for document in row["documents"]):
        if tokenizer is not None:
            document["begins"] = tokenizer.decode(document["begins"])[:_MAX_CHARACTERS]
    path = folder / BAD_BATCH
    write_whole(path, json.dumps(batch, indent=1) + "\n")
    return path
