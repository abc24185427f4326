"""From a command line to jobs: composes and checks every job, and names its folder.

Every error of a command is found here, before a folder is made. Nothing here runs a job.
"""

import copy
import itertools
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gr_sweep.bounds import invalid
from gr_sweep.checks import validate
from gr_sweep.cli.baselines import baselines_of
from gr_sweep.cli.check_fit import check_fit, parts_of
from gr_sweep.cli.composer import Composer, composing
from gr_sweep.cli.names import (
    name_of,
    sweep_name,
    taken_names,
    title_of,
    without_fixed,
    without_paths,
)
from gr_sweep.cli.overrides import MAX_JOBS, explain, key_of, quoted, values_of
from gr_sweep.cli.schema import LAUNCHERS, OPTIONAL_GROUPS
from gr_sweep.cli.task import Job
from gr_sweep.config import UNROUTED, Baseline, RunConfig
from gr_sweep.errors import ConfigError
from gr_sweep.fingerprint import fingerprint

_FILTERED = {Baseline.filtered, Baseline.filtered_observed}

_SETTING = re.compile(r"\$\\?\{[\w.]+\\?\}")
"""Interpolation of another setting, whose braces Hydra escapes."""

_SUPPORTED = {
    "launcher": (".BasicLauncher", *(settings._target_ for settings in LAUNCHERS.values())),
    "sweeper": (".BasicSweeper",),
}
"""The end of the `_target_` of the choices of Hydra's groups that gr-sweep has."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """All jobs of a command line."""

    jobs: list[Job]
    folder: Path
    """The sweep's folder; of a single job the folder above its own."""
    is_multirun: bool
    composer: Composer
    hydra_config: DictConfig
    """The command's config with its hydra node, without swept values."""

    def config_of(self, job: Job, folder: Path) -> DictConfig:
        """The job's config with its hydra node, if it runs in the absolute folder."""
        cfg = self.composer.compose(job.lines)
        return self.composer.with_hydra(cfg, job.lines, job.number, folder)

    def line_of(self, job: Job) -> str:
        """A command that runs the job alone, in its folder."""
        words = [*self.composer.words]
        words += [line for line in job.lines if key_of(line) != "baselines"]
        if self.hydra_config.hydra.mode == RunMode.MULTIRUN:
            words.append("hydra.mode=RUN")
        words.append(f"hydra.run.dir={quoted(str(job.folder))}")
        return shlex.join(["gr-sweep", *words])


def compose(
    overrides: Sequence[str], *, multirun: bool = False, config_dir: str | None = None
) -> Command:
    """Composes and checks every job of a command line.

    Args:
        overrides: what the user typed, `key=value` each.
        multirun: whether -m was given; `hydra.mode` in a config says the same.
        config_dir: folder to search for configs in addition.

    Raises:
        ConfigError: the first problem of the first job that has one.
    """
    try:
        with composing(overrides, config_dir) as composer:
            typed = composer.parse(overrides)
            for override in typed:
                line, is_hydras = str(override.input_line), override.is_hydra_override()
                if override.is_delete() or ("${hydra:" in line and not is_hydras):
                    raise ConfigError(
                        f"{line}: give a value; settings cannot be deleted or follow ${{hydra:...}}"
                    )
            settings = [override for override in typed if not override.is_hydra_override()]
            fixed = [str(o.input_line) for o in settings if not o.is_sweep_override()]
            composer.compose_base(fixed)
            _check_hydra(composer.base.hydra)
            if multirun or composer.base.hydra.mode == RunMode.MULTIRUN:
                return _Sweep(composer, settings).command()
            for override in settings:
                if override.is_sweep_override():
                    raise ConfigError(
                        f"{override.input_line} has several values: add -m to run a job for each, "
                        f"or write a list as {override.key_or_group}=[...]"
                    )
            return _single(composer, fixed)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
    except RecursionError as error:
        said = "a value is nested too deeply, or a config names itself in its defaults"
        raise ConfigError(said) from error


def _single(composer: Composer, lines: list[str]) -> Command:
    cfg = composer.compose(lines)
    whole = composer.with_hydra(cfg, lines, 0)
    config, typed = _resolved(cfg)
    if config.baselines and any(key_of(line) == "baselines" for line in lines):
        raise ConfigError("baselines are runs that a sweep adds: add -m, or leave them out")
    shown = without_paths(lines)
    pattern = Path(whole.hydra.run.dir)
    name = name_of(config, [config.name] if config.name else shown, taken_names(pattern.parent))
    folder = Path(str(pattern).replace("{job}", name))
    job = Job(
        config=config,
        lines=lines,
        folder=folder,
        title=config.name or title_of(shown),
        number=0,
        overruled=_overruled(lines, typed),
    )
    return Command(
        jobs=[job],
        folder=folder.parent,
        is_multirun=False,
        composer=composer,
        hydra_config=whole,
    )


class _Sweep:
    """Makes the jobs of a multirun."""

    def __init__(self, composer: Composer, typed: Sequence[Override]) -> None:
        """`typed` are the overrides of settings."""
        self.composer = composer
        params = composer.base.hydra.sweeper.params or {}
        # Not resolved: `${seed}` is the seed of each job.
        raw: Any = OmegaConf.to_container(params, resolve=False) if params else {}
        swept = composer.parse([f"{key}={value}" for key, value in raw.items()])
        # What is typed replaces what the config sweeps.
        overrides = {override.key_or_group: override for override in [*swept, *typed]}
        self.swept = {key for key, value in overrides.items() if value.is_sweep_override()}
        if studies := self.swept.intersection(OPTIONAL_GROUPS):
            raise ConfigError(
                f"{min(studies)} can change what is swept: run a command for each of its values"
            )
        self.values = {key: values_of(override) for key, override in overrides.items()}
        fixed = [values[0] for key, values in self.values.items() if key not in self.swept]
        self.whole = composer.with_hydra(composer.compose(fixed), fixed, 0)
        if "name" in self.swept:
            raise ConfigError("name names the whole sweep: give it one value")
        name = sweep_name(self.whole.name, self.swept, fixed)
        self.folder = Path(self.whole.hydra.sweep.dir.replace("{sweep}", name))
        self.taken = taken_names(self.folder)
        self.jobs: list[Job] = []
        self.baselines: dict[tuple[str, ...], Job] = {}

    def command(self) -> Command:
        if math.prod(map(len, self.values.values())) > MAX_JOBS:
            raise ConfigError(f"these are more than {MAX_JOBS} jobs; use fewer values")
        for lines in map(list, itertools.product(*self.values.values())):
            job = self._job(lines, [line for line in lines if key_of(line) in self.swept])
            self.jobs.append(job)
            parts = parts_of(job.config) if _FILTERED & set(job.config.baselines) else ()
            if job.config.baselines and any(_SETTING.search(line) for line in lines):
                raise ConfigError(
                    "baselines have other settings than their jobs; give values instead of ${...}"
                )
            for kept, added in baselines_of(job.config, lines, parts):
                key = (*kept, *added)
                if key not in self.baselines:
                    differing = [line for line in kept if key_of(line) in self.swept]
                    baseline = self._job([*key], [*differing, *added], is_baseline=True)
                    self.baselines[key] = baseline
        # Baselines first, so that every report of the sweep can compare with them.
        return Command(
            jobs=_distinct([*self.baselines.values(), *self.jobs]),
            folder=self.folder,
            is_multirun=True,
            composer=self.composer,
            hydra_config=self.whole,
        )

    def _job(self, lines: list[str], differing: list[str], *, is_baseline: bool = False) -> Job:
        """The job of these overrides; `differing` are those in which it differs from others."""
        cfg = self.composer.compose(lines)
        number = len(self.jobs) + len(self.baselines)
        config, typed = _resolved(cfg)
        differing = without_fixed(differing, typed)
        node = self.composer.base.hydra.sweep
        if OmegaConf.is_interpolation(node, "subdir"):
            node = self.composer.with_hydra(cfg, lines, number).hydra.sweep
        name = name_of(config, differing, self.taken)
        subdir = node.subdir.replace("{job}", name)
        if subdir in ("", "..") or Path(subdir).name != subdir:
            expected = "a folder within that of the sweep, such as {job}"
            raise invalid("hydra.sweep.subdir", node.subdir, expected)
        return Job(
            config=config,
            lines=lines,
            folder=self.folder / subdir,
            title=title_of(differing),
            number=number,
            is_baseline=is_baseline,
            overruled=[] if is_baseline else _overruled(lines, typed),
        )


def _resolved(cfg: DictConfig) -> tuple[RunConfig, RunConfig]:
    """The config of a job, checked and resolved, and the config as it was typed."""
    typed = _to_run_config(cfg)
    config = validate(_to_run_config(_with_fixes(cfg)))
    check_fit(config)
    return config, typed


def _to_run_config(cfg: DictConfig) -> RunConfig:
    """The one place where Hydra's config becomes plain dataclasses."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, RunConfig)  # by its schema
    return config


def _with_fixes(cfg: DictConfig) -> DictConfig:
    """The config with the settings that its method fixes merged in.

    Raises:
        ConfigError: method.fixes names a setting that does not exist, or a value of a wrong type.
    """
    fixes = OmegaConf.to_container(cfg.method.fixes, resolve=True)
    if not fixes or cfg.method.name in UNROUTED:
        return cfg
    cfg = copy.deepcopy(cfg)
    cfg.merge_with(fixes)
    cfg.method.fixes = {}
    return cfg


def _overruled(lines: Sequence[str], typed: RunConfig) -> list[str]:
    effective = without_fixed(lines, typed)
    return [line for line in lines if line not in effective]


def _check_hydra(hydra: DictConfig) -> None:
    """Raises ConfigError if Hydra is asked for something that gr-sweep does not do."""
    for group, targets in _SUPPORTED.items():
        node = hydra[group]
        if not OmegaConf.is_dict(node) or not str(node.get("_target_")).endswith(targets):
            raise ConfigError(
                f"gr-sweep does not support this hydra/{group}; launchers are basic, "
                f"{' and '.join(sorted(LAUNCHERS))}; the only sweeper is basic"
            )
    if hydra.job.chdir or hydra.job.env_set or hydra.callbacks or hydra.output_subdir != ".hydra":
        raise ConfigError(
            "gr-sweep does not support hydra.job.chdir, hydra.job.env_set, hydra.callbacks and "
            "hydra.output_subdir"
        )


def _distinct(jobs: list[Job]) -> list[Job]:
    """The first job of each fingerprint.

    A sweep over `method=dense,routed edges=both,act` names the dense run twice: it cuts no edge.

    Raises:
        ConfigError: two different jobs have the same folder.
    """
    by_fingerprint: dict[str, Job] = {}
    for job in jobs:
        by_fingerprint.setdefault(fingerprint(job.config), job)
    owners: dict[Path, Job] = {}
    for job in by_fingerprint.values():
        other = owners.setdefault(job.folder, job)
        if other is not job:
            raise ConfigError(
                f"the jobs {other.title} and {job.title} have the same folder {job.folder}; put "
                "{job} into hydra.sweep.subdir"
            )
    return list(by_fingerprint.values())
