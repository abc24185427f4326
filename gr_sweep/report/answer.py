"""The answer of a sweep: its settings ranked by utility and separability, and sentences about them.

Settings are compared by their differences, paired by seed; one that lacks seeds has no rank. A
setting is on the frontier (rank 1) if no other is better on both axes beyond the 95 % intervals. If
every setting has one seed there are no intervals, and values are compared. Sentences have names in
backticks.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gr_sweep.config import Baseline
from gr_sweep.metrics import registry
from gr_sweep.metrics.seeds import paired_differences
from gr_sweep.report import measures
from gr_sweep.report.measures import Measure, Text, interval_text, written
from gr_sweep.report.sweep import Estimate, Job, Sweep, over_seeds, shown

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
    """On the two axes, over seeds, as settings are compared."""
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
        values = {
            of: [f"{name}={shown(groups[0][0].settings.get(name))}" for name in names]
            for of, groups in classes.items()
        }
        found = list(values[key])
        if any(values[of] == found and of[0] != key[0] for of in classes):
            found.append(f"text {(first.text or 'unknown')[:8]}")
    if len({parts for _, parts in classes}) > 1:
        found.append(f"removing {_either(key[1])}" if key[1] else "nothing to remove")
    return ", ".join(found)


def _ranking(sweep: Sweep, axes: Axes, groups: Sequence[list[Job]], name: str) -> Ranking:
    why = [_why(group, axes) for group in groups]
    seeds = [frozenset(job.seed for job in group) for group in groups]
    counts = Counter(of for of, reason in zip(seeds, why, strict=True) if not reason)
    # Of the sets with the most seeds, the one that most settings have.
    most = max(counts, key=lambda of: (len(of), counts[of]), default=frozenset())
    places = [
        Place(
            jobs=group,
            name=sweep.setting(group[0]),
            values=(over_seeds(group, axes[0].compared), over_seeds(group, axes[1].compared)),
            why=reason or _without_seeds(most - of),
        )
        for group, reason, of in zip(groups, why, seeds, strict=True)
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
                value = measure.capped(job.metrics[measure.metric.mean])
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


def _without_seeds(seeds: Set[int]) -> str:
    return f"without seed {_either([str(seed) for seed in sorted(seeds)])}" if seeds else ""


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


def sentences(found: Sequence[Ranking]) -> list[str]:
    """Which setting is best on which trade-off, and how sure that is: a text for each ranking."""
    said = []
    for ranking in found:
        if ranking.ranked or len(found) == 1:
            text = _answer(ranking)
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


def _answer(ranking: Ranking) -> str:
    ranked = ranking.ranked
    titles = [_title(measure) for measure in ranking.axes]
    if not ranked:
        return f"No setting can be ranked by {titles[0]} and {titles[1]}."
    if len(ranked) == 1:
        values = [_with_unit(of.over_seeds(ranked[0].jobs), of) for of in ranking.axes]
        has = f"`{ranked[0].name}` has {_either(values, 'and')}"
        return f"{has}; no other setting can be compared with it."
    serving, separating = ranking.by(0), ranking.by(1)
    best, most = serving[0], separating[0]
    cost, gain = (_difference(most, best, measure) for measure in ranking.axes)
    if gain.startswith(_NONE):
        most = best
    elif cost.startswith(_NONE):
        best = most
    tied = [best]
    if most is best:
        # The best in both is compared with the next on each axis.
        tied += [of for of in ranked if of is not best and _are_equal(of, best, ranking.axes)]
        names = [of.name for of in tied]
        nexts = [next((of for of in by if of not in tied), None) for by in (serving, separating)]
        cost, gain = (
            f"{_difference(best, of, measure)} against `{of.name}`" if of else ""
            for of, measure in zip(nexts, ranking.axes, strict=True)
        )
        if gain:
            text = f"take {_listed(names, 'or')}, the best on both axes: {gain}, {cost}."
        else:
            text = f"{_listed(names)} do not differ in {titles[0]} or {titles[1]}."
    else:
        text = (
            f"for separation take `{most.name}`, for utility `{best.name}`: the first has {gain}, "
            f"for {cost}."
        )
    how, beyond = "by value, ", ""
    if ranking.has_intervals:
        how = "" if _SURE in cost + gain else "no sure difference; by value, "
        beyond = ", beyond the intervals"
    said = [_capital(how + text)]
    front = [of.name for of in ranked if of.rank == 1 and of not in (most, *tied)]
    beaten = [of.name for of in ranked if of.rank != 1]
    if front:
        said.append(f"Also on the frontier: {_listed(front)}.")
    if beaten:
        said.append(f"Beaten on both axes{beyond}: {_listed(beaten)}.")
    if not ranking.has_intervals:
        said.append("Each setting has one seed, so differences have no interval; add `seed=0,1,2`.")
    return " ".join(said)


_NONE, _SURE, _UNSURE = "no difference in ", " (interval excludes 0)", " (inconclusive)"


def _are_equal(first: Place, second: Place, axes: Axes) -> bool:
    """Whether the differences on both axes round to 0."""
    return all(_difference(first, second, measure).startswith(_NONE) for measure in axes)


def _difference(first: Place, second: Place, measure: Measure) -> str:
    """The first setting minus the second, paired by seed, and whether its interval excludes 0."""
    found = measure.difference(first.jobs, second.jobs)
    text = _with_unit(found, measure, "+")
    value, _, rest = text.partition(" ")
    if not value.strip("0."):
        title, _, ends = rest.removeprefix("nats ").partition(" [")
        has_width = any(digit in ends for digit in "123456789")
        return f"{_NONE}{title} [{ends}{_UNSURE}" if has_width else f"{_NONE}{title}"
    if found is None or found.interval is None:
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


def _listed(names: Sequence[str], word: str = "and") -> str:
    if len(names) > _MOST_NAMES:
        return f"{len(names)} settings"
    return _either([f"`{name}`" for name in names], word)
