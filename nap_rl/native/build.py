"""The C++ files beside this one as a shared library: compiled once a machine, kept in a cache, loaded into torch."""

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
    """The functions, or None where they cannot be had: a failure is a warning, and whoever asks does without.

    Loading it gives torch the operators of operators.cpp. Only Linux is tried. The OpenMP functions that the library
    calls are those of the runtime that torch has loaded, so both use the same threads.
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
    """The functions, for those who were told that `library()` has them."""
    found = library()
    assert found is not None
    return found


@functools.cache
def has(name: str, *sizes: int, dtype: torch.dtype, pixels: bool | None = None) -> bool:
    """What a `has_...` of operators.cpp says of sizes; False without the library, and of other types.

    It is asked at every update, hence kept.
    """
    found = library()
    if found is None or dtype not in (torch.float32, torch.bfloat16):
        return False
    function = getattr(found, name)
    function.restype = ctypes.c_bool
    flags = [flag for flag in (pixels, dtype is torch.bfloat16) if flag is not None]
    return bool(function(*map(ctypes.c_int64, sizes), *map(ctypes.c_bool, flags)))


def operator(name: str, signature: str, shape: Callable[..., Any] | None = None) -> None:
    """`torch.ops.nap_rl.<name>`, which operators.cpp computes.

    Args:
        shape: gives the empty results that torch.compile traces; None for what is no part of a graph.
    """
    torch.library.define(f"nap_rl::{name}", signature)
    if shape is not None:
        torch.library.register_fake(f"nap_rl::{name}", shape)


def compiled(folder: Path) -> Path:
    """Compile into `folder` unless it is there already, for the same source, compiler and CPU.

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
        with tempfile.TemporaryDirectory(dir=folder) as own:  # two processes may compile at once
            made = Path(own) / path.name
            _compile(name, made)
            os.replace(made, path)
    return path


def _compile(name: str, made: Path) -> None:
    """The sources at once, each by a process."""
    torch_at = Path(torch.__file__).parent
    folders = [f"-I{HERE}", *(f"-isystem{torch_at / 'include' / at}" for at in ("", "torch/csrc/api/include"))]
    objects = [made.with_name(f"{source.stem}.o") for source in SOURCES]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as workers:
        commands = ([name, *FLAGS, *folders, "-c", str(s), "-o", str(o)] for s, o in zip(SOURCES, objects, strict=True))
        list(workers.map(_run, commands))
    libraries = [f"-L{torch_at / 'lib'}", "-ltorch_cpu", "-lc10"]  # which the process has loaded
    _run([name, *FLAGS, "-shared", "-o", str(made), *map(str, objects), *libraries])


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, check=True, text=True)


def _cpu() -> str:
    """What -march=native depends on: a home folder may be shared by machines."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = {line.split(":")[0].strip(): line for line in file if ":" in line}
    except OSError:
        lines = {}
    kept = [lines.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping", "flags", "Features")]
    return "".join([platform.machine(), *kept])
