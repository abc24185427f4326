"""What a job's network will look like, before there is one: its shape and its route plan.

Torch is not needed: the command line checks with it what the job then builds.
"""

from typing import Any

from gr_sweep.config import PlanKind, RunConfig
from gr_sweep.model.sizes import Size, full_width, shape_of
from gr_sweep.routing.plan import ModelShape, RoutePlan


def named_shape(config: RunConfig) -> Size:
    """The shape of the job's named size, widened where the plan asks for it.

    Raises:
        ConfigError: an unknown size.
        PlanError: a plan that cannot be.
    """
    model, plan = config.model, config.plan
    assert model.size is not None  # config.validate
    shape = shape_of(model.size, model.intermediate_size)
    if not plan.full_width or plan.kind is PlanKind.none:
        return shape
    return full_width(
        shape,
        plan.kind.value,
        domains=list(config.partition.domains),
        forget=plan.forget,
        mlp_shared=plan.mlp_shared,
    )


def make_plan(config: RunConfig, shape: ModelShape | Any) -> RoutePlan:
    """The job's route plan for a model of this shape (a `Size` or a Hugging Face config).

    Raises:
        PlanError: a plan that the model has too few units or layers for.
    """
    plan = config.plan
    return RoutePlan.make(
        plan.kind.value,
        shape,
        domains=list(config.partition.domains),
        forget=plan.forget,
        mlp_shared=plan.mlp_shared,
        attn_shared=plan.attn_shared,
        layers=plan.layers,
        layer_share=plan.layer_share,
    )
