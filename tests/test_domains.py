import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr_sweep.domains import (
    ancestors,
    check_domains,
    deepest_first,
    expand,
    is_under,
    labels_of_round,
    metric_name,
    weights_of_round,
)
from gr_sweep.errors import ConfigError

TREE = ("code", "biology", "biology/virology", "creative")


def test_a_node_stands_for_the_labels_at_and_below_it():
    assert expand(["biology"], TREE) == ("biology", "biology/virology")
    assert expand(["creative", "code"], TREE) == ("code", "creative")
    assert not is_under("biology2", "biology")
    assert ancestors("a/b/c") == ["a", "a/b", "a/b/c"] and metric_name("a/b") == "a.b"


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ([], "no domains"),
        (["code", "code"], "'code' is given twice"),
        (["a b"], "invalid domain 'a b'"),
        (["core"], "reserved"),
        ("code", "expected a list of domains"),
    ],
)
def test_invalid_labels_are_refused(domains, message):
    with pytest.raises(ConfigError, match=message):
        check_domains(domains)


@given(
    st.lists(
        st.sampled_from(["a", "b", "c", "a/x", "a/y", "a/x/1", "b/x", "c/z/1"]),
        unique=True,
        min_size=1,
    )
)
def test_deepest_first_keeps_every_label_and_puts_none_after_what_it_lies_under(domains):
    ordered = deepest_first(domains)
    assert sorted(ordered) == sorted(domains)
    for place, label in enumerate(ordered):
        assert not any(is_under(label, earlier) for earlier in ordered[:place])


def test_weights_of_a_round_are_summed_above_and_divided_below():
    domains, weights = ["code", "biology/cells", "biology/virology"], {"code": 3.0}
    assert weights_of_round(weights, domains, ["code", "biology"]) == {"code": 3.0, "biology": 2.0}
    labels = labels_of_round(domains, 2, 2)
    assert list(weights_of_round(weights, domains, labels).values()) == [1.5, 1.5, 1.0, 1.0]
