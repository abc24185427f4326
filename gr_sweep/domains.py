"""The domain tree: labels such as `code` or `biology/virology`, their ancestors and metric keys.

A label is a path; nesting is in its name alone, so that a list of labels is the whole tree.
"""

import re
from collections.abc import Iterable, Sequence

from gr_sweep.errors import ConfigError

UNLABELLED = "unlabelled"
"""The row group whose labels routing does not know. No domain may have this name."""

_LABEL = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


def check_domains(domains: Sequence[str]) -> tuple[str, ...]:
    """The labels as a tuple, in the order given.

    Raises:
        ConfigError: no label, a label twice, a label that is not a path of letters, digits, _ and
            -, or one that is called `unlabelled` or `core`.
    """
    if not domains:
        raise ConfigError(
            "no domains given; a partition needs at least one, for example [code, biology]"
        )
    for domain in domains:
        if not _LABEL.fullmatch(domain):
            raise ConfigError(
                f"domain {domain!r} is no label; use letters, digits, _ and -, "
                "nested as in biology/virology"
            )
        if domain in (UNLABELLED, "core"):
            raise ConfigError(f"domain {domain!r} is a reserved word; call it something else")
    doubles = sorted({domain for domain in domains if list(domains).count(domain) > 1})
    if doubles:
        raise ConfigError(f"domain {doubles[0]!r} is given twice; every domain is named once")
    return tuple(domains)


def is_under(domain: str, node: str) -> bool:
    """Whether `domain` is `node` or lies below it in the tree."""
    return domain == node or domain.startswith(node + "/")


def ancestors(domain: str) -> list[str]:
    """The nodes from the top of the tree down to `domain`, itself included."""
    parts = domain.split("/")
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def expand(nodes: Iterable[str], domains: Sequence[str]) -> tuple[str, ...]:
    """The labels that the given nodes of the tree stand for, in the order of `domains`.

    Raises:
        ConfigError: a node that no label equals or lies under.
    """
    nodes = list(nodes)
    for node in nodes:
        if not any(is_under(domain, node) for domain in domains):
            raise ConfigError(f"unknown domain {node!r}; the domains are {', '.join(domains)}")
    return tuple(domain for domain in domains if any(is_under(domain, node) for node in nodes))


def deepest_first(domains: Sequence[str]) -> list[str]:
    """The labels in their order, except that those below a label come before it."""
    placed: list[str] = []
    for domain in domains:
        below = [other for other in domains if other != domain and is_under(other, domain)]
        below.sort(key=lambda label: -label.count("/"))
        placed += [label for label in [*below, domain] if label not in placed]
    return placed


def metric_name(domain: str) -> str:
    """The label as it stands in a metric key, where `/` separates the parts of the key."""
    return domain.replace("/", ".")
