"""Composes configs with Hydra's public API. The only module that asks Hydra for a config.

`hydra.compose` takes 0.2 s for a config of gr-sweep, so Hydra composes each combination of groups
once, and OmegaConf merges the settings of each job into a copy of it.
"""

import contextlib
import copy
import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.overrides_visitor import HydraOverrideVisitor
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from gr_sweep.bounds import invalid
from gr_sweep.cli.overrides import explain, key_of, quoted, range_of
from gr_sweep.cli.schema import DEFAULT_GROUPS, OPTIONAL_GROUPS, conf_dir
from gr_sweep.errors import ConfigError

_SEARCH_PATH = "hydra.searchpath"
_DOMAINS = "partition.domains"


def _text_of_key(visitor: Any, context: Any) -> str:
    """The name 1e5 of {1e5: 2}, which Hydra reads as a number; its grammar has no quotes there."""
    key = HydraOverrideVisitor._createPrimitive(visitor, context)
    return key if isinstance(key, str) else context.getText().strip()


HydraOverrideVisitor.visitDictKey = _text_of_key  # type: ignore


class Composer:
    """Composes the configs of one command."""

    base: DictConfig
    """The config that the jobs differ from, with its hydra node; `compose_base` sets it."""

    def __init__(self, config_name: str, lines: Sequence[str], words: list[str]) -> None:
        """
        Args:
            config_name: the primary config.
            lines: overrides of the hydra node, which every config has.
            words: the words of the command line that say where configs are.
        """
        self.words = words
        self._config_name = config_name
        self._loader = GlobalHydra.instance().config_loader()
        self._parser = OverridesParser.create(config_loader=self._loader)
        self._parser.functions.functions["range"] = range_of
        self._hydra_lines = list(lines)
        self._groups: dict[str, list[str]] = {}
        """The choices of each key that was looked up; empty if the key is not a group."""
        self._composed: dict[frozenset[str], DictConfig] = {}

    def parse(self, lines: Sequence[str]) -> list[Override]:
        """Parses overrides.

        Raises:
            ConfigError: a number has too many digits.
        """
        try:
            return self._parser.parse_overrides(list(lines))
        except ValueError as error:
            raise ConfigError(f"a number of the command cannot be read: {error}") from error

    def compose_base(self, lines: Sequence[str]) -> None:
        """Composes `base` from the groups among the lines."""
        groups = self._groups_among(lines)
        self.base = self._by_hydra(groups)
        self._fixed = frozenset(groups.values())
        self._composed[self._fixed] = without_hydra(self.base)

    def compose(self, lines: Sequence[str]) -> DictConfig:
        """The config of a job, without a hydra node; it can be merged with."""
        groups = self._groups_among(lines)
        if (known := frozenset(groups.values())) not in self._composed:
            self._composed[known] = without_hydra(self._by_hydra(groups))
        cfg = copy.deepcopy(self._composed[known])
        OmegaConf.set_struct(cfg, None)  # dictionaries take new keys, dataclasses do not
        for override in self.parse([line for line in lines if key_of(line) not in groups]):
            if not override.is_delete():
                if override.key_or_group == _DOMAINS:
                    cfg.partition.domains = {}  # Hydra would add to those that are there
                try:
                    cfg.merge_with(nested(override.key_or_group, override.value()))
                except OmegaConfBaseException as error:
                    raise explain(error, f"{override.input_line}: ") from error
                continue
            above, _, name = override.key_or_group.rpartition(".")
            node = OmegaConf.select(cfg, above) if above else cfg
            if not isinstance(node, DictConfig) or name not in node:
                raise ConfigError(f"{override.input_line}: this setting does not exist")
            del node[name]
        return cfg

    def with_hydra(
        self, cfg: DictConfig, lines: Sequence[str], number: int, folder: Path | None = None
    ) -> DictConfig:
        """A job's config with the hydra node that Hydra would give it.

        Args:
            cfg: of the job, without a hydra node.
            lines: overrides of the job.
            number: of the job in its sweep.
            folder: of the job, absolute; None if it is not known yet.
        """
        cfg = copy.deepcopy(cfg)
        with open_dict(cfg):
            cfg.hydra = self.base.hydra
            if folder is not None:
                cfg.hydra.runtime.output_dir = str(folder)
        _describe(cfg.hydra, lines, number)
        HydraConfig.instance().set_config(cfg)
        return cfg

    def enter_job(self, lines: Sequence[str], number: int) -> None:
        """Makes `${hydra:job.num}` and the like, in settings, those of a job."""
        _describe(HydraConfig.get(), lines, number)

    def _groups_among(self, lines: Sequence[str]) -> dict[str, str]:
        """The lines that choose a file of a group, by group, as Hydra wants them."""
        found = {}
        for line in lines:
            if self._is_group(key := key_of(line)):
                # `+experiment=edges`, as Hydra's documentation has it, is the same as without.
                found[key] = line.lstrip("+") if key in DEFAULT_GROUPS else line
        return found

    def _is_group(self, key: str) -> bool:
        if key not in self._groups:
            search_path = [line for line in self._hydra_lines if key_of(line) == _SEARCH_PATH]
            name = self._config_name
            self._groups[key] = []
            with contextlib.suppress(OSError):  # no file has a name that long
                self._groups[key] = list(
                    self._loader.get_group_options(key, config_name=name, overrides=search_path)
                )
        return bool(self._groups[key])

    def _by_hydra(self, groups: dict[str, str]) -> DictConfig:
        """The config with its hydra node, as Hydra composes it."""
        for key, line in groups.items():
            [override] = self.parse([line])
            value: Any = override.value()
            if override.is_delete():
                is_choice = key not in DEFAULT_GROUPS or key in OPTIONAL_GROUPS
            elif isinstance(value, list):  # of which Hydra merges all
                is_choice = key not in DEFAULT_GROUPS
            else:
                is_choice = isinstance(value, str) and not value.startswith("base_")
            if not is_choice:
                choices = [name for name in self._groups[key] if not name.startswith("base_")]
                several = f"; -m {key}=A,B runs several" if isinstance(value, list) else ""
                given = line.partition("=")[2] or line
                raise invalid(key, given, f"one of {', '.join(choices)}{several}")
        with warnings.catch_warnings():
            # Hydra only warns about a search path that does not exist; it is checked below.
            warnings.filterwarnings("ignore", message="provider=", category=UserWarning)
            try:
                overrides = [*self._hydra_lines, *groups.values()]
                cfg = compose(self._config_name, overrides, return_hydra_config=True)
            except HydraException:
                raise  # some are an OSError too
            except UnicodeDecodeError as error:
                # Only Hydra, which has opened the file, knows its path.
                frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
                path = next((of["full_path"] for of in frames if "full_path" in of), "a config")
                raise ConfigError(f"{path} is not UTF-8 ({error})") from error
            except (OSError, ValueError, LookupError, AttributeError, yaml.YAMLError) as error:
                raise ConfigError(f"the config cannot be composed: {error}") from error
        for source in cfg.hydra.runtime.config_sources:
            if source.schema == "file" and not os.path.isdir(source.path):
                raise ConfigError(f"{_SEARCH_PATH}: folder {source.path} does not exist")
        if hasattr(self, "base") and _shared(cfg.hydra) != _shared(self.base.hydra):
            swept = " ".join(line for line in groups.values() if line not in self._fixed)
            raise ConfigError(
                f"{swept} changes settings of hydra, such as what is swept and the launcher, and a "
                "command has these once: run a command for each"
            )
        return cfg


def _describe(hydra: Any, lines: Sequence[str], number: int) -> None:
    """Fills in what Hydra says about a job with these overrides."""
    with read_write(hydra), open_dict(hydra):
        hydra.overrides.task = list(lines)
        hydra.job.num, hydra.job.id = number, str(number)
        hydra.job.override_dirname = ",".join(sorted(line.lstrip("+") for line in lines))
        for line in lines:
            if key_of(line) in hydra.runtime.choices:
                hydra.runtime.choices[key_of(line)] = line.split("=", 1)[-1]


def _shared(hydra: DictConfig) -> Any:
    """The settings of hydra that the jobs of a sweep have in common."""
    settings: Any = OmegaConf.to_container(hydra, resolve=False)
    for name in ("overrides", "runtime"):
        del settings[name]
    del settings["job"]["override_dirname"]
    return settings


def nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b` and a value as {a: {b: value}}."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A copy of a config without its hydra node."""
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@contextlib.contextmanager
def composing(
    lines: Sequence[str],
    config_name: str = "config",
    config_path: str | None = None,
    config_dir: str | None = None,
) -> Iterator[Composer]:
    """Initialises Hydra with the configs of gr-sweep and of the user.

    Args:
        lines: overrides; those of the hydra node are used.
        config_name: the primary config.
        config_path: folder to use instead of conf/.
        config_dir: folder to search in addition.

    Raises:
        ConfigError: a folder does not exist.
    """
    for folder in (config_path, config_dir):
        if folder is not None and not os.path.isdir(folder):
            raise ConfigError(f"config folder {folder!r} is not a folder")
    given = {"--config-name": config_name, "--config-path": config_path, "--config-dir": config_dir}
    flags = {flag: value for flag, value in given.items() if value not in (None, "config")}
    words = [word for flag, value in flags.items() for word in (flag, str(value))]
    words += [line for line in lines if key_of(line) == _SEARCH_PATH]
    hydra_lines = [line for line in lines if key_of(line).startswith("hydra")]
    if config_dir is not None:
        folders = [quoted(f"file://{os.path.abspath(config_dir)}")]
        for line in [line for line in hydra_lines if key_of(line) == _SEARCH_PATH]:
            folders.append(line.split("=", 1)[-1].strip("[] "))
            hydra_lines.remove(line)
        hydra_lines.append(f"{_SEARCH_PATH}=[{','.join(folders)}]")
    main = conf_dir() if config_path is None else Path(config_path).resolve()
    with initialize_config_dir(str(main), version_base="1.3", job_name="gr_sweep"):
        yield Composer(config_name, hydra_lines, words)
