"""Where a job's metrics go: always metrics.jsonl, and Weights & Biases unless it is off.

Importing this does not import wandb.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gr_sweep.bounds import invalid
from gr_sweep.config import TrackingConfig, TrackingMode
from gr_sweep.jobdir import METRICS, read_finished
from gr_sweep.tracking.base import Tracker, agents_run_id
from gr_sweep.tracking.jsonl import JsonlTracker

__all__ = ["Tracker", "check_tracking", "make_tracker", "report_to_agent"]

_MAX_TAG_LENGTH = 64
"""W&B refuses longer tags."""


def check_tracking(config: TrackingConfig) -> None:
    """Checks before any work that W&B can be used as `config` asks. No network.

    Raises:
        ConfigError: W&B refuses a name or a tag, or mode is online and no API key is configured.
    """
    if config.mode is TrackingMode.off:
        return
    # As W&B allows them.
    name = r"[^/\\#?%:\n]{1,128}"
    for setting, values, pattern, expected in (
        ("project", [config.project], name, r"1 to 128 characters without / \ # ? % :"),
        ("entity", [config.entity], name, r"1 to 128 characters without / \ # ? % :"),
        ("group", [config.group], ".{1,128}", "1 to 128 characters"),
        ("tags", config.tags, f".{{1,{_MAX_TAG_LENGTH}}}", f"1 to {_MAX_TAG_LENGTH} characters"),
    ):
        for value in values:
            if value is not None and not re.fullmatch(pattern, value):
                raise invalid(f"tracking.{setting}", value, expected)
    if config.mode is TrackingMode.online:
        from gr_sweep.tracking.wandb import resolve_mode

        resolve_mode(config.mode)


def make_tracker(
    config: TrackingConfig, *, folder: Path, job: str, sweep: str, run_config: Mapping[str, Any]
) -> Tracker:
    """The tracker of one job.

    Args:
        config: mode, project, entity, group and tags.
        folder: the job's folder; metrics.jsonl and wandb/ are made in it.
        job: name of the job, and of the W&B run.
        sweep: name of the sweep folder; the W&B group unless `config.group` is set.
        run_config: `dataclasses.asdict` of the job's `RunConfig`, enums as their values.

    Raises:
        ConfigError: mode is online and no API key is configured.
    """
    if config.mode is not TrackingMode.off:
        from gr_sweep.tracking.wandb import WandbTracker, resolve_mode

        mode = resolve_mode(config.mode)
        run = {
            "project": config.project,
            "entity": config.entity,
            "group": config.group or sweep,
            "name": job,
            "tags": list(dict.fromkeys([*_tags(run_config), *config.tags])),
            "config": dict(run_config),
        }
        if mode is not TrackingMode.off:
            return WandbTracker(mode, folder, run)
    return JsonlTracker(folder / METRICS)


def _tags(run_config: Mapping[str, Any]) -> list[str]:
    """Tags that tell the jobs of a sweep apart."""
    model = run_config["model"]
    tags = [
        f"procedure={run_config['procedure']['name']}",
        f"edges={run_config['edges']}",
        f"plan={run_config['plan']['kind']}",
        f"model={model['size'] or Path(model['path']).name}",
        f"method={run_config['method']['name']}",
        f"partition={run_config['partition']['name']}",
    ]
    return [tag[:_MAX_TAG_LENGTH] for tag in tags]


def report_to_agent(config: TrackingConfig, folder: Path, job: str) -> None:
    """Logs a finished job's rows and summary to the W&B run for which `wandb agent` started this
    process, if it did. Arguments as for `make_tracker`.

    Raises:
        ConfigError: mode is online and no API key is configured.
    """
    summary = read_finished(folder)
    if summary is None or agents_run_id() is None:
        return
    sweep, run_config = summary["sweep"], summary["config"]
    with make_tracker(
        config, folder=folder, job=job, sweep=sweep, run_config=run_config
    ) as tracker:
        tracker.cut_back(sys.maxsize)  # replays all rows
        tracker.finish(summary)
