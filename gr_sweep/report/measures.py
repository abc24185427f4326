"""What jobs are compared by: every measure once, with its name, direction and how it is written.

Tables and plots take their columns and axes from here, so that a measure is called the same
everywhere. Knows keys and nothing of how they are measured or laid out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gr_sweep.domains import is_under
from gr_sweep.metrics import registry
from gr_sweep.report.collect import Estimate, Job

Text = Callable[[float], str]

MISSING = "\N{EN DASH}"
"""What a cell without a value shows."""


def nats(value: float) -> str:
    """A loss in nats with three decimals."""
    return f"{value:.3f}"


def signed(value: float) -> str:
    """A difference in nats with its sign and two decimals; a true minus, as wide as a plus."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "\N{MINUS SIGN}")


def unsigned(value: float) -> str:
    """As `signed` without the plus: for shares, and for the bounds of an interval."""
    return signed(value).removeprefix("+")


def count(value: float) -> str:
    """A number of things, with separators."""
    return f"{value:,.0f}"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number that each job may have: for a domain or part, and as the mean over them."""

    name: str
    """Of its columns; short."""
    axis: str
    """What an axis says, with the unit."""
    meaning: str
    """For people who do not know the formula; metrics.md has that."""
    direction: int
    """1: higher is better, -1: lower, 0: neither."""
    of: Callable[[Job, str], Estimate | None] | None
    """The job's number for one domain, or for one part that can be removed; None: no such."""
    key: str | None = None
    """Of the mean; None: the mean over the domains that have it, without an interval, if none that
    the job has a selectivity of is missing."""
    text: Text
    """How a value is written."""
    at_most: Callable[[Job, str | None], float | None] = lambda job, part: None
    """Where a value is missing (None: the mean) but known to be below a number: that number."""
    is_censored: Callable[[Job, str], bool] = lambda job, part: False
    """Whether the value is a lower bound alone."""

    @property
    def bound(self) -> Text:
        """How the bounds of its interval are written."""
        return unsigned if self.text is signed else self.text

    def mean(self, job: Job) -> Estimate | None:
        """The job's mean; None where it has none."""
        if self.key is not None:
            return job.estimate(self.key)
        of = self.of
        assert of is not None  # A measure without a key has a number a part.
        found = {part: of(job, part) for part in job.domains}
        if any(found[part] is None for part in job.parts):
            return None
        return mean_of([estimate for estimate in found.values() if estimate is not None])

    def written(self, job: Job, part: str | None) -> str:
        """The job's value for a part, or its mean (None), with what is known of it."""
        estimate = self.mean(job) if part is None or self.of is None else self.of(job, part)
        if estimate is None:
            bound = self.at_most(job, part)
            return MISSING if bound is None else below(bound)
        parts = job.domains if part is None else [part]
        least = "\N{GREATER-THAN OR EQUAL TO} " * any(self.is_censored(job, at) for at in parts)
        return least + self.text(estimate.value)


def below(bound: float) -> str:
    """Less than a share: as a fraction where it is a simple one."""
    fraction = Fraction(bound).limit_denominator(64)
    simple = fraction.numerator == 1 and abs(float(fraction) - bound) < 1e-3
    return f"<{fraction}" if simple else f"<{bound:.2f}"


def mean_of(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """Mean of estimates; None where one is missing, or there are none. Of several it has no
    interval: that would take their resamples."""
    found = [estimate for estimate in estimates if estimate is not None]
    if not found or len(found) < len(estimates):
        return None
    if len(found) == 1:
        return found[0]
    return Estimate(value=sum(estimate.value for estimate in found) / len(found))


def _of(key: Callable[[str], str]) -> Callable[[Job, str], Estimate | None]:
    return lambda job, part: job.estimate(key(part))


def _over_others(key: Callable[[str, str], str]) -> Callable[[Job, str], Estimate | None]:
    """Mean of key(part, d) over the domains that stay when the part is removed."""

    def of(job: Job, part: str) -> Estimate | None:
        others = [domain for domain in job.domains if not is_under(domain, part)]
        return mean_of([job.estimate(key(part, domain)) for domain in others])

    return of


def _known(job: Job, key: str, loss_key: str, domains: Sequence[str]) -> float | None:
    """A compute equivalent or, where it is missing beside its loss and the dense runs that it would
    come from, the smallest share: the shortest dense run was better."""
    estimate = job.estimate(key)
    if estimate is not None:
        return estimate.value
    needed = [registry.TAX(domain) for domain in domains]
    has_all = all(job.estimate(name) is not None for name in (loss_key, *needed))
    return job.smallest_share if has_all else None


def _mean_known(known: Sequence[float | None]) -> float | None:
    found = [value for value in known if value is not None]
    return sum(found) / len(found) if found and len(found) == len(known) else None


def _full_at_most(job: Job, part: str | None) -> float | None:
    def known(domain: str) -> float | None:
        key = registry.COMPUTE_EQUIVALENT_FULL(domain)
        return _known(job, key, registry.LOSS_FULL(domain), [domain])

    return _mean_known([known(domain) for domain in ([part] if part else job.domains)])


def _kept_at_most(job: Job, part: str | None) -> float | None:
    def known(domain: str) -> float | None:
        key = registry.COMPUTE_EQUIVALENT_KEPT(domain)
        return _known(job, key, registry.LOSS_KEPT(domain, domain), [domain])

    return _mean_known([known(domain) for domain in ([part] if part else job.domains)])


def _removed_at_most(job: Job, part: str | None) -> float | None:
    def known(removed: str, domain: str) -> float | None:
        key = registry.COMPUTE_EQUIVALENT_REMOVED(removed, domain)
        return _known(job, key, registry.LOSS_REMOVED(removed, domain), [domain])

    over_parts = []
    for domain in job.domains:
        parts = [at for at in ([part] if part else job.parts) if not is_under(domain, at)]
        if parts:
            over_parts.append(_mean_known([known(removed, domain) for removed in parts]))
    return _mean_known(over_parts)


def _forget_at_most(job: Job, part: str | None) -> float | None:
    def known(removed: str) -> float | None:
        own = [domain for domain in job.domains if is_under(domain, removed)]
        if not own or any(job.estimate(registry.LOSS_REMOVED(removed, at)) is None for at in own):
            return None
        loss_key = registry.LOSS_REMOVED(removed, own[0])
        return _known(job, registry.FORGET_COMPUTE(removed), loss_key, own)

    return _mean_known([known(removed) for removed in ([part] if part else job.parts)])


COMPUTE_EQUIVALENT = Measure(
    name="compute-equivalent",
    axis="mean compute-equivalent, share of dense tokens",
    meaning="share of the dense model's tokens at which dense training is as good; "
    "1 is free, <1/8 is worse than the dense run on an eighth",
    direction=1,
    of=_of(registry.COMPUTE_EQUIVALENT_FULL),
    key=registry.MEAN_COMPUTE_EQUIVALENT,
    text=unsigned,
    at_most=_full_at_most,
)
LOSS = Measure(
    name="loss L(d)",
    axis="mean L(d), nats per token",
    meaning="held-out loss of the full model",
    direction=-1,
    of=_of(registry.LOSS_FULL),
    key=registry.MEAN_LOSS,
    text=nats,
)
TAX = Measure(
    name="tax",
    axis="mean tax, nats over dense",
    meaning="loss of the full model less that of the dense model; 0 is free",
    direction=-1,
    of=_of(registry.TAX),
    key=registry.MEAN_TAX,
    text=signed,
)
EXPERT_TAX = Measure(
    name="expert tax",
    axis="mean expert tax, nats over dense",
    meaning="loss of a domain's part kept alone, on that domain, less that of the dense model",
    direction=-1,
    of=_of(registry.EXPERT_TAX),
    key=registry.MEAN_EXPERT_TAX,
    text=signed,
)
LEAF_TAX = Measure(
    name="leaf tax",
    axis="mean leaf tax, nats over dense",
    meaning="of procedure=alternate: loss of each document in the expert of its own last label "
    "alone, less that of the dense model",
    direction=-1,
    of=_of(registry.LEAF_TAX),
    key=registry.MEAN_LEAF_TAX,
    text=signed,
)
ALONE_TAX = Measure(
    name="alone tax",
    axis="mean expert tax, nats over a dense model of its size",
    meaning="loss of a domain's part kept alone, on that domain, less that of a dense model of "
    "its size trained on that domain alone; of alternate each document in its own expert",
    direction=-1,
    of=_of(registry.ALONE_TAX),
    key=registry.MEAN_ALONE_TAX,
    text=signed,
)
MIXED_TAX = Measure(
    name="mixed tax",
    axis="mean tax of mixed experts, nats over dense",
    meaning="loss of the experts mixed by their posterior over domains, less that "
    "of the dense model",
    direction=-1,
    of=_of(registry.MIXED_TAX),
    key=registry.MEAN_MIXED_TAX,
    text=signed,
)
REMOVAL = Measure(
    name="removal",
    axis="mean removal",
    meaning="share of the way, on the removed domain, from the full model to one "
    "never trained on it; 1 is as if never trained, above 1 is worse",
    direction=1,
    of=_of(registry.REMOVAL),
    key=registry.MEAN_REMOVAL,
    text=unsigned,
)
SELECTIVITY = Measure(
    name="selectivity",
    axis="mean selectivity, nats",
    meaning="what removing a domain costs it, less what it costs the others; 0 for "
    "labels without meaning",
    direction=1,
    of=_of(registry.SELECTIVITY),
    key=registry.MEAN_SELECTIVITY,
    text=signed,
)
REMOVED_TAX = Measure(
    name="removed tax",
    axis="mean tax of the others after removal, nats over filtered",
    meaning="loss that removal leaves the other domains, less that of a model never "
    "trained on the removed one",
    direction=-1,
    of=_over_others(registry.REMOVED_TAX),
    key=registry.MEAN_REMOVED_TAX,
    text=signed,
)
REMOVED_COMPUTE = Measure(
    name="removed compute",
    axis="mean compute-equivalent of the others after removal",
    meaning="compute-equivalent of the other domains after removal",
    direction=1,
    of=_over_others(registry.COMPUTE_EQUIVALENT_REMOVED),
    key=registry.MEAN_REMOVED_COMPUTE_EQUIVALENT,
    text=unsigned,
    at_most=_removed_at_most,
)
KEPT_COMPUTE = Measure(
    name="expert compute",
    axis="mean compute-equivalent of the expert alone",
    meaning="compute-equivalent of a domain's part kept alone, on that domain",
    direction=1,
    of=_of(registry.COMPUTE_EQUIVALENT_KEPT),
    key=registry.MEAN_KEPT_COMPUTE_EQUIVALENT,
    text=unsigned,
    at_most=_kept_at_most,
)
FORGET_COMPUTE = Measure(
    name="forget compute",
    axis="mean compute-equivalent of what is left after removal",
    meaning="compute-equivalent of what is left on the removed domain",
    direction=-1,
    of=_of(registry.FORGET_COMPUTE),
    key=registry.MEAN_FORGET_COMPUTE,
    text=unsigned,
    at_most=_forget_at_most,
)
SPEED = Measure(
    name="tokens/s",
    axis="tokens a second",
    meaning="training speed",
    direction=1,
    of=None,
    key=registry.COST_TOKENS_PER_SECOND.key,
    text=count,
)

MAIN = (
    COMPUTE_EQUIVALENT, LOSS, TAX, EXPERT_TAX, ALONE_TAX, LEAF_TAX, KEPT_COMPUTE, MIXED_TAX,
    REMOVAL, SELECTIVITY, REMOVED_TAX, REMOVED_COMPUTE, FORGET_COMPUTE, SPEED,
)  # fmt: skip
"""The comparison table's, in its order."""

CHIEF = (COMPUTE_EQUIVALENT, LOSS, TAX, EXPERT_TAX, REMOVAL, SELECTIVITY, REMOVED_TAX)
"""Those for which differences between groups are shown, and that fit a terminal."""

AXES = (
    (COMPUTE_EQUIVALENT, REMOVAL),
    (TAX, REMOVAL),
    (EXPERT_TAX, REMOVAL),
    (TAX, SELECTIVITY),
    (LOSS, SELECTIVITY),
)
"""Utility and separability, the best pair first: a plot takes the first that enough jobs have."""


def _removal_or_unlearning(job: Job, part: str) -> Estimate | None:
    return job.estimate(registry.REMOVAL(part)) or job.estimate(registry.UNLEARNED_REMOVAL(part))


def _was_not_reached(key: Callable[[str], str]) -> Callable[[Job, str], bool]:
    return lambda job, part: job.metrics.get(key(part)) == 1


REMOVED = Measure(
    name="removal",
    axis="removal",
    meaning="as in the comparison; for a dense model what unlearning comes to",
    direction=1,
    of=_removal_or_unlearning,
    text=unsigned,
)
"""Removal, and what unlearning comes to: beside the measures of robustness, to compare with."""

OF_TEXT = (
    Measure(
        name="spurious gap",
        axis="spurious gap, nats",
        meaning="loss on text with another domain's marker less that on text with the "
        "right one; 0: the marker is not used",
        direction=-1,
        of=_of(registry.SPURIOUS_GAP_FULL),
        text=signed,
    ),
    Measure(
        name="spurious gap, expert",
        axis="spurious gap of the expert alone, nats",
        meaning="the same for the domain's part kept alone",
        direction=-1,
        of=_of(registry.SPURIOUS_GAP_KEPT),
        text=signed,
    ),
)
"""What changing the text does: every model has these."""

ROBUST = (
    Measure(
        name="calibrated removal",
        axis="calibrated removal",
        meaning="removal after a bias on the logits is fitted on text of the domain; "
        "near removal where more is gone than word frequencies",
        direction=1,
        of=_of(registry.CALIBRATED_REMOVAL),
        key=registry.MEAN_CALIBRATED_REMOVAL,
        text=unsigned,
    ),
    Measure(
        name="relearned loss",
        axis="lowest loss after relearning, nats per token",
        meaning="lowest held-out loss on the domain while fine-tuning teaches it again, "
        "at the learning rate that comes lowest",
        direction=1,
        of=_of(registry.RELEARN_LOSS),
        text=nats,
    ),
    Measure(
        name="filtered: loss",
        axis="lowest loss of the filtered model, nats per token",
        meaning="the same of a model that never saw the domain",
        direction=0,
        of=_of(registry.RELEARN_FILTERED_LOSS),
        text=nats,
    ),
    Measure(
        name="relearning steps",
        axis="steps to relearn half",
        meaning="steps of the attack to half of what there is to learn; ≥ where it was "
        "not reached on some domain",
        direction=1,
        of=_of(registry.RELEARN_STEPS),
        text=count,
        is_censored=_was_not_reached(registry.RELEARN_CENSORED),
    ),
    Measure(
        name="filtered: steps",
        axis="steps of the filtered model to learn half",
        meaning="the same of a model that never saw the domain",
        direction=0,
        of=_of(registry.RELEARN_FILTERED_STEPS),
        text=count,
        is_censored=_was_not_reached(registry.RELEARN_FILTERED_CENSORED),
    ),
    Measure(
        name="leakage",
        axis="leakage",
        meaning="share of what the domain's text without its label could teach that is "
        "left after removal",
        direction=-1,
        of=_of(registry.LEAKAGE),
        key=registry.MEAN_LEAKAGE,
        text=unsigned,
    ),
    *OF_TEXT,
)
"""The robustness table's."""


def best_axes(jobs: Sequence[Job]) -> tuple[Measure, Measure]:
    """The first pair of AXES that half or more have of the jobs that have any; the last pair where
    none has any."""
    counts = [sum(place(job, axes) is not None for job in jobs) for axes in AXES]
    enough = max(counts, default=0) / 2
    return next(
        (axes for axes, found in zip(AXES, counts, strict=True) if found and found >= enough),
        AXES[-1],
    )


def place(job: Job, axes: tuple[Measure, Measure]) -> tuple[Estimate, Estimate] | None:
    """Where a job stands in a plot; at the bound where its utility is known to be below one. None
    where one of the two is missing."""
    utility, separability = known(axes[0], job), axes[1].mean(job)
    return None if utility is None or separability is None else (utility, separability)


def known(measure: Measure, job: Job) -> Estimate | None:
    """The job's mean, or the number that it is known to be below."""
    estimate = measure.mean(job)
    bound = measure.at_most(job, None) if estimate is None else None
    return estimate if bound is None else Estimate(value=bound)
