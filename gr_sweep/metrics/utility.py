"""Utility: what the model is worth on held-out text.

Functions of numbers or of arrays of resamples, elementwise. Knows nothing of documents.
"""

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Numbers = TypeVar("Numbers", float, npt.NDArray[np.float64])


def bits_per_byte(loss_nats: Numbers, num_bytes: Numbers) -> Numbers:
    """Bits per byte of UTF-8 text from the summed loss in nats of that text; lower is better."""
    return loss_nats / (math.log(2) * num_bytes)
