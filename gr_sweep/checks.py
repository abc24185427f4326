"""Whether settings make sense, as far as that needs no work and no other part: types, ranges, and
settings against each other.

Standard library alone, as `config`, whose dataclasses it looks at.
"""

import dataclasses
import math
import os
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from gr_sweep.config import (
    LARGEST,
    MAX_LABELS,
    PER_DOMAIN_ANY,
    DataKind,
    EvalConfig,
    Method,
    MethodConfig,
    ModelConfig,
    PartitionConfig,
    PlanKind,
    ProcedureKind,
    RunConfig,
    Schedule,
    TrainConfig,
    as_type,
    compiled,
    effective,
    fixed,
    round_lengths,
    source_of,
)
from gr_sweep.domains import check_domains, deepest_first, expand, is_under
from gr_sweep.errors import ConfigError

_SHARES = (
    "partition.mislabelled",
    "plan.mlp_shared",
    "plan.attn_shared",
    "plan.layer_share",
    "method.recovery",
    "method.unlabelled_retained",
    "procedure.dense",
    "route.foreign_dropout",
    "data.overlap",
    "data.spurious",
    "train.warmup",
    "train.decay",
    "train.final_lr",
)

_LEAST = {
    "model.intermediate_size": 1,
    "data.limit_tokens": 1,
    "data.documents": 1,
    "data.seed": 0,
    # The 256 bytes and the end-of-text token.
    "data.vocab_size": 257,
    "procedure.attribution_steps": 1,
    # Two halves.
    "procedure.documents": 2,
    "procedure.children": 1,
    "train.steps": 1,
    "train.tokens": 1,
    "train.batch_sequences": 1,
    "train.micro_batch_sequences": 1,
    # A position, and one to predict.
    "train.sequence_length": 2,
    "train.log_every": 1,
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 1,
    "eval.every": 1,
    "eval.tokens": 2,
    "eval.document_tokens": 2,
    "eval.curve_tokens": 2,
    "eval.batch_sequences": 1,
    "eval.bootstrap": 1,
    "eval.relearn_steps": 1,
    "eval.relearn_documents": 1,
    "eval.relearn_batch_sequences": 1,
    "eval.relearn_every": 1,
    "eval.unlearn_steps": 1,
    "eval.samples": 0,
    "eval.sample_prompt_tokens": 1,
    "eval.sample_tokens": 1,
    "seed": 0,
}

_MOST = {
    "model.intermediate_size": 1 << 24,
    "procedure.children": 1000,
    "eval.bootstrap": 1_000_000,
    # What every generator of random numbers takes.
    "data.seed": (1 << 32) - 1,
    "seed": (1 << 32) - 1,
}

_NAMES = (
    "model.path",
    "model.gguf_file",
    "data.root",
    "data.text_field",
    "data.tokenizer",
    "data.cache",
    "tracking.project",
)
"""Texts that name something: an empty one names nothing."""


def validate(config: RunConfig) -> None:
    """Checks what needs no work and no other part: ranges, and settings against each other.

    Raises:
        ConfigError: the first problem, with the setting, what was given and what would be right.
    """
    config = fixed(config)
    for item in fields(config):
        _check_types(getattr(config, item.name), item.name)
    _check_values(config)
    domains = check_domains(list(config.partition.domains))
    _check_model(config.model)
    _check_partition(config.partition, domains)
    _check_data(config, domains)
    _check_plan(config, domains)
    _check_method(config.method, domains)
    _check_procedure(config, domains)
    _check_train(config.train)
    _check_eval(config.eval)


def _values(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its dotted name, through dataclasses, dictionaries and lists."""
    if dataclasses.is_dataclass(node):
        node = {item.name: getattr(node, item.name) for item in fields(node)}
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _values(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _values(value, f"{name}[{index}]")
    else:
        yield name, node


def _check_types(node: Any, where: str) -> None:
    """Raises ConfigError for what is of another type than its field says: a list within a list of
    texts gets past OmegaConf."""
    if not dataclasses.is_dataclass(node):
        return
    for name, kind in typing.get_type_hints(type(node)).items():
        value, path = getattr(node, name), f"{where}.{name}"
        if dataclasses.is_dataclass(value):
            _check_types(value, path)
        elif isinstance(value, list):
            as_type(kind, value, path)
        elif isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise ConfigError(f"{path}: the name {key} is no text; put it into quotes")
                _check_types(inner, f"{path}.{key}")


def _check_values(config: RunConfig) -> None:
    for name, value in _values(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name}={value} is not a finite number")
        if name in _SHARES and value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{name}={value} is no share; give a number from 0 to 1")
        least = _LEAST.get(name)
        if least is not None and value is not None and value < least:
            raise ConfigError(f"{name}={value} is too small; give {least} or more")
        most = _MOST.get(name, LARGEST)
        if type(value) is int and value > most:
            raise ConfigError(f"{name}={value} is too large; give {most} at most")
        if value == "" and name in _NAMES:
            raise ConfigError(f"{name} is empty; give a name, or leave it out")


def _check_model(model: ModelConfig) -> None:
    if model.size is None and model.path is None:
        raise ConfigError(
            "no model given: choose a size (model=nano), or a checkpoint (model=hf model.path=DIR)"
        )
    if model.size is not None and model.path is not None:
        raise ConfigError(
            f"model.size={model.size} and model.path={model.path} are both given; "
            "a checkpoint has its own size: use model=hf model.path=..."
        )
    if model.path is None and model.gguf_file is not None:
        raise ConfigError(
            f"model.gguf_file={model.gguf_file} is a file within model.path, which is not given"
        )
    if model.path is not None and model.intermediate_size is not None:
        raise ConfigError(
            f"model.intermediate_size={model.intermediate_size} cannot change the checkpoint "
            f"{model.path}; leave it out, or train a size from random weights (model=nano)"
        )


def _check_partition(partition: PartitionConfig, domains: tuple[str, ...]) -> None:
    shares = partition.unlabelled
    if isinstance(shares, dict):
        for node in shares:
            if node != PER_DOMAIN_ANY and not any(is_under(domain, node) for domain in domains):
                _check_known("partition.unlabelled", node, domains)
    for name, share in _values(shares, "partition.unlabelled"):
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise ConfigError(
                f"{name}={share} is no share; give a number from 0 to 1, "
                "or one a domain: partition.unlabelled={code:0.1,*:0}"
            )
        if not 0 <= share <= 1:
            raise ConfigError(f"{name}={share} is no share; give a number from 0 to 1")
    if partition.mislabelled > 0 and len(domains) == 1:
        raise ConfigError(
            f"partition.mislabelled={partition.mislabelled} swaps labels between domains, "
            f"but {domains[0]} is the only one"
        )
    for domain, rule in partition.domains.items():
        where = f"partition.domains.{domain}"
        if (rule.field is None) != (rule.values is None):
            raise ConfigError(f"{where}: field and values go together; give both or neither")
        if rule.count < 1:
            raise ConfigError(f"{where}.count={rule.count} is too small; give 1 or more")
        if rule.pattern is not None:
            compiled(rule.pattern, f"{where}.pattern")


def _check_data(config: RunConfig, domains: tuple[str, ...]) -> None:
    data = config.data
    for domain, weight in data.weights.items():
        _check_known(f"data.weights.{domain}", domain, domains)
        if weight < 0:
            raise ConfigError(f"data.weights.{domain}={weight} is negative; give 0 or more")
    if all(data.weights.get(domain, 1.0) == 0 for domain in domains):
        raise ConfigError("data.weights leaves no domain with a weight above 0")
    if data.spurious and len(domains) == 1:
        raise ConfigError(
            f"data.spurious={data.spurious} needs another domain whose marker a document could "
            f"have, but {domains[0]} is the only one"
        )
    if data.kind is DataKind.synthetic:
        return

    rules = config.partition.domains
    taken: dict[str, str] = {}
    for domain in deepest_first(domains):
        rule = rules[domain]
        source = source_of(domain, rule)
        if source in taken:
            raise ConfigError(
                f"domain {domain} gets no document: {taken[source]} stands before it and takes all "
                f"that is left of source {source}; put {domain} first"
            )
        if rule.pattern is None and rule.field is None:
            taken[source] = domain
    sources = list(dict.fromkeys(source_of(domain, rule) for domain, rule in rules.items()))

    if data.kind is DataKind.local:
        for source in data.paths:
            _check_known(f"data.paths.{source}", source, sources, "source")
        if data.root is not None and not os.path.isdir(data.root):
            raise ConfigError(f"data.root={data.root} is not a folder")
        missing = [source for source in sources if source not in data.paths]
        if missing and data.root is None:
            raise ConfigError(
                f"data=local has no text for {', '.join(missing)}; give a folder "
                f"(data.root=DIR) or files (data.paths.{missing[0]}=FILE)"
            )
    else:
        for source, hub in data.sources.items():
            _check_known(f"data.sources.{source}", source, sources, "source")
            if not hub.path:
                raise ConfigError(
                    f"data.sources.{source}.path is empty; name a data set: OWNER/NAME"
                )
            if (hub.filter_column is None) != (hub.filter_values is None):
                raise ConfigError(
                    f"data.sources.{source}: filter_column and filter_values go together; "
                    "give both or neither"
                )
        for source in sources:
            if source not in data.sources:
                raise ConfigError(
                    f"no data set for source {source}; name one with "
                    f"data.sources={{{source}:{{path:OWNER/NAME}}}}"
                )


def _check_plan(config: RunConfig, domains: tuple[str, ...]) -> None:
    for node in config.plan.forget:
        if not any(is_under(domain, node) for domain in domains):
            _check_known("plan.forget", node, domains)
    if config.plan.layer_share == 0:
        raise ConfigError("plan.layer_share=0 splits no layer; use plan=none, or a share above 0")
    layers = config.plan.layers
    if layers is not None and config.plan.layer_share != 1:
        raise ConfigError(
            f"plan.layers={layers} and plan.layer_share={config.plan.layer_share} both say which "
            "layers are split; give one of them"
        )
    if layers is not None:
        if not layers:
            raise ConfigError(
                "plan.layers=[] splits no layer; use plan=none, or null for all layers"
            )
        for layer in layers:
            if layer < 0:
                raise ConfigError(f"plan.layers: {layer} is negative; layers count from 0")
            if layers.count(layer) > 1:
                raise ConfigError(f"plan.layers: layer {layer} is given twice")

    plan = effective(config).plan
    if plan.full_width and config.model.size is None:
        name = config.method.name
        fixes = "plan.full_width=true" if name is Method.routed else f"method={name.value}"
        raise ConfigError(
            f"{fixes} widens the MLPs, which the checkpoint {config.model.path} does not allow; "
            "train a size from random weights (model=nano)"
        )
    if plan.full_width and (plan.layers is not None or plan.layer_share != 1):
        raise ConfigError(
            "plan.full_width=true widens all layers, so all must be split; "
            "leave out plan.layers and plan.layer_share"
        )
    if plan.kind is PlanKind.none:
        return
    if len(domains) == 1:
        raise ConfigError(
            f"plan={plan.kind.value} routes between domains, but partition {config.partition.name} "
            f"has only {domains[0]}; choose a partition with two or more, or plan=none"
        )
    if plan.kind is PlanKind.forget:
        if not plan.forget:
            raise ConfigError(
                f"plan=forget does not say what to forget; add plan.forget=[{domains[0]}] "
                f"(domains: {', '.join(domains)})"
            )
        if len(expand(plan.forget, domains)) == len(domains):
            raise ConfigError(
                f"plan.forget=[{','.join(plan.forget)}] forgets every domain; leave at least one"
            )


def _check_method(method: MethodConfig, domains: tuple[str, ...]) -> None:
    for node in method.without:
        if not any(is_under(domain, node) for domain in domains):
            _check_known("method.without", node, domains)
    if method.recovery == 1:
        raise ConfigError("method.recovery=1 leaves no step to train before it; give less than 1")
    if method.name in (Method.filtered, Method.filtered_observed):
        if not method.without:
            raise ConfigError(
                f"method={method.name.value} does not say what is left out; "
                f"add method.without=[{domains[0]}] (domains: {', '.join(domains)})"
            )
        if len(expand(method.without, domains)) == len(domains):
            raise ConfigError(
                f"method.without=[{','.join(method.without)}] leaves no domain to train on"
            )


def _check_procedure(config: RunConfig, domains: tuple[str, ...]) -> None:
    rounds = round_lengths(config.procedure.rounds)
    if config.procedure.rewarm <= 0:
        raise ConfigError(f"procedure.rewarm={config.procedure.rewarm} is not above 0")
    if (
        config.procedure.name is ProcedureKind.alternate
        and config.method.name is Method.routed
        and config.plan.kind is PlanKind.none
    ):
        raise ConfigError(
            "procedure=alternate with plan=none has nobody to assign units to; use plan=peers, or "
            "procedure=fixed"
        )
    config = effective(config)
    if config.procedure.name is ProcedureKind.fixed:
        return
    depths = [len(rounds) - len(domain.split("/")) for domain in domains]
    # A power that is beyond counting is not computed.
    num_labels = sum(
        math.inf
        if depth > 0 and depth * math.log2(config.procedure.children) > 32
        else config.procedure.children ** max(0, depth)
        for depth in depths
    )
    if num_labels > MAX_LABELS:
        raise ConfigError(
            f"{len(rounds)} rounds that each divide a domain into procedure.children="
            f"{config.procedure.children} end with more than {MAX_LABELS} experts; have fewer "
            "procedure.rounds or children"
        )
    alternate, plan = "procedure=alternate", config.plan
    if config.method.name is not Method.routed:
        raise ConfigError(
            f"{alternate} makes a plan of its own, and so does method={config.method.name.value}; "
            "use method=routed"
        )
    if plan.kind in (PlanKind.forget, PlanKind.lattice) and len(rounds) > 1:
        raise ConfigError(
            f"plan={plan.kind.value} has no tree to split further; use procedure.rounds=1, or "
            "plan=peers"
        )
    # What routing must not know in one round it would learn in the next.
    for name, value in (
        ("partition.unlabelled", config.partition.unlabelled),
        ("partition.mislabelled", config.partition.mislabelled),
        ("data.spurious", config.data.spurious),
        ("method.recovery", config.method.recovery),
    ):
        if any(share for _, share in _values(value, name)):
            raise ConfigError(f"{name}={value} has no meaning under {alternate}; set it to 0")
    inner = [d for d in domains if any(is_under(other, d) for other in domains if other != d)]
    if inner:
        raise ConfigError(
            f"{alternate} splits a domain into those below it, but {inner[0]} is a label itself; "
            "give its own documents a name below it"
        )


def _check_train(train: TrainConfig) -> None:
    if train.steps is not None and train.tokens is not None:
        raise ConfigError(
            f"train.steps={train.steps} and train.tokens={train.tokens} are both given; "
            "set the other to null, for example train.steps=null"
        )
    if train.steps is None and train.tokens is None:
        raise ConfigError("train.steps and train.tokens are both null; give one of them")
    micro = train.micro_batch_sequences
    if micro is not None and train.batch_sequences % micro:
        raise ConfigError(
            f"train.batch_sequences={train.batch_sequences} is no multiple of "
            f"train.micro_batch_sequences={micro}"
        )
    if train.lr <= 0:
        raise ConfigError(f"train.lr={train.lr} is not above 0")
    if train.weight_decay < 0:
        raise ConfigError(f"train.weight_decay={train.weight_decay} is negative; give 0 or more")
    if train.max_norm is not None and train.max_norm <= 0:
        raise ConfigError(f"train.max_norm={train.max_norm} is not above 0; null does not clip")
    for name in ("beta1", "beta2"):
        beta = getattr(train, name)
        if not 0 <= beta < 1:
            raise ConfigError(f"train.{name}={beta} is out of range; give 0 or more, below 1")
    if train.schedule is Schedule.wsd and train.warmup + train.decay > 1:
        raise ConfigError(
            f"train.warmup={train.warmup} and train.decay={train.decay} are more than the whole run"
        )


def _check_eval(evaluation: EvalConfig) -> None:
    if not evaluation.relearn_lrs:
        raise ConfigError("eval.relearn_lrs=[] tries no learning rate; give one or more: [0.001]")
    for lr in evaluation.relearn_lrs:
        if lr <= 0:
            raise ConfigError(f"eval.relearn_lrs: {lr} is not above 0")


def _check_known(name: str, given: str, known: Sequence[str], noun: str = "domain") -> None:
    if given not in known:
        raise ConfigError(f"{name}: unknown {noun} {given!r}; the {noun}s are {', '.join(known)}")
