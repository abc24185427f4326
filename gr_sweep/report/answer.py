"""The answer of a sweep: its settings ranked by utility and separability, and sentences about them.

Settings are compared by their differences, paired by seed; one that lacks seeds has no rank. If
every setting has one seed there are no intervals, and values are compared. Sentences have names in
backticks.
"""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gr_sweep.config import Baseline
from gr_sweep.metrics import registry
from gr_sweep.metrics.seeds import paired_differences
from gr_sweep.report import measures
from gr_sweep.report.measures import Measure, Text
from gr_sweep.report.sweep import Estimate, Job, Sweep, over_seeds, shown

RULE = (
    "A setting is beaten where another is better beyond the interval of the paired difference on "
    "one axis and at least as good by its mean on the other; the frontier is what nothing beats."
)
_MOST_NAMES = 4
"""In a list of a sentence."""
_LACKS = {
    Baseline.dense: "no dense run",
    Baseline.compute: "no dense run on fewer tokens",
    Baseline.filtered: "no filtered run",
}
Axes = tuple[Measure, Measure]
_Class = tuple[str, tuple[str, ...]]
"""What settings must share to be comparable: held-out text and removable domains."""


@dataclass(frozen=True)
class Place:
    """A setting: jobs that differ in their seed only."""

    jobs: Sequence[Job]
    name: str
    costs: tuple[float, float]
    """Its means on the two axes, as settings are compared; lower is better."""
    why: str
    """Why it has no rank; empty if it has one."""
    rank: int | None = None
    """1 on the frontier; else one more than the number of settings that beat it."""


@dataclass(frozen=True)
class Ranking:
    """Settings whose numbers are comparable: of the same held-out text and the same removals."""

    name: str
    """What distinguishes them from those of other rankings; empty if there are no others."""
    axes: Axes
    places: Sequence[Place]
    """By rank, then by utility; those without a rank last."""

    @property
    def ranked(self) -> list[Place]:
        """The settings with a rank."""
        return [place for place in self.places if not place.why]

    def by(self, axis: int) -> list[Place]:
        """The ranked settings by their mean on the first or second axis, the best first."""
        return sorted(self.ranked, key=lambda place: place.costs[axis])


@functools.lru_cache(maxsize=1)
def rankings(sweep: Sweep) -> list[Ranking]:
    """The compared settings in groups that are comparable, the largest first. A setting with
    nothing to remove stands in the largest group of its text."""
    objectives = list(sweep.search.get("objectives", {}).values())
    axes = measures.best_axes([job for job in sweep.compared if job.parts], objectives)
    classes: dict[_Class, list[list[Job]]] = {}
    for group in sorted(sweep.replicates, key=lambda group: not group[0].parts):
        key = (group[0].held_out, tuple(group[0].parts))
        if not key[1]:
            same = [other for other in classes if other[0] == key[0]]
            key = max(same, key=lambda other: len(classes[other]), default=key)
        classes.setdefault(key, []).append(group)
    ordered = sorted(classes, key=lambda key: -len(classes[key]))
    return [_ranking(sweep, axes, classes[key], _name(sweep, key, classes)) for key in ordered]


def _name(sweep: Sweep, key: _Class, classes: dict[_Class, list[list[Job]]]) -> str:
    words = []
    if len({text for text, _ in classes}) > 1:
        for name in sweep.varied:
            values = {shown(group[0].settings.get(name)) for group in classes[key]}
            if name.startswith(("data.", "partition.", "eval.")) and len(values) == 1:
                words.append(f"{name}={values.pop()}")
        words = words or [f"text {str(classes[key][0][0].text)[:8]}"]
    if len({parts for _, parts in classes}) > 1:
        words.append(f"removing {_either(key[1])}" if key[1] else "nothing to remove")
    return ", ".join(words)


def _ranking(sweep: Sweep, axes: Axes, groups: Sequence[list[Job]], name: str) -> Ranking:
    why = [_why(group, axes) for group in groups]
    seeds = [frozenset(job.seed for job in group) for group in groups]
    counts = Counter(of for of, reason in zip(seeds, why, strict=True) if not reason)
    # Of the sets with the most seeds, the one that most settings have.
    most = max(counts, key=lambda of: (len(of), counts[of]), default=frozenset())
    places = []
    for group, reason, of in zip(groups, why, seeds, strict=True):
        if not reason and most - of:
            reason = f"without seed {_either([str(seed) for seed in sorted(most - of)])}"
        first, second = (_cost(group, axis) for axis in axes)
        places.append(Place(group, sweep.settings[group[0].name], (first, second), reason))
    ranked = [place for place in places if not place.why]
    beaten = _beats(ranked, axes).sum(0)
    ranked = [
        dataclasses.replace(of, rank=1 + int(num)) for of, num in zip(ranked, beaten, strict=True)
    ]
    rest = [place for place in places if place.why]
    ranked.sort(key=lambda place: (place.rank, place.costs))
    return Ranking(name, axes, [*ranked, *sorted(rest, key=lambda place: place.costs)])


def _cost(jobs: Sequence[Job], measure: Measure) -> float:
    found = over_seeds(jobs, measure.compared)
    return float("inf") if found is None else -measure.metric.direction * found.value


def _beats(ranked: Sequence[Place], axes: Axes) -> npt.NDArray[np.bool_]:
    """Whether the setting of a row beats that of a column (`RULE`). All have the same seeds."""
    at_least = np.ones((len(ranked), len(ranked)), bool)
    surely = np.zeros_like(at_least)
    for measure in axes if ranked else ():
        by_seed = [{job.seed: job for job in reversed(place.jobs)} for place in ranked]
        costs_GS = np.array([[_cost([jobs[s]], measure) for s in sorted(jobs)] for jobs in by_seed])
        mean_GG, half_GG = paired_differences(-costs_GS)
        at_least &= mean_GG >= 0
        surely |= mean_GG > np.nan_to_num(half_GG)  # nan for one seed
    return at_least & surely


def _why(group: Sequence[Job], axes: Axes) -> str:
    """Why a setting cannot be ranked; empty if it can."""
    if group[0].is_control:
        return "a control"
    if not group[0].parts:
        return "no domain to remove"
    for measure, job in itertools.product(axes, group):
        if (found := measure.of(job)) is None:
            return f"without {_title(measure)}: {_lack(job, measure)}"
        if found.bound:
            return f"only a bound of {_title(measure)}"
    return ""


def _lack(job: Job, measure: Measure) -> str:
    """Why a job does not have a metric."""
    if not job.has_losses:
        return "its table of losses cannot be read"
    there = {
        of for key in job.metrics if (found := registry.find(key)) for of in found[0].baselines
    }
    if job.smallest_share is not None:
        there.add(Baseline.compute)
    for baseline in measure.metric.baselines:
        if baseline not in there:
            return f"{_LACKS[baseline]} with its model, text, training and seed"
    lacking = [part for part in job.parts if measure.metric(part) not in job.metrics]
    if lacking and Baseline.filtered in measure.metric.baselines:
        return f"no filtered run without {_either(lacking)}"
    return "its summary has none"


# Sentences


def sentences(sweep: Sweep) -> list[str]:
    """Which setting is best on which trade-off, and how sure that is: a text for each ranking."""
    found = rankings(sweep)
    return [
        f"{_capital(ranking.name)}: {_answer(ranking)}" if ranking.name else _answer(ranking)
        for ranking in found
        if ranking.ranked or len(found) == 1
    ]


def notes(sweep: Sweep) -> list[str]:
    """What the axes mean, why others stand in for the usual ones, which settings are not
    comparable, and why some have no rank."""
    found = rankings(sweep)
    axes = found[0].axes if found else ()
    said = [f"`{_capital(_title(of))}`: {of.metric.meaning}." for of in axes]
    jobs = [] if sweep.search else [job for job in sweep.compared if job.parts]
    for metric, measure in zip(registry.AXES[0], axes, strict=False):
        wanted = measures.BY_METRIC[metric]
        lacking = [job for job in jobs if wanted.of(job) is None]
        if wanted is not measure and lacking:
            said.append(
                f"{_capital(_title(measure))} stands in for {_title(wanted)}, which {len(lacking)} "
                f"of {len(jobs)} jobs lack: {_lack(lacking[0], wanted)}."
            )
    if len(said) > len(axes):
        said.append("`baselines=[dense,compute,filtered]` adds baselines to a sweep.")
    if len(found) > 1:
        said.append(
            "Settings that remove other domains or read other text are not comparable: each group "
            "is ranked and drawn alone."
        )
    reasons: dict[str, list[str]] = {}
    for place in (place for ranking in found for place in ranking.places if place.why):
        reasons.setdefault(place.why, []).append(place.name)
    if reasons:
        each = "; ".join(f"{_listed(names)} ({why})" for why, names in reasons.items())
        said.append(f"Not ranked: {each}.")
    return said


def _answer(ranking: Ranking) -> str:
    axes, ranked = ranking.axes, ranking.ranked
    if not ranked:
        return f"No setting can be ranked by {_title(axes[0])} and {_title(axes[1])}."
    if len(ranked) == 1:
        values = [_with_unit(over_seeds(ranked[0].jobs, of.of), of) for of in axes]
        has = f"`{ranked[0].name}` has {_either(values, 'and')}"
        return f"{has}; no other setting can be compared with it."
    (best, next_best), (most, next_most) = ranking.by(0)[:2], ranking.by(1)[:2]
    if best is most:
        gain = f"{_difference(best, next_most, axes[1])} against `{next_most.name}`"
        cost = f"{_difference(best, next_best, axes[0])} against `{next_best.name}`"
        text = f"take `{best.name}`, the best on both axes: {gain}, {cost}."
    else:
        gain, cost = (_difference(most, best, axes[at]) for at in (1, 0))
        text = (
            f"for separation take `{most.name}`, for utility `{best.name}`: the first has {gain}, "
            f"for {cost}."
        )
    has_intervals = len({job.seed for job in best.jobs}) > 1
    if not has_intervals:
        text = f"by value, {text}"
    elif _SURE not in gain + cost:
        text = f"no sure difference; by value, {text}"
    said = [_capital(text)]
    front = [of.name for of in ranked if of.rank == 1 and of not in (most, best)]
    beaten = [of.name for of in ranked if of.rank != 1]
    if front:
        said.append(f"Also on the frontier: {_listed(front)}.")
    if beaten:
        said.append(f"Beaten: {_listed(beaten)}.")
    if not has_intervals:
        said.append("Each setting has one seed, so differences have no interval; add `seed=0,1,2`.")
    return " ".join(said)


_SURE, _UNSURE = " (interval excludes 0)", " (inconclusive)"


def _difference(first: Place, second: Place, measure: Measure) -> str:
    """The first setting minus the second, paired by seed, and whether its interval excludes 0."""
    found = measure.difference(first.jobs, second.jobs)
    text = _with_unit(found, measure, "+")
    if found is None or found.interval is None:
        return text
    return text + (_UNSURE if found.interval[0] <= 0 <= found.interval[1] else _SURE)


def _with_unit(found: Estimate | None, measure: Measure, sign: str = "") -> str:
    text = Text(measure.text.digits, sign)
    unit = "nats " if measure.metric.unit.startswith("nats") else ""
    ends = text.interval(found).replace(" to ", ", ")
    value = text.difference(found) if sign else text.value(found)
    return f"{value} {unit}{_title(measure)}{f' [{ends}]' if ends else ''}"


def _title(measure: Measure) -> str:
    return measure.metric.title.partition(" S(")[0]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _either(names: Sequence[str], word: str = "or") -> str:
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last


def _listed(names: Sequence[str]) -> str:
    if len(names) > _MOST_NAMES:
        return f"{len(names)} settings"
    return _either([f"`{name}`" for name in names], "and")
