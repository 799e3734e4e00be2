"""The C++ files beside this one as a shared library: compiled once a machine, kept in a cache, loaded by ctypes."""

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
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from nap_rl.compute import cache_folder, compiler

SOURCES, HEADERS = (sorted(Path(__file__).parent.glob(pattern)) for pattern in ("*.cpp", "*.h"))
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-mprefer-vector-width=512")  # as wide as the CPU has them


@functools.cache
def library() -> ctypes.CDLL | None:
    """The functions, or None where they cannot be had: a failure is a warning, and whoever asks does without.

    Only Linux is tried. The OpenMP functions that the library calls are those of the runtime that torch has loaded, so
    both use the same threads.
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


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Where a contiguous tensor lies in the CPU's memory; it must be kept alive while that is used."""
    assert tensor.is_contiguous() and tensor.is_cpu
    return ctypes.c_void_p(tensor.data_ptr())


def call(name: str, sizes: tuple[int, ...], tensors: tuple[Tensor, ...], numbers: tuple[float, ...] = ()) -> None:
    """A function of sizes, tensors in the CPU's memory, laid out as it reads them, numbers, and torch's threads."""
    places = []
    for tensor in tensors:
        assert tensor.is_cpu
        places.append(tensor.data_ptr())
    function = _function(name, len(sizes), len(places), len(numbers))
    function(*sizes, *places, *numbers, torch.get_num_threads())


@functools.cache
def _function(name: str, sizes: int, tensors: int, numbers: int) -> Callable[..., None]:
    """With the types of its arguments, which ctypes converts faster than we do: updates call two dozen."""
    kinds = [ctypes.c_int64] * sizes + [ctypes.c_void_p] * tensors + [ctypes.c_double] * numbers + [ctypes.c_int]
    function: Any = getattr(kernels(), name)
    function.argtypes, function.restype = kinds, None
    return cast(Callable[..., None], function)


def operator(name: str, signature: str, run: Callable[..., Any], shape: Callable[..., Any]) -> None:
    """`torch.ops.nap_rl.<name>`, on the CPU; of `shape`'s empty results is what torch.compile traces."""
    torch.library.define(f"nap_rl::{name}", signature)
    torch.library.impl(f"nap_rl::{name}", "cpu", run)
    torch.library.register_fake(f"nap_rl::{name}", shape)


def type_name(dtype: torch.dtype) -> str:
    """As functions of one type are named: float32, bfloat16."""
    return str(dtype).removeprefix("torch.")


def compiled(folder: Path) -> Path:
    """Compile into `folder` unless it is there already, for the same source, compiler and CPU.

    Raises:
        OSError: there is no compiler, or the folder cannot be written.
        subprocess.CalledProcessError: the compiler failed; `stderr` says why.
    """
    name = compiler()
    version = subprocess.run([name, "--version"], capture_output=True, check=True, text=True).stdout
    texts = (source.read_text(encoding="utf-8") for source in SOURCES + HEADERS)
    identity = "\n".join([*texts, *FLAGS, name, version, _cpu()])
    path = folder / f"native-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as own:  # two processes may compile at once
            made = Path(own) / path.name
            subprocess.run(
                [name, *FLAGS, "-o", str(made), *map(str, SOURCES)], capture_output=True, check=True, text=True
            )
            os.replace(made, path)
    return path


def _cpu() -> str:
    """What -march=native depends on: a home folder may be shared by machines."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = {line.split(":")[0].strip(): line for line in file if ":" in line}
    except OSError:
        lines = {}
    kept = [lines.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping", "flags", "Features")]
    return "".join([platform.machine(), *kept])
