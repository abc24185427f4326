"""Finds the baselines of each job in a folder, and computes the metrics that compare with them.

A baseline equals the job in model, partition, text and its weights, tokenizer, training and seed,
and differs in method, plan and label noise only. A dense run on one domain is as wide as that
domain's expert instead. Metrics without a baseline are absent.
"""

import dataclasses
import enum
import functools
import logging
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from gr_sweep.config import (
    DomainConfig,
    Method,
    ModelConfig,
    PartitionConfig,
    PlanConfig,
    ProcedureConfig,
    RunConfig,
    unlabelled_shares,
)
from gr_sweep.domains import expand
from gr_sweep.errors import ConfigError, DataError, PlanError
from gr_sweep.jobdir import DOCUMENT_LOSSES, PLAN, RELEARN, check_files
from gr_sweep.metrics.compare import (
    NO_BASELINES,
    Baselines,
    attacks,
    compare_relearn,
    summarize_losses,
)
from gr_sweep.metrics.losses import DocumentLoss, RelearnLoss, View, read_losses
from gr_sweep.planning import expert_widths, width_of_size
from gr_sweep.report.sweep import DENSE, Job
from gr_sweep.routing.plan import RoutePlan

_FILTERED, _OBSERVED = Method.filtered.value, Method.filtered_observed.value
_WIDTH = "model.intermediate_size"
_WIDEST_GAP = 2.5
"""Largest ratio of tokens between neighbouring dense runs of a curve. Over a wider gap the loss is
too far from linear in the logarithm of tokens."""

_Group = TypeVar("_Group")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class JobTables:
    """A job, and the tables that its metrics are computed from."""

    job: Job
    losses: Sequence[DocumentLoss]
    relearn: Sequence[RelearnLoss]
    owners: Mapping[str, Sequence[str]]
    """Domains that own each block of the plan, without the core."""

    @functools.cached_property
    def left_out(self) -> list[str]:
        """Domains and nodes that a filtered job never saw."""
        is_filtered = self.job.kind in (_FILTERED, _OBSERVED)
        return list(self.job.settings.get("method.without") or []) if is_filtered else []

    @functools.cached_property
    def alone(self) -> str | None:
        """The domain, with those below it, that a filtered job was trained on and no other."""
        if not self.left_out or self.job.kind != _FILTERED:
            return None
        left_out = expand(self.left_out, self.job.domains)
        kept = tuple(domain for domain in self.job.domains if domain not in left_out)
        return next((d for d in kept if expand([d], self.job.domains) == kept), None)

    @functools.cached_property
    def width(self) -> int | None:
        """MLP hidden units that the settings ask for; None: those of a checkpoint."""
        given = self.job.settings.get(_WIDTH)
        return given or width_of_size(self.job.settings.get("model.size"))

    @functools.cached_property
    def expert_widths(self) -> Mapping[str, int]:
        """MLP hidden units of each domain's expert; empty where the settings do not say.

        They are computed from the settings, as they were for the baselines that a sweep adds.
        plan.json would differ without `procedure.equal_layers`.
        """
        if self.job.edges == DENSE:
            return {}
        kinds = {"model": ModelConfig, "plan": PlanConfig, "procedure": ProcedureConfig}
        partition = PartitionConfig(domains={d: DomainConfig() for d in self.job.domains})
        try:
            groups: Any = {n: _group(kind, self.job.config[n]) for n, kind in kinds.items()}
            return expert_widths(RunConfig(partition=partition, **groups))
        except (ConfigError, PlanError, ValueError, TypeError):  # or of an older version
            return {}

    @property
    def attack(self) -> dict[str, Any]:
        """Settings of the relearning attack."""
        return {n: value for n, value in self.job.settings.items() if n.startswith("eval.relearn_")}

    @property
    def noise(self) -> tuple[float, ...]:
        """Fraction of wrong labels, and of hidden ones for every domain."""
        partition = self.job.config["partition"]
        hidden = unlabelled_shares(partition["unlabelled"], self.job.domains)
        return (partition["mislabelled"], *hidden.values())


def with_baselines(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, with metrics from their tables of losses and those of their baselines.

    A job that nothing here is a baseline of has the metrics of its summary, which come from the
    same table; so has one whose table cannot be read, which is logged.
    """
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        alike.setdefault(job.context, []).append(job)
    found = {job.name: job for job in jobs}
    for group in alike.values():
        has_baselines = any(job.kind in (DENSE, _FILTERED, _OBSERVED) for job in group)
        tables = []
        for job in group:
            if has_baselines or (job.folder / RELEARN).exists():
                if (own := _read(job)) is not None:
                    tables.append(own)
                else:
                    found[job.name] = dataclasses.replace(job, has_losses=False)
        found |= {own.job.name: _with_baselines(own, tables) for own in tables}
    return list(found.values())


def _read(job: Job) -> JobTables | None:
    """The job's tables; None if it has none, or they are not as the job wrote them."""
    try:
        check_files(job.folder, job.files)
        losses = read_losses(job.folder / DOCUMENT_LOSSES)
        relearn = job.folder / RELEARN
        owners = {}
        if any(row.view is View.off for row in losses):
            plan = RoutePlan.from_json((job.folder / PLAN).read_text(encoding="utf-8"))
            owners = {of.name: sorted(of.owners) for of in plan.blocks if not of.is_core}
        attacked = read_losses(relearn, RelearnLoss) if relearn.exists() else []
        return JobTables(job=job, losses=losses, relearn=attacked, owners=owners)
    except (DataError, OSError, ValueError, PlanError) as error:
        logger.warning("%s; the metrics in the summary of %s are shown", error, job.name)
        return None


def _with_baselines(own: JobTables, others: Sequence[JobTables]) -> Job:
    job, domains = own.job, own.job.domains
    lengths = [o.job.tokens for o in others if o.width == own.width and o.job.kind != DENSE]
    is_longer_there = any(tokens > job.tokens for tokens in lengths)
    is_shorter_dense = job.kind == DENSE and job.tokens not in lengths and is_longer_there
    # A run that is only a point of other jobs' curves is compared with nothing itself.
    baselines = NO_BASELINES if is_shorter_dense else baselines_of(own, others)
    seed, resamples = job.seed, int(job.settings.get("eval.bootstrap", 1000))
    metrics, intervals = summarize_losses(
        own.losses, domains, baselines, seed=seed, resamples=resamples, blocks=own.owners
    )
    attacked, attacked_intervals = compare_relearn(
        own.relearn, baselines, domains, seed=seed, resamples=resamples
    )
    parts = dict.fromkeys(row.part for row in own.relearn)
    return dataclasses.replace(
        job,
        metrics=job.metrics | metrics | attacked,
        intervals=job.intervals | intervals | attacked_intervals,
        attacks={part: attacks(own.relearn, part, domains) for part in parts},
        smallest_share=min(baselines.shorter, default=None) if baselines.dense else None,
        is_shorter_dense=is_shorter_dense,
    )


def baselines_of(own: JobTables, others: Sequence[JobTables]) -> Baselines:
    """The job's baselines among jobs of the same context: those of its width, and runs on one
    domain that are as wide as its expert. Of two domains, a run without one of them may be both.

    The first of several counts. Among filtered runs one with calibrated losses comes first, and the
    attack is that of a run that was attacked like the job. Shorter dense runs count as far as
    ratios of at most 2.5 lead from the full length.
    """
    tokens = own.job.tokens
    as_wide = [o for o in reversed(others) if o.width == own.width]  # the first overwrites others
    as_long = [o for o in as_wide if o.job.tokens == tokens]
    dense = [o.losses for o in as_long if o.job.kind == DENSE]
    without = [(o.left_out[0], o) for o in as_long if len(o.left_out) == 1]
    filtered = [(part, o) for part, o in without if o.job.kind == _FILTERED]
    # Sorting is stable: a run with calibrated losses overwrites the others.
    filtered.sort(key=lambda of: any(row.view is View.calibrated_full for row in of[1].losses))
    shares = {
        o.job.tokens / tokens: o.losses
        for o in as_wide
        if o.job.kind == DENSE and o.job.tokens < tokens
    }
    shorter: dict[float, Sequence[DocumentLoss]] = {}
    for share in sorted(shares, reverse=True):
        if min(shorter, default=1.0) > _WIDEST_GAP * share:
            break
        shorter[share] = shares[share]
    return Baselines(
        dense=dense[-1] if dense else None,
        shorter=shorter,
        filtered={part: o.losses for part, o in filtered},
        filtered_observed={
            part: o.losses
            for part, o in without
            if o.job.kind == _OBSERVED and o.noise == own.noise
        },
        alone={
            o.alone: o.losses
            for o in reversed(others)
            if o.alone is not None
            and o.job.tokens == tokens
            and o.width == own.expert_widths.get(o.alone, -1)
        },
        filtered_relearned={
            part: o.relearn for part, o in filtered if o.relearn and o.attack == own.attack
        },
    )


def _group(kind: type[_Group], given: Mapping[str, Any]) -> _Group:
    """A group of settings as a dataclass; what is missing has its default."""
    values = {}
    for name, hint in typing.get_type_hints(kind).items():
        if name in given:
            is_choice = isinstance(hint, type) and issubclass(hint, enum.Enum)
            values[name] = hint(given[name]) if is_choice else given[name]
    return kind(**values)
