"""Which metrics the report shows, in which order, and how it writes them.

What a metric is called and what it means is in `gr_sweep.metrics.registry`. Here are the digits,
and what is known about a value that is missing or a lower bound. To show one more metric, add a
`Measure` to `MAIN` (comparison table) or `ROBUST` (robustness table).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gr_sweep.domains import is_under
from gr_sweep.metrics import registry
from gr_sweep.metrics.registry import Metric, Over
from gr_sweep.report.sweep import Estimate, Job

Text = Callable[[float], str]

MISSING = "\N{EN DASH}"
"""Shown in a cell without a value."""


def nats(value: float) -> str:
    """A loss, with three decimals."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """A difference with its sign and two decimals; the minus is as wide as the plus."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "\N{MINUS SIGN}")


def unsigned(value: float) -> str:
    """Like `signed` without the plus: fractions, and bounds of intervals."""
    return signed(value).removeprefix("+")


def count(value: float) -> str:
    """A number of things, with thousands separators."""
    return f"{value:,.0f}"


def percent(value: float) -> str:
    """A fraction in percent."""
    return f"{100 * value:.0f} %"


def below(bound: float) -> str:
    """ "Less than" a fraction, written as 1/n where it is one."""
    fraction = Fraction(bound).limit_denominator(64)
    is_simple = fraction.numerator == 1 and abs(float(fraction) - bound) < 1e-3
    return f"<{fraction}" if is_simple else f"<{bound:.2f}"


def interval_text(estimate: Estimate | None, text: Text) -> str:
    """The bounds of an estimate; empty if it has none."""
    if estimate is None or estimate.interval is None:
        return ""
    low, high = estimate.interval
    return f"{text(low)} to {text(high)}"


def number_text(estimate: Estimate) -> str:
    """A value and its interval, for a tooltip."""
    if estimate.interval is None:
        return f"{estimate.value:.3f}"
    low, high = estimate.interval
    return f"{estimate.value:.3f} [{low:.3f}, {high:.3f}]"


def rounded(number: float) -> str:
    """Two digits and a letter: 4.3M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            digits = ".2g" if number < 100 * size else ".0f"
            return f"{number / size:{digits}}{letter}"
    return f"{number:.0f}"


def mean_of(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """Mean; None if one is missing or there are none. The mean of several has no interval, which
    would need their resamples."""
    found = [estimate for estimate in estimates if estimate is not None]
    if not found or len(found) < len(estimates):
        return None
    if len(found) == 1:
        return found[0]
    return Estimate(value=sum(estimate.value for estimate in found) / len(found))


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric as the report shows it: one value for each domain, and their mean."""

    metric: Metric
    text: Text
    """Writes a value."""
    loss: Callable[[str, str], str] | None = None
    """Of a compute-equivalent: key of the loss it is computed from, by part and domain."""
    censored: Metric | None = None
    """Metric that is 1 where the value is a lower bound."""
    fallback: Metric | None = None
    """Metric that stands in where a job lacks this one."""

    @property
    def name(self) -> str:
        """Title of its columns."""
        return self.metric.title

    @property
    def direction(self) -> int:
        """1: higher is better, -1: lower is better, 0: neither."""
        return self.metric.direction

    @property
    def has_parts(self) -> bool:
        """Whether it has a value for each domain, not only one for the job."""
        return bool(self.metric.placeholders)

    @property
    def key(self) -> str | None:
        """Key of the mean, or of the only value; None if the mean has no key."""
        return self.metric.mean if self.has_parts else self.metric.key

    @property
    def axis(self) -> str:
        """Label of an axis that shows the mean."""
        return self.metric.mean_axis if self.has_parts else self.metric.axis

    @property
    def bound(self) -> Text:
        """Writes the bounds of an interval."""
        return unsigned if self.text is signed else self.text

    def of(self, job: Job, part: str | None) -> Estimate | None:
        """The job's value for one domain, or its mean (`part` None)."""
        if part is None or not self.has_parts:
            return self.mean(job)
        if self.metric.over is Over.pairs:
            others = [domain for domain in job.domains if not is_under(domain, part)]
            return mean_of([job.estimate(self.metric(part, domain)) for domain in others])
        found = job.estimate(self.metric(part))
        return job.estimate(self.fallback(part)) if not found and self.fallback else found

    def mean(self, job: Job) -> Estimate | None:
        """The job's mean. Without a key for it, the mean over the domains that have a value,
        provided that every domain with a selectivity is among them."""
        if self.key is not None and self.fallback is None:
            return job.estimate(self.key)
        found = {part: self.of(job, part) for part in job.domains}
        if any(found[part] is None for part in job.parts):
            return None
        return mean_of([estimate for estimate in found.values() if estimate is not None])

    def at_most(self, job: Job, part: str | None = None) -> float | None:
        """Upper bound of a missing compute-equivalent: the model is worse than the shortest dense
        run. None where nothing is known."""
        if self.loss is None:
            return None
        over = self.metric.over
        parts = [part] if part else (job.domains if over is Over.domains else job.parts)
        if over is Over.pairs:
            by_domain = [
                [self._at_most(job, (at, d), [d]) for at in parts if not is_under(d, at)]
                for d in job.domains
            ]
            return _mean([_mean(found) for found in by_domain if found])
        found = []
        for at in parts:
            own = [at] if over is Over.domains else [d for d in job.domains if is_under(d, at)]
            found.append(self._at_most(job, (at,), own))
        return _mean(found)

    def _at_most(self, job: Job, names: tuple[str, ...], domains: Sequence[str]) -> float | None:
        assert self.loss is not None
        found = job.estimate(self.metric(*names))
        if found is not None:
            return found.value
        needed = [key for d in domains for key in (self.loss(names[0], d), registry.TAX(d))]
        is_worse = bool(needed) and all(key in job.metrics for key in needed)
        return job.smallest_share if is_worse else None

    def is_censored(self, job: Job, part: str | None) -> bool:
        """Whether the value is a lower bound."""
        parts = job.domains if part is None else [part]
        return self.censored is not None and any(
            job.metrics.get(self.censored(at)) == 1 for at in parts
        )

    def known(self, job: Job) -> Estimate | None:
        """The job's mean, or the bound that it is known to be below."""
        estimate = self.mean(job)
        bound = self.at_most(job) if estimate is None else None
        return estimate if bound is None else Estimate(value=bound)

    def written(self, job: Job, part: str | None) -> str:
        """The job's value as a table shows it."""
        estimate = self.of(job, part)
        if estimate is None:
            bound = self.at_most(job, part)
            return MISSING if bound is None else below(bound)
        sign = "\N{GREATER-THAN OR EQUAL TO} " if self.is_censored(job, part) else ""
        return sign + self.text(estimate.value)


def _mean(known: Sequence[float | None]) -> float | None:
    found = [value for value in known if value is not None]
    return sum(found) / len(found) if found and len(found) == len(known) else None


COMPUTE_EQUIVALENT = Measure(
    metric=registry.COMPUTE_EQUIVALENT_FULL,
    text=unsigned,
    loss=lambda part, domain: registry.LOSS_FULL(domain),
)
LOSS = Measure(metric=registry.LOSS_FULL, text=nats)
TAX = Measure(metric=registry.TAX, text=signed)
EXPERT_TAX = Measure(metric=registry.EXPERT_TAX, text=signed)
LEAF_TAX = Measure(metric=registry.LEAF_TAX, text=signed)
ALONE_TAX = Measure(metric=registry.ALONE_TAX, text=signed)
REMOVAL = Measure(metric=registry.REMOVAL, text=unsigned)
SELECTIVITY = Measure(metric=registry.SELECTIVITY, text=signed)
REMOVED_TAX = Measure(metric=registry.REMOVED_TAX, text=signed)
SPEED = Measure(metric=registry.COST_TOKENS_PER_SECOND, text=count)

MAIN = (
    COMPUTE_EQUIVALENT,
    LOSS,
    TAX,
    EXPERT_TAX,
    ALONE_TAX,
    LEAF_TAX,
    Measure(
        metric=registry.COMPUTE_EQUIVALENT_KEPT,
        text=unsigned,
        loss=lambda part, domain: registry.LOSS_KEPT(part, domain),
    ),
    Measure(metric=registry.MIXED_TAX, text=signed),
    REMOVAL,
    SELECTIVITY,
    REMOVED_TAX,
    Measure(
        metric=registry.COMPUTE_EQUIVALENT_REMOVED,
        text=unsigned,
        loss=lambda part, domain: registry.LOSS_REMOVED(part, domain),
    ),
    Measure(
        metric=registry.FORGET_COMPUTE,
        text=unsigned,
        loss=lambda part, domain: registry.LOSS_REMOVED(part, domain),
    ),
    SPEED,
)
"""Columns of the comparison table, in order."""

CHIEF = (COMPUTE_EQUIVALENT, LOSS, TAX, EXPERT_TAX, REMOVAL, SELECTIVITY, REMOVED_TAX)
"""Those compared over seeds."""

AXES = (
    (COMPUTE_EQUIVALENT, REMOVAL),
    (TAX, REMOVAL),
    (EXPERT_TAX, REMOVAL),
    (TAX, SELECTIVITY),
    (LOSS, SELECTIVITY),
)
"""Pairs of utility and separability for the axes of a plot, the best first."""

REMOVED = Measure(metric=registry.REMOVAL, text=unsigned, fallback=registry.UNLEARNED_REMOVAL)
"""Removal, or what unlearning a dense model comes to: shown next to the robustness metrics."""

OF_TEXT = (
    Measure(metric=registry.SPURIOUS_GAP_FULL, text=signed),
    Measure(metric=registry.SPURIOUS_GAP_KEPT, text=signed),
)
"""Effect of changes to the text, which every model has."""

ROBUST = (
    Measure(metric=registry.CALIBRATED_REMOVAL, text=unsigned),
    Measure(metric=registry.RELEARN_LOSS, text=nats),
    Measure(metric=registry.RELEARN_FILTERED_LOSS, text=nats),
    Measure(metric=registry.RELEARN_STEPS, text=count, censored=registry.RELEARN_CENSORED),
    Measure(
        metric=registry.RELEARN_FILTERED_STEPS,
        text=count,
        censored=registry.RELEARN_FILTERED_CENSORED,
    ),
    Measure(metric=registry.LEAKAGE, text=unsigned),
    *OF_TEXT,
)
"""Columns of the robustness table, in order."""


def best_axes(jobs: Sequence[Job]) -> tuple[Measure, Measure]:
    """The first pair of `AXES` that at least half as many jobs have as have the most common one;
    the last pair if no job has any."""
    counts = [sum(place(job, axes) is not None for job in jobs) for axes in AXES]
    enough = max(counts, default=0) / 2
    return next(
        (axes for axes, found in zip(AXES, counts, strict=True) if found and found >= enough),
        AXES[-1],
    )


def place(job: Job, axes: tuple[Measure, Measure]) -> tuple[Estimate, Estimate] | None:
    """Coordinates of a job in a plot; None if one is missing. A utility that is only known to be
    below a bound stands at the bound."""
    utility, separability = axes[0].known(job), axes[1].mean(job)
    return None if utility is None or separability is None else (utility, separability)
