"""The precision of an update, and whether it is compiled."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

WORTH_COMPILING = 20_000
"""Updates of the shortest run that `auto` compiles: compiling takes up to a minute and saves milliseconds an update."""


def pick_precision(name: str) -> torch.dtype:
    """The dtype of `auto`, `fp32` or `bf16`; auto is fp32, since bf16 was not shown to learn as well.

    Raises:
        ValueError: another name.
    """
    if name not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision is '{name}', expected auto, fp32 or bf16")
    return torch.bfloat16 if name == "bf16" else torch.float32


def pick_compile(name: str, updates: float) -> bool:
    """Whether to compile: `on`, `off`, or `auto`, which compiles runs of `WORTH_COMPILING` updates or more.

    Without a C++ compiler nothing is compiled, and a warning says so. Compiled graphs stay in the user's cache folder:
    the next run of the same network starts at once.

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
    torch._dynamo.config.suppress_errors = True  # a compiler that fails is a warning: updates run uncompiled then
    return True


def compiled_method(method: Callable[..., Any], on_cpu: bool) -> Callable[..., Any]:
    """torch.compile of a method for inputs of fixed shapes. On a CPU, C++ instead of Python calls a graph's kernels.

    torch keeps graphs by code object, 8 at most, and all objects of a class share a method's code. So this object gets
    a copy of the code, and graphs of its own.
    """
    assert isinstance(method, types.MethodType)
    shared = method.__func__
    function = types.FunctionType(
        shared.__code__.replace(), shared.__globals__, shared.__name__, shared.__defaults__, shared.__closure__
    )
    function.__kwdefaults__ = shared.__kwdefaults__
    options: dict[str, Any] = {"cpp_wrapper": on_cpu}
    compiled: Callable[..., Any] = torch.compile(
        types.MethodType(function, method.__self__), dynamic=False, options=options
    )
    return compiled


def compiled_function(function: Callable[..., Any], fixed: Sequence[Any], inputs: Sequence[Any]) -> Callable[..., Any]:
    """`function(*fixed, *inputs)` as a function of `inputs` alone: its operators as C++ on one thread of a CPU.

    Without torch.compile around it, a call asks nothing about its arguments: they have the shapes and dtypes of
    `inputs`, and the tensors of `fixed` are the same ones each time. What is no tensor stays what it is now. A compiler
    that fails is a warning; `function` is run as it is then.
    """
    leaves, arguments = tree_flatten((*fixed, *inputs))
    outputs: list[TreeSpec] = []

    def flat(*leaves: Any) -> list[Any]:
        results, spec = tree_flatten(function(*tree_unflatten(leaves, arguments)))
        outputs.append(spec)
        return results

    # Fused too far, a loop over pairs computes anew for each pair what belongs to one of both.
    options: dict[str, Any] = {"cpp_wrapper": True, "cpp.threads": 1, "realize_opcount_threshold": 8}
    with torch.inference_mode(False), torch.no_grad():
        graph = make_fx(flat, tracing_mode="fake")(*leaves)
        try:
            compiled = torch._inductor.compile(graph, leaves, options=options)
        except Exception as error:
            reason = " ".join(str(error).split())
            warnings.warn(f"updates run uncompiled, more slowly: the compiler failed ({reason:.200})", stacklevel=2)
            return functools.partial(function, *fixed)
    (spec,) = outputs
    same = tree_leaves(tuple(fixed))

    def call(*inputs: Any) -> Any:
        return tree_unflatten(compiled(*same, *tree_leaves(inputs)), spec)

    return call


def compiler() -> str:
    """The name of the C++ compiler, as torch finds it."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def cache_folder() -> Path:
    """Where compiled code is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nap_rl" / "compiled"
