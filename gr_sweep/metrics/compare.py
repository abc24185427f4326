"""The metrics of a job, alone and against its baselines, and of the relearning attack.

Baselines are tables of losses of other jobs on the same documents. All are resampled together, so
that what makes a document hard for every model cancels. A metric whose baseline is missing is
absent. How baselines are found is not known here.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gr_sweep.config import Baseline
from gr_sweep.domains import is_under
from gr_sweep.metrics import registry
from gr_sweep.metrics.bootstrap import FloatArray, estimates
from gr_sweep.metrics.formulas import ratio, tokens_to_relearn
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, Text, View
from gr_sweep.metrics.registry import Metric, Over
from gr_sweep.metrics.tables import DENSE, LossTables, Node, Run


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

    def runs(self, *views: View) -> dict[Run, Iterable[DocumentLoss]]:
        """The losses in these views, on documents without markers."""
        found: dict[Run, Iterable[DocumentLoss]] = {DENSE: self.dense or ()}
        found |= {(Baseline.compute, share): rows for share, rows in self.shorter.items()}
        for kind in (Baseline.filtered, Baseline.filtered_observed, Baseline.alone):
            found |= {(kind, part): rows for part, rows in getattr(self, kind.value).items()}
        return {
            run: (row for row in rows if row.view in views and row.text is Text.plain)
            for run, rows in found.items()
        }


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
    """The metrics that follow from the losses of a job and its baselines, and their 95 % intervals,
    from one resampling. Those of attacks are in `compare_relearn`.

    A metric that cannot be computed is absent, never nan: a domain without tokens, a loss that is
    not finite, a view that lacks one of the domain's documents, a baseline that is missing or read
    other documents, a denominator that is not above 0, a compute equivalent below the first share.
    In a resample such a compute equivalent counts as the first share; the lower bound then means
    that or less. A domain with a single document has no intervals.

    Args:
        rows: every view of every document.
        domains: labels; rows of other domains are ignored.
        seed: of the resampling, not negative; equal seeds give equal intervals.
        resamples: 0 gives no intervals.
        blocks: the owners of each block that was switched off alone, by its name; without it
            entanglement is absent.
    """
    runs = baselines.runs(View.full, View.calibrated_full)
    tables = LossTables(rows, domains, runs, seed=seed, resamples=resamples, blocks=blocks)
    samples: dict[str, FloatArray] = {}
    for metric in registry.METRICS:
        if metric.value is not None:
            parts = tables.parts
            if "domain" not in metric.placeholders:
                parts = [Node(part) for part in parts]
            names = [tables.domains if p == "domain" else parts for p in metric.placeholders]
            for of in itertools.product(*names):
                if metric.over is not Over.pairs or not is_under(of[1], of[0]):
                    samples[metric(*of)] = metric.value(tables, *of)
            if metric.mean:
                samples[metric.mean] = _mean(metric, tables, samples)
    return estimates(samples)


def _mean(metric: Metric, tables: LossTables, samples: Mapping[str, FloatArray]) -> FloatArray:
    def mean(keys: Iterable[str]) -> FloatArray:
        return tables.mean([samples.get(key, tables.missing) for key in keys])

    removed = tables.removed_domains()
    if metric.over is Over.pairs:
        by_domain = [
            [metric(part, domain) for part in removed if not is_under(domain, part)]
            for domain in tables.domains
        ]
        return tables.mean([mean(keys) for keys in by_domain if keys])
    return mean(map(metric, removed if metric.over is Over.removed else tables.domains))


# Relearning

_Curves = dict[float, tuple[list[int], list[FloatArray]]]
"""By learning rate of an attack: the tokens trained on at its evaluations, from 0, and the mean
held-out losses there."""


def attacks(
    rows: Sequence[RelearnLoss], part: str, domains: Sequence[str]
) -> dict[float, tuple[list[int], list[float]]]:
    """The relearning attacks on the model without a part, by learning rate: the tokens trained on
    at each evaluation, from 0, and the mean held-out loss on the part there."""
    tables = LossTables(_evaluations(rows, part), domains, {}, seed=0, resamples=0)
    curves = _curves(tables, part, rows).items()
    return {lr: (tokens, [float(loss[0]) for loss in losses]) for lr, (tokens, losses) in curves}


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
    samples: dict[str, FloatArray] = {}
    ratios = []
    for part in dict.fromkeys(row.part for row in rows):
        own = [domain for domain in domains if is_under(domain, part)]
        filtered_rows = baselines.filtered_relearned.get(part, ())
        runs: dict[Run, Iterable[DocumentLoss]] = {_RELEARNED: _evaluations(filtered_rows, part)}
        full = baselines.runs(View.full).items()
        runs |= {run: of for run, of in full if run in (DENSE, (Baseline.filtered, part))}
        evaluations = _evaluations(rows, part)
        tables = LossTables(evaluations, own, runs, seed=seed, resamples=resamples)
        loss, tokens, censored = _relearned(tables, part, rows)
        filtered = _relearned(tables, part, filtered_rows, _RELEARNED)
        filtered_loss, filtered_tokens, filtered_censored = filtered
        # Two bounds have no ratio.
        is_unknown = censored * filtered_censored != 0
        of_part = np.where(is_unknown, np.nan, ratio(tokens, filtered_tokens))
        samples |= {
            registry.RELEARN_LOSS(part): loss,
            registry.RELEARN_FILTERED_LOSS(part): filtered_loss,
            registry.RELEARN_TOKENS(part): tokens,
            registry.RELEARN_CENSORED(part): censored[:1],
            registry.RELEARN_FILTERED_TOKENS(part): filtered_tokens,
            registry.RELEARN_FILTERED_CENSORED(part): filtered_censored[:1],
            registry.RELEARN_RATIO(part): of_part,
        }
        if part in domains:
            is_bound = censored[0] == 1 or filtered_censored[0] == 1
            ratios.append(tables.missing if is_bound else of_part)
    if ratios:
        samples[registry.RELEARN_RATIO.mean] = tables.mean(ratios)
    return estimates(samples)


_RELEARNED: Run = (Baseline.filtered, "(relearned)")
"""Tables of attacks hold that on the filtered model as the evaluations of this run. No domain can
have such a name."""


def _evaluations(rows: Iterable[RelearnLoss], part: str) -> Iterator[DocumentLoss]:
    """The attacks on a part as a view of one model, whose parts are the evaluations."""
    for row in rows:
        if row.part == part:
            yield DocumentLoss(
                View.removed, f"{row.lr} {row.trained_tokens}", row.domain, Text.plain,
                row.document, row.loss_nats, row.tokens, row.bytes,
            )  # fmt: skip


def _curves(
    tables: LossTables, part: str, rows: Iterable[RelearnLoss], run: Run | None = None
) -> _Curves:
    found: _Curves = {}
    for lr, trained in sorted({(row.lr, row.trained_tokens) for row in rows if row.part == part}):
        tokens, losses = found.setdefault(lr, ([], []))
        tokens.append(trained)
        losses.append(tables.loss(View.removed, f"{lr} {trained}", Node(part), run=run))
    return found


def _relearned(
    tables: LossTables, part: str, rows: Iterable[RelearnLoss], run: Run | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The lowest loss at any time of any attack, where nan (one that diverged) does not count, and
    what `tokens_to_relearn` returns."""
    curves = _curves(tables, part, rows, run)
    if not curves:
        return tables.missing, tables.missing, tables.missing
    lowest = np.fmin.reduce([loss for _, losses in curves.values() for loss in losses])
    filtered, dense = tables.filtered(part, Node(part)), tables.dense(Node(part))
    return lowest, *tokens_to_relearn([*curves.values()], filtered, dense)
