"""From a command line to jobs: composes and checks every job, and names its folder.

Every error of a command is found here, before a folder is made. Nothing here runs a job.
"""

import copy
import functools
import itertools
import json
import math
import operator
import os
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
from gr_sweep.cli.overrides import (
    MAX_JOBS,
    check,
    check_is_single,
    explain,
    key_of,
    quoted,
    values_of,
)
from gr_sweep.config import UNROUTED, Baseline, RunConfig, fingerprint, to_plain
from gr_sweep.errors import ConfigError
from gr_sweep.jobdir import SUMMARY, Identity, identity_of, is_done

_FILTERED = {Baseline.filtered, Baseline.filtered_observed}

_SUPPORTED = {
    "launcher": {
        "basic": ".BasicLauncher",
        "local_parallel": ".LocalParallelLauncher",
        "slurm": ".SlurmLauncher",
    },
    "sweeper": {"basic": ".BasicSweeper"},
}
"""Choices of Hydra's groups, and the end of their `_target_`."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One checked job of a command."""

    config: RunConfig
    """Validated and resolved."""
    lines: list[str]
    """Overrides that it is composed from, without those of the hydra node."""
    folder: Path
    """As the command gives it, usually relative."""
    title: str
    """The overrides in which it differs from the other jobs."""
    number: int
    is_baseline: bool = False
    """Whether it was added for the metrics of other jobs."""
    overruled: tuple[str, ...] = ()
    """Sentences about settings that were typed and have no effect."""

    @functools.cached_property
    def identity(self) -> Identity:
        """Settings, text and code of the job; reads the files of `data=local` where they changed.

        Raises:
            DataError: the text cannot be read.
        """
        from gr_sweep.data.prepare import text_fingerprint

        model = self.config.model
        text = text_fingerprint(
            self.config.data, self.config.partition, model.path, model.gguf_file
        )
        return identity_of(self.config, text)

    @functools.cached_property
    def is_done(self) -> bool:
        """Whether its folder held the finished job with the same settings, text and code when this
        was first asked."""
        return (self.folder / SUMMARY).exists() and is_done(self.folder, self.identity)

    @property
    def overrides(self) -> list[str]:
        """Its overrides as a user types them."""
        return [line.lstrip("+") for line in self.lines]


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
        words += [line for line in job.overrides if key_of(line) != "baselines"]
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
                check(override, composer.choices)
            settings = [override for override in typed if not override.is_hydra_override()]
            fixed = [str(o.input_line) for o in settings if not o.is_sweep_override()]
            composer.compose_base(fixed)
            _check_hydra(composer.base.hydra)
            if multirun or composer.base.hydra.mode == RunMode.MULTIRUN:
                return _Sweep(composer, settings).command()
            for override in typed:
                check_is_single(override)
            return _single(composer, fixed)
    except RecursionError as error:
        raise ConfigError("brackets are nested too deeply") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides) from error


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
        overruled=_overruled(lines, typed, config),
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
        swept = composer.parse([f"{key}={value}" for key, value in params.items()])
        for override in swept:
            check(override, composer.choices)
        # What is typed replaces what the config sweeps.
        self.overrides = {override.key_or_group: override for override in [*swept, *typed]}
        self.swept = {key for key, value in self.overrides.items() if value.is_sweep_override()}
        fixed = [
            values_of(self.overrides[key])[0] for key in self.overrides if key not in self.swept
        ]
        self.whole = composer.with_hydra(composer.compose(fixed), fixed, 0)
        name = slug(that_count([*self.swept, *fixed]))
        self.is_named = "{sweep}" in self.whole.hydra.sweep.dir
        folder = self.whole.hydra.sweep.dir.replace("{sweep}", name)
        self.folder = _folder("hydra.sweep.dir", folder)
        self.jobs: list[Job] = []
        self.baselines: dict[tuple[str, ...], Job] = {}

    def command(self) -> Command:
        values = [values_of(override) for override in self.overrides.values()]
        if (number := math.prod(map(len, values))) > MAX_JOBS:
            raise ConfigError(f"{number} jobs are more than {MAX_JOBS}; use fewer values")
        for lines in map(list, itertools.product(*values)):
            job = self._job(lines, [line for line in lines if key_of(line) in self.swept])
            self.jobs.append(job)
            parts = parts_of(job.config) if _FILTERED & set(job.config.baselines) else ()
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
        """
        Args:
            lines: overrides of the job.
            differing: those in which it differs from other jobs.
        """
        cfg = self.composer.compose(lines)
        config, typed = _resolved(cfg)
        differing = without_fixed(differing, typed)
        number = len(self.jobs) + len(self.baselines)
        node = self.composer.base.hydra.sweep
        if OmegaConf.is_interpolation(node, "subdir"):
            node = self.composer.with_hydra(cfg, lines, number).hydra.sweep
        subdir = node.subdir.replace(
            "{job}", name_of(config, differing if self.is_named else lines)
        )
        subdir = os.path.normpath(subdir)
        if os.sep in subdir or subdir in (os.curdir, os.pardir):
            raise invalid(
                "hydra.sweep.subdir",
                node.subdir,
                "a folder within that of the sweep, such as {job}",
            )
        return Job(
            config=config,
            lines=lines,
            folder=_folder("hydra.sweep.subdir", str(self.folder / subdir)),
            title=title_of(differing),
            number=number,
            is_baseline=is_baseline,
            overruled=() if is_baseline else _overruled(lines, typed, config),
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
    method = cfg.get("method")
    if not method or not method.fixes or method.name in UNROUTED:
        return cfg
    fixes = OmegaConf.to_container(method.fixes, resolve=True)
    assert isinstance(fixes, dict)
    if "method" in fixes:
        raise ConfigError("method.fixes.method: a method cannot fix itself")
    cfg = copy.deepcopy(cfg)
    OmegaConf.set_struct(cfg, None)  # dictionaries take new keys, dataclasses do not
    try:
        cfg.merge_with(fixes)
        cfg.method.fixes = {}
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"method.fixes: {explain(error, [])}") from error
    return cfg


def _overruled(lines: Sequence[str], typed: RunConfig, config: RunConfig) -> tuple[str, ...]:
    """Sentences about the overrides that have no effect on the job.

    Args:
        lines: overrides that were typed.
        typed: the config before its method fixed settings and before it was resolved.
        config: what the job runs.
    """
    before, after = to_plain(typed), to_plain(config)
    said = []
    for line in lines:
        path = key_of(line).split(".")
        try:
            old, new = (
                functools.reduce(operator.getitem, path, plain) for plain in (before, after)
            )
        except (KeyError, TypeError):
            continue
        if path == ["plan"]:
            path, old, new = ["plan", "kind"], old["kind"], new["kind"]
        if old != new and not isinstance(new, dict):
            name = ".".join(path)
            said.append(f"{line.lstrip('+')} has no effect here: method={config.method.name.value} "
                        f"has {name}={json.dumps(new)}")  # fmt: skip
    return tuple(said)


def _folder(name: str, given: str) -> Path:
    """A folder for results.

    Raises:
        ConfigError: it cannot be made: the name is empty or too long, or a file is in the way.
    """
    path = Path(given)
    if not given.strip() or "\0" in given:
        raise invalid(name, given, "a folder")
    for above in (path, *path.parents):
        try:
            mode = above.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(f"{name}={given} cannot be a folder ({error.strerror})") from error
        if not stat.S_ISDIR(mode):
            raise ConfigError(f"{name}={given} cannot be a folder: {above} is a file")
        break
    return path


def _check_hydra(hydra: DictConfig) -> None:
    """Checks the parts of Hydra's own settings that gr-sweep reads.

    Raises:
        ConfigError: a launcher, sweeper or setting that gr-sweep does not support.
    """
    for group, supported in _SUPPORTED.items():
        node = hydra[group]
        target = node.get("_target_") if OmegaConf.is_dict(node) else None
        if not str(target).endswith(tuple(supported.values())):
            raise ConfigError(
                f"hydra/{group} is not one that gr-sweep supports; use {', '.join(supported)}"
            )
    if hydra.job.chdir or hydra.job.env_set or hydra.callbacks:
        raise ConfigError(
            "gr-sweep does not support hydra.job.chdir, hydra.job.env_set and hydra.callbacks"
        )
    subdir = hydra.output_subdir
    if subdir is not None and (not subdir or Path(subdir).name != subdir):
        raise invalid("hydra.output_subdir", subdir, "the name of a folder, or null")


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
