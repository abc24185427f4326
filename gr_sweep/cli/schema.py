"""Tells Hydra which settings exist: each dataclass of `gr_sweep.config` becomes `base_<group>`.

Every YAML file of a group begins with `defaults: [base_<group>, _self_]`, so that Hydra checks keys
and types of what the file and the command line say. `gr_sweep.checks` validates values.
"""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore

from gr_sweep import config
from gr_sweep.bounds import bounded
from gr_sweep.launch.local import LocalParallelConfig
from gr_sweep.launch.resources import SlurmConfig

GROUPS: dict[str, type] = {
    "model": config.ModelConfig,
    "partition": config.PartitionConfig,
    "plan": config.PlanConfig,
    "data": config.DataConfig,
    "method": config.MethodConfig,
    "procedure": config.ProcedureConfig,
    "tracking": config.TrackingConfig,
}
"""Groups whose files fill one node; the others write at the top level."""

LAUNCHERS: dict[str, Any] = {"slurm": SlurmConfig, "local_parallel": LocalParallelConfig}
"""Settings of each file of conf/hydra/launcher, which `_check` and `_launch` of cli/run.py run.
Numbers in a queue, requeueing and kills know SLURM alone: `jobdir.Holder`, status.py, task.py."""


@dataclass
class OptunaConfig:
    """`hydra/sweeper=optuna`: a search over the settings that have several values, for trials with
    the best `objective`."""

    _target_: str = "gr_sweep.cli.search.OptunaSweeper"
    """Marker by which the sweeper is recognised; Hydra never instantiates it."""
    params: dict[str, Any] | None = None
    """What is searched, as in a sweep: values, `range(0,9)`, `interval(0.5,4)`,
    `int(interval(1,64))` or `tag(log,interval(0.001,0.1))`. Of several seeds a trial has the
    mean."""
    n_trials: int = bounded(20, at_least=1)
    """Trials in all; with more, a search continues."""
    n_jobs: int = bounded(1, at_least=1)
    """Trials at a time, which `hydra/launcher=local_parallel` and `slurm` run in parallel."""
    seed: int = bounded(0, at_least=0, at_most=(1 << 32) - 1)
    """Seed of the search, whose trials are the same for the same seed and `n_jobs`."""


OPTIONAL_GROUPS = ("debug", "experiment", "scale")
"""Groups from which nothing is chosen by default."""

DEFAULT_GROUPS = (*GROUPS, "edges", *OPTIONAL_GROUPS)
"""All groups of conf/config.yaml."""


def _register() -> None:
    """Puts the schemas into Hydra's store."""
    store = ConfigStore.instance()
    store.store(name="base_config", node=config.RunConfig)
    for group, schema in GROUPS.items():
        store.store(group=group, name=f"base_{group}", node=schema)
    for name, launcher in LAUNCHERS.items():
        store.store(group="hydra/launcher", name=f"base_{name}", node=launcher)
    store.store(group="hydra/sweeper", name="base_optuna", node=OptunaConfig)


_register()
