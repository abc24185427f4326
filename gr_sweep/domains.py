"""The domain tree: labels such as `code` or `biology/virology`, their ancestors and metric keys.

A label is a path; nesting is in its name alone, so that a list of labels is the whole tree.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

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


def labels_of_round(domains: Sequence[str], number: int, children: int) -> tuple[str, ...]:
    """The labels of a round of `alternate`, counted from 1: the tree cut at that depth.

    Where a label of the partition lies less deep, the levels that are missing are so many children
    each: code/0, code/1. With one child a label stays what it is.
    """
    found: list[str] = []
    for domain in domains:
        parts = domain.split("/")
        nodes = ["/".join(parts[:number])]
        for _ in range(number - len(parts) if children > 1 else 0):
            nodes = [f"{node}/{child}" for node in nodes for child in range(children)]
        found += nodes
    return tuple(dict.fromkeys(found))


def weights_of_round(
    weights: Mapping[str, float], domains: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """Weights of a round's labels: a domain's own, summed where a label stands for several, and
    divided equally over the labels that it has become.

    Args:
        weights: of the partition's domains; 1 where none is given.
        labels: of the round, each above, equal to or below a domain.
    """
    found = dict.fromkeys(labels, 0.0)
    for domain in domains:
        own = [label for label in labels if is_under(label, domain) or is_under(domain, label)]
        for label in own:
            found[label] += weights.get(domain, 1.0) / len(own)
    return found


def metric_name(domain: str) -> str:
    """The label as it stands in a metric key, where `/` separates the parts of the key."""
    return domain.replace("/", ".")
