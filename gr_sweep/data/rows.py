"""How the rows of a step divide over the labels.

Uses only the standard library, because it runs while settings are composed. `checks` has validated
them.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from gr_sweep.config import Method, PlanKind, RunConfig, unlabelled_shares
from gr_sweep.domains import UNLABELLED, expand, weights_of_round
from gr_sweep.errors import ConfigError, PlanError
from gr_sweep.routing.rows import Share, cycle_length

_FAR = Fraction(5, 4)
"""Most that the rows of a label may be of its share of a step, or its share of the rows: one row of
13 is not a text of 3 %."""
_MOST_ROWS = 4096
"""Largest batch that is tried when looking for one that divides."""


def domain_weights(weights: Mapping[str, float], domains: Sequence[str]) -> dict[str, Fraction]:
    """The weight of every domain, 1 by default; exact, so that equal weights stay equal."""
    return {domain: Fraction(repr(weights.get(domain, 1))) for domain in domains}


def rows_per_label(
    domains: Sequence[str],
    weights: Mapping[str, float],
    unlabelled: Any,
    batch_sequences: int,
    without: Sequence[str] = (),
    drops_observed: bool = False,
    only: Sequence[str] | None = None,
) -> dict[str, int]:
    """Rows of a step by label, in the order of `domains`, then `unlabelled` if above 0.

    Rows are allocated by largest remainder to the shares `weight * (1 - unlabelled)` of each domain
    and the sum of `weight * unlabelled`. A domain without weight or without labels has 0 rows.

    Args:
        weights: relative; 1 by default.
        unlabelled: as `unlabelled_shares` takes it.
        without: domains, or nodes above them, that get 0 rows, by true label: no label is hidden.
        drops_observed: `without` goes by the label that routing sees: hidden labels stay hidden.
        only: the labels that the rows are divided over; None for all.

    Raises:
        ConfigError: a label would get rows far from its share, such as none, or equal shares
            unequal rows; the message names the nearest sizes that divide.
    """
    if without and not drops_observed:
        unlabelled = 0.0
    weight = domain_weights(weights, domains)
    hidden = {d: Fraction(repr(s)) for d, s in unlabelled_shares(unlabelled, domains).items()}
    shares = {domain: weight[domain] * (1 - hidden[domain]) for domain in domains}
    unlabelled_share = sum((weight[d] * hidden[d] for d in domains), Fraction(0))
    if unlabelled_share:
        shares[UNLABELLED] = unlabelled_share
    if only is not None:
        shares = {label: share if label in only else Fraction(0) for label, share in shares.items()}
    if not any(shares.values()):
        raise ConfigError(f"data.weights gives no weight to {' and '.join(only or domains)}")
    rows = _split(shares, batch_sequences)
    if rows is None:
        raise ConfigError(_advice(weight, shares, batch_sequences))
    left_out = expand(without, domains)
    return {label: 0 if label in left_out else count for label, count in rows.items()}


def step_rows(
    config: RunConfig, labels: Sequence[str] | None = None, only: Sequence[str] | None = None
) -> dict[str, int]:
    """`rows_per_label` of a job, of a round with other labels, or of a phase with `only` some.

    Raises:
        ConfigError: as there, or a share of the sequences that these rows cannot reach.
    """
    domains = list(config.partition.domains)
    weights: Mapping[str, float] = config.data.weights
    if labels is not None:
        weights = weights_of_round(weights, domains, labels)
    rows = rows_per_label(
        domains if labels is None else labels,
        weights,
        config.partition.unlabelled,
        config.train.batch_sequences,
        config.method.without,
        config.method.name is Method.filtered_observed,
        only,
    )
    try:
        _check_shares(config, rows)
    except PlanError as error:
        raise ConfigError(f"route.{error}, or a larger train.batch_sequences") from error
    return rows


def _check_shares(config: RunConfig, rows: Mapping[str, int]) -> None:
    """Raises PlanError where the job's shares of sequences cannot be reached."""
    route, plan = config.route, config.plan
    domains = [label for label in rows if label != UNLABELLED]
    if len(domains) == 1:  # no other domain is left
        return
    forgotten = expand(plan.forget, domains) if plan.kind is PlanKind.forget else ()
    dropped = domains
    if route.one_block:
        dropped = [domain for domain in domains if forgotten and domain not in forgotten]
    cycle_length(
        Share("foreign_dropout", route.foreign_dropout, tuple(rows[d] for d in dropped)),
        Share("foreign_core_share", route.foreign_core_share, tuple(rows[d] for d in forgotten)),
    )


def _split(shares: Mapping[str, Fraction], num_rows: int) -> dict[str, int] | None:
    """Largest remainder; None if equal shares get unequal rows, or a share far more or fewer rows
    than its own (`_FAR`)."""
    total = sum(shares.values())
    quotas = {label: share * num_rows / total for label, share in shares.items()}
    rows = {label: int(quota) for label, quota in quotas.items()}
    by_remainder = sorted(shares, key=lambda name: (rows[name] - quotas[name], -shares[name]))
    for label in by_remainder[: num_rows - sum(rows.values())]:
        rows[label] += 1
    if any(rows[x] > _FAR * q or q > _FAR * rows[x] for x, q in quotas.items()):
        return None
    # Largest remainder breaks ties by position, which would favour the first domain.
    if len(set(zip(shares.values(), rows.values(), strict=True))) > len(set(shares.values())):
        return None
    return rows


def _advice(weight: Mapping[str, Fraction], shares: Mapping[str, Fraction], num_rows: int) -> str:
    ratio = ":".join(f"{float(value):g}" for value in weight.values())
    problem = (
        f"train.batch_sequences={num_rows} does not split over {len(weight)} domains "
        f"({', '.join(weight)}) with weights {ratio}"
    )
    if UNLABELLED in shares:
        hidden = float(shares[UNLABELLED] / sum(shares.values()))
        problem += f", of which {hidden:.3g} is unlabelled"
    below = next((n for n in range(num_rows - 1, 0, -1) if _split(shares, n)), None)
    above = next((n for n in range(num_rows + 1, _MOST_ROWS) if _split(shares, n)), None)
    sizes = [str(size) for size in (below, above) if size is not None]
    return f"{problem}; use {' or '.join(sizes) or 'weights that differ less'}"
