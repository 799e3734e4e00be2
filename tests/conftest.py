"""For every test: files that libraries leave behind go where pytest cleans up."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig
from omegaconf.base import Metadata

ROOT = Path(__file__).resolve().parents[1]

# Tensors of tests are small: two threads would spend a fourth of the suite's time on waiting for each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _sb3_logs_are_temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stable-Baselines3 makes a folder for its log in each `learn`, by default where nobody removes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _emulators_are_closed() -> Iterator[None]:
    """At the end no vector of emulators is open: ale-py's C++ objects would outlive the interpreter."""
    yield
    if "ale_py.vector_env" not in sys.modules:
        return
    gc.collect()
    vectors = [each for each in gc.get_objects() if type(each) is sys.modules["ale_py.vector_env"].AtariVectorEnv]
    left = [each.num_envs for each in vectors if hasattr(each, "ale")]
    assert not left, f"vectors of {left} emulators were opened by a test and never closed"


@pytest.fixture(scope="session", autouse=True)
def _hydra_makes_only_what_is_used() -> Iterator[None]:
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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachingConfigRepository, "__init__", copy_repository)
        patch.setattr(Metadata, "__deepcopy__", copy_metadata, raising=False)
        patch.setattr(defaults_list, "_create_interpolation_map", table_if_used)
        yield


@pytest.fixture(scope="session", autouse=True)
def _presets_are_read_once() -> Iterator[None]:
    """Hydra reads and merges 27 YAML files in each of 700 compositions. Here it does so once a choice of presets.

    What a test wrote, or stored for a run that goes on, is read each time.
    """
    read, merge = ConfigRepository.load_config, ConfigLoaderImpl._compose_config_from_defaults_list
    choose, chosen = config_loader_impl.create_defaults_list, dict[object, DefaultsList]()
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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_loader_impl, "create_defaults_list", choose_once)
        patch.setattr(ConfigRepository, "load_config", read_once)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once)
        yield


Command = Callable[..., tuple[int, str, str]]


def _in_this_process(command: str, main: Callable[[list[str]], int | None]) -> Command:
    """`python COMMAND ARGUMENTS` without the start-up of a process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
        code: object = 0
        try:
            with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
                patch.setattr(sys, "argv", [command, *arguments])
                code = main(list(arguments))
        except SystemExit as end:
            code = end.code
        finally:  # what a run sets for its process
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)
        assert isinstance(code, int)
        return code, out.getvalue(), err.getvalue()

    return run


@pytest.fixture(scope="session")
def train_here() -> Command:
    from nap_rl import train

    return _in_this_process("train.py", train.command)


@pytest.fixture(scope="session")
def evaluate_here() -> Command:
    from nap_rl import evaluate

    return _in_this_process("evaluate.py", evaluate.command)


@pytest.fixture(scope="session")
def tiny_catch() -> tuple[str, ...]:
    """Settings of a run of permuted Catch that takes seconds: two visits of 160 frames, networks of 8 units."""
    return (
        "experiment=permuted_catch",
        "agent.nap=true",
        "env.visits=2",
        "env.frames_per_task=160",
        "env.num_envs=4",
        "agent.min_replay_steps=40",
        "agent.net_arch=[8]",
        "agent.hidden=8",
        "logger.every_updates=10",
        "logger.tensorboard=false",
        "logger.diagnostics_every_updates=null",
        "compile=off",
        "native=off",
        "device=cpu",
        "threads=1",
    )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the tree: a build leaves its own folders behind."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("agents", "conf", "envs", "nap_rl", "studies"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(copy / "wheel")]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = (copy / "wheel").glob("*.whl")
    return built
