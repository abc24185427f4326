"""Composes configs with Hydra's public API. No other module composes one.

`hydra.compose` takes 0.2 s for a config of gr-sweep, so Hydra composes each combination of groups
once, and OmegaConf merges the settings of each job into a copy of it.
"""

import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
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
from gr_sweep.cli.overrides import explain, key_of, quoted, range_of
from gr_sweep.cli.schema import DEFAULT_GROUPS, conf_dir
from gr_sweep.errors import ConfigError

_CONFIG = "config"
_DOMAINS = "partition.domains"


class Composer:
    """Composes the configs of one command."""

    base: DictConfig
    """The config that the jobs differ from, with its hydra node; `compose_base` sets it."""

    def __init__(self, lines: Sequence[str], words: list[str]) -> None:
        """
        Args:
            lines: overrides of the hydra node, which every config has.
            words: the words of the command line that say where configs are.
        """
        self.words = words
        self._loader = GlobalHydra.instance().config_loader()
        self._parser = OverridesParser.create(config_loader=self._loader)
        self._parser.functions.functions["range"] = range_of
        self._hydra_lines = list(lines)
        self._groups: dict[str, list[str]] = {}
        """The choices of each key that was looked up; empty if the key is not a group."""
        self._composed: dict[frozenset[str], DictConfig] = {}

    def again(self) -> AbstractContextManager[None]:
        """A context to compose in, also after `composing` has ended."""
        is_open = GlobalHydra.instance().is_initialized()
        return contextlib.nullcontext() if is_open else _hydra()

    def parse(self, lines: Sequence[str]) -> list[Override]:
        """Parses overrides; raises ConfigError where Python cannot read a number."""
        try:
            return self._parser.parse_overrides(list(lines))
        except ValueError as error:
            raise ConfigError(f"cannot read the settings: {error}") from error

    def compose_base(self, lines: Sequence[str]) -> None:
        """Composes `base` from the groups among the lines."""
        groups = self._groups_among(lines)
        self.base = self._by_hydra(groups)
        self._composed[frozenset(groups.values())] = without_hydra(self.base)

    def compose(self, lines: Sequence[str]) -> DictConfig:
        """The config of a job, without a hydra node; it can be merged with."""
        groups = self._groups_among(lines)
        if (known := frozenset(groups.values())) not in self._composed:
            self._composed[known] = without_hydra(self._by_hydra(groups))
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
            if self._is_group(key := key_of(line)):
                # `+experiment=edges`, as Hydra's documentation has it, is the same as without.
                found[key] = line.lstrip("+") if key in DEFAULT_GROUPS else line
        return found

    def _is_group(self, key: str) -> bool:
        if key not in self._groups:
            search_path = [line for line in self._hydra_lines if ".searchpath=" in line]
            options = self._loader.get_group_options(
                key, config_name=_CONFIG, overrides=search_path
            )
            self._groups[key] = list(options)
        return bool(self._groups[key])

    def _by_hydra(self, groups: dict[str, str]) -> DictConfig:
        """The config with its hydra node, as Hydra composes it."""
        for key, line in groups.items():
            value = self.parse([line])[0].value()
            if key in DEFAULT_GROUPS and not isinstance(value, str):  # of a list it merges all
                choices = [name for name in self._groups[key] if not name.startswith("base_")]
                raise invalid(key, value, f"one of {', '.join(choices)}; -m {key}=A,B runs several")
        try:
            overrides = [*self._hydra_lines, *groups.values()]
            return compose(_CONFIG, overrides, return_hydra_config=True)
        except HydraException:
            raise  # some are an OSError too
        except (OSError, ValueError, LookupError, AttributeError, yaml.YAMLError) as error:
            raise ConfigError(f"the config cannot be composed: {error}") from error


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A copy of a config without its hydra node."""
    cfg = copy.deepcopy(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@contextlib.contextmanager
def composing(lines: Sequence[str], config_dir: str | None = None) -> Iterator[Composer]:
    """Initialises Hydra with the configs of gr-sweep and of the user.

    Args:
        lines: overrides; those of the hydra node are used.
        config_dir: folder to search in addition.

    Raises:
        ConfigError: the folder does not exist.
    """
    hydra_lines = [line for line in lines if key_of(line).startswith("hydra")]
    words = [line for line in hydra_lines if key_of(line) == "hydra.searchpath"]
    if config_dir is not None:
        if not os.path.isdir(config_dir):
            raise ConfigError(f"config folder {config_dir!r} is not a folder")
        typed = words[0].partition("=")[2].strip(" []") if words else ""
        words += ["--config-dir", config_dir]
        places = [quoted(f"file://{os.path.abspath(config_dir)}"), *filter(None, [typed])]
        # First: Hydra ignores the others.
        hydra_lines.insert(0, f"hydra.searchpath=[{','.join(places)}]")
    with _hydra():
        yield Composer(hydra_lines, words)


def _hydra() -> AbstractContextManager[None]:
    return initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="gr_sweep")
