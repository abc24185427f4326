"""Which jobs of a folder are the baselines of which, and the metrics that this gives.

A baseline is alike in model, partition, text and its shares, tokenizer, training and seed, and
differs in method, plan and label noise alone. Where there is none, its metrics are absent. Knows
the tables that jobs leave behind; reads no summary.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gr_sweep.config import NO_EFFECT_ON_RESULT, PER_DOMAIN_ANY, Method
from gr_sweep.domains import ancestors
from gr_sweep.errors import DataError
from gr_sweep.metrics.compare import Baselines, compare_relearn, summarize_and_compare
from gr_sweep.metrics.losses import (
    DocumentLoss,
    RelearnLoss,
    View,
    read_losses,
    read_relearn,
)

_FREE = (
    *NO_EFFECT_ON_RESULT,
    # What makes a baseline another job.
    "method", "plan", "edges", "route", "partition.unlabelled", "partition.mislabelled",
    # Compared as tokens.
    "train.steps", "train.tokens",
    "train.log_every",
    # The rules count, not what people call them.
    "partition.name",
    # Of evaluation, which documents are read counts alone: below.
    "eval",
)  # fmt: skip
_DOCUMENTS = ("eval.tokens", "eval.document_tokens")


@dataclass(frozen=True, kw_only=True)
class JobTables:
    """What the metrics of a job are made from."""

    domains: Sequence[str]
    settings: Mapping[str, Any]
    """The job's config with dotted names."""
    fingerprints: Mapping[str, str]
    losses: Sequence[DocumentLoss]
    relearn: Sequence[RelearnLoss]
    owners: Mapping[str, Sequence[str]]
    """Domains that own each block of the plan but the core."""

    @classmethod
    def read(
        cls,
        folder: Path,
        *,
        domains: Sequence[str],
        settings: Mapping[str, Any],
        fingerprints: Mapping[str, str],
    ) -> Self | None:
        """The tables in a job's folder; None where it has none.

        Raises:
            DataError: a table or plan that cannot be read.
        """
        losses = folder / "document_losses.csv"
        if not losses.exists():
            return None
        relearn = folder / "relearn.csv"
        rows = read_losses(losses)
        has_blocks = any(row.view is View.off for row in rows)
        return cls(
            domains=domains,
            settings=settings,
            fingerprints=fingerprints,
            losses=rows,
            relearn=read_relearn(relearn) if relearn.exists() else [],
            owners=_read_owners(folder / "plan.json") if has_blocks else {},
        )

    @property
    def method(self) -> str:
        """Name of the method; a routed job without a plan is dense."""
        name = str(self.settings.get("method.name", Method.routed.value))
        if name == Method.routed.value and self.settings.get("plan.kind") == "none":
            return Method.dense.value
        return name

    @property
    def without(self) -> str | None:
        """The one part that a filtered job never saw."""
        parts = self.settings.get("method.without") or []
        is_filtered = self.method in (Method.filtered.value, Method.filtered_observed.value)
        return str(parts[0]) if is_filtered and len(parts) == 1 else None

    @property
    def tokens(self) -> int | None:
        """Training tokens, in whole steps."""
        step = _number(self.settings, "train.batch_sequences") * _number(
            self.settings, "train.sequence_length"
        )
        steps, tokens = (_number(self.settings, f"train.{name}") for name in ("steps", "tokens"))
        if not step or not (steps or tokens):
            return None
        return (steps or -(-tokens // step)) * step

    @property
    def alike(self) -> str:
        """Equal for jobs that may be each other's baselines, tokens and label noise aside."""
        kept = {
            name: value
            for name, value in self.settings.items()
            if name in _DOCUMENTS
            or not any(name == free or name.startswith(free + ".") for free in _FREE)
        }
        return json.dumps([kept, list(self.domains), self.fingerprints.get("data")], sort_keys=True)

    @property
    def noise(self) -> tuple[float, ...]:
        """Share of wrong labels, and of hidden ones for every domain."""
        # A mapping stands flattened, a name a domain.
        prefix = "partition.unlabelled"
        shares = {
            name.removeprefix(prefix).removeprefix("."): float(value)
            for name, value in self.settings.items()
            if name == prefix or name.startswith(prefix + ".")
            if isinstance(value, int | float)
        }
        rest = shares.get("", shares.get(PER_DOMAIN_ANY, 0.0))
        hidden = []
        for domain in self.domains:
            named = [shares[node] for node in reversed(ancestors(domain)) if node in shares]
            hidden.append(named[0] if named else rest)
        return (float(self.settings.get("partition.mislabelled", 0.0)), *hidden)


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The metrics that a job's tables and those of its baselines give."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    smallest_share: float | None
    """Of the dense run with the fewest tokens, of the job's."""
    is_shorter_dense: bool
    """Whether the job is a dense run that only longer jobs need."""


def joined(jobs: Mapping[str, JobTables | None]) -> dict[str, Joined]:
    """Metrics by name of the job, for jobs that have tables."""
    with_tables = {name: job for name, job in jobs.items() if job is not None}
    alike: dict[str, list[JobTables]] = {}
    for job in with_tables.values():
        alike.setdefault(job.alike, []).append(job)
    found = {}
    for name, job in with_tables.items():
        others = alike[job.alike]
        is_shorter_dense = _is_shorter_dense(job, others)
        # What is there only as a point of others' curves is measured against nothing itself.
        baselines = Baselines() if is_shorter_dense else baselines_of(job, others)
        seed = int(job.settings.get("seed", 0))
        resamples = int(job.settings.get("eval.bootstrap", 1000))
        metrics, intervals = summarize_and_compare(
            job.losses,
            baselines,
            job.domains,
            seed=seed,
            resamples=resamples,
            blocks=job.owners,
        )
        attacked, attacked_intervals = compare_relearn(
            job.relearn, baselines, job.domains, seed=seed, resamples=resamples
        )
        found[name] = Joined(
            metrics=metrics | attacked,
            intervals=intervals | attacked_intervals,
            smallest_share=min(baselines.shorter, default=None) if baselines.dense else None,
            is_shorter_dense=is_shorter_dense,
        )
    return found


def baselines_of(job: JobTables, alike: Iterable[JobTables]) -> Baselines:
    """The job's baselines among jobs that are alike; the first counts where there are two."""
    dense: JobTables | None = None
    shorter: dict[float, Sequence[DocumentLoss]] = {}
    filtered: dict[str, JobTables] = {}
    observed: dict[str, JobTables] = {}
    for other in alike:
        if job.tokens is None or other.tokens is None:
            continue
        if other.method == Method.dense.value and other.tokens < job.tokens:
            shorter.setdefault(other.tokens / job.tokens, other.losses)
        if other.tokens != job.tokens:
            continue
        part = other.without
        if other.method == Method.dense.value:
            dense = dense or other
        elif part is not None and other.method == Method.filtered.value:
            filtered.setdefault(part, other)
        elif part is not None and other.noise == job.noise:
            observed.setdefault(part, other)
    return Baselines(
        dense=None if dense is None else dense.losses,
        shorter=shorter,
        filtered={part: other.losses for part, other in filtered.items()},
        filtered_observed={part: other.losses for part, other in observed.items()},
        filtered_relearned={
            part: other.relearn for part, other in filtered.items() if other.relearn
        },
    )


def _is_shorter_dense(job: JobTables, alike: Sequence[JobTables]) -> bool:
    if job.method != Method.dense.value or job.tokens is None:
        return False
    others = [other.tokens for other in alike if other.method != Method.dense.value]
    lengths = [tokens for tokens in others if tokens is not None]
    return job.tokens not in lengths and any(tokens > job.tokens for tokens in lengths)


def _number(settings: Mapping[str, Any], name: str) -> int:
    value = settings.get(name)
    return value if isinstance(value, int) else 0


def _read_owners(path: Path) -> dict[str, list[str]]:
    try:
        blocks = json.loads(path.read_text(encoding="utf-8"))["blocks"]
        return {block["name"]: list(block["owners"]) for block in blocks if not block["is_core"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no plan: {type(error).__name__}: {error}") from error
