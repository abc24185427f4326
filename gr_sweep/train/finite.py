"""Names the step and the documents whose loss or gradient is not finite."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gr_sweep.data.batches import Batches

_MAX_NAMED = 6
"""Documents of a domain that the error names."""


def describe_bad_step(
    batches: Batches, step: int, grad_norms: Mapping[str, float], rows_N: Tensor
) -> str:
    """What is not finite in a step, and in which documents.

    Args:
        step: counted from 0.
        grad_norms: by owner set, before clipping.
        rows_N: whether a row of the step has a loss that is not finite, in all processes.
    """
    what = "loss"
    if not rows_N.any():
        bad_norms = [name for name, norm in grad_norms.items() if not math.isfinite(norm)]
        what = f"gradient norm of {', '.join(bad_norms)}"
        rows_N = torch.ones_like(rows_N)  # any row may have caused the gradient
    elif rows_N.all():
        return f"{what} is not finite in all rows of step {step + 1}, so the weights are the cause"
    found: dict[str, set[int]] = {}
    for row in rows_N.nonzero()[:, 0].tolist():
        for part in batches.row_parts(step, row)[1]:
            found.setdefault(part["domain"], set()).add(part["document"])
    where = []
    for domain, documents in found.items():
        shown = ", ".join(map(str, sorted(documents)[:_MAX_NAMED]))
        more = len(documents) - _MAX_NAMED
        where.append(f"{domain}: documents {shown}" + (f" and {more} more" if more > 0 else ""))
    return f"{what} is not finite in step {step + 1} ({'; '.join(where)})"
