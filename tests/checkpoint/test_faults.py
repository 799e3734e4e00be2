"""The previous checkpoint loads after a disk failed, filled up or stopped in the middle of a write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nap_rl import checkpoint


def save(parent: Path, step: int) -> Path:
    weight = torch.full((3, 4), float(step))
    return checkpoint.save(
        parent,
        f"step-{step:09}",
        tensors={"network": {"w": weight}, "optimizer": {"w": weight}},
        blobs={f"x{step}": lambda: bytes([step % 256]) * 56},
        meta={"step": step},
    )


def assert_holds(path: Path, step: int) -> None:
    found = checkpoint.load(path)
    assert found.meta == {"step": step}
    assert all((group["w"] == step).all() for group in found.tensors.values()) and len(found.tensors) == 2
    assert {name: set(file.read_bytes()) for name, file in found.blobs.items()} == {f"x{step}": {step % 256}}


def names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


CALLS = ("open", "write", "fsync", "rename", "mkdir", "close")


class FailingDisk:
    """Fails at the `fail_at`-th call of os.open, write, fsync, rename, mkdir or close, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, *, for_good: bool = False) -> None:
        self.calls: list[str] = []
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name), fail_at, for_good))

    def _wrap(self, name: str, real: Callable[..., Any], fail_at: int, for_good: bool) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            if name == "close":
                real(*arguments, **options)  # a failing close still gives the descriptor back
            if len(self.calls) == fail_at or (for_good and len(self.calls) >= fail_at):
                raise OSError(28, "No space left on device")
            return None if name == "close" else real(*arguments, **options)

        return call


def calls_of_a_save(parent: Path) -> list[str]:
    """Every call of the third save in a folder: it prunes the first."""
    for step in [1, 2]:
        save(parent, step)
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch, 0)
        save(parent, 3)
    assert set(CALLS) <= set(disk.calls)
    assert disk.calls[:2] == ["mkdir", "mkdir"]  # the parent, which exists already; the temporary directory
    return disk.calls


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "from then on"])
def test_a_failure_at_any_call_leaves_the_previous_checkpoints_sound(tmp_path: Path, for_good: bool) -> None:
    published, refused = 0, 0
    for k in range(2, len(calls_of_a_save(tmp_path / "count")) + 1):
        parent = tmp_path / str(k)
        save(parent, 1)
        save(parent, 2)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            FailingDisk(patch, k, for_good=for_good)
            try:
                save(parent, 3)
            except OSError:
                failed = True
            else:
                failed = False
                assert "could not be removed" in str(caught[-1].message)  # only pruning fails with a warning
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing half-made has a final name
            newest = checkpoint.latest(parent)
        assert newest is not None
        if newest.name.endswith("2"):
            refused += 1
            assert failed
            assert_holds(newest, 2)
            assert_holds(parent / "step-000000001", 1)
            assert for_good or names(parent) == ["step-000000001", "step-000000002"]
        else:  # the failure came after the rename
            published += 1
            assert_holds(newest, 3)
            assert_holds(parent / "step-000000002", 2)
        save(parent, 4)  # and the next save works
        assert_holds(parent / "step-000000004", 4)
    assert refused >= 20
    assert published >= 4


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[: max(1, len(data) // 3)]))
    path = save(tmp_path, 1)
    monkeypatch.undo()
    assert_holds(path, 1)


def test_every_file_and_directory_is_synced_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(fd: int) -> None:
        events.append("fsync " + Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    def note_rename(source: Path, target: Path) -> None:
        events.append(f"rename {source.name} {target.name}")
        rename(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    path = save(tmp_path / "parent", 1)
    temporary = events[-2].split()[1]
    files = [f"fsync {file.name}" for file in path.iterdir()]
    assert sorted(events[:-3]) == sorted(files)
    assert events[-4:] == [
        "fsync manifest.json", f"fsync {temporary}", f"rename {temporary} step-000000001", "fsync parent"
    ]  # fmt: skip


def test_a_file_size_limit_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    code = f"""
import resource, sys, torch
from pathlib import Path
from nap_rl import checkpoint
parent = Path({str(tmp_path)!r})
checkpoint.save(parent, "step-1", tensors={{"network": {{"w": torch.ones(4)}}}}, meta={{"step": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoint.save(parent, "step-2", tensors={{"network": {{"w": torch.ones(40_000)}}}}, meta={{"step": 2}})
except OSError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused:")
    assert names(tmp_path) == ["step-1"]
    assert checkpoint.load(tmp_path / "step-1").meta == {"step": 1}


SAVING_LOOP = """
import sys, torch
from pathlib import Path
from nap_rl import checkpoint
for step in range(1, 100_000):
    weight = torch.full((400, 500), float(step))
    checkpoint.save(
        Path(sys.argv[1]), f"step-{step:09}", meta={"step": step},
        blobs={f"x{step}": lambda: bytes([step % 256]) * 800_000},
        tensors={"network": {"w": weight}, "optimizer": {"w": weight}},
    )
    if step == 2:
        print("saving", flush=True)
"""


def kill_while_saving(parent: Path, delays: Iterator[float]) -> set[str]:
    """Kills a saving loop after each delay; the kinds of things that were left behind."""
    left = set()
    for delay in delays:
        folder = parent / f"{delay:.6f}"
        loop = subprocess.Popen([sys.executable, "-c", SAVING_LOOP, str(folder)], stdout=subprocess.PIPE)
        assert loop.stdout is not None and loop.stdout.readline() == b"saving\n"
        time.sleep(delay)
        loop.kill()
        assert loop.wait() == -signal.SIGKILL
        loop.stdout.close()
        left |= {name.split(".")[1] if name.startswith(".tmp") else "checkpoint" for name in names(folder)}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            newest = checkpoint.latest(folder)
        assert newest is not None
        step = int(newest.name.removeprefix("step-"))
        assert_holds(newest, step)
        sound = [path for path in folder.iterdir() if path.name.startswith("step-")]
        assert len(sound) >= 2
        for path in sound:
            checkpoint.load(path)
        checkpoint.save(folder, f"step-{step + 1:09}", tensors={}, meta={})
        assert not [name for name in names(folder) if name.startswith(".tmp")]
    return left


def test_kill_9_while_saving_never_costs_a_checkpoint(tmp_path: Path) -> None:
    kill_while_saving(tmp_path, iter([0.003, 0.0071, 0.0123]))


@pytest.mark.slow
def test_kill_9_while_saving_never_costs_a_checkpoint_in_fifty_kills(tmp_path: Path) -> None:
    left = kill_while_saving(tmp_path, iter(np.random.default_rng(0).uniform(0, 0.03, size=50).tolist()))
    assert left == {"checkpoint", "tmp"}  # some kills did hit a checkpoint half written
