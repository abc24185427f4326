"""Metrics that set a job against its baselines, and the relearning attack.

Baselines are tables of losses of other jobs on the same documents. All are resampled together, so
that a document that is hard for everybody cancels. A metric whose baseline is missing is absent.
Knows nothing of how the baselines are found.
"""

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gr_sweep.domains import is_under
from gr_sweep.metrics import registry, robustness, separability, utility
from gr_sweep.metrics.bootstrap import MISSING, Estimates, FloatArray, Sample, combined
from gr_sweep.metrics.losses import (
    DocumentLoss,
    LossTables,
    RelearnLoss,
    Text,
    View,
    add_own,
    mean_of,
)
from gr_sweep.metrics.table import DocumentTable, Read

_BASELINE_VIEWS = (View.full, View.calibrated_full)
_DENSE: Hashable = "dense"


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What a job is measured against: tables of runs alike in all but method, plan and tokens, and
    of those of one domain alone in size."""

    dense: Sequence[DocumentLoss] | None = None
    """D: trained on all domains."""
    shorter: Mapping[float, Sequence[DocumentLoss]] = field(default_factory=dict)
    """The same with a share of the tokens, between 0 and 1, and its schedule finished."""
    filtered: Mapping[str, Sequence[DocumentLoss]] = field(default_factory=dict)
    """F[e] by e: never trained on e, by true label."""
    filtered_observed: Mapping[str, Sequence[DocumentLoss]] = field(default_factory=dict)
    """The same by the label that routing sees, at the job's own label noise."""
    alone: Mapping[str, Sequence[DocumentLoss]] = field(default_factory=dict)
    """A[d] by d: dense, of the size of d's expert, trained on d alone."""
    filtered_relearned: Mapping[str, Sequence[RelearnLoss]] = field(default_factory=dict)
    """The attack on F[e], by e."""


def compare_losses(
    rows: Sequence[DocumentLoss],
    baselines: Baselines,
    domains: Sequence[str],
    *,
    seed: int,
    resamples: int = 1000,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The metrics utility/*, separability/{removal,forget_compute}/* and robustness/* but the
    attack's, and their means, with 95 % intervals.

    A node of the tree stands for the domains under it: its losses are means over them. A metric
    whose baseline is missing, or read other documents than the job, is absent; so is one whose
    denominator is not above 0, and a compute equivalent below the first share. In a resample such a
    compute equivalent counts as the first share: the lower bound then says that share or less.

    Args:
        rows: every view of every document of the job.
        baselines: of these the full models are read.
        domains: labels; rows of other domains are not read.
        seed, resamples: as `summarize_losses` takes them.

    Raises:
        DataError: a document whose tokens or bytes differ between the job's views.
    """
    tables = _with_baselines(rows, baselines, domains, seed=seed, resamples=resamples)
    estimates = Estimates()
    _add_compared(estimates, tables, baselines)
    return estimates.metrics, estimates.intervals


def summarize_and_compare(
    rows: Sequence[DocumentLoss],
    baselines: Baselines,
    domains: Sequence[str],
    *,
    seed: int,
    resamples: int = 1000,
    blocks: Mapping[str, Collection[str]] | None = None,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The metrics of `summarize_losses` and of `compare_losses`, from one resampling."""
    tables = _with_baselines(rows, baselines, domains, seed=seed, resamples=resamples)
    estimates = Estimates()
    add_own(estimates, tables, blocks or {})
    _add_compared(estimates, tables, baselines)
    return estimates.metrics, estimates.intervals


def _with_baselines(
    rows: Sequence[DocumentLoss],
    baselines: Baselines,
    domains: Sequence[str],
    *,
    seed: int,
    resamples: int,
) -> LossTables:
    runs: dict[Hashable, Iterable[DocumentLoss]] = {}
    if baselines.dense is not None:
        runs[_DENSE] = _of_full(baselines.dense)
    for share, table in baselines.shorter.items():
        runs[share] = _of_full(table)
    for part, table in baselines.filtered.items():
        runs[_filtered(part)] = _of_full(table)
    for part, table in baselines.filtered_observed.items():
        runs[_observed(part)] = _of_full(table)
    for domain, table in baselines.alone.items():
        runs[_alone(domain)] = _of_full(table)
    return LossTables(rows, domains, runs, seed=seed, resamples=resamples)


def _add_compared(estimates: Estimates, tables: LossTables, baselines: Baselines) -> None:
    comparison = _Comparison(estimates, tables, sorted(baselines.shorter))
    comparison.add_utility()
    for part in tables.parts(View.removed):
        comparison.add_removal(part)
    for part in baselines.filtered:
        comparison.add_transfer(part)
    for part in tables.parts(View.unlearned):
        comparison.add_unlearned(part)
    comparison.add_means()


def _of_full(rows: Iterable[DocumentLoss]) -> Iterator[DocumentLoss]:
    return (row for row in rows if row.view in _BASELINE_VIEWS and row.text is Text.plain)


def _filtered(part: str) -> Hashable:
    return "filtered", part


def _observed(part: str) -> Hashable:
    return "filtered_observed", part


def _alone(domain: str) -> Hashable:
    return "alone", domain


class _Comparison:
    """The metrics of one job, added to `estimates` one group at a time."""

    def __init__(self, estimates: Estimates, tables: LossTables, shares: Sequence[float]) -> None:
        self.estimates = estimates
        self.tables = tables
        self.shares = shares
        self._found: dict[str, Sample] = {}

    def _add(self, key: str, sample: Sample) -> None:
        self._found[key] = sample
        self.estimates.add(key, sample)

    def add_utility(self) -> None:
        """What the full model, each expert alone and the mixed experts are worth."""
        add, tables = self._add, self.tables
        for domain in tables.domains:
            dense = tables.loss(domain, View.full, run=_DENSE)
            full = tables.loss(domain, View.full)
            expert = tables.loss(domain, View.kept, domain)
            mixed = tables.loss(domain, View.mixed)
            add(registry.TAX(domain), combined(utility.tax, full, dense))
            add(registry.EXPERT_TAX(domain), combined(utility.tax, expert, dense))
            leaf = tables.loss(domain, View.expert)
            add(registry.LEAF_TAX(domain), combined(utility.tax, leaf, dense))
            # Where rounds have split a domain, no expert of the baseline's size is the domain's.
            own = leaf if tables.parts(View.expert) else expert
            alone = tables.loss(domain, View.full, run=_alone(domain))
            add(registry.ALONE_TAX(domain), combined(utility.tax, own, alone))
            add(registry.MIXED_TAX(domain), combined(utility.tax, mixed, dense))
            add(registry.COMPUTE_EQUIVALENT_FULL(domain), self._compute_equivalent(full, [domain]))
            add(
                registry.COMPUTE_EQUIVALENT_KEPT(domain), self._compute_equivalent(expert, [domain])
            )

    def add_means(self) -> None:
        """Means over domains of what was added, each from the resamples of all of them."""
        domains, tables = self.tables.domains, self.tables
        removed = tables.removable() or tables.removable(View.unlearned)
        for mean, key, parts in (
            (registry.MEAN_TAX, registry.TAX, domains),
            (registry.MEAN_EXPERT_TAX, registry.EXPERT_TAX, domains),
            (registry.MEAN_LEAF_TAX, registry.LEAF_TAX, domains),
            (registry.MEAN_ALONE_TAX, registry.ALONE_TAX, domains),
            (registry.MEAN_MIXED_TAX, registry.MIXED_TAX, domains),
            (registry.MEAN_COMPUTE_EQUIVALENT, registry.COMPUTE_EQUIVALENT_FULL, domains),
            (registry.MEAN_KEPT_COMPUTE_EQUIVALENT, registry.COMPUTE_EQUIVALENT_KEPT, domains),
            (registry.MEAN_REMOVAL, registry.REMOVAL, removed),
            (registry.MEAN_CALIBRATED_REMOVAL, registry.CALIBRATED_REMOVAL, removed),
            (registry.MEAN_FORGET_COMPUTE, registry.FORGET_COMPUTE, removed),
            (registry.MEAN_LEAKAGE, registry.LEAKAGE, removed),
        ):
            self.estimates.add(mean, self._mean([key(part) for part in parts]))
        for mean, pair_key in (
            (registry.MEAN_REMOVED_TAX, registry.REMOVED_TAX),
            (registry.MEAN_REMOVED_COMPUTE_EQUIVALENT, registry.COMPUTE_EQUIVALENT_REMOVED),
        ):
            over_parts = [
                self._mean([pair_key(part, domain) for part in others])
                for domain in domains
                if (others := [part for part in removed if not is_under(domain, part)])
            ]
            self.estimates.add(mean, mean_of(over_parts))

    def _mean(self, added: Sequence[str]) -> Sample:
        return mean_of([self._found.get(key, MISSING) for key in added])

    def add_removal(self, part: str) -> None:
        """What removing a part leaves of it, and of the others."""
        add, tables = self._add, self.tables
        for domain in tables.beside(part):
            left = tables.loss(domain, View.removed, part)
            without = tables.loss(domain, View.full, run=_filtered(part))
            add(registry.REMOVED_TAX(part, domain), combined(utility.tax, left, without))
            equivalent = self._compute_equivalent(left, [domain])
            add(registry.COMPUTE_EQUIVALENT_REMOVED(part, domain), equivalent)

        own = tables.under(part)
        full = tables.mean_loss(own, View.full)
        removed = tables.mean_loss(own, View.removed, part)
        filtered = tables.mean_loss(own, View.full, run=_filtered(part))
        observed = tables.mean_loss(own, View.full, run=_observed(part))
        add(registry.REMOVAL(part), combined(separability.removal, removed, full, filtered))
        add(registry.FORGET_COMPUTE(part), self._compute_equivalent(removed, own))
        add(registry.LEAKAGE(part), combined(separability.leakage, removed, filtered, observed))
        add(registry.CALIBRATED_REMOVAL(part), self._calibrated(part, View.calibrated_removed))

    def add_transfer(self, part: str) -> None:
        """What the other domains gain in a dense model from the part."""
        for domain in self.tables.beside(part):
            filtered = self.tables.loss(domain, View.full, run=_filtered(part))
            dense = self.tables.loss(domain, View.full, run=_DENSE)
            gain = combined(utility.transfer, filtered, dense)
            self.estimates.add(registry.TRANSFER(part, domain), gain)

    def add_unlearned(self, part: str) -> None:
        """How far unlearning takes a dense model."""
        add, tables = self._add, self.tables
        for domain in tables.beside(part):
            left = tables.loss(domain, View.unlearned, part)
            without = tables.loss(domain, View.full, run=_filtered(part))
            add(registry.UNLEARNED_TAX(part, domain), combined(utility.tax, left, without))
        own = tables.under(part)
        full = tables.mean_loss(own, View.full)
        unlearned = tables.mean_loss(own, View.unlearned, part)
        filtered = tables.mean_loss(own, View.full, run=_filtered(part))
        add(
            registry.UNLEARNED_REMOVAL(part),
            combined(separability.removal, unlearned, full, filtered),
        )
        add(registry.CALIBRATED_REMOVAL(part), self._calibrated(part, View.calibrated_unlearned))

    def _calibrated(self, part: str, view: View) -> Sample:
        """Removal with a bias fitted to each of the three models."""
        own = self.tables.under(part)
        return combined(
            separability.removal,
            self.tables.mean_loss(own, view, part),
            self.tables.mean_loss(own, View.calibrated_full, part),
            self.tables.mean_loss(own, View.calibrated_full, part, run=_filtered(part)),
        )

    def _compute_equivalent(self, loss: Sample, domains: Sequence[str]) -> Sample:
        if not self.shares:
            return MISSING
        runs: list[Hashable] = [*self.shares, _DENSE]
        shares = [*self.shares, 1.0]

        def formula(loss: Any, *dense: Any) -> Any:
            return utility.compute_equivalent(loss, shares, dense)

        curve = [self.tables.mean_loss(domains, View.full, run=run) for run in runs]
        found = combined(formula, loss, *curve)
        is_below = np.isnan(found.resampled)
        return Sample(found.value, np.where(is_below, self.shares[0], found.resampled))


@dataclass(frozen=True, kw_only=True)
class Attack:
    """The relearning attack on one model with one learning rate."""

    lr: float
    steps: tuple[int, ...]
    """Of its evaluations, from 0."""
    losses: tuple[float, ...]
    """Mean held-out loss on the part at each of them, nats per token."""


def attacks(rows: Sequence[RelearnLoss], part: str, domains: Sequence[str]) -> list[Attack]:
    """The attacks on what a part was removed from, a learning rate each."""
    tables = _attack_tables(rows, part, domains, None, seed=0, resamples=0)
    return [
        Attack(
            lr=lr, steps=steps, losses=tuple(_mean(tables, ("", lr, step)).value for step in steps)
        )
        for lr, steps in _evaluations(rows, part).items()
    ]


def compare_relearn(
    rows: Sequence[RelearnLoss],
    baselines: Baselines,
    domains: Sequence[str],
    *,
    seed: int,
    resamples: int = 1000,
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The metrics robustness/relearn/e/* and their 95 % intervals.

    Of all learning rates and evaluations the strongest counts, in each resample anew. The steps are
    absent where F[e] or D is missing, or there is nothing to learn about e. The documents are those
    that the attack is evaluated on.

    Args:
        rows: the attacks on the job, whichever view they start from.
        baselines: `dense`, `filtered` and `filtered_relearned` are read.
        domains, seed, resamples: as `summarize_losses` takes them.
    """
    estimates = Estimates()
    for part in dict.fromkeys(row.part for row in rows):
        if not any(is_under(domain, part) for domain in domains):
            continue
        tables = _attack_tables(rows, part, domains, baselines, seed=seed, resamples=resamples)
        filtered, dense = _mean(tables, _filtered(part)), _mean(tables, _DENSE)
        evaluations = _evaluations(rows, part)
        _add_attack(
            estimates, tables, "", evaluations, filtered, dense,
            registry.RELEARN_LOSS(part), registry.RELEARN_STEPS(part),
            registry.RELEARN_CENSORED(part),
        )  # fmt: skip
        evaluations = _evaluations(baselines.filtered_relearned.get(part, ()), part)
        _add_attack(
            estimates, tables, _FILTERED_ATTACK, evaluations, filtered, dense,
            registry.RELEARN_FILTERED_LOSS(part), registry.RELEARN_FILTERED_STEPS(part),
            registry.RELEARN_FILTERED_CENSORED(part),
        )  # fmt: skip
    return estimates.metrics, estimates.intervals


_FILTERED_ATTACK = "filtered_relearned"


def _add_attack(
    estimates: Estimates,
    tables: Sequence[DocumentTable[Hashable]],
    run: str,
    evaluations: Mapping[float, tuple[int, ...]],
    filtered: Sample,
    dense: Sample,
    loss_key: str,
    steps_key: str,
    censored_key: str,
) -> None:
    if not evaluations:
        return
    curves = [
        [_mean(tables, (run, lr, step)) for step in steps] for lr, steps in evaluations.items()
    ]
    flat = [sample for curve in curves for sample in curve]

    def by_lr(losses: Sequence[Any]) -> list[Sequence[Any]]:
        values = iter(losses)
        return [[next(values) for _ in steps] for steps in evaluations.values()]

    def lowest(*losses: Any) -> FloatArray:
        return robustness.lowest_loss(by_lr(losses))

    def steps(filtered: Any, dense: Any, *losses: Any) -> FloatArray:
        found = list(zip(evaluations.values(), by_lr(losses), strict=True))
        return robustness.steps_to_relearn(found, filtered, dense)[0]

    def censored(filtered: Any, dense: Any, *losses: Any) -> float:
        found = list(zip(evaluations.values(), by_lr(losses), strict=True))
        return float(robustness.steps_to_relearn(found, filtered, dense)[1])

    estimates.add(loss_key, combined(lowest, *flat))
    estimates.add(steps_key, combined(steps, filtered, dense, *flat))
    values = [sample.value for sample in (filtered, dense, *flat)]
    estimates.add(censored_key, Sample(censored(*values)))


def _evaluations(rows: Iterable[RelearnLoss], part: str) -> dict[float, tuple[int, ...]]:
    """Steps of the evaluations of each learning rate."""
    steps: dict[float, set[int]] = {}
    for row in rows:
        if row.part == part:
            steps.setdefault(row.lr, set()).add(row.step)
    return {lr: tuple(sorted(steps[lr])) for lr in sorted(steps)}


def _attack_tables(
    rows: Iterable[RelearnLoss],
    part: str,
    domains: Sequence[str],
    baselines: Baselines | None,
    *,
    seed: int,
    resamples: int,
) -> list[DocumentTable[Hashable]]:
    """A table for each domain under the part: evaluations of the attacks, F[e] and D."""
    own = [domain for domain in domains if is_under(domain, part)]
    attacked = _evaluated(rows, part, own, "")
    others: dict[str, dict[Hashable, dict[str, Read]]] = {domain: {} for domain in own}
    if baselines is not None:
        relearned = baselines.filtered_relearned.get(part, ())
        others = _evaluated(relearned, part, own, _FILTERED_ATTACK)
        runs = {_DENSE: baselines.dense, _filtered(part): baselines.filtered.get(part)}
        for run, table in runs.items():
            for row in table or ():
                if row.view is View.full and row.text is Text.plain and row.domain in own:
                    column = others[row.domain].setdefault(run, {})
                    column[row.document] = Read(row.loss_nats, row.tokens, row.bytes)
    return [
        DocumentTable(
            attacked[domain], others[domain], domain=domain, seed=seed, resamples=resamples
        )
        for domain in own
    ]


def _evaluated(
    rows: Iterable[RelearnLoss], part: str, domains: Collection[str], run: str
) -> dict[str, dict[Hashable, dict[str, Read]]]:
    found: dict[str, dict[Hashable, dict[str, Read]]] = {domain: {} for domain in domains}
    for row in rows:
        if row.part == part and row.domain in found:
            column = found[row.domain].setdefault((run, row.lr, row.step), {})
            column[row.document] = Read(row.loss_nats, row.tokens, row.bytes)
    return found


def _mean(tables: Sequence[DocumentTable[Hashable]], column: Hashable) -> Sample:
    return mean_of([table.loss(column) for table in tables])
