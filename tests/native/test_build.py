"""Compiling native code: once, and never a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nap_rl.native import build, library

needs_compiler = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


@needs_compiler
def test_it_is_compiled_once_for_a_source_and_again_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(build, "SOURCES", [source])
    folder = tmp_path / "cache"
    first = build.compiled(folder)
    written = first.stat().st_mtime_ns
    assert build.compiled(folder) == first and first.stat().st_mtime_ns == written
    source.write_text(source.read_text() + "\n// changed\n")
    assert build.compiled(folder) != first
    assert sorted(path.suffix for path in folder.iterdir()) == [".so", ".so"]  # nothing half made


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


@needs_compiler
def test_loading_it_leaves_the_rounding_of_the_process_alone() -> None:
    """Libraries compiled with -ffast-math switch denormals off in every process that loads them."""
    path = build.compiled(build.cache_folder())
    code = f"import ctypes, torch\nctypes.CDLL({str(path)!r})\nprint(5e-324 * 1.0, 1e-310 + 0.0)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert found.split() == ["5e-324", "1e-310"]
