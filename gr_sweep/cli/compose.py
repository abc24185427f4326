"""From a command line to jobs: composes every job with Hydra, checks it, and names its folder.

Everything that can be wrong with a command is found here, before a folder is made, and said in one
line. Nothing here runs a job or knows what one does.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import version as hydra_version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict
from omegaconf.errors import (
    OmegaConfBaseException,
)

from gr_sweep.checks import validate
from gr_sweep.cli.baselines import baselines_of
from gr_sweep.cli.loader import Loader
from gr_sweep.cli.overrides import (
    check_is_single,
    check_number,
    check_override,
    complete,
    explain,
    parse,
    quoted,
)
from gr_sweep.cli.schema import conf_dir
from gr_sweep.config import (
    NO_EFFECT_ON_RESULT,
    UNROUTED,
    Baseline,
    PlanConfig,
    ProcedureKind,
    RunConfig,
    effective,
    fingerprint,
)
from gr_sweep.data.rows import micro_batch_rows
from gr_sweep.errors import ConfigError
from gr_sweep.jobdir import read_finished
from gr_sweep.layout import check_rounds, labels_of_rounds, make_plan, named_shape
from gr_sweep.model.sizes import Size
from gr_sweep.routing.plan import ModelShape
from gr_sweep.tracking import check_tracking
from gr_sweep.train.distributed import place, rows_of

_FILTERED = {Baseline.filtered, Baseline.filtered_observed}

_LAUNCHERS = ("hydra.", "hydra_plugins.", "gr_sweep.")
"""Where launchers are: Hydra refuses others, but not before a folder is made."""

_LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "NOTSET", "FATAL", "WARN")
"""Of `logging`."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)

_LARGEST_SIZE = 1 << 31
"""Of a model's width, layers or heads."""

MAX_SLUG = 100
"""Characters of a slug: file systems allow 255 bytes, and hash and W&B's own names come on top."""


@dataclass(frozen=True, slots=True)
class Job:
    """One checked job."""

    config: RunConfig
    """What it does; settings that it does not read are at their defaults."""
    overrides: list[str]
    """What Hydra composes it from, without `hydra.` settings."""
    folder: Path
    title: str
    """The overrides in which it differs from the other jobs, for people."""
    is_baseline: bool = False
    """Whether it is there for the metrics of others; a finished one may be taken from elsewhere."""

    def folder_override(self, sweep: Path) -> str:
        """What tells Hydra to use the job's folder within that of the sweep."""
        return f"hydra.sweep.subdir={quoted(str(self.folder.relative_to(sweep)))}"

    @property
    def is_done(self) -> bool:
        """Whether it ran to its end before."""
        return read_finished(self.folder) is not None


@dataclass(frozen=True, slots=True)
class Command:
    """All jobs of a command line, and what Hydra needs to launch them."""

    jobs: list[Job]
    folder: Path
    """The sweep's folder; for a job alone the one around its own."""
    is_multirun: bool
    hydra_config: DictConfig
    """The composed config, `hydra` node included; of a multirun the one without swept values."""
    loader: ConfigLoader


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
        config_dir: folder to search besides.

    Raises:
        ConfigError: the first problem of the first job that has one.
    """
    try:
        brings_folders = any("searchpath" in override for override in overrides)
        loader = _loader(config_path, config_dir, brings_folders)
        typed = [complete(override, loader) for override in parse(overrides, loader)]
        for override in typed:
            check_override(override, loader)
        lines = [str(override.input_line) for override in typed]
        # A config can ask for a multirun itself, which is known when it is composed.
        has_sweep = multirun or any(override.is_sweep_override() for override in typed)
        mode = RunMode.MULTIRUN if has_sweep else RunMode.RUN
        cfg = _compose(loader, config_name, lines, mode)
        if multirun or cfg.hydra.mode == RunMode.MULTIRUN:
            return _compose_sweep(loader, cfg)
        for override in typed:
            check_is_single(override)
        return _compose_single(loader, cfg)
    except RecursionError as error:
        raise ConfigError("brackets within brackets, too many of them") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides)) from error


def to_run_config(cfg: DictConfig) -> RunConfig:
    """The one place where Hydra's config becomes plain dataclasses.

    Raises:
        ConfigError: the primary config does not begin with `base_config`.
    """
    # Taken out and put back as it is: a copy costs more than all that is done here.
    with open_dict(cfg), flag_override(cfg, "no_deepcopy_set_nodes", True):
        hydra = cfg.pop("hydra", None)
        try:
            config = OmegaConf.to_object(cfg)
        finally:
            if hydra is not None:
                cfg.hydra = hydra
    if not isinstance(config, RunConfig):
        raise ConfigError("the config has no schema; begin its defaults with base_config")
    return config


def slug(overrides: Sequence[str]) -> str:
    """A folder name that people can read: `edges=weight,seed=1`; `default` for no override.

    The order of the overrides does not count. Characters that a shell or a file system may stumble
    over become `-`; a long name is cut and ends in 8 digits of a hash of the whole.
    """
    parts = []
    for override in sorted(override.lstrip("+~") for override in overrides):
        part = re.sub(r"['\"\[\]{}]", "", override).replace(",", "+")
        parts.append(re.sub(r"[^A-Za-z0-9._=+-]+", "-", part).strip("-"))
    name = ",".join(parts)
    if len(name) > MAX_SLUG:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[: MAX_SLUG - 9].rstrip(',')}-{digest}"
    return name or "default"


def _loader(config_path: str | None, config_dir: str | None, brings_folders: bool) -> ConfigLoader:
    """A loader; `brings_folders` says whether an override names further folders."""
    hydra_version.setbase("1.3")
    for folder in (config_path, config_dir):
        if folder is not None and not os.path.isdir(folder):
            raise ConfigError(f"config folder {folder} does not exist")
    main = os.path.abspath(config_path) if config_path is not None else str(conf_dir())
    search_path = create_config_search_path(main)
    if config_dir is not None:
        search_path.prepend(
            provider="command-line",
            path=f"file://{os.path.abspath(config_dir)}",
            anchor=SearchPathQuery(provider="schema"),
        )
    setup_globals()
    if config_path is None and config_dir is None and not brings_folders:
        changes = [path.stat().st_mtime_ns for path in Path(main).rglob("*.yaml")]
        return _own_loader(main, len(changes), max(changes, default=0))
    return Loader(search_path)


@functools.lru_cache(maxsize=1)
def _own_loader(folder: str, num_files: int, newest_ns: int) -> ConfigLoader:
    """Of the configs of gr-sweep: while no file changes, a second command of a process finds read
    what the first one did."""
    return Loader(create_config_search_path(folder))


def _compose(
    loader: ConfigLoader, config_name: str, overrides: list[str], mode: RunMode
) -> DictConfig:
    with warnings.catch_warnings():
        # Hydra warns of a search path that is not there and goes on; the check below does not.
        warnings.filterwarnings(
            "ignore", message="provider=.*is not available", category=UserWarning
        )
        try:
            cfg = loader.load_configuration(config_name, overrides, mode)
        except KeyError as error:
            # Of all that Hydra looks up there it is this that it does not check.
            raise ConfigError(
                f"hydra.job.env_copy: there is no environment variable {error}"
            ) from error
        except HydraException:
            raise  # some are an OSError too
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise ConfigError(f"the config cannot be put together: {error}") from error
    _check_hydra(cfg.hydra)
    for source in cfg.hydra.runtime.config_sources:
        if source.schema == "file" and not os.path.isdir(source.path):
            raise ConfigError(f"hydra.searchpath: folder {source.path} does not exist")
    return cfg


def _compose_single(loader: ConfigLoader, cfg: DictConfig) -> Command:
    config = _checked(to_run_config(cfg))
    if config.baselines:
        raise ConfigError("baselines are runs that a sweep adds: add -m, or leave them out")
    task = list(cfg.hydra.overrides.task)
    cfg.hydra.run.dir = cfg.hydra.run.dir.replace("{job}", _job_name(config, task))
    folder = _folder("hydra.run.dir", cfg.hydra.run.dir)
    job = Job(config, task, folder, _title(task))
    return Command([job], folder.parent, False, cfg, loader)


def _compose_sweep(loader: ConfigLoader, master: DictConfig) -> Command:
    sweeper = master.hydra.sweeper
    if not OmegaConf.is_dict(sweeper) or not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        raise ConfigError(
            "gr-sweep checks all jobs before the first one runs; use hydra/sweeper=basic"
        )
    if sweeper.max_batch_size is not None and sweeper.max_batch_size < 1:
        raise ConfigError(
            f"hydra.sweeper.max_batch_size={sweeper.max_batch_size} is too small; give 1 or more"
        )
    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    # As Hydra has it: what is typed stands after, and so before, what the config sweeps.
    by_key = {
        override.get_key_element(): override
        for given in parse([*params, *master.hydra.overrides.task], loader)
        for override in [complete(given, loader)]
    }
    for override in by_key.values():
        check_override(override, loader)
    swept = {key for key, override in by_key.items() if override.is_sweep_override()}
    fixed = [line for line in by_key if line not in swept]
    check_number(list(by_key.values()))
    [combinations] = BasicSweeper.split_arguments(list(by_key.values()), None)

    has_sweep_name = "{sweep}" in master.hydra.sweep.dir
    name = slug(
        _that_count([*swept, *(f"{key}={by_key[key].get_value_element_as_str()}" for key in fixed)])
    )
    master.hydra.sweep.dir = master.hydra.sweep.dir.replace("{sweep}", name)
    folder = _folder("hydra.sweep.dir", master.hydra.sweep.dir)
    # Jobs are composed anew from this list.
    master.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(folder))}")

    def job_of(combination: list[str], differing: list[str], is_baseline: bool) -> Job:
        cfg = loader.load_sweep_config(master, combination)
        typed = to_run_config(cfg)
        config = _checked(typed)
        differing = _without_fixed(differing, typed)
        job_name = _job_name(config, differing if has_sweep_name else combination)
        with open_dict(cfg):
            number = len(jobs) + len(baselines)
            cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
        subdir = os.path.normpath(cfg.hydra.sweep.subdir.replace("{job}", job_name))
        if os.path.isabs(subdir) or subdir.split(os.sep)[0] in (os.curdir, os.pardir):
            raise ConfigError(
                f"hydra.sweep.subdir={cfg.hydra.sweep.subdir} is no folder below that of the "
                "sweep, where a job's belongs; put {job} into it"
            )
        place = _folder("hydra.sweep.subdir", str(folder / subdir))
        return Job(config, combination, place, _title(differing), is_baseline)

    jobs: list[Job] = []
    baselines: dict[tuple[str, ...], Job] = {}
    for combination in combinations:
        differing = [line for line in combination if line.split("=", 1)[0] in swept]
        jobs.append(job_of(combination, differing, is_baseline=False))
        config = jobs[-1].config
        parts = _parts(config) if _FILTERED & set(config.baselines) else ()
        for kept, added in baselines_of(config, combination, parts):
            overrides = (*kept, *added)
            if overrides not in baselines:
                differing = [line for line in kept if line.split("=", 1)[0] in swept]
                baselines[overrides] = job_of([*overrides], [*differing, *added], is_baseline=True)
    # Baselines first: the report compares from the first job on.
    distinct = _distinct([*baselines.values(), *jobs])
    return Command(distinct, folder, True, master, loader)


def _folder(name: str, given: str) -> Path:
    """A folder for results.

    Raises:
        ConfigError: it could not be made: no name, one that is too long, or a file stands there or
            above it.
    """
    path = Path(given)
    if not given.strip() or "\0" in given:
        raise ConfigError(f"{name}={given} names no folder")
    for above in (path, *path.parents):
        try:
            mode = above.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ConfigError(f"{name}={given} cannot be a folder ({error.strerror})") from error
        if not stat.S_ISDIR(mode):
            raise ConfigError(f"{name}={given} cannot be a folder: {above} is none")
        break
    return path


def _check_hydra(hydra: DictConfig) -> None:
    """Checks what Hydra itself would stumble over after a folder is made.

    Raises:
        ConfigError: a launcher that is none, or settings of a log that `logging` does not take.
    """
    launcher = hydra.launcher
    target = launcher.get("_target_") if OmegaConf.is_dict(launcher) else None
    if not str(target).startswith(_LAUNCHERS):
        raise ConfigError(
            "hydra.launcher holds the settings of a launcher; choose one with "
            "hydra/launcher=local_parallel"
        )
    subdir = hydra.output_subdir
    if subdir is not None and (not subdir or Path(subdir).name != subdir):
        raise ConfigError(f"hydra.output_subdir={subdir} is no name of a folder; leave it out")
    verbose = hydra.verbose
    names = list(verbose) if OmegaConf.is_list(verbose) else [verbose]
    if not all(isinstance(name, str | bool) for name in names):
        raise ConfigError("hydra.verbose is not right; give true, false or names of loggers: [a,b]")
    for name in ("hydra_logging", "job_logging"):
        _check_logging(f"hydra.{name}", OmegaConf.to_container(hydra[name]))


def _check_logging(name: str, content: Any) -> None:
    """Raises ConfigError for what `logging.config.dictConfig` does not take: it would say so when
    half of it is done."""
    if not content:
        return
    if content.get("version") != 1:
        raise ConfigError(f"{name}.version={content.get('version')} is unknown to Python; give 1")
    nodes = {"root": content.get("root")}
    for group in ("handlers", "loggers", "formatters", "filters"):
        entries = content.get(group) or {}
        if not isinstance(entries, dict):
            raise ConfigError(f"{name}.{group} is no mapping")
        nodes |= {f"{group}.{entry}": node for entry, node in entries.items()}
    handlers = content.get("handlers") or {}
    for entry, node in nodes.items():
        if node is None:
            continue
        if not isinstance(node, dict):
            raise ConfigError(f"{name}.{entry} is no mapping")
        level = node.get("level")
        is_known = isinstance(level, int) or level in _LEVELS or str(level).startswith("${")
        if level is not None and not is_known:
            raise ConfigError(f"{name}.{entry}.level={level} is none of {', '.join(_LEVELS)}")
        missing = [used for used in node.get("handlers") or [] if used not in handlers]
        if missing:
            raise ConfigError(f"{name}.{entry}.handlers: there is no handler {missing[0]}")
        if entry.startswith("handlers.") and not {"class", "()"} & node.keys():
            raise ConfigError(f"{name}.{entry} has no class")


def _without_fixed(overrides: Sequence[str], config: RunConfig) -> list[str]:
    """The overrides that the job's method does not make meaningless: they say what the job is."""
    if config.method.name in UNROUTED:
        fixed: tuple[str, ...] = ("edges", "plan", "route")
    else:
        fixed = tuple(_paths(config.method.fixes))
    return [
        override
        for override in overrides
        for key in [override.lstrip("+~").split("=", 1)[0]]
        if not any(f"{key}.".startswith(f"{name}.") or f"{key}.kind" == name for name in fixed)
    ]


def _paths(node: dict[str, Any], where: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{where}{name}.")
        else:
            yield f"{where}{name}"


def _parts(config: RunConfig) -> Sequence[str]:
    """What can be removed from the job's model; of a checkpoint that is not here, any node."""
    shape = _shape(config)
    if shape is not None:
        return make_plan(config, shape).removable()
    # Which units are split does not matter for what can be removed, nor does then the shape.
    plan = dataclasses.replace(PlanConfig(), kind=config.plan.kind, forget=config.plan.forget)
    wide = Size(64, 1 << 20, 1, 1, 1)
    return make_plan(dataclasses.replace(config, plan=plan), wide).removable()


def _distinct(jobs: list[Job]) -> list[Job]:
    """One job for each fingerprint: the one that is done, otherwise the first.

    A sweep over `method=dense,routed edges=both,act` names the dense run twice: it cuts no edge.

    Raises:
        ConfigError: two different jobs in one folder.
    """
    by_fingerprint: dict[str, Job] = {}
    for job in jobs:
        twin = by_fingerprint.setdefault(fingerprint(job.config), job)
        if job.is_done and not twin.is_done:
            by_fingerprint[fingerprint(job.config)] = job
    owners: dict[Path, Job] = {}
    for job in by_fingerprint.values():
        other = owners.setdefault(job.folder, job)
        if other is not job:
            raise ConfigError(
                f"the jobs {other.title} and {job.title} would share the folder {job.folder}; "
                "put {job} into hydra.sweep.subdir"
            )
    return list(by_fingerprint.values())


def _checked(config: RunConfig) -> RunConfig:
    validate(config)
    config = effective(config)
    _check_fit(config)
    return config


def _check_fit(config: RunConfig) -> None:
    """Checks the config against the parts that will read it; they do so without torch.

    Raises:
        ConfigError: an unknown size, a micro-batch that cannot hold the row groups or does not
            divide over the processes, or tracking that has no key.
        PlanError: a plan that the model has too few units or layers for.
    """
    check_tracking(config.tracking)
    rows = micro_batch_rows(config)
    here = place()
    if here is not None:
        rows_of(here.rank, here.world_size, sum(rows.values()))
        from gr_sweep.eval.robustness import check_processes  # slow to import

        check_processes(config.eval, here.world_size)
    shape = _shape(config)
    if config.procedure.name is ProcedureKind.alternate:
        check_rounds(config, shape)
        for labels in labels_of_rounds(config):
            micro_batch_rows(config, labels)
        if here is not None:
            raise ConfigError(
                "procedure=alternate needs the whole model in one process; start one, or use "
                "procedure=fixed"
            )
    elif shape is not None:
        make_plan(config, shape)


def _shape(config: RunConfig) -> ModelShape | None:
    """What a plan needs to know of the model; None where that is known when it is loaded.

    Raises:
        ConfigError: a size that is unknown, a folder that holds no config.json.
    """
    model = config.model
    if model.size is not None:
        return named_shape(config)
    assert model.path is not None  # validate
    folder = Path(model.path)
    is_here = os.path.exists(folder) or folder.is_absolute()
    if not is_here and not _HUB_NAME.fullmatch(model.path):
        raise ConfigError(
            f"model.path={model.path} is neither a folder nor a name on the Hugging Face Hub "
            "(OWNER/NAME)"
        )
    if model.gguf_file is not None or not is_here:
        return None
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"model.path={model.path} is no checkpoint folder: config.json cannot be read "
            f"({error.strerror})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"model.path={model.path}: config.json is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"model.path={model.path}: config.json holds no object")
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for name in names:
        value = content.get(name, 1)
        if type(value) is not int or not 0 < value < _LARGEST_SIZE:
            raise ConfigError(
                f"model.path={model.path}: config.json has {name}={value!r}; it is to be a whole "
                "number above 0"
            )
    if any(name not in content for name in names):
        return None  # a family that calls them otherwise; the job says whether it can be routed
    width, units, layers, heads = (content[name] for name in names)
    return Size(width, units, layers, heads, content.get("num_key_value_heads") or heads)


def _job_name(config: RunConfig, overrides: Sequence[str]) -> str:
    return f"{slug(_that_count(overrides))}-{fingerprint(config)[:8]}"


def _that_count(overrides: Sequence[str]) -> list[str]:
    """The overrides of settings that can change a result; the others may not move a folder."""
    names = tuple(NO_EFFECT_ON_RESULT)
    return [
        override
        for override in overrides
        if not any(
            key == name or key.startswith(name + ".")
            for key in [override.lstrip("+~").split("=", 1)[0]]
            for name in names
        )
    ]


def _title(overrides: Sequence[str]) -> str:
    return " ".join(override.lstrip("+") for override in overrides) or "default"
