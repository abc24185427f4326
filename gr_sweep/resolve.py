"""Resets settings that have no effect in a job, so that equal jobs have equal settings."""

from dataclasses import fields, replace
from typing import Any

from gr_sweep.config import (
    PER_DOMAIN_ANY,
    UNROUTED,
    Attribution,
    DataKind,
    Edges,
    EvalConfig,
    Method,
    MethodConfig,
    PlanConfig,
    PlanKind,
    ProcedureConfig,
    ProcedureKind,
    RouteConfig,
    RunConfig,
    round_lengths,
)

_OF_BRANCH = ("name", "rewarm", "trunk", "rehearsal", "copies")


def resolve(config: RunConfig) -> RunConfig:
    """Returns the config with every setting that has no effect reset to its default.

    A sweep gives the same `plan` or `method.without` to jobs of every method. A dense or filtered
    run has no plan, and without a plan no gradient is cut; `plan.forget` is for that plan, and
    `method.without` for filtered runs. This function is the only place that says so.
    """
    plan, method, partition = config.plan, config.method, config.partition
    procedure = config.procedure
    is_routed = method.name not in UNROUTED and plan.kind is not PlanKind.none
    if method.name in (Method.filtered, Method.filtered_observed):
        method = MethodConfig(name=method.name, without=method.without)
    elif not is_routed:
        method = MethodConfig(name=method.name)
    else:
        method = replace(method, without=[])
    edges, route = config.edges, config.route
    if not is_routed or procedure.name is ProcedureKind.fixed:
        procedure = ProcedureConfig()
    elif procedure.name is ProcedureKind.branch:
        names = [item.name for item in fields(ProcedureConfig) if item.name not in _OF_BRANCH]
        procedure = _with_defaults(procedure, *names)
        # Foreign blocks are always off. Each block is clipped by itself, like a model of its own.
        edges, route = Edges.weight, RouteConfig(foreign_dropout=1.0)
    else:
        procedure = _with_defaults(procedure, "trunk", "rehearsal", "copies")
        if plan.kind is PlanKind.tree:
            # The first round splits the top of the tree, and each further round the next level.
            plan = replace(plan, kind=PlanKind.peers)
    if procedure.attribution is Attribution.none:
        procedure = replace(procedure, equal_layers=True)
    if procedure.attribution is not Attribution.integrated:
        procedure = _with_defaults(procedure, "attribution_steps")
    if not is_routed:
        plan = PlanConfig(kind=PlanKind.none)
        if method.name is not Method.filtered_observed:
            partition = replace(partition, unlabelled=0.0, mislabelled=0.0)
    elif plan.kind is not PlanKind.forget:
        plan = replace(plan, forget=[])
        method = replace(method, unlabelled_retained=None)
        route = replace(route, token_bias=None)  # every domain owns the core
    elif method.unlabelled_retained is not None:
        if not partition.unlabelled:
            hidden = {PER_DOMAIN_ANY: method.unlabelled_retained} | dict.fromkeys(plan.forget, 0.0)
            partition = replace(partition, unlabelled=hidden)
        method = replace(method, unlabelled_retained=None)
    shares, lengths = partition.unlabelled, round_lengths(procedure.rounds)
    is_one = not isinstance(shares, dict)
    shares = float(shares) if is_one else {node: float(x) for node, x in shares.items()}
    rounds = len(lengths) if len(set(lengths)) == 1 else lengths
    is_generated = config.data.kind is DataKind.synthetic
    unused = ["split"] if is_generated else ["overlap", "documents", "seed"]
    return replace(
        config,
        plan=plan,
        edges=edges if is_routed else Edges.none,
        route=route if is_routed else RouteConfig(),
        method=method,
        procedure=replace(procedure, rounds=rounds),
        partition=replace(partition, unlabelled=shares),
        data=_with_defaults(config.data, *unused),
        train=config.train if is_routed else _with_defaults(config.train, "block_lr"),
        eval=_resolve_eval(config.eval, has_removal=is_routed or bool(method.without)),
    )


def _with_defaults(group: Any, *names: str) -> Any:
    default = type(group)()
    return replace(group, **{name: getattr(default, name) for name in names})


def _resolve_eval(evaluation: EvalConfig, *, has_removal: bool) -> EvalConfig:
    """`has_removal`: whether a domain is removed from the model or from its training text."""
    if has_removal:
        evaluation = replace(evaluation, unlearn_steps=None)
    elif evaluation.unlearn_steps is None:
        # Nothing is removed from a dense model, so nothing can be calibrated or relearned.
        evaluation = replace(evaluation, calibrate=False, relearn_steps=None)
    if evaluation.relearn_steps is None:
        names = [item.name for item in fields(EvalConfig) if item.name.startswith("relearn_")]
        evaluation = _with_defaults(evaluation, *names)
    return evaluation
