"""How often the garbage collector works while a process starts, and afterwards."""

import gc

import pytest

from gr_sweep.startup import rare_collections


def test_garbage_is_collected_rarely_within_and_as_before_afterwards():
    own = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    try:
        with pytest.raises(ZeroDivisionError), rare_collections():
            assert gc.isenabled() and gc.get_threshold()[0] > 700
            raise ZeroDivisionError
        assert gc.get_threshold() == (700, 10, 10)
    finally:
        gc.set_threshold(*own)
