"""From a command line to jobs: composes and checks every job, and names its folder.

Every error of a command is found here, before a folder is made. Nothing here runs a job.
"""

import contextlib
import copy
import itertools
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gr_sweep.bounds import invalid
from gr_sweep.checks import validate
from gr_sweep.cli.baselines import baselines_of
from gr_sweep.cli.check_fit import check_fit
from gr_sweep.cli.composer import Composer
from gr_sweep.cli.overrides import (
    MAX_JOBS,
    explain,
    key_of,
    name_of,
    quoted,
    sweep_name,
    taken_names,
    title_of,
    values_of,
    without_fixed,
    without_paths,
)
from gr_sweep.cli.schema import LAUNCHERS, OPTIONAL_GROUPS, OptunaConfig
from gr_sweep.cli.task import Job
from gr_sweep.config import UNROUTED, RunConfig
from gr_sweep.errors import ConfigError, GrSweepError
from gr_sweep.fingerprint import fingerprint
from gr_sweep.tracking.base import AGENTS_SWEEP

if TYPE_CHECKING:
    # It imports the report, which takes a third of a second.
    from gr_sweep.cli.search import Parameter, Search

_SUPPORTED = {
    "launcher": (".BasicLauncher", *(settings._target_ for settings in LAUNCHERS.values())),
    "sweeper": (".BasicSweeper", OptunaConfig._target_),
}
"""The end of the `_target_` of the choices of Hydra's groups that gr-sweep has."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """All jobs of a command line."""

    jobs: list[Job]
    """Of a search those of its first trials."""
    folder: Path
    """The sweep's folder; of a single job the folder above its own."""
    is_multirun: bool
    composer: Composer
    hydra_config: DictConfig
    """The command's config with its hydra node, without swept values."""
    search: "Search | None" = None
    shown_warnings: set[str] = field(default_factory=set, compare=False)
    """What its terminal has shown."""

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
    with _explained():
        composer = Composer(overrides, config_dir)
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
            os.environ.pop(AGENTS_SWEEP, None)  # its jobs cannot share the run of a W&B agent
            return _Sweep(composer, settings).command()
        for override in settings:
            if override.is_sweep_override():
                raise ConfigError(
                    f"{override.input_line} has several values: add -m to run a job for each, "
                    f"or write a list as {override.key_or_group}=[...]"
                )
        return _single(composer, [str(override.input_line) for override in settings])


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Raises errors of Hydra and OmegaConf as a ConfigError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
    except RecursionError as error:
        said = "settings are nested too deeply, or a config names itself in its defaults"
        raise ConfigError(said) from error


def _single(composer: Composer, lines: list[str]) -> Command:
    cfg = composer.compose(lines)
    whole = composer.with_hydra(composer.compose(lines), lines, 0)
    config, typed = _resolved(cfg)
    if config.baselines and any(key_of(line) == "baselines" for line in lines):
        raise ConfigError("baselines are runs that a sweep adds: add -m, or leave them out")
    shown = [] if config.name else without_paths(lines)
    pattern = Path(whole.hydra.run.dir)
    name = name_of(config, shown, taken_names(pattern))
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
        if "name" in self.swept:
            raise ConfigError("name names the whole sweep: give it one value")
        is_search = composer.base.hydra.sweeper._target_ == OptunaConfig._target_
        searched = self.swept - {"seed"} if is_search else set()
        self.parameters: list[Parameter] = []
        self.values: dict[str, list[str]] = {}
        """Overrides of each setting, one for each value; of searched settings those to check."""
        for key, override in overrides.items():
            if key in searched:
                from gr_sweep.cli import search

                self.parameters.append(search.Parameter.of(override))
                self.values[key] = self.parameters[-1].lines
            else:
                self.values[key] = values_of(override)
        fixed = [values[0] for key, values in self.values.items() if key not in self.swept]
        self.whole = composer.with_hydra(composer.compose(fixed), fixed, 0)
        name = sweep_name(self.whole.name, self.swept, fixed)
        self.folder = Path(self.whole.hydra.sweep.dir.replace("{sweep}", name))
        raw = OmegaConf.to_container(composer.base.hydra.sweep, resolve=False)
        self.taken = taken_names(self.folder / raw["subdir"])
        self.search: Search | None = None
        if is_search:
            from gr_sweep.cli import search

            node: Any = OmegaConf.to_container(self.whole.hydra.sweeper, resolve=False)
            config, objectives = OptunaConfig(**node), list(self.whole.objective)
            self.search = search.Search(config, objectives, self.parameters, self._trial)
        self.num_jobs = 0
        self.baselines: set[tuple[str, ...]] = set()
        self.by_fingerprint: dict[str, Job] = {}
        self.by_folder: dict[Path, Job] = {}

    def command(self) -> Command:
        searched = [parameter.key for parameter in self.parameters]
        counts = [len(values) for key, values in self.values.items() if key not in searched]
        if math.prod(counts) > MAX_JOBS:
            raise ConfigError(f"these are more than {MAX_JOBS} jobs; use fewer values")
        if self.search is None:
            jobs = self._jobs([])[1]
        else:
            self._check_searched()
            jobs = self.search.ask()
        return Command(
            jobs=jobs,
            folder=self.folder,
            is_multirun=True,
            composer=self.composer,
            hydra_config=self.whole,
            search=self.search,
        )

    def _values(self, drawn: Sequence[str]) -> list[list[str]]:
        """`values`, of searched settings those drawn."""
        return list((self.values | {key_of(line): [line] for line in drawn}).values())

    def _check_searched(self) -> None:
        """Checks every searched value: with the first values of the others, or else the last."""
        for at, parameter in enumerate(self.parameters):
            for line in parameter.lines:
                errors = []
                for other in (0, -1):
                    drawn = [of.lines[other] for of in self.parameters]
                    drawn[at] = line
                    lines = [values[0] for values in self._values(drawn)]
                    try:
                        self._baselines(_resolved(self.composer.compose(lines))[0], lines)
                        break
                    except GrSweepError as error:
                        errors.append(error)
                else:
                    raise errors[0]

    def _trial(self, drawn: Sequence[str]) -> tuple[list[Job], list[Job]]:
        """`_jobs`, for a search."""
        with _explained():
            return self._jobs(drawn)

    def _jobs(self, drawn: Sequence[str]) -> tuple[list[Job], list[Job]]:
        """A job for each combination of values, and the new ones among their baselines, which come
        first, and them. Equal jobs are one: `method=dense,routed edges=both,act` has one dense run.
        """
        jobs: list[Job] = []
        baselines: dict[tuple[str, ...], Job] = {}
        for lines in map(list, itertools.product(*self._values(drawn))):
            job = self._job(lines, self._differing(lines))
            jobs.append(job)
            for kept, added in self._baselines(job.config, lines):
                key = (*kept, *added)
                if key not in self.baselines and key not in baselines:
                    differing = [*self._differing(kept), *added]
                    baselines[key] = self._job([*key], differing, is_baseline=True)
        self.baselines.update(baselines)
        new = []
        for job in [*baselines.values(), *jobs]:
            if self.by_fingerprint.setdefault(fingerprint(job.config), job) is job:
                new.append(job)
                other = self.by_folder.setdefault(job.folder, job)
                if other is not job:
                    raise ConfigError(
                        f"the jobs {other.title} and {job.title} have the same folder "
                        f"{job.folder}; put {{job}} into hydra.sweep.subdir"
                    )
        return [self.by_fingerprint[fingerprint(job.config)] for job in jobs], new

    def _differing(self, lines: Sequence[str]) -> list[str]:
        return [line for line in lines if key_of(line) in self.swept]

    def _baselines(
        self, config: RunConfig, lines: Sequence[str]
    ) -> list[tuple[list[str], list[str]]]:
        """Overrides of the runs that a job's metrics need, as `baselines_of` gives them."""
        needed = self.search.baselines if self.search else []
        return list(baselines_of(replace(config, baselines=[*config.baselines, *needed]), lines))

    def _job(self, lines: list[str], differing: list[str], *, is_baseline: bool = False) -> Job:
        """The job of these overrides; `differing` are those in which it differs from others."""
        cfg = self.composer.compose(lines)
        number, self.num_jobs = self.num_jobs, self.num_jobs + 1
        config, typed = _resolved(cfg)
        differing = without_fixed(differing, typed) or without_paths(lines)
        node = self.composer.base.hydra.sweep
        if OmegaConf.is_interpolation(node, "subdir"):
            node = self.composer.with_hydra(cfg, lines, number).hydra.sweep
        subdir = node.subdir.replace("{job}", name_of(config, differing, self.taken))
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
    if isinstance(config.train.tokens, str):
        from gr_sweep.launch.estimate import with_tokens  # slow to import

        config = with_tokens(config)
    check_fit(config)
    return config, typed


def _to_run_config(cfg: DictConfig) -> RunConfig:
    """The one place where Hydra's config becomes plain dataclasses."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, RunConfig)  # by its schema
    return config


def _with_fixes(cfg: DictConfig) -> DictConfig:
    """The config with the settings that its method fixes merged in."""
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
                f"{' and '.join(sorted(LAUNCHERS))}, sweepers basic and optuna"
            )
    if hydra.job.chdir or hydra.job.env_set or hydra.callbacks or hydra.output_subdir != ".hydra":
        raise ConfigError(
            "gr-sweep does not support hydra.job.chdir, hydra.job.env_set, hydra.callbacks and "
            "hydra.output_subdir"
        )
