"""What the registry says about a metric: its key, unit, direction, formula, meaning and mean."""

import enum
import functools
import re
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

from gr_sweep.config import Baseline
from gr_sweep.domains import metric_name

PLACEHOLDER = re.compile(r"\{\w+\}")
"""A name in the template of a key."""


class Over(enum.Enum):
    """What a mean is taken over, each entry with the same weight. A mean is absent where one of
    its entries is."""

    domains = "domains"
    removed = "removed domains"
    """Domains that were removed; inner nodes of the domain tree are left out."""
    pairs = "pairs of a removed domain and another"
    """First over the removed domains for each domain that stays, then over those domains. Such a
    metric has a value only for a domain that is not under the removed one."""


@dataclass(frozen=True)
class Metric:
    """One metric. Calling it with names builds a key: `TAX("code")` is "utility/tax/code"."""

    key: str
    """Key, or the template of its keys: `{domain}` (d), `{part}` (e), `{block}`, `{owners}`."""
    title: str
    """Short name, for the head of a column."""
    meaning: str
    """One line for readers who do not know the formula."""
    _: KW_ONLY
    unit: str = ""
    """Empty for a fraction or ratio."""
    direction: int = 0
    """1: higher is better, -1: lower is better, 0: neither."""
    formula: str = ""
    """Definition, in the letters that `gr_sweep.metrics.registry` explains."""
    value: Callable[..., Any] | None = None
    """Computes the formula from `LossTables` and the names in the key; None for what is measured
    elsewhere."""
    baselines: tuple[Baseline, ...] = ()
    """Baselines without which the metric is absent."""
    mean: str = ""
    """Key of the mean, if that is a metric too."""
    over: Over = Over.domains
    """What the mean is taken over."""

    def __call__(self, *names: str) -> str:
        """Key for these names, in the order of the template; `/` in a name becomes `.`.

        Raises:
            TypeError: the template takes another number of names.
        """
        return _key(self.key, names)

    @functools.cached_property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the template's placeholders."""
        return tuple(found[1:-1] for found in PLACEHOLDER.findall(self.key))

    @property
    def axis(self) -> str:
        """Label of an axis: title and unit."""
        has_unit = not self.unit or self.unit in self.title
        return self.title if has_unit else f"{self.title}, {self.unit}"

    @property
    def mean_axis(self) -> str:
        """Label of an axis that shows the mean."""
        return f"mean {self.axis}"


@functools.cache  # a report asks for the same keys of every job
def _key(template: str, names: tuple[str, ...]) -> str:
    parts = PLACEHOLDER.split(template)
    if len(names) != len(parts) - 1:
        raise TypeError(f"{template} takes {len(parts) - 1} names, got {names}")
    return "".join(a + b for a, b in zip(parts, [*map(metric_name, names), ""], strict=True))
