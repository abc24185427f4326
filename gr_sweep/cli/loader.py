"""Hydra's loader of configs, for commands of many jobs: it reads a file once, and puts the same
choices together once.

Hydra's own does both anew for every job of a sweep. What comes out is the same.
"""

import copy
from collections.abc import Hashable
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig


class Loader(ConfigLoaderImpl):
    """For the jobs of one command: what changes in a file meanwhile is not seen."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self._repositories: dict[Hashable, CachingConfigRepository] = {}
        self._composed: dict[Hashable, DictConfig] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A launcher sends it to the process of every job, which composes one.
        return self.__dict__ | {"_repositories": {}, "_composed": {}}

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed = OverridesParser.create().parse_overrides(overrides=overrides)
        paths = (o.input_line for o in parsed if o.get_key_element() == "hydra.searchpath")
        key = (config_name, *paths)
        if key not in self._repositories:
            repository = CachingConfigRepository(self.repository)
            self._process_config_searchpath(config_name, parsed, repository)
            self._repositories[key] = repository
        return parsed, self._repositories[key]

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        # What is composed takes its nodes from what was read, and changes them.
        result = copy.copy(super()._load_single_config(default, repo))
        result.config = copy.deepcopy(result.config)
        return result

    def _compose_config_from_defaults_list(
        self, defaults: list[ResultDefault], repo: IConfigRepository
    ) -> DictConfig:
        key = (id(repo), *((each.config_path, each.package, each.primary) for each in defaults))
        if key not in self._composed:
            self._composed[key] = super()._compose_config_from_defaults_list(defaults, repo)
        return copy.deepcopy(self._composed[key])
