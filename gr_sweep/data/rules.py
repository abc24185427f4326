"""Which domain a document belongs to: the rules of a partition.

It sees records one at a time and knows nothing of files or tokens.
"""

import contextlib
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gr_sweep.config import DomainConfig, PartitionConfig, compiled, source_of
from gr_sweep.domains import check_domains, deepest_first
from gr_sweep.errors import ConfigError, DataError

PATTERN_S = 10.0
"""Computing that a pattern may take on one text; usual ones take microseconds."""


def lookup(fields: Mapping[str, Any], name: str) -> Any:
    """The field of a record; `a.b` is field b of field a where no field has the name itself.

    None where there is none.
    """
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def holds(fields: Mapping[str, Any], name: str, values: list[str]) -> bool:
    """Whether the field, or an item of it where it is a list, is one of the values as text."""
    found = lookup(fields, name)
    items = found if isinstance(found, list | tuple) else [found]
    return any(_as_text(item) in values for item in items if item is not None)


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class _TimeIsUpError(Exception):
    """A pattern has had its time."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Ends the block with `_TimeIsUpError` after so much computing: there are patterns that go back
    and forth in a text for ever.

    By a signal, which `re` heeds and nothing else stops it; so there is no limit in a thread beside
    the main one.
    """

    def stop(*_: object) -> None:
        raise _TimeIsUpError

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@dataclass(frozen=True, slots=True)
class _Rule:
    domain: str
    source: str
    config: DomainConfig
    pattern: re.Pattern[str] | None

    def fits(self, text: str, fields: Mapping[str, Any]) -> bool:
        config = self.config
        if config.field is not None and not holds(fields, config.field, config.values or []):
            return False
        if self.pattern is None:
            return True
        try:
            with _time_limit(PATTERN_S):
                matches = islice(self.pattern.finditer(text), config.count)
                return sum(1 for _ in matches) == config.count
        except _TimeIsUpError as error:
            raise DataError(
                f"partition.domains.{self.domain}.pattern takes more than {PATTERN_S:g} s on a "
                f"text of {len(text)} characters; write it without a repeat within a repeat, as "
                "in (a+)+"
            ) from error


class Rules:
    """The rules of a partition, in the order in which they are tried.

    That is the order of `deepest_first`. The first rule that fits wins.
    """

    def __init__(self, partition: PartitionConfig) -> None:
        self.domains = check_domains(list(partition.domains))
        self._rules = [
            _compile(domain, partition.domains[domain]) for domain in deepest_first(self.domains)
        ]

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the order of the domains."""
        by_domain = {rule.domain: rule.source for rule in self._rules}
        return list(dict.fromkeys(by_domain[domain] for domain in self.domains))

    def domains_of(self, source: str) -> list[str]:
        """The domains that take documents from the source, in the order of the domains."""
        wanted = {rule.domain for rule in self._rules if rule.source == source}
        return [domain for domain in self.domains if domain in wanted]

    def fields_of(self, source: str) -> list[str]:
        """The fields beside the text that rules of the source look at."""
        return sorted(
            {r.config.field for r in self._rules if r.source == source and r.config.field}
        )

    def domain_of(self, source: str, text: str, fields: Mapping[str, Any]) -> str | None:
        """The document's domain, or None where no rule wants it.

        Raises:
            DataError: a pattern that does not come to an end.
        """
        for rule in self._rules:
            if rule.source == source and rule.fits(text, fields):
                return rule.domain
        return None

    def describe(self, domain: str) -> str:
        """The domain's rule in words, for errors."""
        config = next(rule.config for rule in self._rules if rule.domain == domain)
        parts = []
        if config.field is not None:
            parts.append(f"{config.field} in {config.values}")
        if config.pattern is not None:
            parts.append(f"{config.count} matches of {config.pattern!r}")
        return " and ".join(parts) or "any document"

    def key(self, source: str) -> list[Any]:
        """What of the rules decides where a document of the source goes, in plain values."""
        return [
            [r.domain, r.config.field, r.config.values, r.config.pattern, r.config.count]
            for r in self._rules
            if r.source == source
        ]


def _compile(domain: str, config: DomainConfig) -> _Rule:
    if (config.field is None) != (config.values is None):
        raise ConfigError(f"partition.domains.{domain}: give field and values, or neither")
    pattern = None
    if config.pattern is not None:
        pattern = compiled(config.pattern, f"partition.domains.{domain}.pattern")
    return _Rule(domain, source_of(domain, config), config, pattern)
