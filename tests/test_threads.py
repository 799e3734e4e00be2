"""How many threads a process takes, and that its idle ones sleep soon."""

from __future__ import annotations

import builtins
import io
import os
from pathlib import Path
from typing import Any

import pytest

from nap_rl import threads


def container(monkeypatch: pytest.MonkeyPatch, quota: str | None, cores: int) -> None:
    """A process that may run on `cores` cores, in a control group whose cpu.max is `quota`."""
    real = builtins.open

    def opened(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).startswith("/sys/fs/cgroup"):
            if quota is None or Path(path).name != "cpu.max":
                raise FileNotFoundError(path)
            return io.StringIO(quota)
        return real(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)


@pytest.mark.parametrize(
    ("quota", "cores", "usable"),
    [
        (None, 8, 8),
        ("max 100000\n", 8, 8),
        ("400000 100000\n", 8, 4),
        ("150000 100000\n", 8, 1),
        ("50000 100000\n", 8, 1),
        ("1600000 100000\n", 2, 2),
        ("nonsense", 3, 3),
    ],
)
def test_auto_is_what_the_process_may_use(
    quota: str | None, cores: int, usable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    container(monkeypatch, quota, cores)
    assert threads.usable_cores() == usable
    assert threads.count("auto", default=64) == usable
    assert threads.count("auto", default=1) == 1  # as OMP_NUM_THREADS says it


@pytest.mark.parametrize(("runs", "expected"), [(1, 8), (2, 4), (3, 2), (8, 1), (20, 1)])
def test_auto_shares_the_cores_among_the_runs_of_a_machine(
    runs: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    container(monkeypatch, None, 8)
    assert threads.count("auto", default=8, runs=runs) == expected


def test_a_number_is_taken_as_it_is() -> None:
    assert threads.count("3", default=1) == threads.count("3", default=1, runs=2) == 3


@pytest.mark.parametrize("name", ["0", "-1", "1.5", "all", "", "1025"])
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"threads={name}, expected auto or a number from 1 to 1024"):
        threads.count(name, default=1)
