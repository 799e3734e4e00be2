"""What the process asks of the machine: memory to keep, memory there is, the device to run on."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Tell glibc to keep big freed buffers instead of returning them to the system at every update.

    Gradient buffers of several MB are freed and taken again thousands of times; page faults on them cost up to 40 %
    of an eager update on the CPU. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def available_memory() -> int | None:
    """Bytes that a new process can take without swapping, or None where the system does not tell."""
    limits = []
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            fields = dict(line.split(":", 1) for line in meminfo)
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        try:
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (AttributeError, ValueError, OSError):
            return None
    try:  # a container's own limit, cgroup v2
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as limit:
            limits.append(int(limit.read()))
    except (OSError, ValueError):
        pass
    return min(limits)


def pick_device(name: str) -> torch.device:
    """`auto` (a GPU if there is one), `cpu` or `cuda`.

    Raises:
        ValueError: another name, or `cuda` where torch sees no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is '{name}', expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no CUDA GPU here: use device=cpu or device=auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
