"""From a command line to jobs: composes and checks every job, and names its folder.

Every error of a command is found here, before a folder is made. Nothing here runs a job.
"""

import copy
import itertools
import math
import os
import re
import shlex
import stat
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
from gr_sweep.cli.composer import Composer, composing
from gr_sweep.cli.fit import check_fit, parts_of
from gr_sweep.cli.names import name_of, slug, that_count, title_of, without_fixed
from gr_sweep.cli.overrides import MAX_JOBS, explain, key_of, quoted, values_of
from gr_sweep.cli.schema import LAUNCHERS
from gr_sweep.cli.task import Job
from gr_sweep.config import UNROUTED, Baseline, RunConfig, fingerprint, is_below
from gr_sweep.errors import ConfigError
from gr_sweep.jobdir import SUMMARY

_FILTERED = {Baseline.filtered, Baseline.filtered_observed}

_SET_BY_HYDRA = ("hydra.overrides", "hydra.runtime", "hydra.job.num", "hydra.job.id")

_SETTING = re.compile(r"\$\{[\w.]+\}")
"""Interpolation of a setting."""

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
    overrides: Sequence[str],
    *,
    multirun: bool = False,
    config_name: str = "config",
    config_path: str | None = None,
    config_dir: str | None = None,
) -> Command:
    """Composes and checks every job of a command line.

    Args:
        overrides: what the user typed, `key=value` each.
        multirun: whether -m was given; `hydra.mode` in a config says the same.
        config_name: the primary config.
        config_path: folder to use instead of the configs of gr-sweep.
        config_dir: folder to search in addition.

    Raises:
        ConfigError: the first problem of the first job that has one.
    """
    try:
        with composing(overrides, config_name, config_path, config_dir) as composer:
            typed = composer.parse(overrides)
            for override in typed:
                if is_below(override.key_or_group, _SET_BY_HYDRA):
                    raise ConfigError(f"{override.input_line}: gr-sweep sets this; leave it out")
                if override.is_hydra_override() and override.is_sweep_override():
                    raise ConfigError(
                        f"{override.input_line}: a command has one value of this for all its jobs; "
                        "quote a value that contains commas"
                    )
            settings = [override for override in typed if not override.is_hydra_override()]
            fixed = [str(o.input_line) for o in settings if not o.is_sweep_override()]
            composer.compose_base(fixed)
            _check_hydra(composer.base.hydra)
            if multirun or composer.base.hydra.mode == RunMode.MULTIRUN:
                return _Sweep(composer, settings).command()
            for override in typed:
                if override.is_sweep_override():
                    raise ConfigError(
                        f"{override.input_line} has several values: add -m to run a job for each, "
                        f"or write a list as {override.key_or_group}=[...]"
                    )
            return _single(composer, fixed)
    except RecursionError as error:
        raise ConfigError(
            "brackets are nested too deeply, or a defaults list leads back to its own file"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error


def _single(composer: Composer, lines: list[str]) -> Command:
    cfg = composer.compose(lines)
    whole = composer.with_hydra(cfg, lines, 0)
    config, typed = _resolved(cfg)
    if config.baselines and any(key_of(line) == "baselines" for line in lines):
        raise ConfigError("baselines are runs that a sweep adds: add -m, or leave them out")
    folder = _folder("hydra.run.dir", whole.hydra.run.dir.replace("{job}", name_of(config, lines)))
    job = Job(
        config=config,
        lines=lines,
        folder=folder,
        title=title_of(lines),
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
        raw: Any = OmegaConf.to_container(params) if params else {}
        # `${seed}` is the seed of each job.
        of_job = {key: value for key, value in raw.items() if _SETTING.fullmatch(str(value))}
        swept = composer.parse([f"{key}={value}" for key, value in {**params, **of_job}.items()])
        # What is typed replaces what the config sweeps.
        overrides = {override.key_or_group: override for override in [*swept, *typed]}
        self.swept = {key for key, value in overrides.items() if value.is_sweep_override()}
        self.values = {key: values_of(override) for key, override in overrides.items()}
        fixed = [values[0] for key, values in self.values.items() if key not in self.swept]
        self.whole = composer.with_hydra(composer.compose(fixed), fixed, 0)
        name = slug(that_count([*self.swept, *fixed]))
        self.is_named = "{sweep}" in self.whole.hydra.sweep.dir
        folder = self.whole.hydra.sweep.dir.replace("{sweep}", name)
        self.folder = _folder("hydra.sweep.dir", folder)
        self.jobs: list[Job] = []
        self.baselines: dict[tuple[str, ...], Job] = {}

    def command(self) -> Command:
        if math.prod(map(len, self.values.values())) > MAX_JOBS:
            raise ConfigError(f"these are more than {MAX_JOBS} jobs; use fewer values")
        for lines in map(list, itertools.product(*self.values.values())):
            job = self._job(lines, [line for line in lines if key_of(line) in self.swept])
            self.jobs.append(job)
            parts = parts_of(job.config) if _FILTERED & set(job.config.baselines) else ()
            pinned = self._pinned(lines) if job.config.baselines else lines
            for kept, added in baselines_of(job.config, pinned, parts):
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

    def _pinned(self, lines: list[str]) -> list[str]:
        """The lines with the job's numbers for interpolations: a baseline has other settings."""
        if not any("$" in line for line in lines):
            return lines
        cfg = self.composer.compose(lines)
        own = [OmegaConf.select(cfg, key_of(line)) if "$" in line else None for line in lines]
        return [
            f"{key_of(line)}={value}" if isinstance(value, int | float) else line
            for line, value in zip(lines, own, strict=True)
        ]

    def _job(self, lines: list[str], differing: list[str], *, is_baseline: bool = False) -> Job:
        """The job of these overrides; `differing` are those in which it differs from others."""
        cfg = self.composer.compose(lines)
        number = len(self.jobs) + len(self.baselines)
        self.composer.enter_job(lines, number)
        config, typed = _resolved(cfg)
        differing = without_fixed(differing, typed)
        node = self.composer.base.hydra.sweep
        if OmegaConf.is_interpolation(node, "subdir"):
            node = self.composer.with_hydra(cfg, lines, number).hydra.sweep
        name = name_of(config, differing if self.is_named else lines)
        subdir = node.subdir.replace("{job}", name)
        if not _is_plain(subdir):
            expected = "a folder within that of the sweep, such as {job}"
            raise invalid("hydra.sweep.subdir", node.subdir, expected)
        return Job(
            config=config,
            lines=lines,
            folder=_folder("hydra.sweep.subdir", str(self.folder / subdir)),
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
    if not isinstance(config, RunConfig):
        raise ConfigError("the config has no schema; begin its defaults with base_config")
    return config


def _with_fixes(cfg: DictConfig) -> DictConfig:
    """The config with the settings that its method fixes merged in.

    Raises:
        ConfigError: method.fixes names a setting that does not exist, or a value of a wrong type.
    """
    fixes = OmegaConf.to_container(cfg.method.fixes, resolve=True)
    if not fixes or cfg.method.name in UNROUTED:
        return cfg
    assert isinstance(fixes, dict)
    if "method" in fixes:
        raise ConfigError("method.fixes.method: a method cannot fix itself")
    cfg = copy.deepcopy(cfg)
    cfg.merge_with(fixes)
    cfg.method.fixes = {}
    return cfg


def _overruled(lines: Sequence[str], typed: RunConfig) -> list[str]:
    effective = without_fixed(lines, typed)
    return [line for line in lines if line not in effective]


def _folder(name: str, given: str) -> Path:
    """A folder for results, whether it exists or not.

    Raises:
        ConfigError: it cannot be made: the name is empty or too long, or a file is in the way.
    """
    try:
        given.encode()  # reports and cards hold it
        if given.strip() and stat.S_ISDIR(os.stat(given).st_mode):
            return Path(given)
    except FileNotFoundError:
        return Path(given)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise ConfigError(f"{name}={given} cannot be a folder: {reason}") from error
    raise invalid(name, given, "a folder")


def _is_plain(name: str) -> bool:
    """Whether it names a folder directly within another."""
    return name not in ("", "..") and Path(name).name == name


def _check_hydra(hydra: DictConfig) -> None:
    """Raises ConfigError if Hydra is asked for something that gr-sweep does not do."""
    for group, targets in _SUPPORTED.items():
        node = hydra[group]
        if not OmegaConf.is_dict(node) or not str(node.get("_target_")).endswith(targets):
            raise ConfigError(
                f"gr-sweep does not support this hydra/{group}; launchers are basic, "
                f"{' and '.join(sorted(LAUNCHERS))}; the only sweeper is basic"
            )
    if hydra.job.chdir or hydra.job.env_set or hydra.callbacks:
        raise ConfigError(
            "gr-sweep does not support hydra.job.chdir, hydra.job.env_set and hydra.callbacks"
        )
    if hydra.output_subdir is not None and not _is_plain(hydra.output_subdir):
        expected = "the name of a folder within that of the job, or null"
        raise invalid("hydra.output_subdir", hydra.output_subdir, expected)


def _distinct(jobs: list[Job]) -> list[Job]:
    """One job for each fingerprint: one that has a summary, otherwise the first.

    A sweep over `method=dense,routed edges=both,act` names the dense run twice: it cuts no edge.

    Raises:
        ConfigError: two different jobs have the same folder.
    """
    by_fingerprint: dict[str, Job] = {}
    for job in jobs:
        key = fingerprint(job.config)
        twin = by_fingerprint.setdefault(key, job)
        if (job.folder / SUMMARY).exists() and not (twin.folder / SUMMARY).exists():
            by_fingerprint[key] = job
    owners: dict[Path, Job] = {}
    for job in by_fingerprint.values():
        other = owners.setdefault(job.folder, job)
        if other is not job:
            raise ConfigError(
                f"the jobs {other.title} and {job.title} have the same folder {job.folder}; put "
                "{job} into hydra.sweep.subdir"
            )
    return list(by_fingerprint.values())
