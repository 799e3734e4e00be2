"""Compiling native code: once, and never a failure."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nap_rl.native import library
from nap_rl.native.build import SOURCES, compiled

needs_compiler = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


@needs_compiler
def test_it_is_compiled_once_for_a_source_and_again_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiled(tmp_path)
    made = first.stat().st_mtime_ns
    assert compiled(tmp_path) == first and first.stat().st_mtime_ns == made
    changed = tmp_path / "changed.cpp"
    changed.write_text(SOURCES[0].read_text() + "\n// changed\n")
    monkeypatch.setattr("nap_rl.native.build.SOURCES", [changed, *SOURCES[1:]])
    assert compiled(tmp_path) != first
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".cpp", ".so", ".so"]  # nothing half made


@pytest.mark.parametrize("broken", ["no-such-compiler", "false"])
def test_a_compiler_that_fails_is_a_warning(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    try:
        if not sys.platform.startswith("linux"):
            assert library() is None
            return
        with pytest.warns(UserWarning, match="native code was not compiled; updates run without it, more slowly: "):
            assert library() is None
    finally:
        library.cache_clear()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_loading_it_leaves_the_rounding_of_the_process_alone() -> None:
    """Libraries compiled with -ffast-math switch denormals off for whoever loads them."""
    code = "from nap_rl.native import library\nassert library() is not None\nprint(5e-324 * 1.0, 1e-310 + 0.0)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert found.split() == ["5e-324", "1e-310"]
