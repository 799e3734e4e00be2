"""How many threads a process computes with."""

from __future__ import annotations

import os

MOST = 1024


def count(name: str, default: int, runs: int = 1) -> int:
    """Threads for torch's operations: a number, or `auto`.

    `auto` is torch's `default`, or this run's share of the cores that the process may use: cores // runs, at least 1.

    Raises:
        ValueError: anything else.
    """
    if name == "auto":
        return max(min(default, usable_cores() // runs), 1)
    if not (name.isdecimal() and 1 <= int(name) <= MOST):
        raise ValueError(f"threads={name}, expected auto or a number from 1 to {MOST}")
    return int(name)


def usable_cores() -> int:
    """Cores that this process may run on: its affinity and its control group's quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(affinity, _quota(affinity)), 1)


def _quota(cores: int) -> int:
    """Whole cores of the CPU time that a container gets (cgroup v2, then v1); `cores` where there is no limit."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return cores if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        pass
    try:
        with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", encoding="ascii") as file:
            limit = int(file.read())
        with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us", encoding="ascii") as file:
            return cores if limit <= 0 else limit // int(file.read())
    except (OSError, ValueError):
        return cores
