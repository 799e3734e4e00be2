"""For every test: files that libraries leave behind go where pytest cleans up."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest


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
