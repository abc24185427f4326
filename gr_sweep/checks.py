"""Validates settings, as far as that needs no work and no other part of the package: bounds of
single settings, and settings that contradict each other.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from gr_sweep.bounds import Bounds, compiled, invalid
from gr_sweep.config import (
    LARGEST,
    MAX_LABELS,
    PER_DOMAIN_ANY,
    WITHOUT_TREE,
    Core,
    DataConfig,
    DataKind,
    DomainConfig,
    Method,
    MethodConfig,
    ModelConfig,
    PartitionConfig,
    PlanKind,
    ProcedureKind,
    RunConfig,
    Schedule,
    TrainConfig,
    is_number,
    round_lengths,
    source_of,
    unlabelled_shares,
)
from gr_sweep.domains import UNLABELLED, check_domains, deepest_first, expand, is_under
from gr_sweep.errors import ConfigError
from gr_sweep.resolve import resolve

_TOKENS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?x|[0-9]{1,15}")


def validate(config: RunConfig) -> RunConfig:
    """Checks a config and returns it resolved (`resolve`).

    Raises:
        ConfigError: the first problem. The message names the setting, its value, and what is
            allowed.
    """
    check_values(config, "")
    domains = check_domains(list(config.partition.domains))
    config = _with_label_rules(config, domains)
    _check_model(config.model)
    _check_partition(config.partition, domains)
    _check_data(config.data, config.partition, domains)
    _check_method(config.method, domains)
    _check_train(config.train)
    if not config.eval.relearn_lrs:
        raise invalid("eval.relearn_lrs", [], "one or more learning rates, such as [0.001]")
    for node in config.plan.forget:
        _check_node("plan.forget", node, domains)
    round_lengths(config.procedure.rounds)
    resolved = resolve(config)
    _check_plan(resolved, domains)
    _check_procedure(config, resolved, domains)
    return resolved


def check_values(value: Any, name: str, bounds: Bounds | None = None) -> None:
    """Checks a value against the bounds of its field, and everything within it, of which OmegaConf
    has not checked the types in nested lists."""
    if dataclasses.is_dataclass(value):
        for item in fields(value):
            inner = getattr(value, item.name)
            if inner is not None:
                path = f"{name}.{item.name}".lstrip(".")
                check_values(inner, path, item.metadata.get("bounds"))
    elif isinstance(value, dict | list):
        is_list = isinstance(value, list)
        items: Any = enumerate(value) if isinstance(value, list) else value.items()
        for key, inner in items:
            path = f"{name}[{key}]" if is_list else f"{name}.{key}"
            is_single = not isinstance(inner, list | dict | None)
            if not is_single and (is_list or bounds is not None):
                raise invalid(path, inner, "a single value")
            check_values(inner, path, bounds)
    elif value == "":
        raise ConfigError(f"{name} is empty; give a value or leave it out")
    elif isinstance(value, float) and not math.isfinite(value):
        raise invalid(name, value, "a finite number")
    elif type(value) is int and abs(value) > LARGEST:
        raise invalid(name, value, f"a number of at most {LARGEST}")
    elif bounds is not None and not (is_number(value) and bounds.allows(value)):
        raise invalid(name, value, str(bounds))


def _check_model(model: ModelConfig) -> None:
    _check_one_of("model", size=model.size, path=model.path)
    for name, needed in (("gguf_file", "path"), ("intermediate_size", "size")):
        if getattr(model, name) is not None and getattr(model, needed) is None:
            raise ConfigError(f"model.{name}={getattr(model, name)} needs model.{needed}")


def _check_partition(partition: PartitionConfig, domains: tuple[str, ...]) -> None:
    shares = partition.unlabelled
    if isinstance(shares, list):
        raise invalid("partition.unlabelled", shares, "a number from 0 to 1, or one per domain")
    for node in shares if isinstance(shares, dict) else ():
        if node != PER_DOMAIN_ANY:
            _check_node("partition.unlabelled", node, domains)
    for domain, rule in partition.domains.items():
        where = f"partition.domains.{domain}"
        _check_pair(where, field=rule.field, values=rule.values)
        if rule.pattern is not None:
            compiled(rule.pattern, f"{where}.pattern")


def _with_label_rules(config: RunConfig, domains: tuple[str, ...]) -> RunConfig:
    """The config with rules, and one source, in place of `data.label_field`."""
    data, partition = config.data, config.partition
    if data.label_field is None:
        if data.labels:
            raise ConfigError("data.labels needs data.label_field, the field that holds the values")
        return config
    for value, domain in data.labels.items():
        _check_known(f"data.labels.{value}", domain, domains)
    if ruled := [domain for domain, rule in partition.domains.items() if rule != DomainConfig()]:
        raise ConfigError(
            f"data.label_field={data.label_field} and partition.domains.{ruled[0]} both say where "
            "documents go; use a partition without rules"
        )
    given = data.sources if data.kind is DataKind.hub else data.paths
    names = list(given) or ["all"] * (data.root is not None)
    if len(names) != 1 or data.kind is DataKind.synthetic:
        raise ConfigError(
            f"data.label_field={data.label_field} needs one source for all domains: data=local "
            "data.root=FILE, or data=hub data.sources={all:{path:OWNER/NAME}}"
        )
    labels = data.labels or {domain: domain for domain in domains}
    rules = {
        domain: DomainConfig(
            source=names[0],
            field=data.label_field,
            values=[value for value, given in labels.items() if given == domain],
        )
        for domain in domains
    }
    paths = data.paths
    if data.kind is DataKind.local and not paths:
        paths = {names[0]: str(data.root)}
    data = replace(data, label_field=None, labels={}, root=None, paths=paths)
    return replace(config, data=data, partition=replace(partition, domains=rules))


def _check_data(data: DataConfig, partition: PartitionConfig, domains: tuple[str, ...]) -> None:
    for domain in data.weights:
        _check_known(f"data.weights.{domain}", domain, domains)
    if all(data.weights.get(domain, 1.0) == 0 for domain in domains):
        raise ConfigError("data.weights gives no domain a weight above 0")
    for name, share in (
        ("partition.mislabelled", partition.mislabelled),
        ("data.spurious", data.spurious),
    ):
        if share and len(domains) == 1:
            raise ConfigError(f"{name}={share} needs a domain beside {domains[0]}")
    split = data.split
    if split not in (None, "paragraphs") and not (type(split) is int and split > 0):
        raise invalid("data.split", split, "paragraphs, a number of characters, or null")
    if data.kind is not DataKind.synthetic:
        sources = _sources(partition, domains)
        name = "sources" if data.kind is DataKind.hub else "paths"
        for source in getattr(data, name):
            _check_known(f"data.{name}.{source}", source, sources, "source")
        (_check_hub if data.kind is DataKind.hub else _check_local)(data, sources)


def _sources(partition: PartitionConfig, domains: tuple[str, ...]) -> list[str]:
    """Names of the sources, each once; ConfigError if a domain never gets a document, because an
    earlier one takes all of its source."""
    takers: dict[str, str] = {}
    for domain in deepest_first(domains):
        rule = partition.domains[domain]
        source = source_of(domain, rule)
        if source in takers:
            raise ConfigError(
                f"domain {domain} gets no documents: {takers[source]} comes before it and takes "
                f"all the rest of source {source}; put {domain} first"
            )
        if rule.pattern is None and rule.field is None:
            takers[source] = domain
    return list(dict.fromkeys(source_of(d, rule) for d, rule in partition.domains.items()))


def _check_local(data: DataConfig, sources: Sequence[str]) -> None:
    if data.root is not None and not os.path.isdir(data.root):
        raise ConfigError(
            f"data.root={data.root} is not a folder; one file for all domains needs "
            "data.label_field"
        )
    missing = [source for source in sources if source not in data.paths]
    if missing and data.root is None:
        raise ConfigError(
            f"data=local has no text for {', '.join(missing)}; give a folder (data.root=DIR) or "
            f"files (data.paths.{missing[0]}=FILE)"
        )


def _check_hub(data: DataConfig, sources: Sequence[str]) -> None:
    for source, hub in data.sources.items():
        where = f"data.sources.{source}"
        _check_pair(where, filter_column=hub.filter_column, filter_values=hub.filter_values)
    for source in sources:
        if source not in data.sources:
            raise ConfigError(
                f"no data set for source {source}; name one with "
                f"data.sources={{{source}:{{path:OWNER/NAME}}}}"
            )


def _check_method(method: MethodConfig, domains: tuple[str, ...]) -> None:
    for node in method.without:
        _check_node("method.without", node, domains)
    if method.name in (Method.filtered, Method.filtered_observed):
        _check_some(f"method={method.name.value}", "method.without", method.without, domains)


def _check_some(setting: str, name: str, nodes: Sequence[str], domains: tuple[str, ...]) -> None:
    """Raises ConfigError unless the nodes stand for some domains and not for all."""
    if not nodes:
        raise ConfigError(
            f"{setting} needs {name}, for example {name}=[{domains[0]}] (domains: "
            f"{', '.join(domains)})"
        )
    if len(expand(nodes, domains)) == len(domains):
        raise ConfigError(f"{name}=[{','.join(nodes)}] names every domain; leave at least one")


def _check_plan(config: RunConfig, domains: tuple[str, ...]) -> None:
    plan = config.plan
    if plan.kind is PlanKind.none:
        return
    if len(domains) == 1:
        raise ConfigError(
            f"plan={plan.kind.value} routes between domains, but partition {config.partition.name} "
            f"has only {domains[0]}; choose a partition with two or more domains, or plan=none"
        )
    if plan.full_width and config.model.size is None:
        raise ConfigError(
            f"plan.full_width=true (method={config.method.name.value}) widens the layers of a "
            "size; use one (model=nano) instead of a checkpoint"
        )
    if plan.kind is PlanKind.forget:
        hidden = unlabelled_shares(config.partition.unlabelled, domains)
        if plan.core is Core.frozen or any(hidden.values()):
            domains = (*domains, UNLABELLED)  # what the core learns from, or need not
        _check_some("plan=forget", "plan.forget", plan.forget, domains)


def _check_procedure(config: RunConfig, resolved: RunConfig, domains: tuple[str, ...]) -> None:
    plan, procedure, method = resolved.plan, resolved.procedure, resolved.method.name
    is_frozen, recovery = plan.core is Core.frozen, resolved.method.recovery
    is_alternate = procedure.name is ProcedureKind.alternate
    if config.plan.core is Core.frozen and config.plan.kind is PlanKind.none:
        raise ConfigError("plan.core=frozen trains blocks alone, and plan=none has none")
    if procedure.name is ProcedureKind.branch:
        is_other = method not in (Method.routed, Method.btx, Method.flexolmo)
        can_copy = procedure.trunk > 0 and plan.kind is PlanKind.peers
        cannot_copy = procedure.copies and not can_copy
        rows: list[tuple[str, Any, str]] = [
            (f"method={method.value}", is_other, "use method=routed, btx or flexolmo"),
            ("plan=lattice", plan.kind is PlanKind.lattice, "it has blocks of several domains"),
            ("plan.core=frozen", is_frozen, "the procedure freezes the core; leave it out"),
            (f"method.recovery={recovery}", recovery > 0, "it trains the core; set it to 0"),
            ("procedure.copies=true", cannot_copy, "use plan=peers and procedure.trunk above 0"),
        ]
        _refuse("procedure=branch", rows)
    elif config.procedure.name is not procedure.name and config.method.name is Method.routed:
        name = config.procedure.name.value
        raise ConfigError(f"procedure={name} needs blocks beside the core; plan=none has none")
    elif is_frozen:
        why = "procedure=alternate trains the whole model; leave out one"
        rows = [("procedure=alternate", is_alternate, why)]
        rows += [(f"method.recovery={recovery}", recovery > 0, "it trains the whole model")]
        _refuse("plan.core=frozen", rows)
    if is_alternate:
        _check_alternate(resolved, domains)


def _check_alternate(config: RunConfig, domains: tuple[str, ...]) -> None:
    method, plan, procedure = config.method, config.plan, config.procedure
    num_rounds = len(round_lengths(procedure.rounds))
    missing = [max(0, num_rounds - len(domain.split("/"))) for domain in domains]
    if sum(procedure.children**levels for levels in missing) > MAX_LABELS:
        raise ConfigError(
            f"{num_rounds} rounds with procedure.children={procedure.children} end with more than "
            f"{MAX_LABELS} experts; use fewer procedure.rounds or procedure.children"
        )
    inner = [d for d in domains if any(is_under(other, d) for other in domains if other != d)]
    has_tree = plan.kind not in WITHOUT_TREE or num_rounds == 1
    rows: list[tuple[str, Any, str]] = [
        (f"method={method.name.value}", method.name is not Method.routed, "use method=routed"),
        (f"plan={plan.kind.value}", not has_tree, "it has no tree to split; use plan=peers"),
        (f"domain {', '.join(inner)}", inner, "it is a label and is divided; add a label below it"),
    ]
    for name, value in dataclasses.asdict(plan.adapters).items():
        is_whole = value is True or isinstance(value, str)
        rows.append((f"plan.adapters.{name}={value}", is_whole, "use a number of units"))
    token_bias = config.route.token_bias
    rows.append((f"route.token_bias={token_bias}", token_bias is not None, "set it to null"))
    # Labels that are hidden in one round would be visible in the next.
    for name, value in (
        ("partition.unlabelled", config.partition.unlabelled),
        ("partition.mislabelled", config.partition.mislabelled),
        ("data.spurious", config.data.spurious),
        ("method.recovery", method.recovery),
    ):
        is_set = any(value.values()) if isinstance(value, dict) else value
        rows.append((f"{name}={value}", is_set, "set it to 0"))
    _refuse("procedure=alternate", rows)


def _refuse(by: str, rows: Sequence[tuple[str, Any, str]]) -> None:
    """Raises ConfigError for the first setting that does not go with another; a row has the
    setting, whether it is given, and advice."""
    for name, is_given, advice in rows:
        if is_given:
            raise ConfigError(f"{name} does not work with {by}: {advice}")


def _check_train(train: TrainConfig) -> None:
    tokens = train.tokens
    is_count = type(tokens) is int and tokens > 0
    is_text = isinstance(tokens, str) and _TOKENS.fullmatch(tokens) and float(tokens.strip("x")) > 0
    if not (tokens is None or is_count or is_text):
        expected = "a number of tokens above 0, or tokens per parameter of the model such as 20x"
        raise invalid("train.tokens", tokens, expected)
    _check_one_of("train", steps=train.steps, tokens=tokens)
    mesh = train.mesh
    is_pair = isinstance(mesh, list) and len(mesh) == 2 and all(type(n) is int for n in mesh)
    if mesh != "auto" and not (is_pair and min(mesh) > 0):
        raise invalid("train.mesh", mesh, "auto, or [replicas, shards] such as [2,8]")
    micro = train.micro_batch_sequences
    if micro is not None and train.batch_sequences % micro:
        raise ConfigError(
            f"train.batch_sequences={train.batch_sequences} is not a multiple of "
            f"train.micro_batch_sequences={micro}"
        )
    if train.schedule is Schedule.wsd and train.warmup + train.decay > 1:
        raise ConfigError(
            f"train.warmup={train.warmup} and train.decay={train.decay} add up to more than 1"
        )


def _check_one_of(group: str, **given: Any) -> None:
    """Raises ConfigError unless one of two settings is given."""
    if sum(value is not None for value in given.values()) != 1:
        said = " and ".join(f"{group}.{name}={value}" for name, value in given.items())
        raise ConfigError(f"{said}; give one of them and set the other to null")


def _check_pair(where: str, **given: Any) -> None:
    """Raises ConfigError where one of two settings is given without the other."""
    if sum(value is None for value in given.values()) == 1:
        raise ConfigError(f"{where}: {' and '.join(given)} go together; give both or neither")


def _check_node(name: str, node: str, domains: tuple[str, ...]) -> None:
    """Raises ConfigError unless the node is a domain or lies above one in the tree."""
    if not any(is_under(domain, node) for domain in domains):
        _check_known(name, node, domains)


def _check_known(name: str, given: str, known: Sequence[str], noun: str = "domain") -> None:
    if given not in known:
        raise ConfigError(f"{name}: unknown {noun} {given!r}; the {noun}s are {', '.join(known)}")
