"""The metrics of a job, alone and against its baselines, and of the relearning attack.

Baselines are tables of losses of other jobs on the same documents. All are resampled together, so
that what makes a document hard for every model cancels. A metric whose baseline is missing is
absent. How baselines are found is not known here.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gr_sweep.domains import is_under
from gr_sweep.metrics import formulas, registry
from gr_sweep.metrics.bootstrap import MISSING, Estimates, Sample, combined, mean_of
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, Text, View
from gr_sweep.metrics.registry import Metric, Over
from gr_sweep.metrics.tables import LossTables, add_own

_DENSE = "dense"
_FILTERED_ATTACK = "filtered_relearned"
_ATTACKED = View.removed
"""Tables of attacks hold every attack under this view, whichever model it started from."""


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What a job is compared with: tables of runs that differ from it only in method, plan and
    tokens. The models of one domain alone also differ in size."""

    dense: Sequence[DocumentLoss] | None = None
    """D: trained on all domains."""
    shorter: Mapping[float, Sequence[DocumentLoss]] = field(default_factory=dict)
    """The same with a share of the tokens, between 0 and 1, and its schedule finished."""
    filtered: Mapping[str, Sequence[DocumentLoss]] = field(default_factory=dict)
    """F[e] by e: never trained on e, by true label."""
    filtered_observed: Mapping[str, Sequence[DocumentLoss]] = field(default_factory=dict)
    """O[e] by e: the same by the label that routing sees, with the job's own label noise."""
    alone: Mapping[str, Sequence[DocumentLoss]] = field(default_factory=dict)
    """A[d] by d: dense, of the size of d's expert, trained on d alone."""
    filtered_relearned: Mapping[str, Sequence[RelearnLoss]] = field(default_factory=dict)
    """The attack on F[e], by e."""


NO_BASELINES = Baselines()


def summarize_losses(
    rows: Sequence[DocumentLoss],
    domains: Sequence[str],
    baselines: Baselines = NO_BASELINES,
    *,
    seed: int,
    resamples: int = 1000,
    blocks: Mapping[str, Collection[str]] | None = None,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The metrics of a job's own table, those against baselines, and their 95 % intervals, from one
    resampling. Those of attacks are in `compare_relearn`.

    A metric that cannot be computed is absent, never nan: a domain without tokens, a loss that is
    not finite, a view that lacks one of the domain's documents, a baseline that is missing or read
    other documents, a denominator that is not above 0, a compute equivalent below the first share.
    In a resample such a compute equivalent counts as the first share; the lower bound then means
    that or less. A node of the domain tree stands for the domains under it: its losses are means
    over them. A domain with a single document has no intervals.

    Args:
        rows: every view of every document.
        domains: labels, in the order of the result; rows of other domains are ignored.
        baselines: only their full models are read.
        seed: of the resampling, not negative; equal seeds give equal intervals.
        resamples: 0 gives no intervals.
        blocks: the owners of each block that was switched off alone, by its name; without it
            entanglement is absent.

    Raises:
        DataError: a document whose tokens or bytes differ between the job's views.
    """
    runs: dict[Hashable, Iterable[DocumentLoss]] = {}
    if baselines.dense is not None:
        runs[_DENSE] = baselines.dense
    runs.update({share: table for share, table in baselines.shorter.items()})
    for kind in ("filtered", "filtered_observed", "alone"):
        runs |= {(kind, part): table for part, table in getattr(baselines, kind).items()}
    full = {run: _of((View.full, View.calibrated_full), rows) for run, rows in runs.items()}
    tables = LossTables(rows, domains, full, seed=seed, resamples=resamples)
    estimates = Estimates()
    add_own(estimates, tables, blocks or {})
    _Comparison(estimates, tables, baselines).add()
    return estimates.metrics, estimates.intervals


def _of(views: tuple[View, ...], rows: Iterable[DocumentLoss]) -> Iterator[DocumentLoss]:
    return (row for row in rows if row.view in views and row.text is Text.plain)


class _Comparison:
    """The metrics of one job against its baselines, which `add` adds to `estimates`."""

    def __init__(self, estimates: Estimates, tables: LossTables, baselines: Baselines) -> None:
        self._add, self._samples = estimates.add, estimates.samples
        self.tables = tables
        self.baselines = baselines
        self.shares = sorted(baselines.shorter)

    def add(self) -> None:
        """Adds all metrics whose baselines are there, then the means of all metrics."""
        tables = self.tables
        for domain in tables.domains:
            self._add_utility(domain)
        for part in tables.parts(View.removed):
            self._add_removal(part)
        for part in self.baselines.filtered:
            for domain in tables.outside(part):
                dense = tables.loss(domain, View.full, run=_DENSE)
                self._add(registry.TRANSFER(part, domain), self._filtered(part, [domain]) - dense)
        for part in tables.parts(View.unlearned):
            self._add_closed_gap(
                part, View.unlearned, registry.UNLEARNED_TAX, registry.UNLEARNED_REMOVAL
            )
            self._add_calibrated(part, View.calibrated_unlearned)
        for metric in registry.METRICS:
            if metric.mean:
                self._add(metric.mean, self._mean(metric))

    def _filtered(self, part: str, domains: Sequence[str], kind: str = "filtered") -> Sample:
        return self.tables.mean_loss(domains, View.full, run=(kind, part))

    def _add_utility(self, domain: str) -> None:
        """Compares the served model, the full one and a domain's expert with dense ones."""
        tables = self.tables
        dense = tables.loss(domain, View.full, run=_DENSE)
        served, full = (tables.loss(domain, view) for view in (View.served, View.full))
        expert = tables.loss(domain, View.kept, domain)
        leaf = tables.loss(domain, View.expert)
        # Where rounds have split a domain, its experts have the size of the baseline.
        own = leaf if tables.parts(View.expert) else expert
        for metric, sample in (
            (registry.SERVED_TAX, served - dense),
            (registry.TAX, full - dense),
            (registry.EXPERT_TAX, expert - dense),
            (registry.LEAF_TAX, leaf - dense),
            (registry.ALONE_TAX, own - tables.loss(domain, View.full, run=("alone", domain))),
            (registry.COMPUTE_EQUIVALENT_SERVED, self._compute_equivalent(served, [domain])),
            (registry.COMPUTE_EQUIVALENT_FULL, self._compute_equivalent(full, [domain])),
            (registry.COMPUTE_EQUIVALENT_KEPT, self._compute_equivalent(expert, [domain])),
        ):
            self._add(metric(domain), sample)

    def _add_removal(self, part: str) -> None:
        """Compares the model without a part with one never trained on it."""
        tables = self.tables
        for view, whole, tax, removal, equivalent in (
            (
                View.removed, View.full, registry.REMOVED_TAX, registry.REMOVAL,
                registry.COMPUTE_EQUIVALENT_REMOVED,
            ),
            (
                View.served_removed, View.served, registry.SERVED_REMOVED_TAX,
                registry.SERVED_REMOVAL, registry.COMPUTE_EQUIVALENT_SERVED_REMOVED,
            ),
        ):  # fmt: skip
            self._add_closed_gap(part, view, tax, removal, whole)
            for domain in tables.outside(part):
                left = tables.loss(domain, view, part)
                self._add(equivalent(part, domain), self._compute_equivalent(left, [domain]))
        self._add_calibrated(part, View.calibrated_removed)
        own = tables.under(part)
        removed = tables.mean_loss(own, View.removed, part)
        filtered = self._filtered(part, own)
        observed = self._filtered(part, own, "filtered_observed")
        self._add(registry.FORGET_COMPUTE(part), self._compute_equivalent(removed, own))
        self._add(registry.LEAKAGE(part), _ratio(filtered - removed, filtered - observed))

    def _add_closed_gap(
        self, part: str, view: View, tax: Metric, removal: Metric, whole: View = View.full
    ) -> None:
        """How close a view of the model without a part comes from the whole one to one never
        trained on it, on the other domains and on the part itself."""
        tables = self.tables
        for domain in tables.outside(part):
            left = tables.loss(domain, view, part)
            self._add(tax(part, domain), left - self._filtered(part, [domain]))
        own = tables.under(part)
        full = tables.mean_loss(own, whole)
        gap = self._filtered(part, own) - full
        self._add(removal(part), _ratio(tables.mean_loss(own, view, part) - full, gap))

    def _add_calibrated(self, part: str, calibrated: View) -> None:
        """The same on the part with a bias fitted to each model."""
        tables = self.tables
        own = tables.under(part)
        full = tables.mean_loss(own, View.calibrated_full, part)
        gap = tables.mean_loss(own, View.calibrated_full, part, run=("filtered", part)) - full
        closed = tables.mean_loss(own, calibrated, part) - full
        self._add(registry.CALIBRATED_REMOVAL(part), _ratio(closed, gap))

    def _compute_equivalent(self, loss: Sample, domains: Sequence[str]) -> Sample:
        if not self.shares:
            return MISSING
        shares = [*self.shares, 1.0]

        def formula(loss: Any, *dense: Any) -> Any:
            return formulas.compute_equivalent(loss, shares, dense)

        runs: list[Hashable] = [*self.shares, _DENSE]
        curve = [self.tables.mean_loss(domains, View.full, run=run) for run in runs]
        found = combined(formula, loss, *curve)
        is_below = np.isnan(found.resampled)
        return Sample(found.value, np.where(is_below, self.shares[0], found.resampled))

    def _mean(self, metric: Metric) -> Sample:
        """Mean of what was added, from the resamples of all entries."""
        tables = self.tables
        removed = tables.removable() or tables.removable(View.unlearned)
        if metric.over is Over.pairs:
            by_domain = [
                [metric(part, domain) for part in removed if not is_under(domain, part)]
                for domain in tables.domains
            ]
            return mean_of([mean_of(self._found(keys)) for keys in by_domain if keys])
        names = removed if metric.over is Over.removed else tables.domains
        return mean_of(self._found([metric(name) for name in names]))

    def _found(self, keys: Iterable[str]) -> list[Sample]:
        return [self._samples.get(key, MISSING) for key in keys]


def _ratio(part: Sample, whole: Sample) -> Sample:
    return combined(formulas.ratio, part, whole)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """The relearning attack on one model with one learning rate."""

    lr: float
    tokens: tuple[int, ...]
    """Trained on at its evaluations, from 0."""
    losses: tuple[float, ...]
    """Mean held-out loss on the part at each of them, nats per token."""


def attacks(rows: Sequence[RelearnLoss], part: str, domains: Sequence[str]) -> list[Attack]:
    """The attacks on the model without a part, one for each learning rate."""
    tables = _attack_tables(rows, part, domains, NO_BASELINES, seed=0, resamples=0)
    return [
        Attack(
            lr=lr,
            tokens=tokens,
            losses=tuple(_attacked_loss(tables, "", lr, trained).value for trained in tokens),
        )
        for lr, tokens in _evaluations(rows, part).items()
    ]


def compare_relearn(
    rows: Sequence[RelearnLoss],
    baselines: Baselines,
    domains: Sequence[str],
    *,
    seed: int,
    resamples: int = 1000,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The metrics robustness/relearn/* and their 95 % intervals.

    The strongest of all learning rates and evaluations counts, chosen again in each resample. The
    tokens are absent if F[e] or D is missing, or if F[e] is no worse than D on e. A censored attack
    has its length as tokens, so that the ratio is a bound; where both attacks are censored it is
    absent, and the mean where one is. The documents are those that the attack is evaluated on.

    Args:
        rows: the attacks on the job, whichever view they start from.
        baselines: `dense`, `filtered` and `filtered_relearned` are read.
        domains, seed, resamples: as in `summarize_losses`.
    """
    estimates = Estimates()
    exact_ratios = []
    for part in dict.fromkeys(row.part for row in rows):
        if not any(is_under(domain, part) for domain in domains):
            continue
        tables = _attack_tables(rows, part, domains, baselines, seed=seed, resamples=resamples)
        tokens, censored = _add_attack(
            estimates, tables, part, "", rows,
            (registry.RELEARN_LOSS, registry.RELEARN_TOKENS, registry.RELEARN_CENSORED),
        )  # fmt: skip
        filtered_tokens, filtered_censored = _add_attack(
            estimates, tables, part, _FILTERED_ATTACK, baselines.filtered_relearned.get(part, ()),
            (
                registry.RELEARN_FILTERED_LOSS,
                registry.RELEARN_FILTERED_TOKENS,
                registry.RELEARN_FILTERED_CENSORED,
            ),
        )  # fmt: skip
        both_censored = combined(np.multiply, censored, filtered_censored)
        ratio = combined(
            lambda ratio, unknown: np.where(unknown == 0, ratio, np.nan),
            _ratio(tokens, filtered_tokens),
            both_censored,
        )
        estimates.add(registry.RELEARN_RATIO(part), ratio)
        if part in domains:
            is_bound = censored.value == 1 or filtered_censored.value == 1
            exact_ratios.append(MISSING if is_bound else ratio)
    estimates.add(registry.RELEARN_RATIO.mean, mean_of(exact_ratios))
    return estimates.metrics, estimates.intervals


def _add_attack(
    estimates: Estimates,
    tables: LossTables,
    part: str,
    run: str,
    rows: Iterable[RelearnLoss],
    metrics: tuple[Metric, Metric, Metric],
) -> tuple[Sample, Sample]:
    """Adds loss, tokens and censoring of the attack in `rows`, whose columns are those of `run`.

    Returns:
        The tokens, and whether they are censored.
    """
    evaluations = _evaluations(rows, part)
    if not evaluations:
        return MISSING, MISSING
    losses = [
        _attacked_loss(tables, run, lr, trained)
        for lr, tokens in evaluations.items()
        for trained in tokens
    ]

    def relearned(filtered: Any, dense: Any, *losses: Any) -> tuple[Any, Any]:
        values = iter(losses)
        by_lr = [(tokens, [next(values) for _ in tokens]) for tokens in evaluations.values()]
        return formulas.tokens_to_relearn(by_lr, filtered, dense)

    runs: tuple[Hashable, ...] = (("filtered", part), _DENSE)
    samples = [tables.mean_loss(tables.domains, View.full, run=run) for run in runs] + losses
    tokens = combined(lambda *values: relearned(*values)[0], *samples)
    censored = combined(lambda *values: relearned(*values)[1], *samples)
    of_loss, of_tokens, of_censored = (metric(part) for metric in metrics)
    estimates.add(of_loss, combined(lambda *losses: formulas.lowest_loss(losses), *losses))
    estimates.add(of_tokens, tokens)
    estimates.add(of_censored, Sample(censored.value))
    return tokens, censored


def _evaluations(rows: Iterable[RelearnLoss], part: str) -> dict[float, tuple[int, ...]]:
    """Tokens trained on at the evaluations of each learning rate."""
    tokens: dict[float, set[int]] = {}
    for row in rows:
        if row.part == part:
            tokens.setdefault(row.lr, set()).add(row.trained_tokens)
    return {lr: tuple(sorted(tokens[lr])) for lr in sorted(tokens)}


def _attack_tables(
    rows: Iterable[RelearnLoss],
    part: str,
    domains: Sequence[str],
    baselines: Baselines,
    *,
    seed: int,
    resamples: int,
) -> LossTables:
    """The domains under the part: evaluations of the attacks, F[e] and D."""

    def attacked(rows: Iterable[RelearnLoss]) -> Iterator[DocumentLoss]:
        for row in rows:
            if row.part == part:
                yield DocumentLoss(
                    _ATTACKED, _evaluation(row.lr, row.trained_tokens), row.domain, Text.plain,
                    row.document, row.loss_nats, row.tokens, row.bytes,
                )  # fmt: skip

    runs: dict[Hashable, Iterable[DocumentLoss]] = {
        _FILTERED_ATTACK: attacked(baselines.filtered_relearned.get(part, ())),
        _DENSE: _of((View.full,), baselines.dense or ()),
        ("filtered", part): _of((View.full,), baselines.filtered.get(part, ())),
    }
    own = [domain for domain in domains if is_under(domain, part)]
    return LossTables(attacked(rows), own, runs, seed=seed, resamples=resamples)


def _evaluation(lr: float, trained_tokens: int) -> str:
    """Names an evaluation, in the place of the part, in a table of attacks."""
    return f"{lr!r} {trained_tokens}"


def _attacked_loss(tables: LossTables, run: str, lr: float, trained_tokens: int) -> Sample:
    return tables.mean_loss(tables.domains, _ATTACKED, _evaluation(lr, trained_tokens), run=run)
