"""How an update is computed: in which precision, and whether its passes are compiled."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path

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


def compiler() -> str:
    """The C++ compiler that torch takes too."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def cache_folder() -> Path:
    """Where compiled code is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nap_rl" / "compiled"
