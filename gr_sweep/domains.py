"""The domain tree: labels such as `code` or `biology/virology`, their ancestors and metric keys.

A label is a path, so a list of labels defines the whole tree.
"""

import enum
import re
from collections.abc import Iterable, Mapping, Sequence

from gr_sweep.errors import ConfigError

UNLABELLED = "unlabelled"
"""Name of the rows whose label is hidden from routing. No domain can have it."""

MAX_LENGTH = 100
"""Characters of a label. File systems allow 255 bytes, and suffixes are added."""


class PlanKind(enum.Enum):
    """Which sets of domains own blocks: the shapes of a plan (`gr_sweep.routing.plan`)."""

    none = "none"
    peers = "peers"
    forget = "forget"
    tree = "tree"
    lattice = "lattice"


_LABEL = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


def check_domains(domains: Iterable[str]) -> tuple[str, ...]:
    """Checks labels and returns them as a tuple, in the same order.

    Raises:
        ConfigError: no list, an empty one, or a label that is not a valid name.
    """
    if isinstance(domains, str):
        raise ConfigError(f"expected a list of domains, such as [code], not {domains!r}")
    domains = tuple(domains)
    if not domains:
        raise ConfigError("no domains given; a partition needs one, for example [code, biology]")
    for domain in domains:
        # YAML reads 007 as a number.
        is_label = isinstance(domain, str) and _LABEL.fullmatch(domain)
        if not is_label or len(domain) > MAX_LENGTH or domain in (UNLABELLED, "core"):
            raise ConfigError(
                f"invalid domain {domain!r}: expected up to {MAX_LENGTH} letters, digits, _ and -, "
                "in quotes where YAML reads something else, nested as in biology/virology; "
                f"{UNLABELLED} and core are reserved"
            )
        if domains.count(domain) > 1:
            raise ConfigError(f"domain {domain!r} is given twice")
    return domains


def is_under(domain: str, node: str) -> bool:
    """Whether `domain` is `node` or lies below it in the tree."""
    return domain == node or domain.startswith(node + "/")


def ancestors(domain: str) -> list[str]:
    """The nodes from the top of the tree down to `domain`, itself included."""
    parts = domain.split("/")
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def expand(nodes: Iterable[str], domains: Sequence[str]) -> tuple[str, ...]:
    """The labels at or below the given nodes of the tree, in the order of `domains`.

    Raises:
        ConfigError: no label is at or below a node.
    """
    nodes = tuple(nodes)
    for node in nodes:
        if not any(is_under(domain, node) for domain in domains):
            raise ConfigError(f"unknown domain {node!r}; the domains are {', '.join(domains)}")
    return tuple(domain for domain in domains if any(is_under(domain, node) for node in nodes))


def deepest_first(domains: Sequence[str]) -> list[str]:
    """The labels in the same order, except that labels below another come before it."""
    placed: list[str] = []
    for domain in domains:
        below = [other for other in domains if other != domain and is_under(other, domain)]
        below.sort(key=lambda label: -label.count("/"))
        placed += [label for label in [*below, domain] if label not in placed]
    return placed


def labels_of_round(domains: Sequence[str], number: int, children: int) -> tuple[str, ...]:
    """The labels of a round of `alternate`, counted from 1: the tree, cut at that depth. Each
    missing level has `children` labels, code/0 and code/1, unless that is 1.
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
    """Weights of a round's labels, from the `weights` of the partition's domains (1 by default): a
    label above domains has their sum; labels below a domain share its weight equally."""
    found = dict.fromkeys(labels, 0.0)
    for domain in domains:
        own = [label for label in labels if is_under(label, domain) or is_under(domain, label)]
        for label in own:
            found[label] += weights.get(domain, 1.0) / len(own)
    return found


def metric_name(domain: str) -> str:
    """The label in a metric key, in which `/` already separates the parts."""
    return domain.replace("/", ".")
