"""The procedure `branch`: the core trains alone, then it is frozen and every block trains on its
own text (docs/methods.md, "Procedures").

How the model is routed follows from the phase, so that a stopped run resumes in either.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from gr_sweep.config import Core, Edges, ProcedureKind, RunConfig
from gr_sweep.model.route import RoutedModel
from gr_sweep.model.units import local_units, unsharded
from gr_sweep.planning import Phase, phases_of
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.loop import Trainer


def routing_of(config: RunConfig, plan: RoutePlan, phase: Phase) -> dict[str, Any]:
    """Arguments of `route_model` in a phase of a job that has no rounds."""
    how: dict[str, Any] = {"edges": config.edges, "seed": config.seed} | asdict(config.route)
    del how["token_bias"]  # it needs text: `components.token_cuts`
    how["core_frozen"] = config.plan.core is Core.frozen
    if config.procedure.name is ProcedureKind.branch:
        how["core_frozen"] = not phase.is_dense
        if phase.is_dense:
            on: frozenset[str] = frozenset()
            if config.procedure.copies:
                # With the first block: a plain dense model, which reads the text of all domains.
                on = plan.blocks[1].owners
                how |= {"edges": Edges.none, "foreign_dropout": 0.0}
            how["always_off"] = [domain for domain in plan.domains if domain not in on]
    return how


def begun_phases(config: RunConfig, routed: RoutedModel, trainer: Trainer) -> Iterator[Phase]:
    """The phases from where the run stands, each with the model made ready for it."""
    for phase in phases_of(config):
        if trainer.state.step > phase.stop:
            continue
        if 0 < phase.start == trainer.state.step:
            trainer.optimizer.state.clear()
            if config.procedure.copies:
                _copy_first_block(routed)
        enter(config, routed, phase.stop)
        yield phase


def enter(config: RunConfig, routed: RoutedModel, step: int) -> None:
    """Routes the model of `branch` as this step, counted from 1, trains it; at first the model is
    that of the first phase."""
    last = phases_of(config)[-1]
    if config.procedure.name is ProcedureKind.branch and 0 < last.start < step:
        plan = routed.plan.in_place()
        routed.lay(plan, **routing_of(config, plan, last))


def begins_silent(config: RunConfig) -> bool:
    """Whether blocks begin with outputs of 0, so that each branch begins as the core alone. Those
    of a pretrained model have learned already."""
    procedure = config.procedure
    is_new = config.model.path is None and not procedure.copies
    return procedure.name is ProcedureKind.branch and is_new


@torch.no_grad()
def silence_blocks(routed: RoutedModel) -> None:
    """Sets the output columns of all blocks to 0."""
    for linear in routed.unit_linears:
        if linear.is_row:
            core, *_, last = linear.units
            for parameter in linear.parameters:
                of_blocks = slice(core.stop, last.stop)
                local_units(parameter, of_blocks, linear.dim(parameter)).zero_()


@torch.no_grad()
def _copy_first_block(routed: RoutedModel) -> None:
    for linear in routed.unit_linears:
        _, first, *others = linear.units
        for parameter in linear.parameters:
            dim = linear.dim(parameter)
            with unsharded(parameter) as weight:
                copied = weight.narrow(dim, first.start, first.stop - first.start)
                for units in others:
                    weight.narrow(dim, units.start, units.stop - units.start).copy_(copied)
