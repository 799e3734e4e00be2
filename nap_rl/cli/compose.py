"""Settings typed on the command line + YAML files = one configuration, or one sentence about what is wrong."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import uuid
from collections.abc import Iterator, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nap_rl.cli import sentences

CONF = "nap_rl.conf"
OTHER_ROOTS = ("study", "sweep")  # folders of it that hold another command's files
# Hydra asserts where a value has taken the place of a section; ValueError: true or a number for a group's option.
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, AssertionError, ValueError)
_WHOLE_NUMBER = re.compile(r"Value '(-?[0-9.e+]+)' of type 'float' could not be .* to Integer.*full_key: (\S+)", re.S)


def register_resolvers() -> None:
    """What the configs interpolate: `run_id` (two runs may start in one second) and the folder's `-nap`."""
    OmegaConf.register_new_resolver("run_id", lambda: uuid.uuid4().hex[:4], use_cache=True, replace=True)
    OmegaConf.register_new_resolver("slug", lambda name: re.sub(r"[^\w.-]+", "_", name), replace=True)
    OmegaConf.register_new_resolver("nap_suffix", lambda nap: "-nap" if nap else "", replace=True)


def compose(
    config_name: str, overrides: Sequence[str], *, module: str = CONF, config_dirs: Sequence[str] = ()
) -> DictConfig:
    """The configuration, Hydra's own part included.

    Args:
        module: the package that holds the YAML files.
        config_dirs: folders that hold further ones.

    Raises:
        ValueError: a key, a value or an option of a group that does not exist; one sentence, with the nearest one.
    """
    GlobalHydra.instance().clear()
    typed = [str(override) for override in overrides]
    parsed = [_parse(override) for override in typed]
    search = [f"hydra.searchpath=[{','.join(_search_path(folder) for folder in config_dirs)}]"] if config_dirs else []
    composer = _Composer(module, config_name, config_dirs, search, typed)
    with hydra.initialize_config_module(module, version_base="1.3", job_name=Path(sys.argv[0]).stem or "run"):
        while True:
            try:
                config = hydra.compose(config_name, [*search, *typed], return_hydra_config=True)
                break
            except COMPOSE_ERRORS as error:
                if not _write_whole_number_out(typed, error):
                    raise ValueError(sentences.of_error(error, composer)) from None
        for key in _unknown_keys(config):
            raise ValueError(sentences.no_such_key(key, composer))
    for override in parsed:
        _check_flag(override, config)
    return config


def group_options(group: str, *, module: str = CONF, config_dirs: Sequence[str] = ()) -> list[str]:
    """Names of a group's options; [] for what is no group."""
    found: set[str] = set()
    for root in (files(module), *map(Path, config_dirs)):
        if group and (folder := root.joinpath(group)).is_dir():
            found |= {file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")}
    return sorted(found)


@dataclasses.dataclass(frozen=True)
class _Composer:
    """What `sentences` asks about the configuration at hand."""

    module: str
    config_name: str
    config_dirs: Sequence[str]
    search: list[str]
    overrides: list[str]

    def keys(self, without: str) -> list[str]:
        """Keys of what the overrides compose to, those of the key `without` left out; of none where they do not."""
        others = [o for o in self.overrides if sentences.key_of(o) != without]
        for attempt in (others, [o for o in others if self.options(sentences.key_of(o))], []):
            try:
                return list(_keys(hydra.compose(self.config_name, [*self.search, *attempt])))
            except COMPOSE_ERRORS:
                continue
        return []

    def options(self, group: str) -> list[str]:
        return group_options(group, module=self.module, config_dirs=self.config_dirs)

    def groups(self) -> list[str]:
        return sorted(_groups(files(self.module), ""))

    def keys_of_option(self, group: str, option: str) -> list[str]:
        """Keys that stand in the file of a group's option, below the group."""
        file = files(self.module).joinpath(f"{group}/{option}.yaml")
        if not file.is_file():
            return []
        node = OmegaConf.create(file.read_text(encoding="utf-8"))
        assert isinstance(node, DictConfig)
        return list(_keys(node, f"{group.replace('/', '.')}."))


def _groups(root: Traversable, below: str) -> Iterator[str]:
    for folder in root.iterdir():
        if folder.is_dir() and folder.name not in OTHER_ROOTS and not folder.name.startswith("_"):
            path = f"{below}/{folder.name}".lstrip("/")
            yield path
            yield from _groups(folder, path)


def _search_path(folder: str) -> str:
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"--config-dir={folder} is no folder")
    return sentences.quoted(f"file://{path.resolve()}")


def _parse(override: str) -> Override:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        raise ValueError(sentences.unreadable(override)) from None


def _check_flag(override: Override, config: DictConfig) -> None:
    """OmegaConf takes every number but 0 for true."""
    key, number = override.key_or_group, override.value()
    if type(number) is int and number not in (0, 1) and isinstance(OmegaConf.select(config, key), bool):
        raise ValueError(f"{key}={number} is not true or false")


def _write_whole_number_out(overrides: list[str], error: Exception) -> bool:
    """Whether `1e6` was typed where a whole number belongs: it is 1000000 in `overrides` now."""
    text = " ".join(str(part) for part in (error, error.__cause__) if part)
    found = _WHOLE_NUMBER.search(text)
    if found is None or not math.isfinite(value := float(found[1])) or value != int(value):
        return False
    for i, override in enumerate(overrides):
        key = override.partition("=")[0]
        if key.lstrip("+") == found[2]:
            overrides[i] = f"{key}={int(value)}"
            return True
    return False


def _children(config: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    for key in map(str, config):
        child = config._get_node(key)  # the node itself: interpolations and missing values are not looked up
        if isinstance(child, DictConfig) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            yield key, child


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    yield from (f"{prefix}{key}" for key in map(str, config))
    for key, child in _children(config):
        yield from _keys(child, f"{prefix}{key}.")


def _unknown_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Keys that `+key=value` added to a typed node whose type does not have them."""
    kind = OmegaConf.get_type(config)
    if dataclasses.is_dataclass(kind):
        known = {field.name for field in dataclasses.fields(kind)} | ({"hydra"} if not prefix else set())
        yield from (f"{prefix}{key}" for key in map(str, config) if key not in known)
    for key, child in _children(config):
        if key != "hydra" or prefix:
            yield from _unknown_keys(child, f"{prefix}{key}.")
