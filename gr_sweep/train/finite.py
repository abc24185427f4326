"""Where training ceased to be finite: the first such step, its rows, and the documents in them.

What is needed for that stays on the device until a row is logged: nobody waits for it.
"""

# N = rows of the micro-batch, T = tokens a row predicts.

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gr_sweep.data.batches import Batches, RowPart
from gr_sweep.errors import JobError
from gr_sweep.files import write_whole
from gr_sweep.train.distributed import Processes

if TYPE_CHECKING:
    from gr_sweep.train.loop import StepResult

BAD_BATCH = "bad_batch.json"

_FINITE = 1 << 40
"""Place in a row all of whose losses are finite."""
_NAMED = 6
"""Documents of a domain that the error line has room for."""
_SHOWN = 100
"""Characters of a document's text that are written down."""


class NotFiniteError(JobError):
    """A loss or a gradient that is not finite; in all processes the same."""

    def __init__(self, message: str, batch: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.batch = batch
        """The step, and its rows that are not finite with their documents, in JSON values."""


def first_not_finite(losses_NT: Tensor) -> Tensor:
    """[N]: place of each row's first loss that is not finite; beyond any row where all are."""
    places_T = torch.arange(losses_NT.shape[1], device=losses_NT.device)
    return torch.where(losses_NT.isfinite(), _FINITE, places_T).amin(1)


def not_finite(
    steps: Sequence["StepResult"],
    step: int,
    batches: Batches,
    processes: Processes,
    rows: slice | None = None,
) -> NotFiniteError:
    """The error that says what was not finite first. Every process must call this.

    Args:
        steps: those since the last row that was finite, each with this process's part.
        step: steps done with the last of them.
        rows: of every micro-batch those that this process has; None for all.
    """
    sums = torch.stack([torch.stack([*of.losses.values()]).double().sum() for of in steps])
    losses = processes.sum_(sums).tolist()
    norms: list[dict[str, float]] = [
        {name: float(norm) for name, norm in of.grad_norms.items()} for of in steps
    ]
    at = next(
        (
            number
            for number, loss in enumerate(losses)
            if not all(map(math.isfinite, (loss, *norms[number].values())))
        ),
        len(steps) - 1,
    )
    number = step - len(steps) + at
    bad_norms = [name for name, norm in norms[at].items() if not math.isfinite(norm)]
    is_loss = not math.isfinite(losses[at])

    # Places [micro-batches, rows] of all processes: each adds those of its own rows.
    here_MN = torch.stack(steps[at].first_not_finite)
    all_MN = here_MN.new_zeros(len(here_MN), batches.num_rows)
    all_MN[:, rows or slice(None)] = here_MN
    places = processes.sum_(all_MN).tolist()
    found = [
        _row(batches, number, micro, row, place if place < _FINITE else None)
        for micro, of_micro in enumerate(places)
        for row, place in enumerate(of_micro)
        if place < _FINITE or not is_loss
    ]

    if is_loss:
        what = f"loss is not finite in step {number + 1}"
    else:
        what = (
            f"gradient norm of {', '.join(bad_norms)} is not finite in step {number + 1}, whose "
            "loss is"
        )
    if is_loss and len(found) == batches.num_rows * batches.num_micro_batches:
        where = "all of its rows, so that the weights are to blame and not the text"
    else:
        # All of a row's: what attention multiplies with 0 is not finite either, and so are then the
        # losses before.
        where = _named(part for row in found for part in row["documents"])
    batch = {
        "step": number + 1,
        "loss": repr(losses[at]),
        "gradient_norms": {name: repr(norm) for name, norm in norms[at].items()},
        "rows": found,
    }
    return NotFiniteError(
        f"{what} ({where}); lower train.lr or train.max_norm, the newest checkpoint is from before",
        batch,
    )


def _row(batches: Batches, step: int, micro: int, row: int, place: int | None) -> dict[str, Any]:
    """A row and its documents; `place` is that of its first loss that is not finite."""
    label, parts = batches.row_parts(step, micro, row)
    return {
        "micro_batch": micro,
        "row": row,
        "label": label,
        # Of a token of the row: the loss at a place is that of the token after it.
        "first_not_finite": None if place is None else place + 1,
        "documents": [_document(part) for part in parts],
    }


def _document(part: RowPart) -> dict[str, Any]:
    return {
        "domain": part.domain,
        "document": part.document,
        "id": part.id,
        "from_token": part.first,
        "num_tokens": part.num_tokens,
        "place_in_row": part.start,
        "begins": part.begins.tolist(),
    }


def _named(documents: Iterable[Mapping[str, Any]]) -> str:
    """`code: documents 12, 77; biology: document 3`."""
    by_domain: dict[str, dict[int, None]] = {}
    for document in documents:
        by_domain.setdefault(document["domain"], {})[document["document"]] = None
    said = []
    for domain, numbers in by_domain.items():
        shown = ", ".join(map(str, sorted(numbers)[:_NAMED]))
        more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
        said.append(f"{domain}: document{'s' if len(numbers) > 1 else ''} {shown}{more}")
    return "; ".join(said)


@contextlib.contextmanager
def leaving_bad_batch(folder: Path, tokenizer_dir: Path, *, is_main: bool) -> Iterator[None]:
    """Where the block ends because something was not finite, the main process writes the rows and
    documents into `bad_batch.json` of the job's folder, with how their text begins."""
    try:
        yield
    except NotFiniteError as error:
        if is_main:
            batch = _with_text(error.batch, tokenizer_dir)
            # What the error says counts; on a full disk the file is what can be done without.
            with contextlib.suppress(OSError):
                write_whole(folder / BAD_BATCH, json.dumps(batch, indent=1) + "\n")
        raise NotFiniteError(
            f"{error}; {folder / BAD_BATCH} has rows and documents in full", error.batch
        ) from error


def _with_text(batch: Mapping[str, Any], tokenizer_dir: Path) -> dict[str, Any]:
    """The same with text for token ids, where the tokenizer can be read."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir, trust_remote_code=False)
    except (OSError, ValueError):
        return dict(batch)
    rows = [
        row
        | {
            "documents": [
                document | {"begins": tokenizer.decode(document["begins"])[:_SHOWN]}
                for document in row["documents"]
            ]
        }
        for row in batch["rows"]
    ]
    return {**batch, "rows": rows}
