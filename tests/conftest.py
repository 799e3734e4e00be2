"""For every test: files that libraries leave behind go where pytest cleans up."""

from __future__ import annotations

import gc
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

from tests.quick_hydra import quick_hydra

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
def _hydra_is_quick() -> Iterator[None]:
    with quick_hydra():
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
