"""How often the garbage collector works while a process starts, and afterwards."""

import gc
from collections.abc import Iterator

import pytest

from gr_sweep.startup import rare_collections


@pytest.fixture(autouse=True)
def pythons_own() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_garbage_is_collected_rarely_within_and_as_before_afterwards():
    before = gc.get_threshold()
    with rare_collections():
        assert gc.isenabled() and gc.get_threshold()[0] > before[0]
        assert gc.get_threshold()[1:] == before[1:]
    assert gc.get_threshold() == before


def test_so_it_is_after_an_error():
    before = gc.get_threshold()
    with pytest.raises(ZeroDivisionError), rare_collections():
        raise ZeroDivisionError
    assert gc.get_threshold() == before
