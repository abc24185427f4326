"""Jobs and sweeps as the report sees them: settings, labels, metrics, and means over seeds.

Knows nothing of files, and nothing of how numbers are shown.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gr_sweep.config import UNROUTED, Method, PlanKind, ProcedureKind
from gr_sweep.domains import ancestors
from gr_sweep.fingerprint import NO_EFFECT_ON_RESULT, is_below
from gr_sweep.jobdir import flatten
from gr_sweep.metrics import registry, seeds

SHORT_NAMES = {
    "model.size": "model",
    "plan.kind": "plan",
    "data.kind": "data",
    "method.name": "method",
    "partition.name": "partition",
    "procedure.name": "procedure",
}
"""Fields that a user sets by the name of their group."""

DENSE = Method.dense.value
"""Edges and kind of a job without a plan."""
ROUTED = Method.routed.value

_UNROUTED = tuple(method.value for method in UNROUTED)
_PLANS = tuple(kind.value for kind in PlanKind)
_FREE = (
    *NO_EFFECT_ON_RESULT,
    # What makes a baseline another job.
    "method", "plan", "edges", "route", "procedure", "partition.unlabelled",
    "partition.mislabelled", "train.block_lr",
    # Compared by `baselines_of`: tokens, and the width of a run on one domain.
    "train.steps", "train.tokens", "model.intermediate_size",
    # No matter: a name that people give, and of the evaluation all but the documents.
    "train.log_every", "partition.name", "eval",
)  # fmt: skip
_DOCUMENTS = ("eval.tokens", "eval.document_tokens")
_PLACES = ("data.root", "data.paths", "data.sources")
"""Where the text comes from. They may differ if the fingerprint of the text is the same."""


@dataclass(frozen=True)
class Estimate:
    """A number and, if there is one, its 95 % interval."""

    value: float
    interval: Sequence[float] | None = None
    """Low and high."""
    bound: str = ""
    """Where only a bound is known, its sign as it is shown."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A finished job: its summary, and what was read or computed beside it."""

    folder: Path
    domains: list[str]
    config: dict[str, Any]
    metrics: dict[str, float]
    intervals: dict[str, Sequence[float]]
    environment: dict[str, Any]
    fingerprints: dict[str, Any]
    started: str
    finished: str
    sweep: str = ""
    title: str = ""
    """The overrides in which it differs from the other jobs of its command."""
    command: str = ""
    """Command that runs this job again."""
    files: dict[str, str] = field(default_factory=dict)
    """Digests of the files with its results."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows of metrics.jsonl."""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """Finished rounds of `procedure=alternate` by number, as round.json has them."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Prompts of samples.json."""
    attacks: dict[str, dict[float, tuple[list[int], list[float]]]] = field(default_factory=dict)
    """Relearning attacks, by the domain that was removed."""
    smallest_share: float | None = None
    """Tokens of the shortest dense run, as a fraction of the job's. A compute-equivalent that is
    missing although its loss is there is below it."""
    has_losses: bool = True
    """Whether its table of losses can be read."""
    is_shorter_dense: bool = False
    """Whether the job is only there for the compute-equivalents of longer jobs."""

    @functools.cached_property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The config by dotted name; a list is a value."""
        return flatten(self.config)

    @property
    def text(self) -> Any:
        """Fingerprint of its text; None if the summary has none."""
        return self.fingerprints.get("text")

    @functools.cached_property
    def tokens(self) -> int:
        """Training tokens, in whole steps."""
        train = self.config["train"]
        step: int = train["batch_sequences"] * train["sequence_length"]
        return (train["steps"] or math.ceil(train["tokens"] / step)) * step

    def _settings_without(self, free: Sequence[str], *more: Any) -> str:
        """Equal for jobs that differ in the free settings only."""
        kept = {n: of for n, of in self.settings.items() if not _is_free(n, tuple(free))}
        return json.dumps([kept, *more], sort_keys=True)

    @functools.cached_property
    def context(self) -> str:
        """Equal for jobs that share their baselines, apart from tokens, width and label noise."""
        places = () if self.text is None else _PLACES
        return self._settings_without((*_FREE, *places), self.domains, self.text)

    @functools.cached_property
    def identity(self) -> str:
        """Equal for jobs whose results are the same."""
        return self._settings_without(NO_EFFECT_ON_RESULT, self.text, self.fingerprints.get("code"))

    @functools.cached_property
    def unseeded(self) -> str:
        """Equal for jobs that differ in their seed or text only."""
        return self._settings_without(("seed", *NO_EFFECT_ON_RESULT))

    @functools.cached_property
    def held_out(self) -> str:
        """Equal for jobs whose losses are comparable: of the same text, domains and documents."""
        names = (*_DOCUMENTS, *(() if self.text else ("data", "partition.domains")))
        kept = {name: of for name, of in self.settings.items() if name.startswith(names)}
        return json.dumps([kept, self.domains, self.text], sort_keys=True)

    @functools.cached_property
    def kind(self) -> str:
        """What the job is compared as: its plan, or its method if that is not `routed`."""
        plan, method = (str(self.settings[name]) for name in ("plan.kind", "method.name"))
        return method if method != ROUTED else DENSE if plan == "none" else plan

    @functools.cached_property
    def edges(self) -> str:
        """Edges that are cut; `dense` for a job without routing, whatever its settings say."""
        return DENSE if self.kind in _UNROUTED else str(self.settings["edges"])

    @functools.cached_property
    def group(self) -> str:
        """Jobs of a group are told apart by their settings; groups, by their method."""
        return ROUTED if self.kind in _PLANS else self.kind

    @property
    def is_control(self) -> bool:
        """Whether its labels are shuffled, or its units were assigned without regard to what the
        network does."""
        is_alternate = self.settings["procedure.name"] == ProcedureKind.alternate.value
        is_blind = self.settings["procedure.attribution"] in ("random", "none")
        return self.kind == Method.random.value or (is_alternate and is_blind)

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return int(self.settings["seed"])

    def estimate(self, key: str) -> Estimate | None:
        """A metric with its interval; None if the job does not have it."""
        if key not in self.metrics:
            return None
        return Estimate(value=self.metrics[key], interval=self.intervals.get(key))

    @functools.cached_property
    def nodes(self) -> list[str]:
        """The domains and the nodes above them: whatever could have been removed or kept."""
        return list(dict.fromkeys(node for domain in self.domains for node in ancestors(domain)))

    @functools.cached_property
    def parts(self) -> list[str]:
        """Domains that have a selectivity."""
        return [part for part in self.domains if registry.SELECTIVITY(part) in self.metrics]


@functools.cache
def _is_free(name: str, free: tuple[str, ...]) -> bool:
    return name not in _DOCUMENTS and is_below(name, free)


@dataclass(frozen=True)
class Unfinished:
    """A job without a summary that can be read."""

    name: str
    step: int | None
    """Last step of its metrics.jsonl."""
    why: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """The jobs of a folder, or some of them."""

    name: str
    folder: Path
    jobs: list[Job]
    """In the order of the report: dense first, then by edges, then by the settings that differ."""
    unfinished: list[Unfinished]
    search: dict[str, Any]
    """Of the search that made these jobs, empty without one: `objectives` (keys of metrics by
    name), the number of `trials`, `importance` (0..1, by objective and setting)."""

    @functools.cached_property
    def compared(self) -> list[Job]:
        """The jobs without the dense runs that are only baselines of longer ones."""
        return [job for job in self.jobs if not job.is_shorter_dense]

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """Index of each compared job, by name."""
        return {job.name: at for at, job in enumerate(self.compared)}

    @functools.cached_property
    def varied(self) -> list[str]:
        """Dotted names of the settings in which the compared jobs differ, without those that cannot
        change a result."""
        return varied_settings([job.settings for job in self.compared])

    @functools.cached_property
    def domains(self) -> list[str]:
        """Every domain of any job, in order of appearance."""
        return list(dict.fromkeys(domain for job in self.jobs for domain in job.domains))

    @functools.cached_property
    def labels(self) -> dict[str, str]:
        """Label of each job, by name: its title, which the terminal and W&B show, or the name
        itself if another job has the same."""
        counts = Counter(job.title for job in self.jobs)
        counts[""] = 0
        return {job.name: job.title if counts[job.title] == 1 else job.name for job in self.jobs}

    @functools.cached_property
    def settings(self) -> dict[str, str]:
        """Name of the setting that each compared job is a seed of, by the job's name: what its
        title says, without the seed, and its folder if the titles of other settings say the same.
        """
        found = {}
        for first, *others in self.replicates:
            words = []
            for word in first.title.split():
                name, _, value = word.partition("=")
                if name != "seed" and word != f"method={ROUTED}":
                    is_known = name in ("edges", *SHORT_NAMES.values())
                    value = DENSE if word == "plan=none" else value
                    words.append(value if is_known else f"{name.rpartition('.')[2]}={value}")
            own = first.edges if first.group == ROUTED else first.kind
            found[first.name] = " \N{MIDDLE DOT} ".join(words) or own, [first, *others]
        counts = Counter(title for title, _ in found.values())
        return {
            job.name: title if counts[title] == 1 else f"{title} ({name})"
            for name, (title, jobs) in found.items()
            for job in jobs
        }

    @functools.cached_property
    def replicates(self) -> list[list[Job]]:
        """The compared jobs in groups that differ in their seed only, on the same text."""
        groups: dict[tuple[str, Any], list[Job]] = {}
        for job in self.compared:
            groups.setdefault((job.unseeded, job.text), []).append(job)
        return list(groups.values())

    @functools.cached_property
    def mixed(self) -> list[str]:
        """Sentences that say which jobs come from different code or different text. Empty if all
        are from the same."""
        said = {
            "code": "were run by different versions of the code",
            "text": "read different texts",
        }
        found = []
        for name, what in said.items():
            counts = Counter(str(job.fingerprints.get(name))[:8] for job in self.jobs)
            each = ", ".join(f"{of}: {n} job{'s'[: n > 1]}" for of, n in counts.items())
            if len(counts) > 1:
                found.append(f"These jobs {what} ({each}) and may not be comparable.")
        return found


def estimate_of(values: Sequence[float]) -> Estimate | None:
    """Mean and t-interval of one value for each seed; None without values."""
    if not values:
        return None
    found = seeds.t_interval(values)
    return Estimate(found[0], found[1:]) if found else Estimate(values[0])


def mean_of(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """Mean; None if one is missing, there are none, or one is an upper and one a lower bound. The
    mean of several has no interval, which would need their resamples; it is a bound if one is."""
    found = [estimate for estimate in estimates if estimate is not None]
    bounds = {one.bound for one in found} - {""}
    if not found or len(found) < len(estimates) or len(bounds) > 1:
        return None
    if len(found) == 1:
        return found[0]
    return Estimate(value=sum(one.value for one in found) / len(found), bound="".join(bounds))


def over_seeds(jobs: Sequence[Job], of: Callable[[Job], Estimate | None]) -> Estimate | None:
    """Mean over jobs that differ in their seed only, with Student's t-interval; of one seed its own
    estimate. The first job of a seed counts. None if a seed has none; a bound if one is."""
    found = list({job.seed: of(job) for job in reversed(jobs)}.values())
    values = [one.value for one in found if one is not None and not one.bound]
    return estimate_of(values) if 1 < len(values) == len(found) else mean_of(found)


def varied_settings(of_jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted names of the settings that differ, without those that cannot change a result."""
    names = dict.fromkeys(name for settings in of_jobs for name in settings)
    varied = [
        name
        for name in names
        if not is_below(name, NO_EFFECT_ON_RESULT)
        and len({repr(settings.get(name)) for settings in of_jobs}) > 1
    ]
    if "partition.name" in varied:
        varied = [name for name in varied if not name.startswith("partition.domains.")]
    return varied


def short_name(name: str) -> str:
    """The name that a user types for a dotted setting."""
    return SHORT_NAMES.get(name, name)


def shown(value: Any) -> str:
    """A setting as a user would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(shown(item) for item in value) + "]"
    return str(value)
