"""Which jobs of a folder are the baselines of which, and the metrics that this gives.

A baseline is alike in model, partition, text and its shares, tokenizer, training and seed, and
differs in method, plan and label noise alone; one that was trained on a single domain has the width
of that domain's expert instead. Where there is none, its metrics are absent. Knows the tables that
jobs leave behind; reads summaries for one question alone, `alone_beside`.
"""

import enum
import functools
import json
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from gr_sweep.config import (
    NO_EFFECT_ON_RESULT,
    PER_DOMAIN_ANY,
    UNROUTED,
    DomainConfig,
    Method,
    ModelConfig,
    PartitionConfig,
    PlanConfig,
    ProcedureConfig,
    RunConfig,
)
from gr_sweep.domains import ancestors, expand
from gr_sweep.errors import ConfigError, DataError, PlanError
from gr_sweep.jobdir import DOCUMENT_LOSSES, RELEARN, SUMMARY, check_files, read_summary
from gr_sweep.layout import expert_widths, width_of_size
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
    "method", "plan", "edges", "route", "procedure", "partition.unlabelled",
    "partition.mislabelled",
    # Compared as tokens.
    "train.steps", "train.tokens",
    "train.log_every",
    # The rules count, not what people call them.
    "partition.name",
    # Of evaluation, which documents are read counts alone: below.
    "eval",
)  # fmt: skip
_DOCUMENTS = ("eval.tokens", "eval.document_tokens")
_PLACES = ("data.root", "data.paths", "data.sources")
"""Where the text comes from: may differ where the fingerprint of what was read is the same."""
_WIDTH = "model.intermediate_size"
_UNROUTED = tuple(method.value for method in UNROUTED)
_WIDEST_GAP = 2.5
"""Between neighbouring dense runs of a curve, as a factor in tokens: over more the loss is too far
from linear in their logarithm."""


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
            DataError: a table or plan that cannot be read, or a table in which a document has two
                sizes.
        """
        losses = folder / DOCUMENT_LOSSES
        if not losses.exists():
            return None
        relearn = folder / RELEARN
        rows = read_losses(losses)
        attacked = read_relearn(relearn) if relearn.exists() else []
        _check_sizes(losses, (((row.domain, row.text), row) for row in rows))
        _check_sizes(relearn, (((row.domain, row.part), row) for row in attacked))
        has_blocks = any(row.view is View.off for row in rows)
        return cls(
            domains=domains,
            settings=settings,
            fingerprints=fingerprints,
            losses=rows,
            relearn=attacked,
            owners=_read_owners(folder / "plan.json") if has_blocks else {},
        )

    @classmethod
    def of_folder(cls, folder: Path, methods: Collection[str] | None = None) -> Self | None:
        """The tables of a finished job by its folder alone; None for any other folder, and for a
        method that is not among `methods`.

        Raises:
            DataError: as `read`.
        """
        try:
            summary = read_summary(folder / SUMMARY)
            settings = dotted(summary["config"])
            if methods is not None and settings.get("method.name") not in methods:
                return None
            check_files(folder, summary.get("files", {}))
            return cls.read(
                folder,
                domains=summary["domains"],
                settings=settings,
                fingerprints=summary["fingerprints"],
            )
        except (OSError, DataError, ValueError, LookupError, TypeError, AttributeError):
            return None

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
        parts = self._left_out
        return parts[0] if len(parts) == 1 else None

    @property
    def alone(self) -> str | None:
        """The one domain, with those below it, that a filtered job was trained on."""
        parts = self._left_out
        if not parts or self.method != Method.filtered.value:
            return None
        try:
            left_out = expand(parts, self.domains)
            kept = tuple(domain for domain in self.domains if domain not in left_out)
            return next((d for d in kept if expand([d], self.domains) == kept), None)
        except ConfigError:
            return None  # the settings name no domain of the job

    @property
    def _left_out(self) -> list[str]:
        """What a filtered job never saw, as its settings name it."""
        if self.method not in (Method.filtered.value, Method.filtered_observed.value):
            return []
        return [str(part) for part in self.settings.get("method.without") or []]

    @property
    def width(self) -> int | None:
        """MLP hidden units that the settings ask for, whatever the plan makes of them; None: those
        of a checkpoint."""
        given = self.settings.get(_WIDTH)
        return given if isinstance(given, int) else width_of_size(self.settings.get("model.size"))

    @functools.cached_property
    def expert_widths(self) -> Mapping[str, int]:
        """MLP hidden units of each domain's expert; empty where the settings do not say.

        They follow from the settings alone, as those of the baselines that a sweep adds did: not
        from plan.json, which small folders of results do without, and whose layers differ without
        `procedure.equal_layers`.
        """
        try:
            config = RunConfig(
                model=_group(ModelConfig, self.settings, "model"),
                partition=PartitionConfig(domains={d: DomainConfig() for d in self.domains}),
                plan=_group(PlanConfig, self.settings, "plan"),
                procedure=_group(ProcedureConfig, self.settings, "procedure"),
            )
            return expert_widths(config) if self.method not in _UNROUTED else {}
        except (ConfigError, PlanError, ValueError, TypeError):
            return {}

    @property
    def tokens(self) -> int | None:
        """Training tokens, in whole steps."""
        return train_tokens(self.settings)

    @functools.cached_property
    def alike(self) -> str:
        """Equal for jobs that may be each other's baselines, tokens, label noise and width
        aside."""
        settings = {name: value for name, value in self.settings.items() if name != _WIDTH}
        return alike(settings, self.domains, self.fingerprints)

    @property
    def attack(self) -> str:
        """Equal for jobs that were attacked alike."""
        return json.dumps(
            {
                name: value
                for name, value in self.settings.items()
                if name.startswith("eval.relearn_")
            },
            sort_keys=True,
        )

    @functools.cached_property
    def is_calibrated(self) -> bool:
        """Whether it holds losses with a fitted bias."""
        return any(row.view is View.calibrated_full for row in self.losses)

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


def alike(
    settings: Mapping[str, Any], domains: Sequence[str], fingerprints: Mapping[str, str]
) -> str:
    """Equal for jobs with the same model, text, domains, training, held-out documents and seed:
    those that share their baselines, tokens and label noise aside."""
    data = fingerprints.get("text")
    free = _FREE if data is None else (*_FREE, *_PLACES)
    kept = {name: value for name, value in settings.items() if not _is_under(name, free)}
    return json.dumps([kept, list(domains), data], sort_keys=True)


@functools.cache
def _is_under(name: str, free: tuple[str, ...]) -> bool:
    if name in _DOCUMENTS:
        return False
    return any(name == other or name.startswith(other + ".") for other in free)


def train_tokens(settings: Mapping[str, Any]) -> int | None:
    """Training tokens, in whole steps; None where the settings do not say."""
    step = _number(settings, "train.batch_sequences") * _number(settings, "train.sequence_length")
    steps, tokens = (_number(settings, f"train.{name}") for name in ("steps", "tokens"))
    if not step or not (steps or tokens):
        return None
    return (steps or -(-tokens // step)) * step


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The metrics that a job's tables and those of its baselines give."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    smallest_share: float | None
    """Of the dense run with the fewest tokens, of the job's."""
    is_shorter_dense: bool
    """Whether the job is a dense run that only longer jobs need."""
    dense: Sequence[DocumentLoss] | None = None
    """The dense baseline's table."""


def joined(jobs: Mapping[str, JobTables | None]) -> dict[str, Joined]:
    """Metrics by name of the job, for jobs that have tables."""
    with_tables = {name: job for name, job in jobs.items() if job is not None}
    alike: dict[str, list[JobTables]] = {}
    for job in with_tables.values():
        alike.setdefault(job.alike, []).append(job)
    found = {}
    for name, job in with_tables.items():
        others = alike[job.alike]
        is_shorter_dense = _is_shorter_dense(
            job, [other for other in others if other.width == job.width]
        )
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
            dense=baselines.dense,
        )
    return found


def baselines_of(job: JobTables, alike: Iterable[JobTables]) -> Baselines:
    """The job's baselines among jobs that are alike: those of its width, and of those that were
    trained on one domain alone the ones that are as wide as its expert.

    A run of two domains without one is both, each for jobs that its width says it is for.

    The first counts where there are two; of filtered runs one with calibrated losses comes before
    one without, and the attack is that of a run that was attacked as the job was. Of the shorter
    dense runs those count that a chain of steps of at most 2.5 joins to the whole length.
    """
    dense: JobTables | None = None
    shorter: dict[float, Sequence[DocumentLoss]] = {}
    filtered: dict[str, list[JobTables]] = {}
    observed: dict[str, JobTables] = {}
    alone: dict[str, JobTables] = {}
    for other in alike:
        if job.tokens is None or other.tokens is None:
            continue
        if other.alone is not None and _is_alone_for(other, job):
            alone.setdefault(other.alone, other)
        if other.width != job.width:
            continue
        if other.method == Method.dense.value and other.tokens < job.tokens:
            shorter.setdefault(other.tokens / job.tokens, other.losses)
        if other.tokens != job.tokens:
            continue
        part = other.without
        if other.method == Method.dense.value:
            dense = dense or other
        elif part is not None and other.method == Method.filtered.value:
            filtered.setdefault(part, []).append(other)
        elif part is not None and other.noise == job.noise:
            observed.setdefault(part, other)
    return Baselines(
        dense=None if dense is None else dense.losses,
        shorter=_without_gaps(shorter),
        filtered={
            # max keeps the first of equals.
            part: max(others, key=lambda other: other.is_calibrated).losses
            for part, others in filtered.items()
        },
        filtered_observed={part: other.losses for part, other in observed.items()},
        alone={domain: other.losses for domain, other in alone.items()},
        filtered_relearned={
            part: attacked[0]
            for part, others in filtered.items()
            if (
                attacked := [
                    other.relearn
                    for other in others
                    if other.relearn and other.attack == job.attack
                ]
            )
        },
    )


def _is_alone_for(other: JobTables, job: JobTables) -> bool:
    """Whether it is a run, otherwise alike, on one domain alone that is as wide as the job's
    expert."""
    width = None if other.alone is None else job.expert_widths.get(other.alone)
    has_length = job.tokens is not None and other.tokens == job.tokens
    return has_length and width is not None and other.width == width


def alone_beside(folder: Path) -> dict[str, tuple[Path, JobTables]]:
    """By domain, the run on it alone that is the baseline of a job's expert, among the jobs of the
    same sweep; a folder that cannot be read is passed over."""
    folder = folder.resolve()
    found: dict[str, tuple[Path, JobTables]] = {}
    job = JobTables.of_folder(folder)
    for beside in sorted(folder.parent.iterdir()) if job is not None and job.expert_widths else ():
        try:
            other = JobTables.of_folder(beside, methods=(Method.filtered.value,))
        except DataError:
            continue
        if (
            job is not None
            and other is not None
            and other.alone is not None
            and other.alike == job.alike
            and _is_alone_for(other, job)
        ):
            found.setdefault(other.alone, (beside, other))
    return found


def dotted(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a config by dotted names; an empty mapping is "{}"."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = "{}" if isinstance(value, Mapping) else value
    return flat


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


def _is_shorter_dense(job: JobTables, alike: Sequence[JobTables]) -> bool:
    if job.method != Method.dense.value or job.tokens is None:
        return False
    others = [other.tokens for other in alike if other.method != Method.dense.value]
    lengths = [tokens for tokens in others if tokens is not None]
    return job.tokens not in lengths and any(tokens > job.tokens for tokens in lengths)


def _check_sizes(
    path: Path, rows: Iterable[tuple[tuple[str, str], DocumentLoss | RelearnLoss]]
) -> None:
    sizes: dict[tuple[str, str, str], tuple[int, int]] = {}
    for place, row in rows:
        size = row.tokens, row.bytes
        if sizes.setdefault((*place, row.document), size) != size:
            raise DataError(f"{path}: document {row.document} of {row.domain} has two sizes")


def _number(settings: Mapping[str, Any], name: str) -> int:
    value = settings.get(name)
    return value if isinstance(value, int) else 0


_Group = TypeVar("_Group")


def _group(kind: type[_Group], settings: Mapping[str, Any], prefix: str) -> _Group:
    """A group of settings from their dotted names; what is not there has its default."""
    hints = typing.get_type_hints(kind)
    values = {}
    for name, hint in hints.items():
        if f"{prefix}.{name}" in settings:
            value = settings[f"{prefix}.{name}"]
            is_choice = isinstance(hint, type) and issubclass(hint, enum.Enum)
            values[name] = hint(value) if is_choice else value
    return kind(**values)


def _read_owners(path: Path) -> dict[str, list[str]]:
    try:
        blocks = json.loads(path.read_text(encoding="utf-8"))["blocks"]
        return {block["name"]: list(block["owners"]) for block in blocks if not block["is_core"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is no plan: {type(error).__name__}: {error}") from error
