"""Checks of a config against the parts of gr-sweep that will read it. Without torch."""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from gr_sweep.bounds import invalid
from gr_sweep.config import PlanConfig, RunConfig
from gr_sweep.data.rows import micro_batch_rows
from gr_sweep.errors import ConfigError
from gr_sweep.layout import (
    has_rounds,
    labels_of_rounds,
    make_plan,
    named_shape,
    phases_of,
    plan_of_last_round,
)
from gr_sweep.model.sizes import Size
from gr_sweep.routing.plan import ModelShape, RoutePlan
from gr_sweep.tracking import check_tracking
from gr_sweep.train.distributed import place, rows_of

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_LARGEST_SIZE = 1 << 31


def check_fit(config: RunConfig) -> None:
    """Checks a resolved config against the parts that will read it.

    Raises:
        ConfigError: an unknown size, a micro-batch that cannot be divided, or no API key.
        PlanError: the plan does not fit the model.
    """
    check_tracking(config.tracking)
    rows = micro_batch_rows(config)
    here = place()
    if here is not None:
        rows_of(here.rank, here.world_size, sum(rows.values()))
        from gr_sweep.eval.robustness import check_processes  # slow to import

        check_processes(config.eval, here.world_size)
    shape = shape_of_model(config)
    if has_rounds(config):
        phases_of(config)
        if shape is not None:
            plan_of_last_round(config, shape)
        for labels in labels_of_rounds(config):
            micro_batch_rows(config, labels)
        if here is not None:
            raise ConfigError(
                "procedure=alternate needs the whole model in one process; start one process, or "
                "use procedure=fixed"
            )
    else:
        _plan_for(config, shape)


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
    """
    model = config.model
    if model.size is not None:
        return named_shape(config)
    assert model.path is not None  # validate
    folder = Path(model.path)
    is_here = os.path.exists(folder) or folder.is_absolute()
    if not is_here and not _HUB_NAME.fullmatch(model.path):
        raise invalid("model.path", model.path, "a folder or a Hugging Face name (OWNER/NAME)")
    if model.gguf_file is not None or not is_here:
        return None
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        known = {name: content[name] for name in _SIZES if name in content}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"model.path={model.path} is not a checkpoint: config.json cannot be used ({error})"
        ) from error
    if not all(type(n) is int and 0 < n < _LARGEST_SIZE for n in known.values()):
        raise ConfigError(f"model.path={model.path}: config.json has impossible sizes: {known}")
    if len(known) < len(_SIZES):
        return None  # a family with other names; the job says whether it can be routed
    width, units, layers, heads = (known[name] for name in _SIZES)
    return Size(width, units, layers, heads, content.get("num_key_value_heads") or heads)
