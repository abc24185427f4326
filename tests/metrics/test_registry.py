"""The registry of metrics: the keys to the letter."""

import pytest

from gr_sweep.metrics import registry


def test_a_key_is_built_from_names_and_found_again() -> None:
    key = registry.REMOVED_TAX("biology/virology", "code")
    assert key == "utility/removed_tax/biology.virology/code"
    assert registry.find(key) == (registry.REMOVED_TAX, ("biology.virology", "code"))
    assert registry.find("mean_removed_tax") == (registry.REMOVED_TAX, ())
    assert registry.find("utility/removed_tax/code") is None
    with pytest.raises(TypeError, match="takes 2 names"):
        registry.REMOVED_TAX("code")
    for metric in registry.METRICS:
        names = tuple(f"{name}+x" for name in metric.placeholders)
        assert registry.find(metric(*names)) == (metric, names)
