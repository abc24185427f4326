"""Finds the baselines of each job in a folder, and computes the metrics that compare with them.

A baseline equals the job in model, partition, text and its weights, tokenizer, training and seed,
and differs in method, plan and label noise only. A dense run on one domain is as wide as that
domain's expert instead. Metrics without a baseline are absent.
"""

import dataclasses
import enum
import functools
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

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
from gr_sweep.metrics import registry
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

_WIDTH = "model.intermediate_size"
_WIDEST_GAP = 2.5
"""Largest ratio of tokens between neighbouring dense runs of a curve. Over a wider gap the loss is
too far from linear in the logarithm of tokens."""

_Group = TypeVar("_Group")
_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class JobTables:
    """What the metrics of a job are computed from."""

    job: Job
    losses: Sequence[DocumentLoss]
    relearn: Sequence[RelearnLoss]
    owners: Mapping[str, Sequence[str]]
    """Domains that own each block of the plan, without the core."""

    @classmethod
    def read(cls, folder: Path, job: Job, files: Mapping[str, str]) -> Self | None:
        """Tables of a finished job, whose summary has these digests; None if it has none.

        Raises:
            DataError, OSError: a table or plan cannot be read or is not as the job wrote it.
        """
        check_files(folder, files)
        losses, relearn = folder / DOCUMENT_LOSSES, folder / RELEARN
        if not losses.exists():
            return None
        rows = read_losses(losses)
        attacked = read_losses(relearn, RelearnLoss) if relearn.exists() else []
        has_blocks = any(row.view is View.off for row in rows)
        return cls(
            job=job,
            losses=rows,
            relearn=attacked,
            owners=_read_owners(folder / PLAN) if has_blocks else {},
        )

    @functools.cached_property
    def left_out(self) -> list[str]:
        """Domains and nodes that a filtered job never saw."""
        if self.job.kind not in (Method.filtered.value, Method.filtered_observed.value):
            return []
        return [str(part) for part in self.job.settings.get("method.without") or []]

    @functools.cached_property
    def alone(self) -> str | None:
        """The domain, with those below it, that a filtered job was trained on and no other."""
        if not self.left_out or self.job.kind != Method.filtered.value:
            return None
        left_out = expand(self.left_out, self.job.domains)
        kept = tuple(domain for domain in self.job.domains if domain not in left_out)
        return next((d for d in kept if expand([d], self.job.domains) == kept), None)

    @functools.cached_property
    def width(self) -> int | None:
        """MLP hidden units that the settings ask for; None: those of a checkpoint."""
        settings = self.job.settings
        given = settings.get(_WIDTH)
        return given if isinstance(given, int) else width_of_size(settings.get("model.size"))

    @functools.cached_property
    def expert_widths(self) -> Mapping[str, int]:
        """MLP hidden units of each domain's expert; empty where the settings do not say.

        They are computed from the settings, as they were for the baselines that a sweep adds.
        plan.json would differ without `procedure.equal_layers`.
        """
        given = self.job.config
        try:
            config = RunConfig(
                model=_group(ModelConfig, given.get("model", {})),
                partition=PartitionConfig(domains={d: DomainConfig() for d in self.job.domains}),
                plan=_group(PlanConfig, given.get("plan", {})),
                procedure=_group(ProcedureConfig, given.get("procedure", {})),
            )
            return expert_widths(config) if self.job.edges != DENSE else {}
        except (ConfigError, PlanError, ValueError, TypeError):
            return {}

    @property
    def attack(self) -> dict[str, Any]:
        """Settings of the relearning attack."""
        return {n: value for n, value in self.job.settings.items() if n.startswith("eval.relearn_")}

    @property
    def noise(self) -> tuple[float, ...]:
        """Fraction of wrong labels, and of hidden ones for every domain."""
        partition = self.job.config.get("partition", {})
        hidden = unlabelled_shares(partition.get("unlabelled", 0.0), self.job.domains)
        return (partition.get("mislabelled", 0.0), *hidden.values())


def with_baselines(jobs: Sequence[Job], tables: Mapping[str, JobTables]) -> list[Job]:
    """The jobs with metrics recomputed from their tables, which are given by the jobs' names, and
    those of their baselines. A job without tables is as it was."""
    contexts = {name: own.job.context(_WIDTH) for name, own in tables.items()}
    alike: dict[str, list[JobTables]] = {}
    for name, own in tables.items():
        alike.setdefault(contexts[name], []).append(own)
    return [
        _with_baselines(tables[job.name], alike[contexts[job.name]]) if job.name in tables else job
        for job in jobs
    ]


def _with_baselines(own: JobTables, others: Sequence[JobTables]) -> Job:
    job, domains = own.job, own.job.domains
    is_shorter_dense = _is_shorter_dense(own, [o for o in others if o.width == own.width])
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
        metrics=_of_job_alone(job.metrics) | metrics | attacked,
        intervals=_of_job_alone(job.intervals) | intervals | attacked_intervals,
        attacks={part: attacks(own.relearn, part, domains) for part in parts},
        smallest_share=min(baselines.shorter, default=None) if baselines.dense else None,
        has_losses=True,
        is_shorter_dense=is_shorter_dense,
    )


def _of_job_alone(by_key: Mapping[str, _Value]) -> dict[str, _Value]:
    """The metrics that need no baselines."""
    return {
        key: value
        for key, value in by_key.items()
        if (found := registry.find(key)) is None or not found[0].baselines
    }


def baselines_of(job: JobTables, others: Iterable[JobTables]) -> Baselines:
    """The job's baselines among jobs of the same context: those of its width, and runs on one
    domain that are as wide as its expert. Of two domains, a run without one of them may be both.

    The first of several counts. Among filtered runs one with calibrated losses comes first, and the
    attack is that of a run that was attacked like the job. Shorter dense runs count as far as
    ratios of at most 2.5 lead from the full length.
    """
    dense: JobTables | None = None
    shorter: dict[float, Sequence[DocumentLoss]] = {}
    filtered: dict[str, list[JobTables]] = {}
    observed: dict[str, Sequence[DocumentLoss]] = {}
    alone: dict[str, Sequence[DocumentLoss]] = {}
    tokens = job.job.tokens
    for other in others:
        is_dense, has_length = other.job.kind == DENSE, other.job.tokens == tokens
        expert_width = None if other.alone is None else job.expert_widths.get(other.alone)
        if expert_width is not None and other.width == expert_width and has_length:
            alone.setdefault(str(other.alone), other.losses)
        if other.width != job.width:
            continue
        if is_dense and other.job.tokens < tokens:
            shorter.setdefault(other.job.tokens / tokens, other.losses)
        if not has_length:
            continue
        [part] = other.left_out if len(other.left_out) == 1 else [None]
        if is_dense:
            dense = dense or other
        elif part is not None and other.job.kind == Method.filtered.value:
            filtered.setdefault(part, []).append(other)
        elif part is not None and other.noise == job.noise:
            observed.setdefault(part, other.losses)
    attacked = {
        part: [run.relearn for run in runs if run.relearn and run.attack == job.attack]
        for part, runs in filtered.items()
    }

    def is_calibrated(run: JobTables) -> bool:
        return any(row.view is View.calibrated_full for row in run.losses)

    return Baselines(
        dense=None if dense is None else dense.losses,
        shorter=_without_gaps(shorter),
        # max keeps the first of equals.
        filtered={part: max(runs, key=is_calibrated).losses for part, runs in filtered.items()},
        filtered_observed=observed,
        alone=alone,
        filtered_relearned={part: found[0] for part, found in attacked.items() if found},
    )


def _without_gaps(
    shorter: Mapping[float, Sequence[DocumentLoss]],
) -> dict[float, Sequence[DocumentLoss]]:
    kept: dict[float, Sequence[DocumentLoss]] = {}
    last = 1.0
    for share in sorted(shorter, reverse=True):
        if last > _WIDEST_GAP * share:
            break
        kept[share] = shorter[share]
        last = share
    return kept


def _is_shorter_dense(job: JobTables, others: Sequence[JobTables]) -> bool:
    own, lengths = job.job.tokens, [o.job.tokens for o in others if o.job.kind != DENSE]
    is_longer_there = any(tokens > own for tokens in lengths)
    return job.job.kind == DENSE and own not in lengths and is_longer_there


def _group(kind: type[_Group], given: Mapping[str, Any]) -> _Group:
    """A group of settings as a dataclass; what is missing has its default."""
    values = {}
    for name, hint in typing.get_type_hints(kind).items():
        if name in given:
            is_choice = isinstance(hint, type) and issubclass(hint, enum.Enum)
            values[name] = hint(given[name]) if is_choice else given[name]
    return kind(**values)


def _read_owners(path: Path) -> dict[str, Sequence[str]]:
    try:
        plan = RoutePlan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, PlanError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return {block.name: sorted(block.owners) for block in plan.blocks if not block.is_core}
