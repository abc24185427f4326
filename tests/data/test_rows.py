from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr_sweep.config import (
    DomainConfig,
    Method,
    MethodConfig,
    PartitionConfig,
    RunConfig,
    TrainConfig,
    unlabelled_shares,
)
from gr_sweep.data.rows import rows_per_label, step_rows
from gr_sweep.errors import ConfigError

THREE = ("code", "biology", "creative")


def test_a_domain_without_weight_or_without_labels_has_no_rows():
    assert rows_per_label(("a", "b"), {"a": 0}, 0.0, 4) == {"a": 0, "b": 4}
    assert rows_per_label(("a", "b"), {}, {"a": 1.0}, 4) == {"a": 0, "b": 2, "unlabelled": 2}


def test_a_node_of_the_tree_stands_for_the_labels_below_it():
    domains = ("biology/virology", "biology", "code")
    shares = unlabelled_shares({"biology": 0.5, "biology/virology": 0.1, "*": 0.3}, domains)
    assert shares == {"biology/virology": 0.1, "biology": 0.5, "code": 0.3}
    assert unlabelled_shares({"biology": 0.5}, ("biology/cell", "code")) == {
        "biology/cell": 0.5,
        "code": 0.0,
    }


@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any),
    hidden=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    num_rows=st.integers(1, 60),
)
def test_rows_are_within_one_of_their_share_or_refused_with_sizes_that_work(
    weights, hidden, num_rows
):
    domains = [f"d{number}" for number in range(len(weights))]
    given_weights = dict(zip(domains, weights, strict=True))
    try:
        rows = rows_per_label(domains, given_weights, hidden, num_rows)
    except ConfigError as error:
        advice = str(error).split("; use ")[1]
        for size in filter(str.isdigit, advice.split(" or ")):
            rows_per_label(domains, given_weights, hidden, int(size))
        return
    total = sum(weights)
    assert sum(rows.values()) == num_rows
    for domain, weight in given_weights.items():
        quota = Fraction(weight, total) * (1 - Fraction(str(hidden))) * num_rows
        assert abs(rows[domain] - quota) < 1
        assert 4 * quota <= 5 * rows[domain] <= 6.25 * quota
    by_weight = {(weight, rows[domain]) for domain, weight in given_weights.items()}
    assert len(by_weight) == len(set(weights))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Method.filtered, {"code": 8, "biology": 0, "creative": 8}),
        (Method.filtered_observed, {"code": 4, "biology": 0, "creative": 4, "unlabelled": 12}),
    ],
)
def test_the_rows_of_a_job_follow_from_its_method(method, expected):
    config = RunConfig(
        partition=PartitionConfig(domains={name: DomainConfig() for name in THREE}, unlabelled=0.5),
        method=MethodConfig(name=method, without=["biology"]),
        train=TrainConfig(batch_sequences=24, micro_batch_sequences=12),
    )
    assert step_rows(config) == expected
