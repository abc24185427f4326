"""Which metrics the report shows, in which order, and how it writes them.

What a metric is called and what it means is in `gr_sweep.metrics.registry`. To show one more, add a
`Measure` to `MAIN`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from gr_sweep.domains import is_under
from gr_sweep.metrics import registry
from gr_sweep.metrics.registry import Metric, Over
from gr_sweep.report.sweep import Estimate, Job, Sweep, estimate_of, mean_of

MISSING = "\N{EN DASH}"
"""Shown in a cell without a value."""
BELOW, FROM = "<", "\N{GREATER-THAN OR EQUAL TO} "
"""Signs of an upper and a lower bound."""


@dataclass(frozen=True)
class Text:
    """Writes a number with so many decimals, which follow its interval by at most one more or less.
    The sign `+` is written with positive numbers too."""

    digits: int
    sign: str = ""

    def __call__(self, value: float, digits: int | None = None) -> str:
        """The minus is as wide as the plus, and 0 has no sign."""
        text = f"{value:{self.sign},.{self.digits if digits is None else digits}f}"
        if not text.strip("+-0.,"):
            text = text.lstrip("+-")
        return text.replace("-", "\N{MINUS SIGN}")

    def value(self, estimate: Estimate | None) -> str:
        """The value of an estimate; `<1/8` for a bound that is a simple fraction."""
        if estimate is None:
            return MISSING
        simple = Fraction(estimate.value).limit_denominator(64)
        if estimate.bound == BELOW and simple == estimate.value and simple.numerator == 1:
            return f"{BELOW}{simple}"
        return estimate.bound + self(estimate.value, self._digits_of(estimate))

    def difference(self, estimate: Estimate | None) -> str:
        """As `value`; without an interval, with the decimals that its first digit needs."""
        if estimate is None or estimate.interval is not None or abs(estimate.value) < 1e-9:
            return self.value(estimate)
        first = -math.floor(math.log10(abs(estimate.value)))
        return estimate.bound + self(estimate.value, max(self.digits, first))

    def interval(self, estimate: Estimate | None) -> str:
        """The bounds of an interval; empty without one."""
        if estimate is None or estimate.interval is None:
            return ""
        unsigned, digits = Text(self.digits), self._digits_of(estimate)
        return " to ".join(unsigned(end, digits) for end in estimate.interval)

    def _digits_of(self, estimate: Estimate) -> int:
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


nats, signed, fraction, count = Text(3), Text(2, "+"), Text(2), Text(0)
"""A loss, a difference of losses, a fraction, a number of things."""


@dataclass(frozen=True)
class Measure:
    """A metric as the report shows it: one value for each domain, and their mean."""

    metric: Metric
    worse: Metric | None = None
    """A metric present whenever the loss is. If it is present but the compute-equivalent is not,
    show '<share'."""
    censored: Metric | None = None
    """Metric that is 1 where the value is a lower bound."""
    below: Metric | None = None
    """Metric that is 1 where the value is an upper bound."""
    most: float = math.inf
    """A value above it counts as it."""

    @property
    def text(self) -> Text:
        """Writes a value."""
        if self.metric.unit.startswith("nats"):
            return nats if self.metric.key.startswith(("loss/", "robustness/relearn/")) else signed
        return count if self.metric.unit.startswith("tokens") else fraction

    def of(self, job: Job, part: str | None = None) -> Estimate | None:
        """The job's value for one domain; without a domain its mean, or its only value."""
        if not self.metric.placeholders:
            return job.estimate(self.metric.key)
        if part is None:
            return self._mean(job)
        if self.metric.over is not Over.pairs:
            return self._at(job, part)
        return mean_of([self._at(job, part, d) for d in job.domains if not is_under(d, part)])

    def compared(self, job: Job) -> Estimate | None:
        """The mean by which settings are compared."""
        found = self.of(job)
        return found and dataclasses.replace(found, value=min(found.value, self.most))

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
            return Estimate(share, bound=BELOW)
        for bound, metric in ((FROM, self.censored), (BELOW, self.below)):
            if metric and job.metrics.get(metric(*names)) == 1:
                return dataclasses.replace(found, bound=bound)
        return found


MAIN = (
    Measure(registry.COMPUTE_EQUIVALENT_SERVED, worse=registry.SERVED_TAX),
    Measure(registry.LOSS_SERVED),
    Measure(registry.SERVED_TAX),
    Measure(registry.COMPUTE_EQUIVALENT_FULL, worse=registry.TAX),
    Measure(registry.LOSS_FULL),
    Measure(registry.TAX),
    Measure(registry.EXPERT_TAX),
    Measure(registry.ALONE_TAX),
    Measure(registry.LEAF_TAX),
    Measure(registry.COMPUTE_EQUIVALENT_KEPT, worse=registry.EXPERT_TAX),
    Measure(registry.SERVED_REMOVAL, most=1.0),  # More than gone is not better than gone.
    Measure(registry.REMOVAL, most=1.0),
    Measure(registry.SELECTIVITY),
    Measure(registry.SERVED_REMOVED_TAX),
    Measure(registry.REMOVED_TAX),
    Measure(registry.COMPUTE_EQUIVALENT_SERVED_REMOVED, worse=registry.SERVED_MATRIX),
    Measure(registry.COMPUTE_EQUIVALENT_REMOVED, worse=registry.MATRIX),
    Measure(registry.FORGET_COMPUTE, worse=registry.SELECTIVITY),
    Measure(registry.CALIBRATED_REMOVAL),
    Measure(registry.UNLEARNED_REMOVAL),
    Measure(
        registry.RELEARN_RATIO,
        censored=registry.RELEARN_CENSORED,
        below=registry.RELEARN_FILTERED_CENSORED,
    ),
    Measure(registry.RELEARN_LOSS),
    Measure(registry.RELEARN_FILTERED_LOSS),
    Measure(registry.RELEARN_TOKENS, censored=registry.RELEARN_CENSORED),
    Measure(registry.RELEARN_FILTERED_TOKENS, censored=registry.RELEARN_FILTERED_CENSORED),
    Measure(registry.LEAKAGE),
    Measure(registry.SPURIOUS_GAP_FULL),
    Measure(registry.SPURIOUS_GAP_KEPT),
    Measure(registry.FOREIGN_DROPOUT),
    Measure(registry.COST_TOKENS_PER_SECOND),
)
"""Columns of the table of settings, in order."""

BY_METRIC = {measure.metric: measure for measure in MAIN}
"""Every measure."""


Numbers = dict[tuple[Measure, str | None], dict[str, Estimate | None]]
"""By measure and domain (None: its mean or only value), and by the jobs' names."""


@functools.lru_cache(maxsize=1)
def numbers(sweep: Sweep) -> Numbers:
    """All measures that any compared job has: each as a mean, then of each domain or node."""
    jobs = sweep.compared
    keys = {key for job in jobs for key in job.metrics}
    known = {of[0] for key in keys if (of := registry.find(key))}
    nodes = dict.fromkeys(node for job in jobs for node in job.nodes)
    found = {}
    for measure in MAIN:
        if measure.metric in known or measure.worse in known:
            for part in (None, *(nodes if measure.metric.placeholders else ())):
                by_job = {job.name: measure.of(job, part) for job in jobs}
                if any(by_job.values()):
                    found[measure, part] = by_job
    return found


def best_axes(jobs: Sequence[Job], wanted: Sequence[str] = ()) -> tuple[Measure, Measure]:
    """Utility and separability for the axes of the plot: the first pair that at least half as many
    jobs have as have the most common one; the last pair if no job has any. Before all, those among
    `wanted`, which are keys of metrics."""
    found = [m for m in MAIN if m.metric.key in wanted and m.metric.mean]
    for first, other in itertools.permutations(found, 2):
        is_utility = first.metric.key.startswith(("utility/", "loss/"))
        if is_utility and other.metric.key.startswith(("separability/", "robustness/")):
            return first, other
    pairs = [(BY_METRIC[utility], BY_METRIC[other]) for utility, other in registry.AXES]
    counts = [sum(bool(first.of(job) and other.of(job)) for job in jobs) for first, other in pairs]
    enough = max(1, max(counts, default=0) / 2)
    return next((pair for pair, n in zip(pairs, counts, strict=True) if n >= enough), pairs[-1])
