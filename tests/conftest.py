"""For every test: files that libraries leave behind go where pytest cleans up."""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch


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


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def train_here() -> Command:
    """`python train.py ARGUMENTS` in this process, without its start-up: (exit code, stdout, stderr)."""
    from nap_rl import train

    def run(*arguments: str) -> tuple[int, str, str]:
        out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
        try:
            with redirect_stdout(out), redirect_stderr(err):
                code = train.command(list(arguments))
        except SystemExit as end:
            assert isinstance(end.code, int)
            code = end.code
        finally:  # what a run sets for its process
            torch.set_num_threads(threads)
            torch.set_flush_denormal(False)
        return code, out.getvalue(), err.getvalue()

    return run
