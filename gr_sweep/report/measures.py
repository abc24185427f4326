"""Which metrics the report shows, in which order, and how it writes them.

What a metric is called and what it means is in `gr_sweep.metrics.registry`. Here are the digits,
and the bounds that stand in for a missing value. To show one more, add a `Measure` to `MAIN`.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from gr_sweep.domains import is_under
from gr_sweep.metrics import registry
from gr_sweep.metrics.registry import Metric, Over
from gr_sweep.report.sweep import Estimate, Job, estimate_of, mean_of, over_seeds

MISSING = "\N{EN DASH}"
"""Shown in a cell without a value."""
BELOW, FROM = "<", "\N{GREATER-THAN OR EQUAL TO} "
"""Signs of an upper and a lower bound."""


@dataclass(frozen=True)
class Text:
    """Writes a number."""

    digits: int
    """Decimals without an interval; with one, they follow it by at most one more or less."""
    sign: str = ""
    """`+` writes the sign of positive numbers too."""

    def __call__(self, value: float, digits: int | None = None) -> str:
        """The minus is as wide as the plus, and 0 has no sign."""
        places = self.digits if digits is None else digits
        text = f"{value:{self.sign},.{places}f}"
        if not text.strip("+-0.,"):
            text = text.lstrip("+-")
        return text.replace("-", "\N{MINUS SIGN}")

    def digits_of(self, estimate: Estimate) -> int:
        """Decimals that show two digits of half the interval if it begins with 1 or 2, else one."""
        low, high = estimate.interval or (0.0, 0.0)
        half = (high - low) / 2
        if not (half > 0 and math.isfinite(half)):
            return self.digits
        exponent = math.floor(math.log10(half))
        wanted = (half < 3 * 10**exponent) - exponent
        digits = max(0, min(max(wanted, self.digits - 1), self.digits + bool(self.digits)))
        # An interval without 0 must not look as if it had it.
        is_near_0 = low * high > 0 and min(abs(low), abs(high)) < 0.5 * 10**-digits
        return min(digits + is_near_0, 4)


nats = Text(3)
"""A loss."""
signed = Text(2, "+")
"""A difference."""
fraction = Text(2)
count = Text(0)
"""A number of things."""


def written(estimate: Estimate | None, text: Text) -> str:
    """The value of an estimate; `<1/8` for a bound that is a simple fraction."""
    if estimate is None:
        return MISSING
    simple = Fraction(estimate.value).limit_denominator(64)
    if estimate.bound == BELOW and simple == Fraction(estimate.value) and simple.numerator == 1:
        return f"{BELOW}{simple}"
    return estimate.bound + text(estimate.value, text.digits_of(estimate))


def interval_text(estimate: Estimate | None, text: Text) -> str:
    """The bounds of an interval; empty without one."""
    if estimate is None or estimate.interval is None:
        return ""
    low, high = (Text(text.digits)(end, text.digits_of(estimate)) for end in estimate.interval)
    return f"{low} to {high}"


def period(started: str, finished: str) -> str:
    """Two UTC times in ISO 8601, to the minute."""
    times = [time[:16].replace("T", " ") for time in (started, finished) if time]
    return f" {MISSING} ".join(times) + (" UTC" if times else "")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric as the report shows it: one value for each domain, and their mean."""

    metric: Metric
    text: Text
    """Writes a value."""
    worse: Metric | None = None
    """A metric present whenever the loss is. If it is present but the compute-equivalent is not,
    show '<share'."""
    censored: Metric | None = None
    """Metric that is 1 where the value is a lower bound."""
    below: Metric | None = None
    """Metric that is 1 where the value is an upper bound."""

    def of(self, job: Job, part: str | None = None) -> Estimate | None:
        """The job's value for one domain; without a domain its mean, or its only value."""
        if not self.metric.placeholders:
            return job.estimate(self.metric.key)
        if part is None:
            return self._mean(job)
        if self.metric.over is not Over.pairs:
            return self._at(job, part)
        return mean_of([self._at(job, part, d) for d in job.domains if not is_under(d, part)])

    def over_seeds(self, jobs: Sequence[Job], part: str | None = None) -> Estimate | None:
        """The mean of `of` over jobs that differ in their seed only."""
        return over_seeds(jobs, lambda job: self.of(job, part))

    def capped(self, value: float) -> float:
        """The value by which settings are compared: more than gone is not better than gone."""
        return min(value, 1.0) if self in UP_TO_1 else value

    def compared(self, job: Job) -> Estimate | None:
        """The mean by which settings are compared."""
        found = self.of(job)
        return found and dataclasses.replace(found, value=self.capped(found.value))

    def difference(self, first: Sequence[Job], second: Sequence[Job]) -> Estimate | None:
        """Mean of `compared` of the first jobs minus that of the second, paired by seed; the first
        job of a seed counts. None if they do not have the same seeds."""
        of_first, of_second = (
            {job.seed: of.value for job in reversed(jobs) if (of := self.compared(job))}
            for jobs in (first, second)
        )
        if of_first.keys() != of_second.keys():
            return None
        return estimate_of([of_first[seed] - of_second[seed] for seed in sorted(of_first)])

    def _mean(self, job: Job) -> Estimate | None:
        key = self.metric.mean
        if key in job.metrics:
            return job.estimate(key)
        if self.metric.over is Over.pairs:
            by_domain = [
                [self._at(job, part, domain) for part in job.parts if not is_under(domain, part)]
                for domain in job.domains
            ]
            return mean_of([mean_of(of_domain) for of_domain in by_domain if of_domain])
        parts = job.parts if self.metric.over is Over.removed else job.domains
        if not key:  # Of the domains that have a value, if all that can be removed do.
            parts = [d for d in job.domains if d in job.parts or self._at(job, d) is not None]
        return mean_of([self._at(job, part) for part in parts])

    def _at(self, job: Job, *names: str) -> Estimate | None:
        """The value for these names of the metric, or a bound."""
        found = job.estimate(self.metric(*names))
        if found is None:
            share = job.smallest_share
            if share is None or self.worse is None or self.worse(*names) not in job.metrics:
                return None
            return Estimate(value=share, bound=BELOW)
        for bound, metric in ((FROM, self.censored), (BELOW, self.below)):
            if metric and job.metrics.get(metric(*names)) == 1:
                return dataclasses.replace(found, bound=bound)
        return found


COMPUTE_EQUIVALENT = Measure(
    metric=registry.COMPUTE_EQUIVALENT_SERVED, text=fraction, worse=registry.SERVED_TAX
)
SERVED_LOSS = Measure(metric=registry.LOSS_SERVED, text=nats)
SERVED_TAX = Measure(metric=registry.SERVED_TAX, text=signed)
LOSS = Measure(metric=registry.LOSS_FULL, text=nats)
TAX = Measure(metric=registry.TAX, text=signed)
EXPERT_TAX = Measure(metric=registry.EXPERT_TAX, text=signed)
LEAF_TAX = Measure(metric=registry.LEAF_TAX, text=signed)
SERVED_REMOVAL = Measure(metric=registry.SERVED_REMOVAL, text=fraction)
REMOVAL = Measure(metric=registry.REMOVAL, text=fraction)
SELECTIVITY = Measure(metric=registry.SELECTIVITY, text=signed)
SERVED_REMOVED_TAX = Measure(metric=registry.SERVED_REMOVED_TAX, text=signed)
REMOVED_TAX = Measure(metric=registry.REMOVED_TAX, text=signed)
RELEARN_RATIO = Measure(
    metric=registry.RELEARN_RATIO,
    text=fraction,
    censored=registry.RELEARN_CENSORED,
    below=registry.RELEARN_FILTERED_CENSORED,
)

UP_TO_1 = (SERVED_REMOVAL, REMOVAL)
"""Metrics of which a value above 1 counts as 1."""

MAIN = (
    COMPUTE_EQUIVALENT,
    SERVED_LOSS,
    SERVED_TAX,
    Measure(metric=registry.COMPUTE_EQUIVALENT_FULL, text=fraction, worse=registry.TAX),
    LOSS,
    TAX,
    EXPERT_TAX,
    Measure(metric=registry.ALONE_TAX, text=signed),
    LEAF_TAX,
    Measure(metric=registry.COMPUTE_EQUIVALENT_KEPT, text=fraction, worse=registry.EXPERT_TAX),
    SERVED_REMOVAL,
    REMOVAL,
    SELECTIVITY,
    SERVED_REMOVED_TAX,
    REMOVED_TAX,
    Measure(
        metric=registry.COMPUTE_EQUIVALENT_SERVED_REMOVED,
        text=fraction,
        worse=registry.SERVED_MATRIX,
    ),
    Measure(metric=registry.COMPUTE_EQUIVALENT_REMOVED, text=fraction, worse=registry.MATRIX),
    Measure(metric=registry.FORGET_COMPUTE, text=fraction, worse=registry.SELECTIVITY),
    Measure(metric=registry.CALIBRATED_REMOVAL, text=fraction),
    Measure(metric=registry.UNLEARNED_REMOVAL, text=fraction),
    RELEARN_RATIO,
    Measure(metric=registry.RELEARN_LOSS, text=nats),
    Measure(metric=registry.RELEARN_FILTERED_LOSS, text=nats),
    Measure(metric=registry.RELEARN_TOKENS, text=count, censored=registry.RELEARN_CENSORED),
    Measure(
        metric=registry.RELEARN_FILTERED_TOKENS,
        text=count,
        censored=registry.RELEARN_FILTERED_CENSORED,
    ),
    Measure(metric=registry.LEAKAGE, text=fraction),
    Measure(metric=registry.SPURIOUS_GAP_FULL, text=signed),
    Measure(metric=registry.SPURIOUS_GAP_KEPT, text=signed),
    Measure(metric=registry.FOREIGN_DROPOUT, text=fraction),
    Measure(metric=registry.COST_TOKENS_PER_SECOND, text=count),
)
"""Columns of the table of settings, in order."""

BY_METRIC = {measure.metric: measure for measure in MAIN}
"""Every measure."""


def best_axes(jobs: Sequence[Job], wanted: Sequence[str] = ()) -> tuple[Measure, Measure]:
    """Utility and separability for the axes of the plot: the first pair that at least half as many
    jobs have as have the most common one; the last pair if no job has any. Before all, those among
    `wanted`, which are keys of metrics."""
    found = [m for m in BY_METRIC.values() if m.metric.key in wanted and m.metric.mean]
    utility = [m for m in found if m.metric.key.startswith(("utility/", "loss/"))]
    separability = [m for m in found if m.metric.key.startswith(("separability/", "robustness/"))]
    if utility and separability:
        return utility[0], separability[0]
    pairs = [(BY_METRIC[utility], BY_METRIC[other]) for utility, other in registry.AXES]
    counts = [
        sum(first.of(job) is not None and second.of(job) is not None for job in jobs)
        for first, second in pairs
    ]
    enough = max(counts, default=0) / 2
    known = (pair for pair, of in zip(pairs, counts, strict=True) if of and of >= enough)
    return next(known, pairs[-1])
