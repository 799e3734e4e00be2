"""How an update is computed: in which precision, and whether its passes are compiled."""

from __future__ import annotations

import os
import shutil
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WORTH_COMPILING = 20_000
"""Updates from which on a run is long enough: compiling takes up to a minute, and saves milliseconds an update."""


def pick_precision(name: str) -> torch.dtype:
    """`auto`, `fp32` or `bf16`; auto is fp32: bf16 learnt later with one seed in one of two games (docs/results.md).

    Raises:
        ValueError: another name.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision is '{name}', expected auto, fp32 or bf16")
    return torch.bfloat16 if name == "bf16" else torch.float32


def pick_compile(name: str, updates: float) -> bool:
    """Whether to compile: `on`, `off`, or `auto`, which compiles runs of `WORTH_COMPILING` updates or more.

    Where it would compile and there is no C++ compiler, a warning says so and nothing is compiled. Compiled graphs are
    kept in the user's cache folder, so that the next run of the same network starts at once.

    Raises:
        ValueError: another name.
    """
    if name not in ("auto", "on", "off"):
        raise ValueError(f"compile is '{name}', expected auto, on or off")
    if name == "off" or (name == "auto" and updates < WORTH_COMPILING):
        return False
    if shutil.which(compiler()) is None:
        warnings.warn(
            f"compile={name}, but there is no C++ compiler '{compiler()}': install one, or name one in CXX. Updates "
            "run uncompiled, more slowly",
            stacklevel=2,
        )
        return False
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder()))
    torch._dynamo.config.suppress_errors = True  # a compiler that fails is a warning too; updates run uncompiled then
    return True


def compiled_method(method: Callable[..., Any], on_cpu: bool) -> Callable[..., Any]:
    """torch.compile of a method for inputs of fixed shapes, with graphs that are of this object alone.

    On a CPU what calls a graph's kernels is C++ as they are (a hundredth of an update, a thirtieth of an act).

    At every call torch asks whether its graph still holds. That modules are those that they were, and globals, are
    1,600 questions of 1,700 for a Rainbow, and a sixtieth of an update: they are not asked, so after the first call no
    module of the object may be replaced, get a hook or another setting. Of inputs, numbers of the object and torch's
    modes all is asked. For graphs belong to a code object, of which two objects of a class, with different modules,
    have one: each gets a copy.
    """
    assert isinstance(method, types.MethodType)
    function = method.__func__
    code, names = function.__code__.replace(), function.__globals__
    alone = types.FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    alone.__kwdefaults__ = function.__kwdefaults__
    options: dict[str, Any] = {"guard_filter_fn": _asked, "cpp_wrapper": on_cpu}
    compiled: Callable[..., Any] = torch.compile(
        types.MethodType(alone, method.__self__), dynamic=False, options=options
    )
    return compiled


def _asked(guards: Any) -> list[bool]:
    modules = torch.compiler.skip_guard_on_all_nn_modules_unsafe(guards)  # type: ignore[no-untyped-call]
    names = torch.compiler.skip_guard_on_globals_unsafe(guards)  # type: ignore[no-untyped-call]
    return [a and b for a, b in zip(modules, names, strict=True)]


def compiler() -> str:
    """The C++ compiler that torch takes too."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def cache_folder() -> Path:
    """Where compiled code is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nap_rl" / "compiled"
