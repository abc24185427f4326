"""Makes a process start faster."""

import contextlib
import gc
from collections.abc import Iterator

_OBJECTS = 100_000
"""New objects between garbage collections; Python's default is below 10,000."""


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Collects garbage rarely while much is imported or composed.

    Imports make millions of objects that stay, and scanning them took a quarter of the time. Not
    for training, where garbage can hold memory of a device.
    """
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
