"""What the machine has: memory, disk, device. torch is imported only by what needs it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LEARNER_BYTES = 2 << 30
"""Left free on a GPU for networks, moments, activations and the workspaces of libraries: an estimate."""

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


def flush_denormals() -> None:
    """Let this thread, and those it starts, take numbers below 1.2e-38 for zero, where the CPU can.

    Adam's moments of a weight that gets no gradient (of a dead unit, say) halve every few updates until they are that
    small, and then operations on them take many times as long: the Adam step of a data-efficient Rainbow on a game
    took 6.0 ms instead of 0.8 (`python -m benchmarks.denormals`).
    """
    import torch

    torch.set_flush_denormal(True)


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
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no CUDA GPU here: use device=cpu or device=auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def described() -> dict[str, str | int | None]:
    """{"processor", "cores", "gpu"} of this machine, for the record; None where the system does not tell."""
    import torch

    processor: str | None = platform.processor() or None
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = named[0] if named else processor
    except OSError:
        pass
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": processor, "cores": os.cpu_count(), "gpu": gpu}


def gpu_ids() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [name.strip() for name in chosen.split(",")][:count] if chosen else [str(i) for i in range(count)]


def free_device_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory that a replay can take: those that are free, less `LEARNER_BYTES`."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return max(free - LEARNER_BYTES, 0)


def free_space(folder: Path) -> int | None:
    """Bytes that can be written below `folder`, which need not exist yet; None where the system does not tell."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
