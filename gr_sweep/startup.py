"""What makes a process start sooner. Standard library alone."""

import contextlib
import gc
from collections.abc import Iterator

_OBJECTS = 100_000
"""New objects after which the collector looks for garbage; Python's own number is below 10,000."""


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """While much is imported or composed, the garbage collector looks for garbage rarely.

    Millions of objects are made that stay; looking through them over and over took a quarter of the
    time. Not for training, where garbage may hold memory of a device.
    """
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
