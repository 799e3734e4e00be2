"""Hydra in tests: the same configurations in a fraction of the time. Imports nothing that is slow to import."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig
from omegaconf.base import Metadata
from pytest import MonkeyPatch


@contextmanager
def quick_hydra() -> Iterator[None]:
    with MonkeyPatch.context() as patch:
        _make_only_what_is_used(patch)
        _read_presets_once(patch)
        yield


def _make_only_what_is_used(patch: MonkeyPatch) -> None:
    """Two deep copies and a table of choices that no preset asks for are half of the time of a composition."""
    table = defaults_list._create_interpolation_map

    def copy_repository(caching: CachingConfigRepository, delegate: IConfigRepository) -> None:
        caching.delegate, caching.cache = copy.copy(delegate), {}  # its list of sources is replaced, not changed

    def copy_metadata(metadata: Metadata, memo: dict[int, object]) -> Metadata:
        copied = copy.copy(metadata)  # the other fields are types, names and flags
        copied.flags = copy.copy(metadata.flags)
        copied.resolver_cache = copy.deepcopy(metadata.resolver_cache, memo)
        return copied

    def table_if_used(overrides: Overrides, defaults: list[InputDefault], self_added: bool) -> DictConfig:
        used = any(each.is_interpolation() for each in defaults)
        return table(overrides, defaults, self_added) if used else DictConfig({})

    patch.setattr(CachingConfigRepository, "__init__", copy_repository)
    patch.setattr(Metadata, "__deepcopy__", copy_metadata, raising=False)
    patch.setattr(defaults_list, "_create_interpolation_map", table_if_used)


def _read_presets_once(patch: MonkeyPatch) -> None:
    """Hydra reads and merges 27 YAML files in each of 700 compositions. Here it does so once a choice of presets.

    What a test wrote, or stored for a run that goes on, is read each time.
    """
    read, merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    loader: Any = config_loader_impl  # its own names stand in it, and it lists none of them
    choose, chosen = loader.create_defaults_list, dict[object, DefaultsList]()
    kept: dict[object, bytes] = {}

    def key_of(repository: IConfigRepository, *more: object) -> object:
        return *(source.full_path() for source in repository.get_sources()), *more

    def read_once(repository: ConfigRepository, config_path: str) -> ConfigResult | None:
        key = key_of(repository, config_path)
        if key in kept:
            known: ConfigResult = pickle.loads(kept[key])
            return known
        found: ConfigResult | None = read(repository, config_path)
        if found is not None and found.path.startswith("pkg:"):
            kept[key] = pickle.dumps(found)
        return found

    def merge_once(loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        key = key_of(repo, *((each.config_path, each.package, each.parent, each.is_self) for each in defaults))
        if key in kept:
            known: DictConfig = pickle.loads(kept[key])
            return known
        merged = merge(loader, defaults, repo)
        if not any(path in str(key) for path in ("file:", "stored")):
            kept[key] = pickle.dumps(merged)
        return merged

    def choose_once(
        repo: IConfigRepository, config_name: str | None, overrides_list: list[Override], **more: bool
    ) -> DefaultsList:
        """The presets that are composed depend on the choices of groups alone, and not on values."""
        choices = [
            each
            for each in overrides_list
            if repo.group_exists(each.key_or_group) and not isinstance(each.value(), dict)
        ]
        key = key_of(repo, config_name, *(each.input_line for each in choices), *more.values())
        found = chosen[key] if key in chosen else choose(repo, config_name, choices, **more)
        if not any(path in str(key) for path in ("file:", "stored")):
            chosen[key] = found
        return replace(found, config_overrides=[each for each in overrides_list if each not in choices])

    patch.setattr(loader, "create_defaults_list", choose_once)
    patch.setattr(ConfigRepository, "load_config", read_once)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once)
