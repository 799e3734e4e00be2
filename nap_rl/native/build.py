"""The C++ files beside this one as a shared library: compiled once for a CPU, kept in a cache, loaded into torch."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from nap_rl.compilation import cache_folder, compiler

HERE = Path(__file__).parent
SOURCES, HEADERS = (sorted(HERE.glob(pattern)) for pattern in ("*.cpp", "*.h"))
FLAGS = ["-std=c++20", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC"]
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-mprefer-vector-width=512")  # as wide as the CPU has them


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library, or None without one: off Linux, or with a warning where compiling fails.

    Loading it gives torch the operators of operators.cpp. It calls the OpenMP runtime that torch has loaded, so both
    use the same threads.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        loaded = ctypes.CDLL(str(compiled(cache_folder())))
        loaded.adam_update.restype = ctypes.c_double
        return loaded
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(f"native code was not compiled; updates run without it, more slowly: {reason}", stacklevel=2)
        return None


def kernels() -> ctypes.CDLL:
    """`library()`, which must not be None."""
    loaded = library()
    assert loaded is not None
    return loaded


@functools.cache
def has(name: str, *sizes: int, dtype: torch.dtype, pixels: bool | None = None) -> bool:
    """What the function `has_...` of operators.cpp says of a layer; False without the library or for other dtypes."""
    loaded = library()
    if loaded is None or dtype not in (torch.float32, torch.bfloat16):
        return False
    function = getattr(loaded, name)
    function.restype = ctypes.c_bool
    flags = [flag for flag in (pixels, dtype is torch.bfloat16) if flag is not None]
    return bool(function(*map(ctypes.c_int64, sizes), *map(ctypes.c_bool, flags)))


def operator(name: str, signature: str, shape: Callable[..., Any]) -> None:
    """Define `torch.ops.nap_rl.<name>`, which operators.cpp computes; `shape` gives empty results to torch.compile."""
    torch.library.define(f"nap_rl::{name}", signature)
    torch.library.register_fake(f"nap_rl::{name}", shape)


def compiled(folder: Path) -> Path:
    """The library in `folder`, compiled unless it is there for the same sources, compiler and CPU.

    Raises:
        OSError: there is no compiler, or the folder cannot be written.
        subprocess.CalledProcessError: the compiler failed; `stderr` says why.
    """
    name = compiler()
    version = subprocess.run([name, "--version"], capture_output=True, check=True, text=True).stdout
    texts = (source.read_text(encoding="utf-8") for source in SOURCES + HEADERS)
    identity = "\n".join([*texts, *FLAGS, name, version, torch.__version__, _cpu()])
    path = folder / f"native-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # two processes may compile at once
            library_file = Path(scratch) / path.name
            _compile(name, library_file)
            os.replace(library_file, path)
    return path


def _compile(name: str, library_file: Path) -> None:
    """Compile all sources at once, each in a process, and link them."""
    torch_at = Path(torch.__file__).parent
    folders = [f"-I{HERE}", *(f"-isystem{torch_at / 'include' / at}" for at in ("", "torch/csrc/api/include"))]
    objects = [library_file.with_name(f"{source.stem}.o") for source in SOURCES]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as workers:
        commands = ([name, *FLAGS, *folders, "-c", str(s), "-o", str(o)] for s, o in zip(SOURCES, objects, strict=True))
        list(workers.map(_run, commands))
    libraries = [f"-L{torch_at / 'lib'}", "-ltorch_cpu", "-lc10"]  # which the process has loaded
    _run([name, *FLAGS, "-shared", "-o", str(library_file), *map(str, objects), *libraries])


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, check=True, text=True)


def _cpu() -> str:
    """What -march=native depends on: machines may share a home folder."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = {line.split(":")[0].strip(): line for line in file if ":" in line}
    except OSError:
        lines = {}
    kept = [lines.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping", "flags", "Features")]
    return "".join([platform.machine(), *kept])
