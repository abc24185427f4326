"""Checks of a config against the parts of gr-sweep that will read it. Without torch."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Any

from gr_sweep.config import PlanConfig, RunConfig
from gr_sweep.data.rows import step_rows
from gr_sweep.errors import ConfigError
from gr_sweep.model.families import FAMILIES, check_kinds
from gr_sweep.model.pretrained import check_length, read_config, shape_of_config
from gr_sweep.model.sizes import Size
from gr_sweep.planning import (
    labels_of_rounds,
    make_plan,
    makes_plan_in_training,
    named_shape,
    phases_of,
    plan_of_last_round,
)
from gr_sweep.routing.kinds import ModelShape
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.tracking import check_tracking
from gr_sweep.train.distributed import place


def check_fit(config: RunConfig) -> None:
    """Checks a resolved config against the parts that will read it.

    Raises:
        ConfigError: an unknown size, a step that cannot be divided, or no API key.
        PlanError: the plan does not fit the model.
    """
    check_tracking(config.tracking)
    if config.eval.tasks and importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("eval.tasks needs lm-evaluation-harness: pip install 'gr-sweep[tasks]'")
    step_rows(config)
    here = place()
    if here is not None:
        from gr_sweep.components import check_processes  # slow to import

        check_processes(config, here.rank, here.world_size)
    shape = shape_of_model(config)
    for phase in phases_of(config):
        step_rows(config, only=phase.labels)
    plan = None
    if not makes_plan_in_training(config):
        plan = _plan_for(config, shape)
    elif shape is not None:
        plan = plan_of_last_round(config, shape)
    for labels in labels_of_rounds(config):
        step_rows(config, labels)
    content = _content_of(config)
    if plan is not None and content is not None:
        model_type = content["model_type"]
        check_kinds(plan, model_type)
        if FAMILIES[model_type].mixture and config.train.compile:
            raise ConfigError(
                f"train.compile=true does not know mixtures of experts ({model_type}), whose "
                "router chooses by the text; set train.compile=false"
            )
    for split in plan.splits.values() if plan and config.procedure.copies else ():
        if len(set(split.sizes[1:])) > 1:
            sizes = ", ".join(map(str, split.sizes[1:]))
            raise ConfigError(
                f"procedure.copies=true needs blocks of one size, got {sizes} units; change "
                "plan.mlp_shared or plan.attn_shared"
            )


def _content_of(config: RunConfig) -> dict[str, Any] | None:
    """The config.json of the job's checkpoint; None without one on this machine."""
    if config.model.path is None:
        return None
    return read_config(config.model.path, config.model.gguf_file)


def parts_of(config: RunConfig) -> Sequence[str]:
    """Domains and nodes of the tree that can be removed from the job's model."""
    return _plan_for(config, shape_of_model(config)).removable()


def _plan_for(config: RunConfig, shape: ModelShape | None) -> RoutePlan:
    """The job's plan; for a checkpoint of unknown shape that of a wide model of one layer."""
    if shape is not None:
        return make_plan(config, shape)
    plan = dataclasses.replace(PlanConfig(), kind=config.plan.kind, forget=config.plan.forget)
    wide = Size(64, 1 << 20, 1, 1, 1)
    return make_plan(dataclasses.replace(config, plan=plan), wide)


def shape_of_model(config: RunConfig) -> ModelShape | None:
    """Sizes of the model that a plan needs; None if they are only known once it is loaded.

    Raises:
        ConfigError: the size is unknown, or the folder has no valid config.json.
        PlanError: a model that cannot be routed.
    """
    model = config.model
    if model.size is not None:
        return named_shape(config)
    content = _content_of(config)
    if content is None or model.path is None:
        return None
    positions = content.get("n_positions") or content.get("max_position_embeddings")
    check_length(model.path, content["model_type"], positions, config.train.sequence_length)
    return shape_of_config(content)
