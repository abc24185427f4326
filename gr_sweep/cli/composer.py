"""Composes configs with Hydra's public API. The only module that asks Hydra for a config.

`hydra.compose` takes 0.2 s for a config of gr-sweep, so Hydra composes each combination of groups
once, and OmegaConf merges the settings of each job into a copy of it.
"""

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from gr_sweep.cli.overrides import MERGING, key_of, parse, quoted, split_at_dict
from gr_sweep.cli.schema import conf_dir
from gr_sweep.errors import ConfigError

_SEARCH_PATH = "hydra.searchpath"


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
        self._hydra_lines = list(lines)
        self._choices: dict[str, list[str]] = {}
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def parse(self, lines: Sequence[str]) -> list[Override]:
        """Parses overrides, as `overrides.parse` does."""
        return parse(lines, self._loader)

    def choices(self, group: str) -> list[str]:
        """The choices of a group; empty if there is no such group."""
        if group not in self._choices:
            search_path = [line for line in self._hydra_lines if key_of(line) == _SEARCH_PATH]
            try:
                found = self._loader.get_group_options(
                    group, config_name=self._config_name, overrides=search_path
                )
            except OSError:  # a name that is too long for a file
                found = []
            self._choices[group] = found
        return self._choices[group]

    def compose_base(self, lines: Sequence[str]) -> None:
        """Composes `base` from the groups among the lines."""
        groups = self._groups(lines)
        self.base = self._by_hydra(groups)
        self._composed[_key(groups)] = _without_hydra(self.base)

    def compose(self, lines: Sequence[str]) -> DictConfig:
        """The config of a job, without a hydra node."""
        groups = self._groups(lines)
        cfg = copy.deepcopy(self._of_groups(groups))
        for override in self.parse([line for line in lines if key_of(line) not in groups]):
            key, line = override.key_or_group, str(override.input_line)
            try:
                if override.is_delete():
                    node, _, name = key.rpartition(".")
                    with open_dict(cfg):
                        del OmegaConf.select(cfg, node)[name]
                else:
                    setting, names = split_at_dict(key)
                    value = override.value()
                    for name in reversed(names):
                        value = {name: value}
                    OmegaConf.update(cfg, setting, value, force_add=line.startswith("+"))
            except (OmegaConfBaseException, KeyError, TypeError) as error:
                raise ConfigCompositionException(f"{MERGING}{line}") from error
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
            hydra = cfg.hydra
            hydra.overrides.task = list(lines)
            hydra.job.num, hydra.job.id = number, str(number)
            hydra.job.override_dirname = ",".join(sorted(line.lstrip("+") for line in lines))
            if folder is not None:
                hydra.runtime.output_dir = str(folder)
            for line in lines:
                if key_of(line) in hydra.runtime.choices:
                    hydra.runtime.choices[key_of(line)] = line.split("=", 1)[-1]
        HydraConfig.instance().set_config(cfg)
        return cfg

    def _groups(self, lines: Sequence[str]) -> dict[str, str]:
        return {key_of(line): line for line in lines if self.choices(key_of(line))}

    def _of_groups(self, groups: dict[str, str]) -> DictConfig:
        if _key(groups) not in self._composed:
            self._composed[_key(groups)] = _without_hydra(self._by_hydra(groups))
        return self._composed[_key(groups)]

    def _by_hydra(self, groups: dict[str, str]) -> DictConfig:
        """The config with its hydra node, as Hydra composes it."""
        with warnings.catch_warnings():
            # Hydra only warns about a search path that does not exist; it is checked below.
            warnings.filterwarnings("ignore", message="provider=", category=UserWarning)
            try:
                overrides = [*self._hydra_lines, *groups.values()]
                cfg = compose(self._config_name, overrides, return_hydra_config=True)
            except KeyError as error:
                raise ConfigError(f"hydra.job.env_copy: the environment has no {error}") from error
            except HydraException:
                raise  # some are an OSError too
            except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
                raise ConfigError(f"the config cannot be composed: {error}") from error
        for source in cfg.hydra.runtime.config_sources:
            if source.schema == "file" and not os.path.isdir(source.path):
                raise ConfigError(f"{_SEARCH_PATH}: folder {source.path} does not exist")
        return cfg


def _key(groups: dict[str, str]) -> tuple[str, ...]:
    return tuple(sorted(groups.values()))


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
            raise ConfigError(f"config folder {folder} does not exist")
    given = {"--config-name": config_name, "--config-path": config_path, "--config-dir": config_dir}
    flags = {flag: value for flag, value in given.items() if value not in (None, "config")}
    words = [word for flag, value in flags.items() for word in (flag, str(value))]
    words += [line for line in lines if key_of(line) == _SEARCH_PATH]
    hydra_lines = [line for line in lines if key_of(line).startswith("hydra")]
    if config_dir is not None:
        folders = [f"file://{os.path.abspath(config_dir)}"]
        for override in parse([line for line in hydra_lines if key_of(line) == _SEARCH_PATH]):
            value = override.value()
            folders += [str(folder) for folder in (value if isinstance(value, list) else [value])]
        hydra_lines = [line for line in hydra_lines if key_of(line) != _SEARCH_PATH]
        hydra_lines.append(f"{_SEARCH_PATH}=[{','.join(map(quoted, folders))}]")
    main = conf_dir() if config_path is None else Path(config_path).resolve()
    with initialize_config_dir(str(main), version_base="1.3", job_name="gr_sweep"):
        yield Composer(config_name, hydra_lines, words)


def _without_hydra(cfg: DictConfig) -> DictConfig:
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg
