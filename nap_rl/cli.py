"""Shared by the entry points: a Hydra run whose bad input ends in one clear sentence and exit code 2.

The configuration is composed and checked before Hydra makes the run's folder, so that nothing is started or written
for a command that cannot run.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

USAGE_ERROR = 2
INTERRUPTED = 130  # Ctrl-C, as shells count it
CONF = "nap_rl.conf"
# Hydra asserts where a value has taken the place of a section.
COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, AssertionError)


def run(
    job: Callable[[DictConfig], int],
    config_name: str,
    check: Callable[[DictConfig], object],
    *,
    new_folder: bool = True,
) -> None:
    """Compose `config_name` with the command line, check it, run `job` under Hydra, and exit with the job's code.

    `check` raises ValueError with a sentence for settings that cannot run. `new_folder`: one that holds a run already
    is refused.
    """
    register_resolvers()
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    plain_run = len(overrides) == len(sys.argv) - 1  # --help, --cfg and --multirun are Hydra's own business
    if plain_run:
        with refusing_bad_input():
            config = compose(config_name, overrides)
            check(config)
            _check_folder(Path(config.hydra.run.dir), new_folder)
    code = 0

    def checked(config: DictConfig) -> None:
        nonlocal code
        if not plain_run:
            check(config)
        code = job(config)

    hydra.main(version_base="1.3", config_path=f"pkg://{CONF}", config_name=config_name)(checked)()
    sys.exit(code)


@contextmanager
def refusing_bad_input() -> Iterator[None]:
    """What is wrong with the input ends the process: one sentence, exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def register_resolvers() -> None:
    """What the configs interpolate: `run_id` (two runs may start in one second) and the folder's `-nap`."""
    OmegaConf.register_new_resolver("run_id", lambda: uuid.uuid4().hex[:4], use_cache=True, replace=True)
    OmegaConf.register_new_resolver("slug", lambda name: re.sub(r"[^\w.-]+", "_", name), replace=True)
    OmegaConf.register_new_resolver("nap_suffix", lambda nap: "-nap" if nap else "", replace=True)


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """The configuration, Hydra's own part included.

    Raises:
        ValueError: a key, a value or an option of a group that is not there; one sentence, with the nearest one.
    """
    GlobalHydra.instance().clear()
    with hydra.initialize_config_module(CONF, version_base="1.3"):
        try:
            config = hydra.compose(config_name, overrides, return_hydra_config=True)
        except COMPOSE_ERRORS as error:
            raise ValueError(_sentence(config_name, overrides, error)) from None
        for key in _unknown_keys(config):
            raise ValueError(_no_such_key(config_name, overrides, key))
    return config


def _sentence(config_name: str, overrides: list[str], error: Exception) -> str:
    """Hydra's and OmegaConf's messages, which run over many lines, as one sentence about what was typed."""
    text = " ".join(str(part) for part in (error, error.__cause__) if part)
    key = re.search(r"full_key: (\S+)", text)
    where = key[1] if key else "a key"
    if option := re.search(
        r"Could not find '[^']*?([^'/]+)'.*?Available options in '([^']*)':(.*?)\nConfig", text, re.S
    ):
        options = [name for name in option[3].split() if not name.endswith("_schema")]
        return f"{option[2]}={option[1]} does not exist: the options are {', '.join(options)}"
    if unknown := re.search(r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text):
        return _no_such_key(config_name, overrides, unknown[1] or unknown[2])
    if invalid := re.search(r"Invalid value '(.*?)', expected one of (\[.*?\])", text):
        return f"{where}={invalid[1]} is none of {invalid[2]}"
    if flag := re.search(r"Value '(.*?)' is not a valid bool", text):
        return f"{where}={flag[1]} is not true or false"
    if value := re.search(r"Value '(.*?)'.*? could not be converted to (\w+)", text):
        kind = {"Integer": "a whole number", "Float": "a number"}.get(value[2], value[2])
        return f"{where}={value[1]} is not {kind}"
    if "is not Optional" in text:
        return f"{where}=null, but it needs a value"
    return " ".join(text.split())


def _no_such_key(config_name: str, overrides: list[str], name: str) -> str:
    """One sentence with the nearest key, from the keys of what the other overrides compose to."""
    others = [o for o in overrides if o.split("=")[0].lstrip("+~") != name]
    try:
        keys = list(_keys(hydra.compose(config_name, others)))
    except COMPOSE_ERRORS:
        keys = list(_keys(hydra.compose(config_name)))
    near = difflib.get_close_matches(name, keys, n=1, cutoff=0.6)
    near = near or [key for key in keys if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:1]
    return f"there is no key '{name}'" + (f": did you mean '{near[0]}'?" if near else "")


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


def _holds_a_run(folder: Path) -> bool:
    """Whether something was played in it: a process killed before its first checkpoint leaves a table without rows."""
    metrics, checkpoints = folder / "metrics.csv", folder / "checkpoints"
    published = checkpoints.is_dir() and any(not path.name.startswith(".tmp.") for path in checkpoints.iterdir())
    return published or (metrics.exists() and metrics.stat().st_size > 0)


def _check_folder(folder: Path, new: bool) -> None:
    """OSError with a sentence unless a run's files can be made in `folder` (which is not made here)."""
    if new and _holds_a_run(folder):
        raise OSError(f"{folder} holds a run already: name another folder with hydra.run.dir=")
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".nap_rl-"):
            pass
    except OSError as error:
        raise OSError(f"cannot write the run's folder {folder}: {error.strerror} ({existing})") from None
