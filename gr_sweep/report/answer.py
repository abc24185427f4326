"""The answer of a sweep: its settings ranked by utility and separability, and sentences about them.

Two settings are compared by their differences over the seeds that both have. A setting is on the
frontier (rank 1) if no other is better on both axes beyond the 95 % intervals. If every setting has
one seed there are no intervals, and values are compared. Sentences have names in backticks.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gr_sweep.config import Baseline
from gr_sweep.metrics import registry
from gr_sweep.metrics.seeds import paired_differences
from gr_sweep.report import measures
from gr_sweep.report.measures import Measure, Text, interval_text, written
from gr_sweep.report.sweep import Estimate, Job, Sweep, shown

_MOST_NAMES = 4
"""In a list of a sentence."""
_LACKS = {
    Baseline.dense: "no dense run",
    Baseline.compute: "no dense run on fewer tokens",
    Baseline.filtered: "no filtered run",
}
Axes = tuple[Measure, Measure]
_Class = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A setting: jobs that differ in their seed only."""

    jobs: Sequence[Job]
    name: str
    values: tuple[Estimate | None, Estimate | None]
    """On the two axes, over seeds."""
    why: str
    """Why it has no rank; empty if it has one."""
    beaten_by: Sequence[str] = ()
    """Names of the settings that are better on both axes."""

    @property
    def rank(self) -> int | None:
        """1 on the frontier; else one more than the settings that beat it."""
        return None if self.why else 1 + len(self.beaten_by)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Settings whose numbers are comparable: of the same held-out text and the same removals."""

    name: str
    """What distinguishes them from those of other rankings."""
    axes: Axes
    places: Sequence[Place]
    """By rank, then by utility; those without a rank last."""

    @property
    def ranked(self) -> list[Place]:
        """The settings with a rank."""
        return [place for place in self.places if not place.why]

    @property
    def has_intervals(self) -> bool:
        """Whether any setting has several seeds."""
        return any(len({job.seed for job in place.jobs}) > 1 for place in self.ranked)

    def by(self, axis: int) -> list[Place]:
        """The ranked settings by their mean on the first or second axis, the best first."""
        return sorted(self.ranked, key=lambda place: _cost(place, self.axes, axis))


def _cost(place: Place, axes: Axes, axis: int) -> float:
    found, measure = place.values[axis], axes[axis]
    if found is None:
        return math.inf
    value = min(found.value, 1.0) if measure in measures.UP_TO_1 else found.value
    return -measure.metric.direction * value


def rankings(sweep: Sweep) -> list[Ranking]:
    """The compared settings in groups that are comparable, the largest first. A setting with
    nothing to remove stands in the largest group of its text."""
    objectives = list(sweep.search.objectives.values()) if sweep.search else []
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
    found, first = [], classes[key][0][0]
    if len({text for text, _ in classes}) > 1:
        names = [name for name in sweep.varied if name.startswith(("data.", "partition."))]
        found = [f"{name}={shown(first.settings.get(name))}" for name in names]
        found = found or [f"text {(first.text or 'unknown')[:8]}"]
    if len({parts for _, parts in classes}) > 1:
        found.append(f"removing {_either(key[1])}" if key[1] else "nothing to remove")
    return ", ".join(found)


def _ranking(sweep: Sweep, axes: Axes, groups: Sequence[list[Job]], name: str) -> Ranking:
    why = [_why(group, axes) for group in groups]
    num_seeds = [len({job.seed for job in group}) for group in groups]
    most = max((of for of, reason in zip(num_seeds, why, strict=True) if not reason), default=1)
    places = [
        Place(
            jobs=group,
            name=sweep.setting(group[0]),
            values=(axes[0].over_seeds(group), axes[1].over_seeds(group)),
            why=reason or ("one seed" if seeds == 1 < most else ""),
        )
        for group, reason, seeds in zip(groups, why, num_seeds, strict=True)
    ]
    ranked = [place for place in places if not place.why]
    beats = _beats(ranked, axes)
    for at, place in enumerate(ranked):
        better = [ranked[other].name for other in np.flatnonzero(beats[:, at])]
        ranked[at] = dataclasses.replace(place, beaten_by=better)
    ranked.sort(key=lambda place: (place.rank, _cost(place, axes, 0)))
    rest = sorted((p for p in places if p.why), key=lambda place: _cost(place, axes, 0))
    return Ranking(name=name, axes=axes, places=[*ranked, *rest])


def _beats(ranked: Sequence[Place], axes: Axes) -> npt.NDArray[np.bool_]:
    """Whether the setting of a row is better than that of a column on both axes, beyond the
    intervals if any setting has two seeds."""
    seeds = sorted({job.seed for place in ranked for job in place.jobs})
    is_better = np.ones((len(ranked), len(ranked)), bool)
    is_above = np.zeros_like(is_better)
    for measure in axes:
        values_GS = np.full((len(ranked), len(seeds)), math.nan)
        for at, place in enumerate(ranked):
            for job in reversed(place.jobs):
                value = job.metrics[measure.metric.mean]
                # More than gone is not better than gone.
                value = min(value, 1.0) if measure in measures.UP_TO_1 else value
                values_GS[at, seeds.index(job.seed)] = measure.metric.direction * value
        mean_GG, half_GG = paired_differences(values_GS)
        if np.isfinite(half_GG).any():
            mean_GG = np.nan_to_num(mean_GG - half_GG)
            is_better &= mean_GG > 0
        is_better &= mean_GG >= 0
        is_above |= mean_GG > 0
    return is_better & is_above


def _why(group: Sequence[Job], axes: Axes) -> str:
    """Why a setting cannot be ranked; empty if it can."""
    if group[0].is_control:
        return "a control"
    if not group[0].parts:
        return "no domain to remove"
    for measure in axes:
        for job in group:
            found = measure.of(job)
            if found is None or measure.metric.mean not in job.metrics:
                what = "only a bound of" if found else "without"
                return f"{what} {_title(measure)}{'' if found else ': ' + _lack(job, measure)}"
    return ""


def _lack(job: Job, measure: Measure) -> str:
    """Why a job does not have a metric."""
    if not job.has_losses:
        return "its table of losses cannot be read"
    metric = measure.metric
    known = {
        of for key in job.metrics if (found := registry.find(key)) for of in found[0].baselines
    }
    if job.smallest_share is not None:
        known.add(Baseline.compute)
    for baseline in metric.baselines:
        if baseline not in known:
            return f"{_LACKS[baseline]} with its model, text, training and seed"
    lacking = [part for part in job.parts if metric(part) not in job.metrics]
    if lacking and Baseline.filtered in metric.baselines:
        return f"no filtered run without {_either(lacking)}"
    return "its summary has none"


# Sentences


def sentences(sweep: Sweep, found: Sequence[Ranking]) -> list[str]:
    """Which setting is best on which trade-off, and how sure that is: a text for each ranking."""
    said = []
    for ranking in found:
        if ranking.ranked or len(found) == 1:
            text = _answer(sweep, ranking)
            said.append(f"{_capital(ranking.name)}: {text}" if ranking.name else text)
    return said


def notes(sweep: Sweep, found: Sequence[Ranking]) -> list[str]:
    """Why other axes stand in for the usual ones, and why settings have no rank."""
    said = []
    jobs = [] if sweep.search else [job for job in sweep.compared if job.parts]
    usual = [next(m for m in measures.MAIN if m.metric is metric) for metric in registry.AXES[0]]
    for wanted, measure in zip(usual, found[0].axes if jobs else (), strict=False):
        lacking = [job for job in jobs if wanted.of(job) is None]
        if wanted is not measure and lacking:
            share = f"{len(lacking)} of {len(jobs)} jobs lack"
            who = share if len(lacking) < len(jobs) else "no job has"
            said.append(
                f"{_capital(_title(measure))} stands in for {_title(wanted)}, which {who}: "
                f"{_lack(lacking[0], wanted)}."
            )
    if any(of in line for line in said for of in _LACKS.values()):
        said.append("`baselines=[dense,compute,filtered]` adds baselines to a sweep.")
    reasons: dict[str, list[str]] = {}
    for place in (place for ranking in found for place in ranking.places if place.why):
        reasons.setdefault(place.why, []).append(place.name)
    if reasons:
        each = "; ".join(f"{_listed(names)} ({why})" for why, names in reasons.items())
        said.append(f"Not ranked: {each}.")
    return said


def _answer(sweep: Sweep, ranking: Ranking) -> str:
    ranked = ranking.ranked
    titles = [_title(measure) for measure in ranking.axes]
    if not ranked:
        return f"No setting can be ranked by {titles[0]} and {titles[1]}."
    if len(ranked) == 1:
        values = " and ".join(map(_with_unit, ranked[0].values, ranking.axes))
        return f"`{ranked[0].name}` has {values}; no other setting can be compared with it."
    serving, separating = ranking.by(0), ranking.by(1)
    best, most = serving[0], separating[0]
    # The best in both is compared with the next on each axis; otherwise the two with each other.
    others = (serving[1], separating[1]) if most is best else (best, best)
    cost, gain = (
        _difference(sweep, most, other, measure)
        for other, measure in zip(others, ranking.axes, strict=True)
    )
    is_sure = any(text.endswith(_SURE) for text in (cost, gain))
    if most is best:
        gain, cost = f"{gain} against `{others[1].name}`", f"{cost} against `{others[0].name}`"
        text = f"take `{most.name}`, the best in both: {gain}, {cost}."
    else:
        text = (
            f"for separation take `{most.name}`, for utility `{best.name}`: the first has {gain}, "
            f"for {cost}."
        )
    if not ranking.has_intervals:
        text = f"by value, {text} Each setting has one seed, so no difference has an interval."
        return _capital(text)
    front = [of.name for of in ranked if of.rank == 1 and of is not best and of is not most]
    beaten = [of.name for of in ranked if of.rank != 1]
    said = [_capital(text) if is_sure else f"No sure difference; by value, {text}"]
    if front:
        said.append(f"Also on the frontier: {_listed(front)}.")
    if beaten:
        said.append(f"Worse on both axes, beyond the intervals: {_listed(beaten)}.")
    return " ".join(said)


_SURE, _UNSURE = " (beyond its interval)", " (inconclusive)"


def _difference(sweep: Sweep, first: Place, second: Place, measure: Measure) -> str:
    """The first setting minus the second, paired by seed, and whether its interval excludes 0."""
    found = sweep.difference(first.jobs, second.jobs, measure.metric.mean)
    if found is None:
        return f"{_title(measure)} on other seeds"
    text = _with_unit(found, measure, "+")
    if found.interval is None:
        return text
    return text + (_UNSURE if found.interval[0] <= 0 <= found.interval[1] else _SURE)


def _with_unit(found: Estimate | None, measure: Measure, sign: str = "") -> str:
    text = Text(measure.text.digits, sign)
    unit = "nats " if measure.metric.unit.startswith("nats") else ""
    ends = interval_text(found, text).replace(" to ", ", ")
    return f"{written(found, text)} {unit}{_title(measure)}{f' [{ends}]' if ends else ''}"


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
