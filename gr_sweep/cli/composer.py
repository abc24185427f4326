"""Composes configs with Hydra's public API. No other module composes one.

`hydra.compose` takes 0.2 s for a config of gr-sweep, so Hydra composes each combination of groups
once, and OmegaConf merges the settings of each job into a copy of it.
"""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from gr_sweep.bounds import invalid
from gr_sweep.cli.help import conf_dir
from gr_sweep.cli.overrides import explain, key_of, quoted
from gr_sweep.cli.schema import DEFAULT_GROUPS
from gr_sweep.errors import ConfigError

_CONFIG = "config"
_DOMAINS = "partition.domains"


class Composer:
    """Composes the configs of one command. Hydra stays initialised for the latest one."""

    base: DictConfig
    """The config that the jobs differ from, with its hydra node; `compose_base` sets it."""

    def __init__(self, lines: Sequence[str], config_dir: str | None = None) -> None:
        """
        Args:
            lines: overrides; those of the hydra node hold for every config.
            config_dir: folder to search for configs in addition.

        Raises:
            ConfigError: the folder does not exist.
        """
        self._hydra_lines = [line for line in lines if key_of(line).startswith("hydra")]
        search = [line for line in self._hydra_lines if key_of(line) == "hydra.searchpath"]
        self.words = list(search)
        """The words of the command line that say where configs are."""
        if config_dir is not None:
            if not os.path.isdir(config_dir):
                raise ConfigError(f"config folder {config_dir!r} is not a folder")
            self.words += ["--config-dir", config_dir]
            typed = [line.partition("=")[2].strip(" []") for line in search[:1]]
            places = ",".join([quoted(f"file://{os.path.abspath(config_dir)}"), *typed])
            search = [f"hydra.searchpath=[{places}]"]
            self._hydra_lines = search + self._hydra_lines  # Hydra takes the first
        self._search = search
        GlobalHydra.instance().clear()
        initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="gr_sweep")
        self.loader = GlobalHydra.instance().config_loader()
        self._parser = OverridesParser.create(config_loader=self.loader)
        self._groups: dict[str, list[str]] = {}
        """The choices of each key that was looked up; empty if the key is not a group."""
        self._composed: dict[frozenset[str], DictConfig] = {}

    def parse(self, lines: Sequence[str]) -> list[Override]:
        """Parses overrides."""
        try:
            return self._parser.parse_overrides(list(lines))
        except HydraException:
            raise
        except ValueError as error:  # a number of more than 4300 digits
            raise ConfigError(f"an override cannot be read: {error}") from error

    def compose_base(self, lines: Sequence[str]) -> None:
        """Composes `base` from the groups among the lines."""
        groups = self._groups_among(lines)
        self.base = self._by_hydra(groups)
        self._composed[frozenset(groups.values())] = _without_hydra(self.base)

    def compose(self, lines: Sequence[str]) -> DictConfig:
        """The config of a job, without a hydra node; it can be merged with."""
        groups = self._groups_among(lines)
        if (known := frozenset(groups.values())) not in self._composed:
            self._composed[known] = _without_hydra(self._by_hydra(groups))
        cfg = copy.deepcopy(self._composed[known])
        OmegaConf.set_struct(cfg, None)  # dictionaries take new keys, dataclasses do not
        for override in self.parse([line for line in lines if key_of(line) not in groups]):
            if override.key_or_group == _DOMAINS:
                cfg.partition.domains = {}  # Hydra would add to those that are there
            value: Any = override.value()
            for name in reversed(override.key_or_group.split(".")):
                value = {name: value}
            try:
                cfg.merge_with(value)
            except OmegaConfBaseException as error:
                raise explain(error, f"{override.input_line}: ") from error
        keys = {key_of(line) for line in lines}
        if "train.tokens" in keys and "train.steps" not in keys and cfg.train.tokens is not None:
            cfg.train.steps = None  # what is typed replaces the steps of the config
        return cfg

    def with_hydra(
        self, cfg: DictConfig, lines: Sequence[str], number: int, folder: Path | None = None
    ) -> DictConfig:
        """Adds to the config of a job, from `compose`, the hydra node that Hydra would give it.

        Args:
            number: of the job in its sweep.
            folder: of the job, absolute; None if it is not known yet.
        """
        with open_dict(cfg):
            cfg.hydra = self.base.hydra  # a copy
        hydra = cfg.hydra
        with read_write(hydra), open_dict(hydra):
            hydra.overrides.task = list(lines)
            hydra.job.num, hydra.job.id = number, str(number)
            hydra.job.override_dirname = ",".join(sorted(line.lstrip("+") for line in lines))
            for line in lines:
                if key_of(line) in hydra.runtime.choices:
                    hydra.runtime.choices[key_of(line)] = line.split("=", 1)[-1]
            if folder is not None:
                hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(cfg)
        return cfg

    def _groups_among(self, lines: Sequence[str]) -> dict[str, str]:
        """The lines that choose a file of a group, by group, as Hydra wants them."""
        found = {}
        for line in lines:
            key = key_of(line)
            if key not in self._groups:
                options = self.loader.get_group_options(
                    key, config_name=_CONFIG, overrides=self._search
                )
                self._groups[key] = [name for name in options if not name.startswith("base_")]
            if self._groups[key]:
                # `+experiment=edges`, as Hydra's documentation has it, is the same as without.
                found[key] = line.lstrip("+") if key in DEFAULT_GROUPS else line
        return found

    def _by_hydra(self, groups: dict[str, str]) -> DictConfig:
        """The config with its hydra node, as Hydra composes it."""
        for key, line in groups.items():
            value = self.parse([line])[0].value()
            if key in DEFAULT_GROUPS and not isinstance(value, str):  # of a list it merges all
                expected = f"one of {', '.join(self._groups[key])}; -m {key}=A,B runs several"
                raise invalid(key, value, expected)
        try:
            overrides = [*self._hydra_lines, *groups.values()]
            return compose(_CONFIG, overrides, return_hydra_config=True)
        except HydraException:
            raise  # some are an OSError too
        except (OSError, ValueError, LookupError, AttributeError, yaml.YAMLError) as error:
            raise ConfigError(f"the config cannot be composed: {error}") from error


def _without_hydra(cfg: DictConfig) -> DictConfig:
    """A copy of a config without its hydra node."""
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg
