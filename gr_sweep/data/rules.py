"""Where a document goes: to which domain, and to training or held-out text.

The rules see records one at a time and know nothing of files or tokens.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gr_sweep.config import DomainConfig, PartitionConfig, compiled, source_of
from gr_sweep.domains import check_domains, deepest_first

HELD_OUT_EVERY = 20
"""A document is held out if its id is a multiple of this."""

FEW_DOCUMENTS = 20
"""Fewer held-out documents than this in a domain cause a warning."""


def text_id(text: str) -> int:
    """The 64-bit id of a text: the first 8 bytes of BLAKE2b of its UTF-8, big-endian."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def is_held_out(document_id: int) -> bool:
    """Whether the document with this id is kept out of training, in every domain and partition.

    Copies of a text have the same id, so a copy of a held-out text is never trained on.
    """
    return document_id % HELD_OUT_EVERY == 0


def lookup(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a field, or None. `a.b` is field b of field a unless a field `a.b` exists."""
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def holds(fields: Mapping[str, Any], name: str, values: list[str]) -> bool:
    """Whether the field, or any item of it if it is a list, equals one of the values as text."""
    found = lookup(fields, name)
    items = found if isinstance(found, list | tuple) else [found]
    return any(_as_text(item) in values for item in items if item is not None)


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
        matches = islice(self.pattern.finditer(text), config.count)
        return sum(1 for _ in matches) == config.count


class Rules:
    """The rules of a partition. They are tried deepest domain first, and the first match wins."""

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
        """The fields, other than the text, that the rules of the source look at."""
        return sorted(
            {r.config.field for r in self._rules if r.source == source and r.config.field}
        )

    def domain_of(self, source: str, text: str, fields: Mapping[str, Any]) -> str | None:
        """The document's domain, or None if no rule fits."""
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
        """Everything that decides where a document of the source goes, in JSON values."""
        return [
            [r.domain, r.config.field, r.config.values, r.config.pattern, r.config.count]
            for r in self._rules
            if r.source == source
        ]


def _compile(domain: str, config: DomainConfig) -> _Rule:
    pattern = None
    if config.pattern is not None:
        pattern = compiled(config.pattern, f"partition.domains.{domain}.pattern")
    return _Rule(domain, source_of(domain, config), config, pattern)
