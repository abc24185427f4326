"""Where a document goes: to which domain, and to training or held-out text.

The rules see records one at a time and know nothing of files or tokens.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

from gr_sweep.bounds import compiled
from gr_sweep.config import DomainConfig, PartitionConfig, source_of
from gr_sweep.domains import check_domains, deepest_first

HELD_OUT_EVERY = 20
"""A document is held out if its id is a multiple of this."""


def text_id(text: str) -> int:
    """The 64-bit id of a text: the first 8 bytes of BLAKE2b of its UTF-8, big-endian."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def is_held_out(document_id: int) -> bool:
    """Whether the document with this id is kept out of training, in every domain and partition, as
    are its copies, which have the same id."""
    return document_id % HELD_OUT_EVERY == 0


def is_blank(text: str) -> bool:
    """Whether a text has nothing to learn from."""
    return not text or text.isspace()


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
    given = [item for item in items if item is not None]
    texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in given]
    return any(text in values for text in texts)


class Rules:
    """The rules of a partition. They are tried deepest domain first, and the first match wins."""

    def __init__(self, partition: PartitionConfig) -> None:
        self.domains = check_domains(list(partition.domains))
        self._rules: dict[str, dict[str, DomainConfig]] = {
            source_of(domain, rule): {} for domain, rule in partition.domains.items()
        }
        self._patterns: dict[str, re.Pattern[str]] = {}
        for domain in deepest_first(self.domains):
            rule = partition.domains[domain]
            self._rules[source_of(domain, rule)][domain] = rule
            if rule.pattern is not None:
                where = f"partition.domains.{domain}.pattern"
                self._patterns[domain] = compiled(rule.pattern, where)
        self.sources = list(self._rules)
        """Names of the sources, in the order of the domains."""

    def domains_of(self, source: str) -> list[str]:
        """The domains that take documents from the source, in the order of the domains."""
        return [domain for domain in self.domains if domain in self._rules[source]]

    def fields_of(self, source: str) -> list[str]:
        """The fields, other than the text, that the rules of the source look at."""
        return sorted({rule.field for rule in self._rules[source].values() if rule.field})

    def domain_of(self, source: str, text: str, fields: Mapping[str, Any]) -> str | None:
        """The document's domain, or None if no rule fits."""
        for domain, rule in self._rules[source].items():
            if rule.field is not None and not holds(fields, rule.field, rule.values or []):
                continue
            if pattern := self._patterns.get(domain):
                matches = islice(pattern.finditer(text), rule.count)
                if sum(1 for _ in matches) < rule.count:
                    continue
            return domain
        return None

    def key(self, source: str) -> list[Any]:
        """Everything that decides where a document of the source goes, in JSON values."""
        return [[domain, asdict(rule)] for domain, rule in self._rules[source].items()]
